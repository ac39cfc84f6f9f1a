package pki

import (
	"crypto/rand"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"keelson.io/keelson/internal/spec"
)

// Why an API token isn't accepted. Test with errors.Is.
var (
	// ErrAPITokenForm: it isn't an API token at all.
	ErrAPITokenForm = errors.New("this is no API token: it should look like KA1<64 hex digits>::<id>.<secret>; make one with 'keelson api-token create'")
	// ErrAPITokenCluster: the server's CA isn't the one that the token names.
	ErrAPITokenCluster = errors.New("the API token is of another cluster than the server, or of a CA that this one no longer trusts: check the address, or make a token there with 'keelson api-token create'")
	// ErrAPITokenUnknown: no such token was made, or it was revoked, or its secret is wrong.
	ErrAPITokenUnknown = errors.New("the API token is wrong, or was revoked; make a new one with 'keelson api-token create'")
	// ErrAPITokenExpired: it was good once.
	ErrAPITokenExpired = errors.New("the API token has expired; make a new one with 'keelson api-token create'")
)

// APIToken is an API token in clear: what its holder sends with each call.
type APIToken struct {
	CAHash string // of a CA of the cluster, so that the client knows whom it talks to before it sends the secret
	ID     string
	Secret string // 256 random bits, in hex
}

const apiTokenPrefix = "KA1"

// NewAPIToken makes an API token, and the record of it that is kept, which has the secret's SHA-256 alone. A slow hash would
// protect secrets that can be guessed; 256 random bits can't be.
func NewAPIToken(ca *x509.Certificate, name string, role spec.APIRole, ttl time.Duration, now time.Time) (APIToken, spec.APIToken) {
	var b [32]byte
	rand.Read(b[:]) // never fails
	t := APIToken{CAHash: Hash(ca), ID: spec.NewID(), Secret: hex.EncodeToString(b[:])}
	return t, spec.APIToken{
		ID: t.ID, Name: name, SecretHash: hashSecret(t.Secret), Role: role, Created: now.UTC(), Expires: now.Add(ttl).UTC(),
	}
}

// String is the token as it's sent.
func (t APIToken) String() string { return apiTokenPrefix + t.CAHash + "::" + t.ID + "." + t.Secret }

// ParseAPIToken reads an API token. The error is ErrAPITokenForm.
func ParseAPIToken(s string) (APIToken, error) {
	hash, id, secret, ok := cutToken(s, apiTokenPrefix, 64)
	if !ok {
		return APIToken{}, ErrAPITokenForm
	}
	return APIToken{CAHash: hash, ID: id, Secret: secret}, nil
}

// Check checks a token against the record of it. The error is ErrAPITokenUnknown or ErrAPITokenExpired.
func (t APIToken) Check(rec spec.APIToken, now time.Time) error {
	if rec.ID != t.ID || subtle.ConstantTimeCompare([]byte(rec.SecretHash), []byte(hashSecret(t.Secret))) != 1 {
		return ErrAPITokenUnknown
	}
	if !now.Before(rec.Expires) {
		return fmt.Errorf("%w (at %s)", ErrAPITokenExpired, rec.Expires.Format(time.RFC3339))
	}
	return nil
}
