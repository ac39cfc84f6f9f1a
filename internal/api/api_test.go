package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/pki/pkitest"
	"keelson.io/keelson/internal/spec"
)

// fakeEngine does the metadata's part of what an engine does.
type fakeEngine struct {
	node  string
	store meta.Store
	mu    sync.Mutex
	dead  bool
	fail  error // what Attach answers next
	live  []*pb.LiveVolume
}

func (f *fakeEngine) Attach(ctx context.Context, r *pb.EngineAttachRequest) (*pb.EngineAttachResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	v, err := f.store.Volume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	v.Value.State.Term++
	v.Value.State.Node, v.Value.State.Frontend = f.node, r.Frontend
	if _, err := f.store.PutVolume(ctx, v.Value, v.Rev, meta.Cond{}); err != nil {
		return nil, err
	}
	f.live = append(f.live, &pb.LiveVolume{Id: r.VolumeId, Term: v.Value.State.Term, Device: "/dev/loop7", Frontend: r.Frontend})
	return &pb.EngineAttachResponse{Device: "/dev/loop7", Term: v.Value.State.Term}, nil
}

func (f *fakeEngine) Detach(ctx context.Context, r *pb.EngineDetachRequest) (*pb.EngineDetachResponse, error) {
	v, err := f.store.Volume(ctx, r.VolumeId)
	if err != nil {
		return nil, err
	}
	v.Value.State.Node = ""
	_, err = f.store.PutVolume(ctx, v.Value, v.Rev, meta.Cond{})
	return &pb.EngineDetachResponse{}, err
}

func (f *fakeEngine) AddPool(ctx context.Context, r *pb.AddPoolRequest) (*pb.Pool, error) {
	p := spec.Pool{ID: spec.NewID(), Node: f.node, File: r.File, Media: spec.MediaSSD, Capacity: 10 << 30, Reserve: 1 << 30, Created: time.Now()}
	_, err := f.store.PutPool(ctx, p, 0)
	return PoolProto(p), err
}

func (f *fakeEngine) ExpandPool(ctx context.Context, r *pb.ExpandPoolRequest) (*pb.Pool, error) {
	p, err := f.store.Pool(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	p.Value.Capacity = max(p.Value.Capacity, r.Size)
	_, err = f.store.PutPool(ctx, p.Value, p.Rev)
	return PoolProto(p.Value), err
}

func (f *fakeEngine) ClosePool(context.Context, *pb.ClosePoolRequest) (*pb.ClosePoolResponse, error) {
	return &pb.ClosePoolResponse{}, nil
}

func (f *fakeEngine) Status(context.Context, *pb.EngineStatusRequest) (*pb.NodeStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dead {
		return nil, errors.New("dead")
	}
	r := &pb.NodeStatusResponse{}
	for _, v := range f.live {
		r.Volumes = append(r.Volumes, proto.CloneOf(v))
	}
	pools, err := f.store.Pools(context.Background())
	for _, p := range pools {
		if p.Value.Node == f.node {
			r.Pools = append(r.Pools, &pb.LivePool{Id: p.Value.ID, Capacity: p.Value.Capacity, Used: 1 << 30})
		}
	}
	return r, err
}

// testCluster is nodes with APIs over one store.
type testCluster struct {
	store    *mem.Store
	clients  map[string]*Client
	engines  map[string]*fakeEngine
	servers  map[string]*httptest.Server
	leases   map[string]context.CancelFunc
	ca       *pki.CA
	rotation fakeRotation
}

func newTestCluster(t *testing.T, nodes ...string) *testCluster {
	t.Helper()
	ctx := context.Background()
	c := &testCluster{store: mem.New(), clients: map[string]*Client{}, engines: map[string]*fakeEngine{}, servers: map[string]*httptest.Server{}, leases: map[string]context.CancelFunc{}}
	if _, err := c.store.PutCluster(ctx, spec.Cluster{ID: "00000000000000aa", Name: "test", Settings: spec.DefaultSettings()}, 0); err != nil {
		t.Fatal(err)
	}
	ca, err := pki.NewCA("00000000000000aa")
	if err != nil {
		t.Fatal(err)
	}
	c.ca = ca
	for i, n := range nodes {
		c.engines[n] = &fakeEngine{node: n, store: c.store}
		s := New(Config{
			Node: n, Version: "test", Store: c.store, Engine: c.engines[n], CA: pkitest.Fixed(ca), Rotation: &c.rotation, Log: slog.New(slog.DiscardHandler),
			Dial: func(n spec.Node) *Client { return NewClient(c.servers[n.Name].Client(), c.servers[n.Name].URL) },
		})
		hs := httptest.NewServer(asNode(n, s.services()))
		t.Cleanup(hs.Close)
		c.servers[n], c.clients[n] = hs, NewClient(hs.Client(), hs.URL)
		node := spec.Node{Name: n, ID: spec.NewID(), Roles: []spec.Role{spec.RoleStorage}, Zone: fmt.Sprintf("z%d", i), APIAddr: n + ":1"}
		if _, err := c.store.PutNode(ctx, node, 0); err != nil {
			t.Fatal(err)
		}
		c.lease(t, n)
		if _, err := c.clients[n].Pools.AddPool(ctx, &pb.AddPoolRequest{File: "/" + n}); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// asNode has the handler see the certificate of a node.
func asNode(name string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := context.WithValue(r.Context(), identityKey{}, pki.Identity{Role: pki.RoleNode, Node: name})
		next.ServeHTTP(w, r.WithContext(context.WithValue(ctx, callerKey{}, caller{level: node, name: "node/" + name})))
	})
}

// lease has the node hold its lease until the test ends or it is killed.
func (c *testCluster) lease(t *testing.T, node string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	held, gone := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(gone)
		_ = c.store.HoldLease(ctx, node, func() { held <- struct{}{} }, func() {})
	}()
	<-held
	c.leases[node] = func() { cancel(); <-gone }
	t.Cleanup(cancel)
}

