package pki

import (
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

func (p *Pair) tls() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key, Leaf: p.Cert}
}

// Trust returns the CAs that are trusted now. It is asked at each connection.
type Trust func() (*x509.CertPool, error)

// verify verifies the chain of the other side, without a host name. What comes with its certificate counts only as a link to a CA from roots.
func verify(s tls.ConnectionState, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
	if len(s.PeerCertificates) == 0 {
		return ErrNotKeelson
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}})
	return err
}

// ServerTLS is the configuration of a server that answers only to holders of a certificate of this cluster; with optional set, also to
// those without any (the endpoints that joining needs): then look at PeerIdentity. Session tickets are off: every
// connection proves its identity anew.
func ServerTLS(trust Trust, p *Pair, optional bool) (*tls.Config, error) {
	id, err := IdentityOf(p.Cert)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{p.tls()},
		// VerifyConnection verifies: whom to trust may have changed since the last connection.
		ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if optional && len(s.PeerCertificates) == 0 {
				return nil
			}
			pool, err := trust()
			if err != nil {
				return err
			}
			if err := verify(s, pool, x509.ExtKeyUsageClientAuth); err != nil {
				return fmt.Errorf("the client's certificate is refused: %w", err)
			}
			_, err = peer(s, id.Cluster)
			return err
		},
	}
	if optional {
		cfg.ClientAuth = tls.RequestClientCert
	}
	return cfg, nil
}

// ClientTLS is the configuration of a client that talks to a node of the cluster; node is that node's name, or "" for any.
// Who is at the other end is decided by the certificate's URI, not by the address that was dialled.
func ClientTLS(trust Trust, p *Pair, node string) (*tls.Config, error) {
	id, err := IdentityOf(p.Cert)
	if err != nil {
		return nil, err
	}
	cfg := verifying(func([]*x509.Certificate) (*x509.CertPool, error) { return trust() }, func(got Identity) error {
		if got.Cluster != id.Cluster {
			return fmt.Errorf("the server's certificate is %w (%s, this one is %s)", ErrOtherCluster, got.Cluster, id.Cluster)
		}
		if node != "" && got.Node != node {
			return fmt.Errorf("the server is node %q, node %q was meant: is its address right?", got.Node, node)
		}
		return nil
	})
	cfg.Certificates = []tls.Certificate{p.tls()}
	return cfg, nil
}

// PinnedTLS is the configuration of a client that has no certificate, but a token: it accepts the nodes of the
// cluster whose CA has the hash that the token names. Nodes send the CA's certificate with their own. What a
// wrong CA is answered with is wrong, an error such as ErrTokenCluster.
func PinnedTLS(hash string, wrong error) *tls.Config {
	return verifying(func(chain []*x509.Certificate) (*x509.CertPool, error) {
		for _, c := range chain[1:] {
			if subtle.ConstantTimeCompare([]byte(Hash(c)), []byte(hash)) == 1 {
				return (&CA{Cert: c}).Pool(), nil
			}
		}
		return nil, wrong
	}, func(Identity) error { return nil })
}

// verifying makes a client's configuration that accepts nodes that a CA from roots has signed and for which
// accept returns nil.
func verifying(roots func(chain []*x509.Certificate) (*x509.CertPool, error), accept func(Identity) error) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // VerifyConnection verifies the chain, without a host name
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return ErrNotKeelson
			}
			pool, err := roots(s.PeerCertificates)
			if err != nil {
				return err
			}
			if err := verify(s, pool, x509.ExtKeyUsageServerAuth); err != nil {
				if unknown := (x509.UnknownAuthorityError{}); errors.As(err, &unknown) {
					return fmt.Errorf("the server's certificate wasn't signed by this cluster's CA (%w): %w", ErrOtherCluster, err)
				}
				return fmt.Errorf("the server's certificate is refused: %w; are the clocks right?", err)
			}
			id, err := IdentityOf(s.PeerCertificates[0])
			if err != nil {
				return err
			}
			return accept(id)
		},
	}
}

// PeerIdentity returns who is at the other end of a connection, and whether a certificate was shown at all.
func PeerIdentity(s tls.ConnectionState) (Identity, bool) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, false
	}
	id, err := IdentityOf(s.PeerCertificates[0])
	return id, err == nil
}

// PeerName returns the name of the node at the other end.
func PeerName(s tls.ConnectionState) (string, error) {
	id, ok := PeerIdentity(s)
	if !ok {
		return "", fmt.Errorf("the other side is no node: %w", ErrNotKeelson)
	}
	return id.Node, nil
}

func peer(s tls.ConnectionState, cluster string) (Identity, error) {
	id, err := IdentityOf(s.PeerCertificates[0])
	if err != nil {
		return id, err
	}
	if id.Cluster != cluster {
		return id, fmt.Errorf("the certificate of %q is %w (%s, this one is %s)", s.PeerCertificates[0].Subject.CommonName,
			ErrOtherCluster, id.Cluster, cluster)
	}
	return id, nil
}
