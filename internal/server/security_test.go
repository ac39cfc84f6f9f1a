package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// open is all that answers without a certificate or an API token: a node that joins has a join token alone.
var open = map[string]bool{"/keelson.v1.JoinService/Join": true}

// stranger is somebody who should get nothing.
type stranger struct {
	name  string
	certs []tls.Certificate
	token string
}

// forge signs a certificate as nobody but a test would.
func forge(t *testing.T, ca *pki.CA, uri string, notAfter time.Time) []tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(uri)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(9), Subject: pkix.Name{CommonName: "x"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: notAfter, URIs: []*url.URL{u},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.Cert, key.Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	return []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
}

// strangers are all who shouldn't get in. The tokens are those of a running cluster.
func strangers(t *testing.T, cfg Config, admin *api.Client) []stranger {
	t.Helper()
	ctx := context.Background()
	ca, err := pkiDir(cfg.DataDir).LoadCA()
	if err != nil {
		t.Fatal(err)
	}
	cluster := strings.TrimPrefix(ca.Cert.Subject.CommonName, "Keelson CA ")
	otherCA, err := pki.NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	tomorrow := time.Now().Add(24 * time.Hour)
	node := fmt.Sprintf("keelson://%s/node/%s", cluster, cfg.Node)
	token := func(ttl time.Duration) *pb.CreateAPITokenResponse {
		r, err := admin.Access.CreateAPIToken(ctx, &pb.CreateAPITokenRequest{Name: "x", Role: "admin", Ttl: durationpb.New(ttl)})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	revoked, expired := token(time.Hour), token(time.Millisecond)
	if _, err := admin.Access.RevokeAPIToken(ctx, &pb.RevokeAPITokenRequest{Id: revoked.Info.Id}); err != nil {
		t.Fatal(err)
	}
	join, err := admin.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	good := token(time.Hour).Token
	return []stranger{
		{name: "without anything"},
		{name: "certificate of another CA", certs: forge(t, otherCA, node, tomorrow)},
		{name: "expired certificate", certs: forge(t, ca, node, time.Now().Add(-time.Hour))},
		{name: "certificate of another cluster", certs: forge(t, ca, "keelson://00000000000000ff/node/n1", tomorrow)},
		{name: "certificate of a person", certs: forge(t, ca, "keelson://"+cluster+"/person/p", tomorrow)},
		{name: "certificate of no Keelson", certs: forge(t, ca, "spiffe://x/y", tomorrow)},
		{name: "wrong token", token: good[:len(good)-4] + "0000"},
		{name: "garbage for a token", token: "x"},
		{name: "revoked token", token: revoked.Token},
		{name: "expired token", token: expired.Token},
		{name: "join token", token: join.Token},
	}
}

// httpPaths are all methods of all services by their paths, and pages that are there or might be.
func httpPaths() []string {
	paths := []string{"/", "/metrics", "/health", "/healthz", "/version", "/debug/pprof/", "/debug/vars", "/ui/", "/api", "/keelson.v1.NoService/No"}
	protoregistry.GlobalFiles.RangeFilesByPackage("keelson.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				paths = append(paths, fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name()))
			}
		}
		return true
	})
	return paths
}

// TestNothingAnswersStrangers walks all ports and methods of a node.
func TestNothingAnswersStrangers(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a metadata node")
	}
	n1 := metadataNode(t, 31)
	runNode(t, n1)
	eventually(t, "the node", voters(n1, 1))
	engines, closeEngines, err := openLoops(n1, n1.Logger("engine"), new(doorkeeper).refused)
	if err != nil {
		t.Fatal(err)
	}
	defer closeEngines()
	if len(engines) == 0 {
		t.Fatal("no event loop")
	}
	admin, err := LocalClient(n1.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range strangers(t, n1, admin) {
		t.Run(s.name, func(t *testing.T) {
			answers := 0
			for _, h2 := range []bool{false, true} {
				answers += walkAPI(t, n1.APIAddr(), s, h2)
			}
			t.Logf("%d refusals at the API", answers)
			if s.token != "" {
				return // no other port takes tokens
			}
			for port, addr := range map[string]string{
				"engine": n1.EngineAddr(), "etcd client": strings.TrimPrefix(n1.etcdClientURL(), "https://"), "etcd peer": strings.TrimPrefix(n1.etcdPeerURL(), "https://"),
			} {
				if strings.HasPrefix(port, "etcd") && strings.HasPrefix(s.name, "certificate of") && s.name != "certificate of another CA" {
					// etcd looks at the CA alone. The CA signs for nothing but this cluster's nodes: these certificates can't be had.
					continue
				}
				if err := handshake(addr, s.certs); err == nil {
					t.Errorf("port %s answers", port)
				}
			}
		})
	}
	refusesPlain(t, n1)
}

