package server

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

func testConfig(t *testing.T, node string) Config {
	t.Helper()
	c := DefaultConfig()
	c.Node, c.Address, c.DataDir, c.RunDir, c.Log.Level = node, "127.0.0.1", t.TempDir(), t.TempDir(), "error"
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return c
}

// cluster is a founder's data directory with its API served from memory.
type cluster struct {
	cfg   Config
	st    State
	store *mem.Store
	url   string
	ca    *pki.CA
	now   time.Time // of the API
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ctx := context.Background()
	c := &cluster{cfg: testConfig(t, "n1"), store: mem.New(), now: time.Now()}
	if err := Prepare(ctx, c.cfg); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.st, err = c.cfg.ownState(); err != nil {
		t.Fatal(err)
	}
	if err := registerOnce(ctx, c.cfg, c.st, c.store); err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(c.cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if c.ca, err = id.authority(); err != nil {
		t.Fatal(err)
	}
	s := api.New(api.Config{
		Node: "n1", Store: c.store, CA: id.authority, Rotation: rotation{id.dir}, Dial: newDialer(id).dial, Log: slog.New(slog.DiscardHandler),
		Endpoints: func() []string { return []string{"https://127.0.0.1:9502"} }, Now: func() time.Time { return c.now },
	})
	conf, err := id.server(true)
	if err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{Handler: s.Handler(), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	go hs.Serve(l)
	t.Cleanup(func() { hs.Close() })
	c.url = "https://" + l.Addr().String()
	return c
}

func (c *cluster) token(t *testing.T, roles ...spec.Role) string {
	t.Helper()
	text, rec := pki.NewToken(c.ca.Cert, roles, time.Hour, c.now)
	if _, err := c.store.PutToken(context.Background(), rec, 0); err != nil {
		t.Fatal(err)
	}
	return text.String()
}

func (c *cluster) joiner(t *testing.T, node, token string) Config {
	t.Helper()
	j := testConfig(t, node)
	j.Join = JoinConfig{URL: c.url, Token: token}
	return j
}

func TestPrepareIsIdempotent(t *testing.T) {
	cfg := testConfig(t, "n1")
	for range 3 {
		if err := Prepare(context.Background(), cfg); err != nil {
			t.Fatal(err)
		}
	}
	st, err := cfg.ownState()
	if err != nil {
		t.Fatal(err)
	}
	// Dying before the state was written leads to the same cluster.
	again := st
	again.ClusterID, again.Founder = "", false
	if err := again.write(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if got, err := cfg.ownState(); err != nil || got.ClusterID != st.ClusterID || got.NodeID != st.NodeID {
		t.Fatalf("%+v, %v; was %+v", got, err, st)
	}
}

func TestPrepareRefusesOthersData(t *testing.T) {
	cfg := testConfig(t, "n1")
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	other := newCluster(t)
	for name, change := range map[string]func(*Config){
		"node n1":                 func(c *Config) { c.Node = "n2" },
		"has the roles":           func(c *Config) { c.Roles = []spec.Role{spec.RoleMetadata} },
		"metadata.endpoints":      func(c *Config) { c.Metadata.Endpoints = []string{"http://e:2379"} },
		"token is of another one": func(c *Config) { c.Join = JoinConfig{URL: other.url, Token: other.token(t, spec.RoleStorage)} },
	} {
		c := cfg
		change(&c)
		if err := Prepare(context.Background(), c); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	st, err := cfg.ownState()
	if err != nil {
		t.Fatal(err)
	}
	if err := registerOnce(context.Background(), cfg, st, other.store); !errors.Is(err, ErrPermanent) {
		t.Errorf("the metadata of another cluster: %v", err)
	}
}

func TestFounderNeedsMetadataRole(t *testing.T) {
	cfg := testConfig(t, "n1")
	cfg.Roles = []spec.Role{spec.RoleStorage}
	if err := Prepare(context.Background(), cfg); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "join.url") {
		t.Fatal(err)
	}
}

func TestJoin(t *testing.T) {
	c := newCluster(t)
	cfg := c.joiner(t, "n2", c.token(t, spec.RoleMetadata, spec.RoleStorage))
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	st, err := cfg.ownState()
	if err != nil {
		t.Fatal(err)
	}
	if st.ClusterID != c.st.ClusterID || st.Founder || len(st.Endpoints) != 1 || len(st.Peers) != 1 {
		t.Fatalf("%+v", st)
	}
	ca, err := pkiDir(cfg.DataDir).LoadCA()
	if err != nil || ca.Key == nil {
		t.Fatalf("a metadata node has no CA key: %v", err)
	}
	// A restart doesn't ask anybody, and the token may be gone.
	cfg.Join.URL = "https://127.0.0.1:1"
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	// The new certificate is good for the API.
	cl, err := LocalClient(cfg.DataDir, c.url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cl.Cluster.GetSettings(context.Background(), &pb.GetSettingsRequest{}); err != nil {
		t.Fatal(err)
	}
	storage := c.joiner(t, "n3", c.token(t, spec.RoleStorage))
	storage.Roles = []spec.Role{spec.RoleStorage}
	if err := Prepare(context.Background(), storage); err != nil {
		t.Fatal(err)
	}
	if ca, err := pkiDir(storage.DataDir).LoadCA(); err != nil || ca.Key != nil {
		t.Fatalf("a storage node was given the CA's key, or %v", err)
	}
}

func TestJoinRefused(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	good := c.token(t, spec.RoleMetadata, spec.RoleStorage)
	foreignSecret := good[:len(good)-4] + "0000"
	for name, cfg := range map[string]Config{
		"no join token":    c.joiner(t, "n2", "K1abc"),
		"another cluster":  c.joiner(t, "n2", other.token(t, spec.RoleMetadata, spec.RoleStorage)),
		"wrong":            c.joiner(t, "n2", foreignSecret),
		"role metadata":    c.joiner(t, "n2", c.token(t, spec.RoleStorage)),
		"named n1 already": c.joiner(t, "n1", good),
	} {
		err := Prepare(context.Background(), cfg)
		if !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := cfg.ownState(); !errors.Is(err, ErrNoState) {
			t.Errorf("%s: it joined, %v", name, err)
		}
	}
	c.now = c.now.Add(2 * time.Hour)
	if err := Prepare(context.Background(), c.joiner(t, "n2", good)); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired token: %v", err)
	}
	// A cluster that can't be reached is no reason to give up.
	gone := c.joiner(t, "n2", good)
	gone.Join.URL = "https://127.0.0.1:1"
	if err := Prepare(context.Background(), gone); err == nil || errors.Is(err, ErrPermanent) {
		t.Errorf("unreachable: %v", err)
	}
}

func TestAPINeedsCertificate(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	none := api.NewClient(httpClient(&tls.Config{InsecureSkipVerify: true}), c.url)
	if _, err := none.Nodes.ListNodes(context.Background(), &pb.ListNodesRequest{}); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("without a certificate: %v", err)
	}
	// A certificate of another cluster fails on both sides.
	foreign, err := LocalClient(other.cfg.DataDir, c.url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := foreign.Nodes.ListNodes(context.Background(), &pb.ListNodesRequest{}); err == nil || !strings.Contains(err.Error(), "of another cluster") {
		t.Errorf("the client of another cluster: %v", err)
	}
	pair, err := pkiDir(other.cfg.DataDir).LoadPair(pki.NodePair)
	if err != nil {
		t.Fatal(err)
	}
	blind := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{pair.Cert.Raw}, PrivateKey: pair.Key}}}
	if _, err := api.NewClient(httpClient(blind), c.url).Nodes.ListNodes(context.Background(), &pb.ListNodesRequest{}); err == nil {
		t.Error("a certificate of another cluster was accepted")
	}
}

