package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// process runs one of the Run functions until it is stopped.
type process struct {
	cancel context.CancelFunc
	done   chan error
}

func start(t *testing.T, cfg Config, run func(context.Context, Config, *fdstore.Line) error) *process {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	p := &process{cancel, make(chan error, 1)}
	go func() { p.done <- run(ctx, cfg, nil) }()
	t.Cleanup(func() { p.stop(t) })
	return p
}

func (p *process) stop(t *testing.T) {
	t.Helper()
	p.cancel()
	began := time.Now()
	defer func() { t.Logf("stopped in %s", time.Since(began).Round(time.Millisecond)) }()
	select {
	case err := <-p.done:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
		p.done <- nil
	case <-time.After(30 * time.Second):
		t.Error("it doesn't end")
	}
}

// eventually waits until fn returns nil.
func eventually(t *testing.T, what string, fn func() error) {
	t.Helper()
	var err error
	for began := time.Now(); time.Since(began) < 45*time.Second; time.Sleep(20 * time.Millisecond) {
		if err = fn(); err == nil {
			t.Logf("%s: after %s", what, time.Since(began).Round(time.Millisecond))
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// metadataNode is the configuration of a node without the storage role, on a loopback address of its own.
func metadataNode(t *testing.T, i int) Config {
	t.Helper()
	c := DefaultConfig()
	c.Node, c.Address = fmt.Sprintf("n%d", i), fmt.Sprintf("127.77.%d.%d", os.Getpid()%250+1, i)
	c.DataDir, c.RunDir, c.Log.Level = filepath.Join(t.TempDir(), "data"), t.TempDir(), "error"
	c.Roles = []spec.Role{spec.RoleMetadata}
	if err := c.Complete(); err != nil {
		t.Fatal(err)
	}
	return c
}

func runNode(t *testing.T, cfg Config) (ps []*process) {
	t.Helper()
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	return []*process{start(t, cfg, RunEtcd), start(t, cfg, RunControl)}
}

// voters asks a node for the voting members that answer.
func voters(cfg Config, want int) func() error {
	return func() error {
		c, err := LocalClient(cfg.DataDir, "")
		if err != nil {
			return err
		}
		r, err := c.Cluster.Status(context.Background(), &pb.StatusRequest{})
		if err != nil {
			return err
		}
		n := 0
		for _, m := range r.Metadata {
			if m.Healthy && !m.Learner {
				n++
			}
		}
		if n != want || len(r.Nodes) < want {
			return fmt.Errorf("%d voters, %d nodes: %v %v", n, len(r.Nodes), r.Metadata, r.Problems)
		}
		return nil
	}
}

func TestMetadataNodesJoinAndLeave(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three metadata nodes: 10 s")
	}
	ctx := context.Background()
	n1, n2, n3 := metadataNode(t, 1), metadataNode(t, 2), metadataNode(t, 3)
	first := runNode(t, n1)
	eventually(t, "the first node", voters(n1, 1))
	c, err := LocalClient(n1.DataDir, "")
	if err != nil {
		t.Fatal(err)
	}
	tok, err := c.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{Roles: []string{"metadata"}})
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string][]*process{}
	for _, cfg := range []*Config{&n2, &n3} { // at once: one of the two has to wait
		cfg.Join = JoinConfig{URL: "https://" + n1.APIAddr(), Token: tok.Token}
		nodes[cfg.Node] = runNode(t, *cfg)
	}
	for _, cfg := range []Config{n1, n2, n3} {
		eventually(t, "all nodes, as seen by "+cfg.Node, voters(cfg, 3))
	}
	// Metrics need a certificate too.
	if r, err := http.Get("http://" + n1.APIAddr() + "/metrics"); err == nil {
		r.Body.Close()
		if r.StatusCode == http.StatusOK {
			t.Error("metrics without a certificate")
		}
	}

	// A restart finds everything as it was.
	for _, p := range nodes["n3"] {
		p.stop(t)
	}
	eventually(t, "n3 is missed", voters(n1, 2))
	nodes["n3"] = runNode(t, n3)
	eventually(t, "n3 is back", voters(n3, 3))

	// One that is gone for good is removed, and the others go on.
	for _, p := range nodes["n2"] {
		p.stop(t)
	}
	thief := stolen(t, n2)
	kept, err := tls.Dial("tcp", net.JoinHostPort(n1.Address, strconv.Itoa(n1.EtcdClientPort)), thief)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	eventually(t, "n2 can be removed", func() error {
		_, err := c.Nodes.RemoveNode(ctx, &pb.RemoveNodeRequest{Name: "n2"})
		if connect.CodeOf(err) == connect.CodeNotFound {
			return nil
		}
		return err
	})
	eventually(t, "two members are left", voters(n3, 2))
	if r, err := c.Cluster.Status(ctx, &pb.StatusRequest{}); err != nil || len(r.Metadata) != 2 {
		t.Errorf("%v, %v", r.GetMetadata(), err)
	}
	// Its certificate opens nothing any more, not even what it had opened before; that of the others does.
	if _, err := kept.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection of the removed node with the metadata stays: %v", err)
	}
	honest := stolen(t, n3)
	for _, cfg := range []Config{n1, n3} {
		for _, port := range []int{cfg.EtcdClientPort, cfg.EtcdPeerPort} {
			addr := net.JoinHostPort(cfg.Address, strconv.Itoa(port))
			eventually(t, "the removed node's certificate is refused at "+addr, func() error {
				if err := handshake(addr, thief.Certificates); err == nil {
					return errors.New("it is let in")
				}
				return nil
			})
			if err := handshake(addr, honest.Certificates); err != nil {
				t.Errorf("another node's certificate at %s: %v", addr, err)
			}
		}
	}
	// Also by a member that has lost the others, and starts anew.
	for _, p := range append(first, nodes["n3"]...) {
		p.stop(t)
	}
	if err := Prepare(ctx, n1); err != nil {
		t.Fatal(err)
	}
	start(t, n1, RunEtcd)
	addr := net.JoinHostPort(n1.Address, strconv.Itoa(n1.EtcdPeerPort))
	eventually(t, "n1 is up, alone", func() error { return handshake(addr, honest.Certificates) })
	if err := handshake(addr, thief.Certificates); err == nil {
		t.Error("the removed node's certificate is let in where there is no quorum")
	}
}