// walkAPI calls everything at the API in every way, and returns how many refusals there were.
func walkAPI(t *testing.T, addr string, s stranger, h2 bool) (refused int) {
	h := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: s.certs}, ForceAttemptHTTP2: h2,
	}, Timeout: 10 * time.Second}
	defer h.CloseIdleConnections()
	for _, path := range httpPaths() {
		for _, method := range methodsOf(s) {
			types := []string{"", "application/json", "application/proto", "application/grpc", "application/grpc-web", "application/connect+json"}
			if len(s.certs) > 0 {
				types = types[:2]
			}
			for _, typ := range types {
				if typ != "" && method != http.MethodPost || len(s.certs) > 0 && (typ == "") == (method == http.MethodPost) {
					continue // a refused handshake is the same for all, and takes its time
				}
				r, body, err := knock(t, h, s, method, "https://"+addr+path, typ)
				if err != nil {
					refused++ // in the handshake
					continue
				}
				status := r.Header.Get("Grpc-Status") + r.Trailer.Get("Grpc-Status")
				switch {
				case open[path] && r.StatusCode != http.StatusOK, open[path] && status != "" && status != "0":
					refused++ // for want of a join token
				case r.StatusCode == http.StatusUnauthorized, status == "16", strings.Contains(string(body), "unauthenticated"),
					typ == "application/grpc-web" && strings.Contains(string(body), "status: 16"):
					refused++
				case r.StatusCode >= 400 && len(s.certs) == 0 && s.token == "" && r.StatusCode < 500 && r.StatusCode != http.StatusNotFound:
					refused++ // the path takes no such method or type
				default:
					t.Errorf("%s: %s %s %s: %s %q %.80q", s.name, method, path, typ, r.Status, status, body)
				}
			}
		}
	}
	if refused == 0 {
		t.Error("nothing was tried")
	}
	return refused
}

