package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"strings"
	"testing"
)

// showing is the pair of a node with all that it shows beside its certificate.
func showing(p *Pair, with ...*x509.Certificate) tls.Certificate {
	c := p.tls()
	for _, x := range with {
		c.Certificate = append(c.Certificate, x.Raw)
	}
	return c
}

// TestTwoCAs connects those who trust the old CA, the new one and both, as nodes do that aren't equally far on the way from one to the
// other; and those who have only a token. Whoever trusts the new one alone accepts nothing of the old one, whatever is shown with it.
func TestTwoCAs(t *testing.T) {
	const cluster = "0000000000000001"
	before, atBefore := newCluster(t, cluster)
	after, atAfter := newCluster(t, cluster)
	cross, err := before.Vouch(after)
	if err != nil {
		t.Fatal(err)
	}
	back, err := after.Vouch(before) // nobody makes this one
	if err != nil {
		t.Fatal(err)
	}
	both := &CA{Cert: after.Cert, Others: []*x509.Certificate{before.Cert}, Cross: []*x509.Certificate{cross}}
	all := []*x509.Certificate{after.Cert, before.Cert, cross}
	pinned := func(ca *CA) *tls.Config { return PinnedTLS(Hash(ca.Cert), ErrTokenCluster) }
	trusting := func(ca *CA, p *Pair, with ...*x509.Certificate) *tls.Config {
		c, err := ClientTLS(ca.Trust, p, "")
		if err != nil {
			t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{showing(p, with...)}
		return c
	}
	for name, x := range map[string]struct {
		trusts *CA // the server
		has    *Pair
		shows  []*x509.Certificate
		client *tls.Config
		ok     bool
	}{
		"both, old and new":                      {both, atBefore, all, trusting(both, atAfter, all...), true},
		"both, new and old":                      {both, atAfter, all, trusting(both, atBefore, all...), true},
		"one that hasn't begun, by who vouches":  {both, atAfter, all, trusting(before, atBefore, before.Cert), true},
		"it is called by one that has":           {before, atBefore, nil, trusting(both, atAfter, all...), true},
		"but not without a word for it":          {before, atBefore, nil, trusting(both, atAfter), false},
		"a token of the old one, at the new":     {both, atAfter, all, pinned(before), true},
		"a token of the new one, at the new":     {both, atAfter, all, pinned(after), true},
		"a token of the old one, at the end":     {after, atAfter, []*x509.Certificate{after.Cert}, pinned(before), false},
		"the old one at the end":                 {after, atAfter, all, trusting(both, atBefore, before.Cert, cross), false},
		"the old one as the server at the end":   {both, atBefore, all, trusting(after, atAfter, after.Cert), false},
		"a leaf of the old one vouches for none": {after, atAfter, nil, trusting(both, atBefore, atAfter.Cert, before.Cert), false},
		"that the new one vouched would count":   {after, atAfter, nil, trusting(both, atBefore, back), true},
	} {
		t.Run(name, func(t *testing.T) {
			server, err := ServerTLS(x.trusts.Trust, x.has, strings.HasPrefix(name, "a token"))
			if err != nil {
				t.Fatal(err)
			}
			server.Certificates = []tls.Certificate{showing(x.has, x.shows...)}
			s, c := shake(t, server, x.client)
			if err := errors.Join(s, c); (err == nil) != x.ok {
				t.Error(err)
			}
		})
	}
	again, err := ParseCA(both.Encode())
	if err != nil || !bytes.Equal(again.Encode(), both.Encode()) || len(again.Others) != 1 || len(again.Cross) != 1 || !again.Cert.Equal(after.Cert) {
		t.Errorf("%+v, %v", again, err)
	}
	for text, want := range map[string]string{"": "no certificate", "x": "no certificate", strings.Repeat(string(EncodeCert(after.Cert)), maxCAs+1): "more than 16"} {
		if _, err := ParseCA([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestKeysOfTwoCAs: the key of the CA that signs is found wherever it is, and a key of none is no key.
func TestKeysOfTwoCAs(t *testing.T) {
	before, _ := newCluster(t, "0000000000000001")
	after, _ := newCluster(t, "0000000000000001")
	d := Dir(t.TempDir())
	has := func(want ...*CA) {
		t.Helper()
		got, err := d.LoadCA()
		if err != nil {
			t.Fatal(err)
		}
		keys, err := d.Keys()
		if err != nil || len(keys) != len(want) {
			t.Fatalf("%d keys, want %d: %v", len(keys), len(want), err)
		}
		if len(want) > 0 && (got.Key == nil || !belongs(got.Cert, got.Key)) {
			t.Fatal("the CA that signs has no key")
		}
		for _, ca := range want {
			if k, err := d.KeyOf(ca.Cert); err != nil || k == nil {
				t.Fatalf("%v, %v", k, err)
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(d.SaveCA(before))
	must(d.SaveNextKey(after.Key))
	has(before, after)
	must(d.SaveTrust(&CA{Cert: after.Cert, Others: []*x509.Certificate{before.Cert}}))
	has(before, after)
	other, _ := newCluster(t, "0000000000000001")
	must(d.SaveNextKey(other.Key)) // the one that signs is kept
	has(after, other)
	must(d.KeepKeyOf(after.Cert))
	has(after)
	must(d.KeepKeyOf(after.Cert))
	must(d.SaveTrust(after))
	has(after)
	must(d.SaveNextKey(before.Key)) // of a plan that never was
	has(after, before)
	must(d.KeepKeyOf(after.Cert))
	has(after)
	must(d.SaveNextKey(before.Key))
	must(os.Remove(d.Path(caKeyFile)))
	if _, err := d.LoadCA(); err == nil {
		t.Error("a key of no CA that is trusted was taken")
	}
	must(d.KeepKeyOf(after.Cert))
	has()
	must(d.NoteFormer(before, after.Cert))
	must(d.NoteFormer(&CA{Cert: after.Cert, Others: []*x509.Certificate{before.Cert}}, after.Cert))
	if list, err := d.Former(); err != nil || len(list) != 1 || list[0] != Hash(before.Cert) {
		t.Errorf("%v, %v", list, err)
	}
}