func TestRenewCertificate(t *testing.T) {
	c := newCluster(t)
	cl, err := LocalClient(c.cfg.DataDir, c.url)
	if err != nil {
		t.Fatal(err)
	}
	for node, want := range map[string]connect.Code{"n1": 0, "n2": connect.CodeInvalidArgument} {
		_, csr, err := pki.NewRequest(node, []string{node})
		if err != nil {
			t.Fatal(err)
		}
		r, err := cl.Cluster.RenewCertificate(context.Background(), &pb.RenewCertificateRequest{Csr: csr})
		if want != 0 {
			if connect.CodeOf(err) != want {
				t.Errorf("node n1 asks for a certificate of %s: %v", node, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCert(r.CertPem)
		if err != nil {
			t.Fatal(err)
		}
		if id, err := pki.IdentityOf(cert); err != nil || id.Node != node || id.Cluster != c.st.ClusterID {
			t.Errorf("%+v, %v", id, err)
		}
	}
}

func TestNewAddressNewCertificate(t *testing.T) {
	cfg := testConfig(t, "n1")
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.Address = "127.0.0.9"
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	p, err := pkiDir(cfg.DataDir).LoadPair(pki.NodePair)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Cert.VerifyHostname("127.0.0.9"); err != nil {
		t.Error(err)
	}
	st, err := cfg.ownState()
	if err != nil || st.APIAddr != net.JoinHostPort("127.0.0.9", "9500") {
		t.Errorf("%+v, %v", st, err)
	}
}
