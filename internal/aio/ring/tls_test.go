package ring_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"math/big"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/aiotest"
	"keelson.io/keelson/internal/aio/ring"
)

// authority is a CA for one test.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, pool: x509.NewCertPool()}
	a.cert, a.key = a.sign("test CA", true)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) sign(name string, isCA bool) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: isCA, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := a.cert, a.key
	if isCA {
		parent, signer = tmpl, key
		tmpl.KeyUsage = x509.KeyUsageCertSign
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// secure gives the loop a node certificate.
func (a *authority) secure(cfg *ring.Config) {
	cert, key := a.sign(cfg.Node, false)
	pair := tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
	both := &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: a.pool, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
	}
	cfg.TLS = func() (client, server *tls.Config) { return both, both }
	cfg.PeerName = func(s tls.ConnectionState) (string, error) {
		if len(s.PeerCertificates) == 0 {
			return "", errors.New("no certificate")
		}
		return s.PeerCertificates[0].Subject.CommonName, nil
	}
}

func TestContractTLS(t *testing.T) {
	a := newAuthority(t)
	aiotest.Run(t, func(t *testing.T) aiotest.World {
		return world(t, func(_ int, cfg *ring.Config) { a.secure(cfg) })
	})
}

// ends is a handler that reports how a connection ended.
type ends chan error

func (e ends) Opened(c aio.Conn)             {}
func (e ends) Data(c aio.Conn, p []byte) int { return len(p) }
func (e ends) Closed(c aio.Conn, err error)  { e <- err }
func dial(l *ring.Loop, node, addr string, shard int) error {
	e := make(ends, 1)
	l.Post(func() { l.Dial(node, addr, shard, e) })
	return <-e
}

// TestDialRefuses: whoever isn't the node that was dialled, or has no certificate of
// the cluster, gets no connection, and neither does one who asks for a shard that isn't
// there.
func TestDialRefuses(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	make := func(node string, a *authority) *ring.Loop {
		cfg := ring.Config{Node: node, Log: slog.New(slog.DiscardHandler)}
		if a != nil {
			a.secure(&cfg)
		}
		return newLoop(t, cfg)
	}
	server := make("a", ours)
	server.Post(func() {
		server.OnAccept(func(aio.Conn) aio.ConnHandler {
			t.Error("a connection was accepted")
			return nil
		})
	})
	addr := listen(t, server).Addr().String()
	for _, c := range []struct {
		what  string
		from  *ring.Loop
		node  string
		shard int
	}{
		{"the wrong node", make("b", ours), "c", 0},
		{"another cluster", make("b", others), "a", 0},
		{"no encryption", make("b", nil), "a", 0},
		{"no such shard", make("b", ours), "a", 1},
	} {
		err := dial(c.from, c.node, addr, c.shard)
		if !errors.Is(err, aio.ErrConnLost) {
			t.Errorf("%s: %v", c.what, err)
		}
		t.Logf("%s: %v", c.what, err)
	}
}
