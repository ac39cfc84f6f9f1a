package pki

import (
	"errors"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

func TestAPITokens(t *testing.T) {
	ca, _ := newCluster(t, "0000000000000001")
	now := time.Now()
	tok, rec := NewAPIToken(ca.Cert, "ci", spec.RoleOperator, time.Hour, now)
	got, err := ParseAPIToken(" " + tok.String() + "\n")
	if err != nil || got != tok || tok.CAHash != Hash(ca.Cert) || rec.Role != spec.RoleOperator || rec.Name != "ci" {
		t.Fatalf("%v, %v", got, err)
	}
	if strings.Contains(rec.SecretHash, tok.Secret) || len(tok.Secret) != 64 {
		t.Fatal("the record has the secret, or it is short")
	}
	wrong := tok
	wrong.Secret = strings.Repeat("0", 64)
	for _, tc := range []struct {
		err, want error
	}{
		{got.Check(rec, now), nil},
		{got.Check(rec, now.Add(time.Hour)), ErrAPITokenExpired},
		{wrong.Check(rec, now), ErrAPITokenUnknown},
		{got.Check(spec.APIToken{}, now), ErrAPITokenUnknown},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("got %v, want %v", tc.err, tc.want)
		}
	}
	join, _ := NewToken(ca.Cert, nil, time.Hour, now)
	for _, s := range []string{"", "KA1", "KA1::.", join.String(), tok.String()[2:], tok.String() + "0", strings.ToUpper(tok.String())} {
		if _, err := ParseAPIToken(s); !errors.Is(err, ErrAPITokenForm) {
			t.Errorf("%q: %v", s, err)
		}
	}
	if _, err := ParseToken(tok.String()); !errors.Is(err, ErrTokenForm) {
		t.Errorf("an API token passes for a join token: %v", err)
	}
}
