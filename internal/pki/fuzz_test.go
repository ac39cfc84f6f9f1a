package pki

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/invariant/alloc"
	"keelson.io/keelson/internal/spec"
)

// FuzzTokens reads anything as a join token and as an API token: it is at most one of them, and says what it was read from.
func FuzzTokens(f *testing.F) {
	ca, err := NewCA("00000000000000aa")
	if err != nil {
		f.Fatal(err)
	}
	join, _ := NewToken(ca.Cert, nil, time.Hour, time.Now())
	tok, _ := NewAPIToken(ca.Cert, "ci", spec.RoleViewer, time.Hour, time.Now())
	for _, s := range []string{join.String(), tok.String(), " " + join.String() + "\n", "K1", "KA1::.", "K1" + strings.Repeat("0", 64) + "::.", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var j Token
		var a APIToken
		var jerr, aerr error
		alloc.Bounded(t, len(s), func() {
			j, jerr = ParseToken(s)
			a, aerr = ParseAPIToken(s)
		})
		switch {
		case jerr == nil && aerr == nil:
			t.Fatalf("%q is both", s)
		case jerr != nil && !errors.Is(jerr, ErrTokenForm), aerr != nil && !errors.Is(aerr, ErrAPITokenForm):
			t.Fatal(jerr, aerr)
		case jerr == nil && j.String() != strings.TrimSpace(s), aerr == nil && a.String() != strings.TrimSpace(s):
			t.Fatalf("%q was read as %v, %v", s, j, a)
		}
		if jerr == nil && j.Check(spec.Token{ID: j.ID, SecretHash: "00"}, time.Time{}) == nil {
			t.Fatal("a secret that nobody made was accepted")
		}
	})
}

// FuzzPEM reads anything as a certificate, a key and a certificate request.
func FuzzPEM(f *testing.F) {
	ca, err := NewCA("00000000000000aa")
	if err != nil {
		f.Fatal(err)
	}
	key, csr, err := NewRequest("n1", []string{"10.0.0.1", "h"})
	if err != nil {
		f.Fatal(err)
	}
	kp, err := EncodeKey(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(EncodeCert(ca.Cert))
	f.Add((&CA{Cert: ca.Cert, Others: []*x509.Certificate{ca.Cert}}).Encode())
	f.Add(kp)
	f.Add(csr)
	f.Fuzz(func(t *testing.T, b []byte) {
		alloc.Bounded(t, 1<<20+1000*len(b), func() {
			if c, err := ParseCert(b); err == nil {
				_, _ = IdentityOf(c)
			}
			_, _ = ParseKey(b)
			if ca, err := ParseCA(b); err == nil {
				if again, err := ParseCA(ca.Encode()); err != nil || again.Cert == nil {
					t.Fatal(err)
				}
			}
			_, _ = ca.SignRequest("00000000000000aa", b)
		})
	})
}
