package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"keelson.io/keelson/internal/spec"
)

// memory is API in memory, with versions as Kubernetes has them.
type memory struct {
	mu      sync.Mutex
	data    map[string]string
	version int
	secrets map[string]map[string]string
	desired int
	away    error
}

func newMemory(desired int) *memory {
	return &memory{secrets: map[string]map[string]string{}, desired: desired}
}

func (m *memory) Record(context.Context) (map[string]string, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.away != nil || m.version == 0 {
		return map[string]string{}, "", m.away
	}
	return maps.Clone(m.data), fmt.Sprint(m.version), nil
}

func (m *memory) PutRecord(_ context.Context, data map[string]string, version string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := schema.GroupResource{Resource: "configmaps"}
	switch {
	case m.away != nil:
		return m.away
	case version == "" && m.version > 0:
		return apierrors.NewAlreadyExists(r, "keelson")
	case version != "" && version != fmt.Sprint(m.version):
		return apierrors.NewConflict(r, "keelson", errors.New("changed"))
	}
	m.data = maps.Clone(data)
	m.version++
	return nil
}

func (m *memory) Secret(_ context.Context, name string) (map[string]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.secrets[name]), m.away
}

func (m *memory) PutSecret(_ context.Context, name string, data map[string]string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets[name] = maps.Clone(data)
	return m.away
}

func (m *memory) Desired(context.Context) (int, error) { return m.desired, m.away }

func board(m *memory) *Board {
	return &Board{API: m, Members: 3, Log: slog.New(slog.DiscardHandler), Patience: time.Hour, Pause: time.Millisecond}
}

func self(i int) Self { return Self{Node: fmt.Sprintf("n%d", i), ID: fmt.Sprintf("%016d", i)} }

// cluster is Cluster in memory.
type cluster struct {
	id     string
	nodes  []Node
	refuse error
	forgot []string
	tokens int
}

func (c *cluster) ID() string                            { return c.id }
func (c *cluster) CA() (string, error)                   { return "CA", nil }
func (c *cluster) Nodes(context.Context) ([]Node, error) { return c.nodes, nil }
func (c *cluster) Token(_ context.Context, have string) (string, error) {
	if have != "" {
		return have, nil
	}
	c.tokens++
	return fmt.Sprintf("token%d", c.tokens), nil
}
func (c *cluster) ViewerToken(ctx context.Context, have string) (string, error) {
	return c.Token(ctx, have)
}
func (c *cluster) Forget(_ context.Context, node string) error {
	if c.refuse == nil {
		c.forgot = append(c.forgot, node)
		c.nodes = slices.DeleteFunc(c.nodes, func(n Node) bool { return n.Name == node })
	}
	return c.refuse
}

