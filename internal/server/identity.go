package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"keelson.io/keelson/internal/api"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

func pkiDir(dataDir string) pki.Dir { return pki.Dir(filepath.Join(dataDir, "pki")) }

func certPath(dataDir string) string { return pkiDir(dataDir).Path(pki.NodePair + ".crt") }
func keyPath(dataDir string) string  { return pkiDir(dataDir).Path(pki.NodePair + ".key") }

// identity is a node's certificate, and the CAs that it trusts, as they are in the data directory now: both change there. Safe for
// concurrent use.
type identity struct {
	dir pki.Dir
	mu  struct {
		sync.Mutex
		valid  time.Duration // of certificates that the CA signs; 0 is pki's
		pair   *pki.Pair
		loaded time.Time // of the file that pair is from
		ca     *pki.CA
		pool   *x509.CertPool // of ca
		caFile os.FileInfo    // that ca is from
	}
}

func loadIdentity(dataDir string) (*identity, error) {
	id := &identity{dir: pkiDir(dataDir)}
	if _, err := id.authority(); err != nil {
		return nil, err
	}
	_, err := id.pair()
	return id, err
}

// signFor sets how long certificates are valid that the CA signs.
func (id *identity) signFor(valid time.Duration) {
	id.mu.Lock()
	defer id.mu.Unlock()
	id.mu.valid, id.mu.caFile = valid, nil
}

// authority is the CA, with its key where that is kept, and the others that are trusted.
func (id *identity) authority() (*pki.CA, error) {
	ca, _, err := id.trusted()
	return ca, err
}

// trust is pki.Trust.
func (id *identity) trust() (*x509.CertPool, error) {
	_, pool, err := id.trusted()
	return pool, err
}

func (id *identity) trusted() (*pki.CA, *x509.CertPool, error) {
	st, err := os.Stat(id.dir.Path("ca.crt"))
	if err != nil {
		return nil, nil, fmt.Errorf("the cluster's CA: %w", err)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if was := id.mu.caFile; was == nil || !os.SameFile(was, st) || !was.ModTime().Equal(st.ModTime()) {
		ca, err := id.dir.LoadCA()
		if err != nil {
			return nil, nil, fmt.Errorf("the cluster's CA: %w", err)
		}
		ca.NodeValid = id.mu.valid
		id.mu.ca, id.mu.pool, id.mu.caFile = ca, ca.Pool(), st
	}
	return id.mu.ca, id.mu.pool, nil
}

func (id *identity) pair() (*pki.Pair, error) {
	st, err := os.Stat(id.dir.Path(pki.NodePair + ".crt"))
	if err != nil {
		return nil, fmt.Errorf("this node's certificate: %w", err)
	}
	id.mu.Lock()
	defer id.mu.Unlock()
	if !st.ModTime().Equal(id.mu.loaded) {
		p, err := id.dir.LoadPair(pki.NodePair)
		if err != nil {
			return nil, fmt.Errorf("this node's certificate: %w", err)
		}
		id.mu.pair, id.mu.loaded = p, st.ModTime()
	}
	return id.mu.pair, nil
}

func (id *identity) certificate() (*tls.Certificate, error) {
	p, err := id.pair()
	if err != nil {
		return nil, err
	}
	ca, err := id.authority()
	if err != nil {
		return nil, err
	}
	// The CA's certificate goes with it for those who have a token, and by it the hash of the CA.
	return &tls.Certificate{Certificate: append([][]byte{p.Cert.Raw}, ca.Chain()...), PrivateKey: p.Key, Leaf: p.Cert}, nil
}

// client is the TLS configuration of connections to the node of that name, "" for any of the cluster.
func (id *identity) client(node string) (*tls.Config, error) {
	p, err := id.pair()
	if err != nil {
		return nil, err
	}
	c, err := pki.ClientTLS(id.trust, p, node)
	if err != nil {
		return nil, err
	}
	c.Certificates = nil
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.certificate() }
	return c, nil
}

