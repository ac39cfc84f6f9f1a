// Package pkitest makes the certificates of test clusters with package pki, so that tests meet what nodes meet. For tests only; it
// owns no goroutine.
package pkitest

import (
	"crypto/tls"
	"testing"

	"keelson.io/keelson/internal/pki"
)

// Identities makes a CA and a certificate for each node of a cluster. The function of a node returns the configurations with which it
// dials and answers others; pki.PeerName tells who is at the other end.
func Identities(t testing.TB, cluster string, nodes ...string) map[string]func() (client, server *tls.Config) {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	ca, err := pki.NewCA(cluster)
	must(err)
	out := make(map[string]func() (client, server *tls.Config))
	for _, n := range nodes {
		pair, err := ca.NewPair(pki.Identity{Cluster: cluster, Role: pki.RoleNode, Node: n}, nil)
		must(err)
		client, err := pki.ClientTLS(ca.Trust, pair, "")
		must(err)
		server, err := pki.ServerTLS(ca.Trust, pair, false)
		must(err)
		out[n] = func() (*tls.Config, *tls.Config) { return client, server }
	}
	return out
}

// Fixed returns a CA that doesn't change.
func Fixed(ca *pki.CA) func() (*pki.CA, error) { return func() (*pki.CA, error) { return ca, nil } }