// come has nodes ask all at once, and the one that is to make the cluster make it; the others join it. It returns what each was told.
func come(t *testing.T, m *memory, c *cluster, nodes ...int) map[string]Decision {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	out := map[string]Decision{}
	for _, i := range nodes {
		wg.Go(func() {
			b, s := board(m), self(i)
			d, err := b.Decide(ctx, s)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[s.Node] = d
			s.Cluster, s.Roles = c.id, d.Roles
			if err := b.Joined(ctx, s); err != nil {
				t.Error(err)
			}
			c.nodes = append(c.nodes, Node{Name: s.Node, ID: s.ID, APIAddr: s.Node + ":9500", Roles: d.Roles, Alive: true})
			if err := b.Keep(ctx, c); err != nil && !retriable(err) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return out
}

func TestOneNodeMakesTheClusterAndThreeHoldTheMetadata(t *testing.T) {
	for range 20 {
		m, c := newMemory(5), &cluster{id: "c1"}
		got := come(t, m, c, 1, 2, 3, 4, 5)
		var founders, metadata []string
		for n, d := range got {
			if d.Found() {
				founders = append(founders, n)
			} else if d.Token == "" || len(d.URLs) == 0 {
				t.Errorf("%s joins with token %q through %v", n, d.Token, d.URLs)
			}
			if slices.Contains(d.Roles, spec.RoleMetadata) {
				metadata = append(metadata, n)
			}
		}
		if len(founders) != 1 || founders[0] != "n1" {
			t.Fatalf("founders %v, want n1", founders)
		}
		if len(metadata) != 3 {
			t.Fatalf("metadata on %v, want three", metadata)
		}
	}
}

func TestAClusterIsNotMadeBeforeAllHaveCome(t *testing.T) {
	m := newMemory(3)
	for _, i := range []int{2, 3} {
		_, err := board(m).decideOnce(context.Background(), self(i))
		var wait errWait
		if !errors.As(err, &wait) {
			t.Fatalf("node %d: %v, want it to wait", i, err)
		}
	}
	// One that has a cluster comes last: the others join that.
	s := self(1)
	s.Cluster, s.Roles = "old", []spec.Role{spec.RoleMetadata, spec.RoleStorage}
	if d, err := board(m).Decide(context.Background(), s); err != nil || len(d.Roles) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	c := &cluster{id: "old", nodes: []Node{{Name: "n1", ID: s.ID, APIAddr: "n1:9500", Roles: s.Roles, Alive: true}}}
	if err := board(m).Keep(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	for _, d := range come(t, m, c, 2, 3) {
		if d.Found() {
			t.Fatal("a second cluster was made")
		}
	}
}

func TestAfterSomePatienceThoseWhoCameMakeTheCluster(t *testing.T) {
	m := newMemory(3)
	b := board(m)
	b.Patience = time.Nanosecond
	d, err := b.Decide(context.Background(), self(2))
	if err != nil || !d.Found() {
		t.Fatalf("%+v, %v", d, err)
	}
	// Asked again, as after a crash, it is told the same; another one isn't.
	if d, err := b.Decide(context.Background(), self(2)); err != nil || !d.Found() {
		t.Fatalf("%+v, %v", d, err)
	}
	var wait errWait
	if _, err := b.decideOnce(context.Background(), self(1)); !errors.As(err, &wait) || !strings.Contains(wait.why, "n2") {
		t.Fatalf("%v, want it to wait for n2", err)
	}
}

func TestTheFounderJoinsOnceTheClusterIsRecorded(t *testing.T) {
	m, c := newMemory(1), &cluster{id: "c1"}
	if got := come(t, m, c, 1); !got["n1"].Found() {
		t.Fatalf("%+v", got)
	}
	// Its data directory is lost.
	s := self(1)
	s.ID = "ffffffffffffffff"
	d, err := board(m).Decide(context.Background(), s)
	if err != nil || d.Found() {
		t.Fatalf("%+v, %v: a second cluster was made", d, err)
	}
}

func TestAMemberNeedsNobody(t *testing.T) {
	m := newMemory(3)
	m.away = errors.New("connection refused")
	s := self(1)
	s.Cluster, s.Roles = "c1", []spec.Role{spec.RoleStorage}
	d, err := board(m).Decide(context.Background(), s)
	if err != nil || !slices.Equal(d.Roles, s.Roles) {
		t.Fatalf("%+v, %v", d, err)
	}
}

func TestAMemberOfAnotherClusterStaysInIt(t *testing.T) {
	m, c := newMemory(1), &cluster{id: "c1"}
	come(t, m, c, 1)
	before, _, _ := m.Record(context.Background())
	s := self(2)
	s.Cluster, s.Roles = "other", []spec.Role{spec.RoleStorage}
	d, err := board(m).Decide(context.Background(), s)
	if err != nil || d.Token != "" || !slices.Equal(d.Roles, s.Roles) {
		t.Fatalf("%+v, %v", d, err)
	}
	if after, _, _ := m.Record(context.Background()); !maps.Equal(before, after) {
		t.Fatalf("the record was changed: %v", after)
	}
	if err := board(m).Keep(context.Background(), &cluster{id: "other"}); err == nil {
		t.Fatal("the leader of another cluster took the record over")
	}
}

func TestForbiddenIsSaid(t *testing.T) {
	m := newMemory(1)
	m.away = apierrors.NewForbidden(schema.GroupResource{Resource: "configmaps"}, "keelson", errors.New("no"))
	if _, err := board(m).Decide(context.Background(), self(1)); err == nil || !strings.Contains(err.Error(), "roles of the chart") {
		t.Fatal(err)
	}
}

func TestAReplacedNodeIsForgottenOnlyWhenItMayBe(t *testing.T) {
	m, c := newMemory(2), &cluster{id: "c1"}
	come(t, m, c, 1, 2)
	s := self(2)
	s.ID = "eeeeeeeeeeeeeeee"
	if _, err := board(m).Decide(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	find := func() *Node {
		return &c.nodes[slices.IndexFunc(c.nodes, func(n Node) bool { return n.Name == "n2" })]
	}
	if err := board(m).Keep(context.Background(), c); err != nil || len(c.forgot) > 0 {
		t.Fatalf("a node that is alive was forgotten: %v, %v", c.forgot, err)
	}
	find().Alive = false
	c.refuse = errors.New("it has copies")
	if err := board(m).Keep(context.Background(), c); err == nil || len(c.forgot) > 0 {
		t.Fatalf("forgot %v, %v", c.forgot, err)
	}
	c.refuse = nil
	if err := board(m).Keep(context.Background(), c); err != nil || !slices.Equal(c.forgot, []string{"n2"}) {
		t.Fatalf("forgot %v, %v", c.forgot, err)
	}
	// Its place among the metadata is still its own.
	if err := board(m).Keep(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if d, err := board(m).Decide(context.Background(), s); err != nil || !slices.Contains(d.Roles, spec.RoleMetadata) {
		t.Fatalf("%+v, %v", d, err)
	}
}

func TestKeepGivesAwayPlacesOfNodesThatWereRemoved(t *testing.T) {
	m, c := newMemory(3), &cluster{id: "c1"}
	come(t, m, c, 1, 2, 3)
	c.nodes = slices.DeleteFunc(c.nodes, func(n Node) bool { return n.Name == "n3" })
	if err := board(m).Keep(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	if d := come(t, m, c, 4)["n4"]; !slices.Contains(d.Roles, spec.RoleMetadata) {
		t.Fatalf("%+v: the place of n3 wasn't given away", d)
	}
	if d := come(t, m, c, 5)["n5"]; slices.Contains(d.Roles, spec.RoleMetadata) {
		t.Fatalf("%+v: a fourth member", d)
	}
}

func TestKeepWritesOnlyWhatChanged(t *testing.T) {
	m, c := newMemory(1), &cluster{id: "c1"}
	come(t, m, c, 1)
	if err := board(m).Keep(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	before := m.version
	if err := board(m).Keep(context.Background(), c); err != nil || m.version != before {
		t.Fatalf("version %d after %d, %v", m.version, before, err)
	}
	if s := m.secrets[SecretViewer]; s["ca.crt"] != "CA" || s["token"] == "" {
		t.Fatalf("%v", s)
	}
}