// knock calls the API, again while the node says that it can't tell at the moment who it is: the metadata was slow to answer.
func knock(t *testing.T, h *http.Client, s stranger, method, url, typ string) (r *http.Response, body []byte, err error) {
	t.Helper()
	for range 100 {
		req, err := http.NewRequest(method, url, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if typ != "" {
			req.Header.Set("Content-Type", typ)
		}
		if s.token != "" {
			req.Header.Set("Authorization", "Bearer "+s.token)
		}
		req.Header.Set("Keelson-On-Behalf-Of", "node/n1")
		if r, err = h.Do(req); err != nil {
			return nil, nil, err
		}
		body, _ = io.ReadAll(r.Body)
		r.Body.Close()
		if s.token == "" || r.StatusCode != http.StatusServiceUnavailable && r.Header.Get("Grpc-Status")+r.Trailer.Get("Grpc-Status") != "14" {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	return r, body, nil
}

func methodsOf(s stranger) []string {
	if len(s.certs) > 0 {
		return []string{http.MethodGet, http.MethodPost}
	}
	return []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, http.MethodHead}
}

// handshake makes a TLS connection and waits for what the other side says to the certificate.
func handshake(addr string, certs []tls.Certificate) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, &tls.Config{
		InsecureSkipVerify: true, Certificates: certs, NextProtos: []string{"h2", "http/1.1"},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := c.Read(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}

// refusesPlain speaks without TLS to every port.
func refusesPlain(t *testing.T, cfg Config) {
	t.Helper()
	for _, port := range []int{cfg.APIPort, cfg.EnginePort, cfg.EtcdClientPort, cfg.EtcdPeerPort} {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(cfg.Address, fmt.Sprint(port)), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, _ = io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n")
		b, _ := io.ReadAll(c)
		c.Close()
		if len(b) > 0 && b[0] != 0x15 && !bytes.Contains(b, []byte(" 400 ")) {
			t.Errorf("port %d answers without TLS: %.100q", port, b)
		}
	}
}

// TestSecretsAreNowhere looks for secrets in the metadata, the audit log, and the files of a node.
func TestSecretsAreNowhere(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a metadata node")
	}
	ctx := context.Background()
	n1 := metadataNode(t, 32)
	runNode(t, n1)
	eventually(t, "the node", voters(n1, 1))
	admin, err := LocalClient(n1.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	join, err := admin.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	tok, err := admin.Access.CreateAPIToken(ctx, &pb.CreateAPITokenRequest{Name: "ci", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	n2 := metadataNode(t, 33)
	n2.Join = JoinConfig{URL: "https://" + n1.APIAddr(), Token: join.Token}
	if err := Prepare(ctx, n2); err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{}
	_, secret, _ := strings.Cut(join.Token, ".")
	secrets["join token"] = []byte(secret)
	_, secret, _ = strings.Cut(tok.Token, ".")
	secrets["API token"] = []byte(secret)
	for _, dir := range []string{n1.DataDir, n2.DataDir} {
		for _, f := range []string{"ca.key", "node.key"} {
			b, err := os.ReadFile(pkiDir(dir).Path(f))
			if err != nil {
				t.Fatal(err)
			}
			block, _ := pem.Decode(b)
			secrets[f+" of "+dir+" (DER)"] = block.Bytes
			secrets[f+" of "+dir+" (PEM)"] = bytes.Split(b, []byte("\n"))[1]
		}
	}
	id, err := loadIdentity(n1.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := id.client("")
	if err != nil {
		t.Fatal(err)
	}
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{n1.etcdClientURL()}, TLS: conf})
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	all, err := etcd.Get(ctx, "\x00", clientv3.WithFromKey())
	if err != nil || len(all.Kvs) < 4 {
		t.Fatalf("%v, %v", all, err)
	}
	for name, s := range secrets {
		for _, kv := range all.Kvs {
			if bytes.Contains(kv.Key, s) || bytes.Contains(kv.Value, s) {
				t.Errorf("the metadata's key %s has the secret: %s", kv.Key, name)
			}
		}
	}
	for _, dir := range []string{n1.DataDir, n2.DataDir, n1.RunDir} {
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() || filepath.Base(filepath.Dir(p)) == "pki" {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			for name, s := range secrets {
				if bytes.Contains(b, s) {
					t.Errorf("%s has the secret: %s", p, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Stat(string(pkiDir(n1.DataDir))); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v, %v", st, err)
	}
	if b, err := os.ReadFile(filepath.Join(n1.DataDir, "audit.log")); err != nil || bytes.Count(b, []byte("CreateAPIToken")) != 2 || !bytes.Contains(b, []byte("join-token/")) {
		t.Errorf("the audit log: %s, %v", b, err)
	}
}

// TestCertificatesRotate gives three nodes certificates that last for seconds, and calls them all the while.
func TestCertificatesRotate(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for certificates to end: 20 s")
	}
	ctx := context.Background()
	brief := func(i int) Config {
		c := metadataNode(t, i)
		c.Certificates = CertificatesConfig{Valid: 10 * time.Second, RenewBefore: 7 * time.Second}
		return c
	}
	n1, n2, n3 := brief(41), brief(42), brief(43)
	runNode(t, n1)
	eventually(t, "the first node", voters(n1, 1))
	first, err := LocalClient(n1.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := first.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{Roles: []string{"metadata"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []*Config{&n2, &n3} {
		cfg.Join = JoinConfig{URL: "https://" + n1.APIAddr(), Token: tok.Token}
		runNode(t, *cfg)
		eventually(t, cfg.Node+" votes", voters(n1, map[string]int{n2.Node: 2, n3.Node: 3}[cfg.Node]))
	}
	id, err := loadIdentity(n2.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	// One client for the whole test, whose connections outlive certificates.
	d := newDialer(id)
	serials, calls := map[string]bool{}, 0
	for began := time.Now(); time.Since(began) < 25*time.Second; time.Sleep(50 * time.Millisecond) {
		for _, cfg := range []Config{n1, n3} {
			c := d.dial(spec.Node{Name: cfg.Node, APIAddr: cfg.APIAddr()})
			r, err := c.Nodes.ListNodes(ctx, &pb.ListNodesRequest{}) // of the metadata
			if err != nil || len(r.Nodes) != 3 {
				t.Fatalf("after %s and %d certificates: %v, %v", time.Since(began), len(serials), r, err)
			}
			if _, err := c.Cluster.SetSettings(ctx, &pb.SetSettingsRequest{RebuildAfter: durationpb.New(time.Hour + time.Duration(calls))}); err != nil {
				t.Fatalf("a change, after %s: %v", time.Since(began), err)
			}
			p, err := pkiDir(cfg.DataDir).LoadPair(pki.NodePair)
			if err != nil || time.Now().After(p.Cert.NotAfter) {
				t.Fatalf("%s: %v", cfg.Node, err)
			}
			serials[cfg.Node+p.Cert.SerialNumber.String()] = true
			calls++
		}
	}
	if len(serials) < 10 {
		t.Errorf("only %d certificates in 25 s", len(serials))
	}
	t.Logf("%d calls, %d certificates", calls, len(serials))
	eventually(t, "all metadata members answer", voters(n3, 3))
}

// TestSkewedClocks: certificates are good an hour before they were made, so a clock that is behind by an hour hinders nobody; one
// that is ahead by more than a certificate lasts does.
func TestSkewedClocks(t *testing.T) {
	ca, err := pki.NewCA("00000000000000aa")
	if err != nil {
		t.Fatal(err)
	}
	p, err := ca.NewPair(pki.Identity{Cluster: "00000000000000aa", Role: pki.RoleNode, Node: "n1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	for skew, good := range map[time.Duration]bool{-time.Hour: true, 0: true, time.Hour: true, 366 * 24 * time.Hour: false, -3 * time.Hour: false} {
		_, err := p.Cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now.Add(skew)})
		if (err == nil) != good {
			t.Errorf("a clock that differs by %s: %v", skew, err)
		}
	}
	for skew, want := range map[time.Duration]error{-time.Hour: nil, time.Hour: pki.ErrAPITokenExpired} {
		tok, rec := pki.NewAPIToken(ca.Cert, "x", spec.RoleViewer, time.Hour, now)
		if err := tok.Check(rec, now.Add(skew)); !errors.Is(err, want) {
			t.Errorf("a token, at a clock that differs by %s: %v", skew, err)
		}
	}
}

// TestRejoinWithToken: a node without the CA's key whose certificate has ended comes back by a token.
func TestRejoinWithToken(t *testing.T) {
	c := newCluster(t)
	cfg := c.joiner(t, "n2", c.token(t, spec.RoleStorage))
	cfg.Roles = []spec.Role{spec.RoleStorage}
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	before, err := cfg.ownState()
	if err != nil {
		t.Fatal(err)
	}
	p, err := pkiDir(cfg.DataDir).LoadPair(pki.NodePair)
	if err != nil {
		t.Fatal(err)
	}
	ended := *c.ca
	ended.NodeValid = -time.Minute
	if p, err = ended.Renew(pki.Identity{Cluster: before.ClusterID, Role: pki.RoleNode, Node: "n2"}, nil, p.Key); err != nil {
		t.Fatal(err)
	}
	if err := pkiDir(cfg.DataDir).SaveCert(pki.NodePair, p.Cert); err != nil {
		t.Fatal(err)
	}
	if _, err := c.call(cfg); err == nil {
		t.Fatal("a certificate that has ended was accepted")
	}
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	if code, err := c.call(cfg); err != nil {
		t.Fatal(code, err)
	}
	if after, err := cfg.ownState(); err != nil || after.NodeID != before.NodeID {
		t.Errorf("%+v, %v; was %+v", after, err, before)
	}
}

func (c *cluster) call(cfg Config) (connect.Code, error) {
	cl, err := LocalClient(cfg.DataDir, c.url)
	if err != nil {
		return 0, err
	}
	_, err = cl.Cluster.GetSettings(context.Background(), &pb.GetSettingsRequest{})
	return connect.CodeOf(err), err
}

func TestTokenClient(t *testing.T) {
	c, other := newCluster(t), newCluster(t)
	text, rec := pki.NewAPIToken(c.ca.Cert, "x", spec.RoleViewer, time.Hour, c.now)
	if _, err := c.store.PutAPIToken(context.Background(), rec, 0); err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]error{c.url: nil, other.url: pki.ErrAPITokenCluster} {
		cl, err := TokenClient(text.String(), url)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cl.Cluster.GetSettings(context.Background(), &pb.GetSettingsRequest{}); !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
	}
	if _, err := TokenClient("K1x", c.url); !errors.Is(err, pki.ErrAPITokenForm) {
		t.Error(err)
	}
}