func code(t *testing.T, what string, err error, want connect.Code, words ...string) {
	t.Helper()
	if err == nil || connect.CodeOf(err) != want {
		t.Errorf("%s: %v, want the code %v", what, err, want)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %q doesn't say %q", what, err, w)
		}
	}
}

func TestVolumeLife(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	vols := c.clients["n1"].Volumes
	v, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	if v.Replicas != 2 || len(v.Columns) != 1 || len(v.Columns[0].Members) != 2 || v.Columns[0].Members[0].Reason == "" || v.Health != Healthy {
		t.Fatalf("%v", v)
	}
	if v.Columns[0].Members[0].Node == v.Columns[0].Members[1].Node {
		t.Fatal("both copies are on one node")
	}
	// Through another node, forwarded to a third.
	a, err := c.clients["n2"].Volumes.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n3"})
	if err != nil || a.Device != "/dev/loop7" || a.Node != "n3" || a.Term != 1 {
		t.Fatalf("%v, %v", a, err)
	}
	if v, err = vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || v.Node != "n3" || v.Device != "/dev/loop7" {
		t.Fatalf("%v, %v", v, err)
	}
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"})
	code(t, "attached elsewhere", err, connect.CodeFailedPrecondition, "pg", "n3", "alive", "detach")
	_, err = vols.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: "pg"})
	code(t, "delete what is attached", err, connect.CodeFailedPrecondition, "n3", "detach")
	if _, err := vols.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: "pg"}); err != nil {
		t.Fatal(err)
	}
	_, err = vols.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: "pg"})
	code(t, "detach twice", err, connect.CodeFailedPrecondition, "not attached")
	for range 2 {
		if _, err := vols.DeleteVolume(ctx, &pb.DeleteVolumeRequest{Name: "pg"}); err != nil {
			t.Fatal(err)
		}
	}
	if v, err = vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || !v.Deleting || v.Health != Deleting {
		t.Fatalf("%v, %v", v, err)
	}
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"})
	code(t, "attach what is being deleted", err, connect.CodeFailedPrecondition, "deleted")
}

func TestCreateVolumeRefused(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n1"].Volumes
	if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "taken", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]struct {
		r     *pb.CreateVolumeRequest
		code  connect.Code
		words string
	}{
		"zero size":      {&pb.CreateVolumeRequest{Name: "a"}, connect.CodeInvalidArgument, "size"},
		"negative size":  {&pb.CreateVolumeRequest{Name: "a", Size: -4096}, connect.CodeInvalidArgument, "size"},
		"odd size":       {&pb.CreateVolumeRequest{Name: "a", Size: 1<<30 + 1}, connect.CodeInvalidArgument, "4096"},
		"name":           {&pb.CreateVolumeRequest{Name: "A_b", Size: 1 << 30}, connect.CodeInvalidArgument, "DNS label"},
		"duplicate":      {&pb.CreateVolumeRequest{Name: "taken", Size: 1 << 30}, connect.CodeAlreadyExists, "another name"},
		"replicas":       {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, Replicas: 3}, connect.CodeResourceExhausted, "n1"},
		"many replicas":  {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, Replicas: 9}, connect.CodeInvalidArgument, "replicas"},
		"beyond storage": {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 40}, connect.CodeResourceExhausted, "overcommit"},
		"topology": {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, Topology: []*pb.TopologyTerm{{Segments: map[string]string{"topology.keelson.io/zone": "nowhere"}}}},
			connect.CodeResourceExhausted, "topology"},
		"selector": {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, NodeSelector: map[string]string{"x": "y"}}, connect.CodeResourceExhausted, "label"},
		"media":    {&pb.CreateVolumeRequest{Name: "a", Size: 1 << 30, Media: "tape"}, connect.CodeInvalidArgument, "media"},
	} {
		_, err := vols.CreateVolume(ctx, x.r)
		code(t, what, err, x.code, x.words)
	}
	if l, err := vols.ListVolumes(ctx, &pb.ListVolumesRequest{}); err != nil || len(l.Volumes) != 1 {
		t.Errorf("%v, %v: refused requests left something", l, err)
	}
	_, err := vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "none"})
	code(t, "unknown volume", err, connect.CodeNotFound, "none")
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "taken", Frontend: "iscsi"})
	code(t, "unknown frontend", err, connect.CodeInvalidArgument, "iscsi")
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "taken", Node: "n9"})
	code(t, "unknown node", err, connect.CodeNotFound, "n9")
}

