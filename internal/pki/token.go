package pki

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"keelson.io/keelson/internal/spec"
)

// Why a token isn't accepted. Test with errors.Is.
var (
	// ErrTokenForm: it isn't a token at all.
	ErrTokenForm = errors.New("this is no join token: it should look like K1<64 hex digits>::<id>.<secret>; make one with 'keelson token create'")
	// ErrTokenCluster: the server's CA isn't the one that the token names.
	ErrTokenCluster = errors.New("the join token is of another cluster than the server, or of a CA that this one no longer trusts: check the address, or make a token there with 'keelson token create'")
	// ErrTokenUnknown: no such token was made, or it was deleted, or its secret is wrong.
	ErrTokenUnknown = errors.New("the join token is wrong, or was deleted; make a new one with 'keelson token create'")
	// ErrTokenExpired: it was good once.
	ErrTokenExpired = errors.New("the join token has expired; make a new one with 'keelson token create'")
)

// Token is a join token in clear: what the person at the new machine types.
type Token struct {
	CAHash string // of a CA of the cluster, so that the new machine knows whom it talks to
	ID     string
	Secret string
}

const tokenPrefix = "K1"

// NewToken makes a token, and the record of it that is kept, which doesn't contain the secret.
func NewToken(ca *x509.Certificate, roles []spec.Role, ttl time.Duration, now time.Time) (Token, spec.Token) {
	var b [16]byte
	rand.Read(b[:]) // never fails
	t := Token{CAHash: Hash(ca), ID: spec.NewID(), Secret: hex.EncodeToString(b[:])}
	return t, spec.Token{ID: t.ID, SecretHash: hashSecret(t.Secret), Roles: roles, Created: now.UTC(), Expires: now.Add(ttl).UTC()}
}

func hashSecret(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// cutToken takes a token of either kind apart: PREFIX<hash of the CA>::<id>.<secret>, all in hex.
func cutToken(s, prefix string, secretLen int) (hash, id, secret string, ok bool) {
	rest, ok1 := strings.CutPrefix(strings.TrimSpace(s), prefix)
	hash, rest, ok2 := strings.Cut(rest, "::")
	id, secret, ok3 := strings.Cut(rest, ".")
	return hash, id, secret, ok1 && ok2 && ok3 && isHex(hash, 64) && isHex(id, 16) && isHex(secret, secretLen)
}

// String is the token as it's typed.
func (t Token) String() string { return tokenPrefix + t.CAHash + "::" + t.ID + "." + t.Secret }

// ParseToken reads a token. The error is ErrTokenForm.
func ParseToken(s string) (Token, error) {
	hash, id, secret, ok := cutToken(s, tokenPrefix, 32)
	if !ok {
		return Token{}, ErrTokenForm
	}
	return Token{CAHash: hash, ID: id, Secret: secret}, nil
}

// isHex reports whether s is n lower-case hex digits.
func isHex(s string, n int) bool {
	return len(s) == n && strings.Trim(s, "0123456789abcdef") == ""
}

// CheckCA checks that the CA that the token names is one of those that a server sent. The error is ErrTokenCluster.
func (t Token) CheckCA(ca *CA) error {
	if !ca.Trusts(t.CAHash) {
		return ErrTokenCluster
	}
	return nil
}

// Check checks a token against the record of it. The error is ErrTokenUnknown or ErrTokenExpired.
func (t Token) Check(rec spec.Token, now time.Time) error {
	if rec.ID != t.ID || subtle.ConstantTimeCompare([]byte(rec.SecretHash), []byte(hashSecret(t.Secret))) != 1 {
		return ErrTokenUnknown
	}
	if now.After(rec.Expires) {
		return fmt.Errorf("%w (at %s)", ErrTokenExpired, rec.Expires.Format(time.RFC3339))
	}
	return nil
}