// server is the TLS configuration of a listener; with optional, a client may come without a certificate.
func (id *identity) server(optional bool) (*tls.Config, error) {
	p, err := id.pair()
	if err != nil {
		return nil, err
	}
	c, err := pki.ServerTLS(id.trust, p, optional)
	if err != nil {
		return nil, err
	}
	c.Certificates = nil
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return id.certificate() }
	return c, nil
}

// engineTLS returns the configurations of connections between engines; nodes that were removed, which refused tells, are kept out.
func (id *identity) engineTLS(refused func(node string, issued time.Time) bool) (func() (client, server *tls.Config), error) {
	client, err := id.client("")
	if err != nil {
		return nil, err
	}
	server, err := id.server(false)
	if err != nil {
		return nil, err
	}
	server = refusing(server, refused)
	return func() (*tls.Config, *tls.Config) { return client, server }, nil
}

// dialer keeps one client for each API address. Safe for concurrent use.
type dialer struct {
	id *identity
	mu struct {
		sync.Mutex
		clients map[string]*api.Client
	}
}

func newDialer(id *identity) *dialer {
	d := &dialer{id: id}
	d.mu.clients = map[string]*api.Client{}
	return d
}

// dial returns the client for a node's API. Connections are made when they are used.
func (d *dialer) dial(n spec.Node) *api.Client {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := n.Name + " " + n.APIAddr
	c := d.mu.clients[key]
	if c == nil {
		t, err := d.id.client(n.Name)
		if err != nil {
			t = &tls.Config{} // it can't verify anybody, so every call fails and says so
		}
		c = api.NewClient(httpClient(t), "https://"+n.APIAddr)
		d.mu.clients[key] = c
	}
	return c
}

// httpClient gives up early on hosts that don't answer, and doesn't limit how long a call may take.
func httpClient(c *tls.Config) *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig: c, TLSHandshakeTimeout: 5 * time.Second,
		DialContext:     (&net.Dialer{Timeout: 3 * time.Second}).DialContext,
		IdleConnTimeout: 30 * time.Second, MaxIdleConnsPerHost: 4,
	}}
}

// peerClient returns a client for the API at addr, of whichever node of the cluster.
func peerClient(dataDir, addr string) (*api.Client, error) {
	id, err := loadIdentity(dataDir)
	if err != nil {
		return nil, err
	}
	t, err := id.client("")
	if err != nil {
		return nil, err
	}
	return api.NewClient(httpClient(t), "https://"+addr), nil
}

// TokenClient returns a client that shows an API token to the API at server (HOST:PORT or a URL), once that
// has proved to be of the cluster that the token names.
func TokenClient(token, server string) (*api.Client, error) {
	t, err := pki.ParseAPIToken(token)
	if err != nil {
		return nil, err
	}
	h := httpClient(pki.PinnedTLS(t.CAHash, pki.ErrAPITokenCluster))
	h.Transport = bearer{t.String(), h.Transport}
	return api.NewClient(h, "https://"+apiAddress(server)), nil
}

// bearer sends a token with each request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// apiAddress reads HOST, HOST:PORT or a URL.
func apiAddress(server string) string {
	addr := strings.TrimSuffix(strings.TrimPrefix(server, "https://"), "/")
	if _, _, err := net.SplitHostPort(addr); err != nil {
		addr = net.JoinHostPort(strings.Trim(addr, "[]"), fmt.Sprint(DefaultConfig().APIPort))
	}
	return addr
}

// LocalClient returns a client that shows the certificate in the data directory: to this node's API,
// or to the one at server (HOST:PORT or a URL).
func LocalClient(dataDir, server string) (*api.Client, error) {
	st, err := ReadState(dataDir)
	if errors.Is(err, ErrNoState) {
		return nil, fmt.Errorf("%w; run this on a node of a cluster, or give its data directory with --data-dir", err)
	}
	if err != nil {
		return nil, err
	}
	if server == "" {
		server = st.APIAddr
	}
	return peerClient(dataDir, apiAddress(server))
}