func TestAttachWhenHolderDies(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	vols := c.clients["n2"].Volumes
	if _, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	if _, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	// Its API is gone, its lease isn't yet: ask again.
	c.servers["n1"].Close()
	_, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"})
	code(t, "unreachable holder", err, connect.CodeAborted, "n1", "lease")
	if !Retryable(err) {
		t.Errorf("%v isn't retryable", err)
	}
	c.leases["n1"]()
	_, err = vols.DetachVolume(ctx, &pb.DetachVolumeRequest{Name: "pg"})
	code(t, "detach from a node that is gone", err, connect.CodeUnavailable, "n1", "attach it on another node")
	if v, err := vols.GetVolume(ctx, &pb.GetVolumeRequest{Name: "pg"}); err != nil || v.Health != Unavailable {
		t.Errorf("%v, %v: the holder is gone", v, err)
	}
	if a, err := vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg"}); err != nil || a.Term != 2 {
		t.Errorf("%v, %v", a, err)
	}
	_, err = vols.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n1"})
	code(t, "attach to a node that is gone", err, connect.CodeUnavailable, "n1")
	if Retryable(err) {
		t.Errorf("%v would be waited for", err)
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2")
	if _, err := c.clients["n1"].Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	// From the engine of another node, over two hops.
	c.engines["n2"].fail = ToConnect(fmt.Errorf("volume pg: %w", meta.ErrUnavailable))
	_, err := c.clients["n1"].Volumes.AttachVolume(ctx, &pb.AttachVolumeRequest{Name: "pg", Node: "n2"})
	code(t, "engine's error", err, connect.CodeUnavailable, "volume pg")
	if !Retryable(err) {
		t.Error("it was lost that asking again may help")
	}
}

func TestStatus(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	cl := c.clients["n1"]
	if _, err := cl.Volumes.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30, Replicas: 3}); err != nil {
		t.Fatal(err)
	}
	r, err := cl.Cluster.Status(ctx, &pb.StatusRequest{})
	if err != nil || r.Health != Healthy || len(r.Problems) != 0 || len(r.Nodes) != 3 || len(r.Pools) != 3 || len(r.Volumes) != 1 || !r.Pools[0].Live {
		t.Fatalf("%v, %v", r, err)
	}
	c.engines["n2"].dead = true
	c.leases["n3"]()
	if r, err = cl.Cluster.Status(ctx, &pb.StatusRequest{}); err != nil || r.Health != Degraded {
		t.Fatalf("%v, %v", r, err)
	}
	for _, want := range []string{"node n2: its engine", "node n3: gone", "volume pg"} {
		if !strings.Contains(strings.Join(r.Problems, "\n"), want) {
			t.Errorf("the problems don't say %q: %q", want, r.Problems)
		}
	}
	c.store.SetUnavailable(true)
	if r, err = cl.Cluster.Status(ctx, &pb.StatusRequest{}); err != nil || r.Health != Unavailable || len(r.Problems) != 1 {
		t.Fatalf("%v, %v", r, err)
	}
}

