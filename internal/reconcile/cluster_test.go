package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/spec"
)

// cluster is metadata with nodes that hold leases, a Runner, and the test in the role of the engines. It lives in a
// synctest bubble.
type cluster struct {
	t   *testing.T
	ctx context.Context
	*mem.Store
	mu       sync.Mutex
	served   []string // "volume@node", in order
	serving  int
	most     int           // most that were being served at once
	serve    error         // what Serve answers
	serveFor time.Duration // how long Serve takes
}

// inCluster runs a test on a cluster with nodes n1, n2, …, each in a zone of its own with one pool.
func inCluster(t *testing.T, nodes int, test func(t *testing.T, c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		c := &cluster{t: t, ctx: ctx, Store: mem.New()}
		settings := spec.DefaultSettings()
		settings.ScrubInterval = 0 // those who want scrubs say so
		c.put(c.PutCluster(ctx, spec.Cluster{ID: spec.NewID(), Settings: settings}, 0))
		var wg sync.WaitGroup
		for i := range nodes {
			c.addNode(&wg, i+1)
		}
		r := New(Config{Store: c, Log: slog.New(slog.DiscardHandler), Serve: c.serveOne})
		wg.Go(func() { _ = c.Lead(ctx, "leader", r.Run) })
		test(t, c)
		cancel()
		wg.Wait()
	})
}

func (c *cluster) put(_ meta.Rev, err error) {
	c.t.Helper()
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) addNode(wg *sync.WaitGroup, i int) {
	name := fmt.Sprintf("n%d", i)
	c.put(c.PutNode(c.ctx, spec.Node{Name: name, Zone: fmt.Sprintf("z%d", i), Roles: []spec.Role{spec.RoleStorage}}, 0))
	c.put(c.PutPool(c.ctx, spec.Pool{ID: "pool-" + name, Node: name, Media: spec.MediaSSD, Capacity: 1 << 40}, 0))
	wg.Go(func() { _ = c.HoldLease(c.ctx, name, func() {}, func() {}) })
}

func (c *cluster) serveOne(ctx context.Context, volume, node string) error {
	v, err := c.Volume(ctx, volume)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.served = append(c.served, v.Value.Name+"@"+node)
	c.serving++
	c.most = max(c.most, c.serving)
	c.mu.Unlock()
	select {
	case <-time.After(c.serveFor):
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.serving--
	return c.serve
}

// pass lets time go by, and everything that is due then happen.
func (c *cluster) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// create makes a volume with one column and an in-sync member on each of the nodes.
func (c *cluster) create(name, attached string, nodes ...string) {
	c.t.Helper()
	v := spec.Volume{ID: spec.NewID(), Name: name, Size: 1 << 30, Replicas: len(nodes), Columns: 1, Created: time.Now()}
	v.State = spec.State{Term: 1, Fenced: 1, Node: attached, Columns: make([]spec.Column, 1)}
	if attached != "" {
		v.State.Frontend = spec.FrontendNBD
	}
	for _, n := range nodes {
		v.State.Columns[0].Members = append(v.State.Columns[0].Members,
			spec.Member{Replica: spec.NewID(), Node: n, Pool: "pool-" + n, State: spec.InSync})
	}
	c.put(c.CreateVolume(c.ctx, v))
}

// update changes a volume's record as an engine would.
func (c *cluster) update(name string, change func(*spec.Volume)) {
	c.t.Helper()
	v, err := c.VolumeByName(c.ctx, name)
	if err != nil {
		c.t.Fatal(err)
	}
	change(&v.Value)
	c.put(c.PutVolume(c.ctx, v.Value, v.Rev, meta.Cond{}))
}

// set changes the state of a volume's member on a node.
func (c *cluster) set(name, node string, state spec.MemberState) {
	c.t.Helper()
	c.update(name, func(v *spec.Volume) {
		for i := range v.State.Columns {
			for j := range v.State.Columns[i].Members {
				if m := &v.State.Columns[i].Members[j]; m.Node == node {
					m.State = state
				}
			}
		}
	})
}

// expect compares a volume's members, such as "n1 InSync, n2 Stale Removing"; "" is a volume that isn't there.
func (c *cluster) expect(name string, want ...string) {
	c.t.Helper()
	v, err := c.VolumeByName(c.ctx, name)
	if err != nil && len(want) > 0 {
		c.t.Fatal(err)
	}
	var got []string
	for _, col := range v.Value.State.Columns {
		for _, m := range col.Members {
			s := m.Node + " " + string(m.State)
			if m.Removing {
				s += " Removing"
			}
			got = append(got, s)
		}
	}
	if !slices.Equal(got, want) {
		c.t.Fatalf("volume %s has %q, want %q", name, got, want)
	}
}

// services returns what was served since the last call.
func (c *cluster) services() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.served
	c.served = nil
	return s
}