// stolen is what whoever has a node's files connects with.
func stolen(t *testing.T, cfg Config) *tls.Config {
	t.Helper()
	p, err := pkiDir(cfg.DataDir).LoadPair(pki.NodePair)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key}}}
}

func TestStateMetricsAndJSON(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a metadata node")
	}
	n1 := metadataNode(t, 11)
	runNode(t, n1)
	eventually(t, "the node", voters(n1, 1))
	st, err := ReadState(n1.DataDir)
	if err != nil || len(st.Endpoints) != 1 || !strings.Contains(st.Endpoints[0], net.JoinHostPort(n1.Address, "9502")) {
		t.Errorf("%+v, %v", st, err)
	}
	// What programs that aren't keelson read: with a certificate, over HTTP/2 and 1.1.
	id, err := loadIdentity(n1.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, h2 := range []bool{false, true} {
		conf, err := id.client(n1.Node)
		if err != nil {
			t.Fatal(err)
		}
		h := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: h2}}
		defer h.CloseIdleConnections()
		for path, want := range map[string]string{
			"/metrics":                               `keelson_node_engine_up{node="n11"} 1`,
			"/keelson.v1.ClusterService/GetSettings": `"rebuildAfter":"600s"`,
		} {
			var r *http.Response
			if path == "/metrics" {
				r, err = h.Get("https://" + n1.APIAddr() + path)
			} else {
				r, err = h.Post("https://"+n1.APIAddr()+path, "application/json", strings.NewReader("{}"))
			}
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(b), want) || r.ProtoMajor == 2 != h2 {
				t.Errorf("%s over %s: %s, %v: %s", path, r.Proto, r.Status, err, b)
			}
		}
	}
}

func TestExternalMetadata(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a metadata node")
	}
	ctx := context.Background()
	// An etcd that belongs to nobody here: that of another cluster that hasn't written anything yet.
	other := metadataNode(t, 21)
	if err := Prepare(ctx, other); err != nil {
		t.Fatal(err)
	}
	start(t, other, RunEtcd)
	external := func(i int) Config {
		c := metadataNode(t, i)
		c.Metadata = MetadataConfig{
			Endpoints: []string{other.etcdClientURL()},
			CAFile:    pkiDir(other.DataDir).Path("ca.crt"), CertFile: certPath(other.DataDir), KeyFile: keyPath(other.DataDir),
		}
		return c
	}
	n1 := external(22)
	if err := Prepare(ctx, n1); err != nil {
		t.Fatal(err)
	}
	start(t, n1, RunControl)
	var c *api.Client
	eventually(t, "the first node", func() (err error) {
		if c, err = LocalClient(n1.DataDir, ""); err != nil {
			return err
		}
		r, err := c.Cluster.Status(ctx, &pb.StatusRequest{})
		if err == nil && (r.Health != api.Healthy || len(r.Nodes) != 1) {
			err = fmt.Errorf("%v", r)
		}
		return err
	})
	tok, err := c.Cluster.CreateToken(ctx, &pb.CreateTokenRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n2 := metadataNode(t, 23)
	n2.Join = JoinConfig{URL: "https://" + n1.APIAddr(), Token: tok.Token}
	if err := Prepare(ctx, n2); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "metadata.endpoints") {
		t.Fatalf("a node that wasn't told of the metadata: %v", err)
	}
	n2.Metadata = n1.Metadata
	if err := Prepare(ctx, n2); err != nil {
		t.Fatal(err)
	}
	start(t, n2, RunControl)
	eventually(t, "the second node", func() error {
		r, err := c.Nodes.GetNode(ctx, &pb.GetNodeRequest{Name: n2.Node})
		if err == nil && !r.Alive {
			err = errors.New(r.Problem)
		}
		return err
	})
	if _, err := c.Cluster.AddMember(ctx, &pb.AddMemberRequest{Name: "x", PeerUrl: "https://127.0.0.1:1"}); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a member was added to an etcd of its own: %v", err)
	}
	// The founder of another cluster on the same etcd is refused.
	n3 := external(24)
	if err := Prepare(ctx, n3); err != nil {
		t.Fatal(err)
	}
	p := start(t, n3, RunEngine)
	select {
	case err := <-p.done:
		if !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "that of cluster") {
			t.Errorf("another cluster's metadata: %v", err)
		}
		p.done <- nil
	case <-time.After(30 * time.Second):
		t.Error("another cluster's metadata was taken")
	}
}