func TestNodes(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1", "n2", "n3")
	nodes, vols := c.clients["n1"].Nodes, c.clients["n1"].Volumes
	marked, err := c.store.Node(ctx, "n2")
	if err != nil {
		t.Fatal(err)
	}
	marked.Value.Unschedulable = true
	if _, err := c.store.PutNode(ctx, marked.Value, marked.Rev); err != nil {
		t.Fatal(err)
	}
	if n, err := nodes.GetNode(ctx, &pb.GetNodeRequest{Name: "n2"}); err != nil || !n.Unschedulable || n.Cordoned {
		t.Errorf("cordoned in Kubernetes: %v, %v", n, err)
	}
	if n, err := nodes.CordonNode(ctx, &pb.CordonNodeRequest{Name: "n2"}); err != nil || n.Unschedulable {
		t.Errorf("where nobody else would take it back, a person can: %v, %v", n, err)
	}
	if n, err := nodes.CordonNode(ctx, &pb.CordonNodeRequest{Name: "n2", Cordoned: true}); err != nil || !n.Cordoned {
		t.Fatalf("%v, %v", n, err)
	}
	v, err := vols.CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "pg", Size: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range v.Columns[0].Members {
		if m.Node == "n2" {
			t.Error("a replica was put on a cordoned node")
		}
	}
	_, err = nodes.RemoveNode(ctx, &pb.RemoveNodeRequest{Name: "n2"})
	code(t, "remove a living node", err, connect.CodeFailedPrecondition, "alive")
	c.leases["n1"]()
	_, err = nodes.RemoveNode(ctx, &pb.RemoveNodeRequest{Name: "n1"})
	code(t, "remove a node with replicas", err, connect.CodeFailedPrecondition, "pg")
	c.leases["n2"]()
	if _, err := nodes.RemoveNode(ctx, &pb.RemoveNodeRequest{Name: "n2"}); err != nil {
		t.Fatal(err)
	}
	_, err = nodes.GetNode(ctx, &pb.GetNodeRequest{Name: "n2"})
	code(t, "a removed node", err, connect.CodeNotFound)
	if ps, err := c.store.Pools(ctx); err != nil || len(ps) != 2 {
		t.Errorf("%d pools are left, %v", len(ps), err)
	}
}

func TestSettingsAndTokens(t *testing.T) {
	ctx := context.Background()
	c := newTestCluster(t, "n1")
	cl := c.clients["n1"].Cluster
	s, err := cl.SetSettings(ctx, &pb.SetSettingsRequest{RebuildAfter: durationpb.New(time.Minute)})
	if err != nil || s.RebuildAfter.AsDuration() != time.Minute || s.Overcommit != spec.DefaultSettings().Overcommit {
		t.Fatalf("%v, %v", s, err)
	}
	_, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{Overcommit: proto.Float64(0)})
	code(t, "no overcommit", err, connect.CodeInvalidArgument, "overcommit")
	for _, d := range []time.Duration{0, spec.MinAnswerLimit - 1, spec.MaxAnswerLimit + 1, -time.Second} {
		_, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{AnswerLimit: durationpb.New(d)})
		code(t, d.String(), err, connect.CodeInvalidArgument, "answer-limit", "2s", "1m40s")
	}
	if s.AnswerLimit.AsDuration() != spec.DefaultAnswerLimit {
		t.Errorf("answer-limit is %s", s.AnswerLimit.AsDuration())
	}
	for _, d := range []time.Duration{spec.MinAnswerLimit, spec.MaxAnswerLimit} {
		if s, err = cl.SetSettings(ctx, &pb.SetSettingsRequest{AnswerLimit: durationpb.New(d)}); err != nil || s.AnswerLimit.AsDuration() != d {
			t.Errorf("%v, %v", s, err)
		}
	}
	if got, err := cl.GetSettings(ctx, &pb.GetSettingsRequest{}); err != nil || !proto.Equal(got, s) {
		t.Errorf("%v, %v", got, err)
	}
	tok, err := cl.CreateToken(ctx, &pb.CreateTokenRequest{Ttl: durationpb.New(time.Hour), Roles: []string{"storage"}})
	if err != nil {
		t.Fatal(err)
	}
	rec, err := c.store.Token(ctx, tok.Info.Id)
	if err != nil || strings.Contains(tok.Token, rec.Value.SecretHash) || !strings.Contains(tok.Token, tok.Info.Id) {
		t.Errorf("%+v, %v", rec, err)
	}
	_, err = cl.CreateToken(ctx, &pb.CreateTokenRequest{Ttl: durationpb.New(-time.Hour)})
	code(t, "a token that is over", err, connect.CodeInvalidArgument)
	_, err = cl.CreateToken(ctx, &pb.CreateTokenRequest{Roles: []string{"king"}})
	code(t, "a role that isn't", err, connect.CodeInvalidArgument, "king")
	if _, err := cl.DeleteToken(ctx, &pb.DeleteTokenRequest{Id: tok.Info.Id}); err != nil {
		t.Fatal(err)
	}
	_, err = cl.DeleteToken(ctx, &pb.DeleteTokenRequest{Id: tok.Info.Id})
	code(t, "delete twice", err, connect.CodeNotFound)
}
