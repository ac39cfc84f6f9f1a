// Package metatest is the contract that every meta.Store keeps, as tests that each implementation runs. It has no
// state; the goroutines that a test starts end with it.
package metatest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Harness is one empty cluster's metadata.
type Harness struct {
	// Store is the store under test. It is closed by whoever made it.
	Store meta.Store
	// LoseLease makes the store forget a node's lease, once, behind the holder's back.
	LoseLease func(node string)
}

// patience is how long a test waits for what must come. It is generous: what doesn't come fails anyway.
const patience = 30 * time.Second

// Run runs the whole suite. open makes a new, empty store.
func Run(t *testing.T, open func(t *testing.T) Harness) {
	for name, test := range map[string]func(*testing.T, context.Context, Harness){
		"Cluster": testCluster, "Nouns": testNouns, "Order": testOrder, "VolumeNames": testVolumeNames,
		"VolumeConflict": testVolumeConflict, "NodeGone": testNodeGone, "Concurrent": testConcurrent,
		"Isolation": testIsolation, "ManyVolumes": testManyVolumes, "Lease": testLease, "LeaseLost": testLeaseLost,
		"WatchState": testWatchState, "WatchChanges": testWatchChanges, "WatchStops": testWatchStops,
		"WatchOrder": testWatchOrder, "Lead": testLead, "Cancelled": testCancelled, "Events": testEvents,
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t)
			ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
			defer cancel()
			test(t, ctx, h)
		})
	}
}

func node(name string) spec.Node {
	return spec.Node{Name: name, ID: spec.NewID(), Roles: []spec.Role{spec.RoleStorage}, Zone: "z1",
		Labels: map[string]string{"disk": "fast"}, APIAddr: "10.0.0.1:9500", EngineAddr: "10.0.0.1:9501", Shards: 2,
		Joined: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}
}

func volume(name string) spec.Volume {
	return spec.Volume{ID: spec.NewID(), Name: name, Size: 1 << 30, Replicas: 1, Columns: 1,
		Created: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
		State: spec.State{Columns: []spec.Column{{Members: []spec.Member{{
			Replica: spec.NewID(), Node: "n1", Pool: spec.NewID(), State: spec.InSync, Reason: "the only node"}}}}}}
}

func must[T any](t *testing.T) func(T, error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got error %v, want %v", err, kind)
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func testCluster(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	_, err := s.Cluster(ctx)
	want(t, err, meta.ErrNotFound)
	c := spec.Cluster{ID: spec.NewID(), Name: "c", Created: time.Now().UTC(), Settings: spec.DefaultSettings()}
	rev := must[meta.Rev](t)(s.PutCluster(ctx, c, 0))
	_, err = s.PutCluster(ctx, c, 0)
	want(t, err, meta.ErrExists)
	got := must[meta.Versioned[spec.Cluster]](t)(s.Cluster(ctx))
	same(t, got, meta.Versioned[spec.Cluster]{Value: c, Rev: rev})
	c.Settings.Overcommit = 3
	rev2 := must[meta.Rev](t)(s.PutCluster(ctx, c, rev))
	if rev2 == rev {
		t.Fatal("a write didn't change the revision")
	}
	_, err = s.PutCluster(ctx, c, rev)
	want(t, err, meta.ErrConflict)
}

// testNouns takes nodes, pools and tokens through their lives.
func testNouns(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	n := node("n1")
	life(t, ctx, n.Name, n, s.Node, s.PutNode, s.DeleteNode, func(n *spec.Node) { n.Cordoned = true })
	p := spec.Pool{ID: spec.NewID(), Node: "n1", Media: spec.MediaSSD, Capacity: 1 << 40, Reserve: 1 << 30}
	life(t, ctx, p.ID, p, s.Pool, s.PutPool, s.DeletePool, func(p *spec.Pool) { p.Reserve++ })
	k := spec.Token{ID: spec.NewID(), SecretHash: "ab", Roles: []spec.Role{spec.RoleStorage}}
	life(t, ctx, k.ID, k, s.Token, s.PutToken, s.DeleteToken, func(k *spec.Token) { k.Expires = time.Unix(9, 0).UTC() })
	a := spec.APIToken{ID: spec.NewID(), Name: "ci", SecretHash: "cd", Role: spec.RoleViewer}
	life(t, ctx, a.ID, a, s.APIToken, s.PutAPIToken, s.DeleteAPIToken, func(a *spec.APIToken) { a.Name = "other" })
	if all := must[[]meta.Versioned[spec.APIToken]](t)(s.APITokens(ctx)); len(all) != 1 || all[0].Value.Name != "other" {
		t.Fatalf("API tokens: %v", all)
	}
}

func life[T any](t *testing.T, ctx context.Context, key string, v T, get func(context.Context, string) (meta.Versioned[T], error),
	put func(context.Context, T, meta.Rev) (meta.Rev, error), remove func(context.Context, string, meta.Rev) error, change func(*T)) {
	t.Helper()
	_, err := get(ctx, key)
	want(t, err, meta.ErrNotFound)
	_, err = put(ctx, v, 1)
	want(t, err, meta.ErrNotFound)
	want(t, remove(ctx, key, 1), meta.ErrNotFound)
	want(t, remove(ctx, key, 0), meta.ErrNotFound)
	first := must[meta.Rev](t)(put(ctx, v, 0))
	_, err = put(ctx, v, 0)
	want(t, err, meta.ErrExists)
	same(t, must[meta.Versioned[T]](t)(get(ctx, key)), meta.Versioned[T]{Value: v, Rev: first})
	change(&v)
	second := must[meta.Rev](t)(put(ctx, v, first))
	_, err = put(ctx, v, first)
	want(t, err, meta.ErrConflict)
	want(t, remove(ctx, key, first), meta.ErrConflict)
	want(t, remove(ctx, key, 0), meta.ErrConflict)
	same(t, must[meta.Versioned[T]](t)(get(ctx, key)), meta.Versioned[T]{Value: v, Rev: second})
	ok(t, remove(ctx, key, second))
	_, err = get(ctx, key)
	want(t, err, meta.ErrNotFound)
	_, err = put(ctx, v, second)
	want(t, err, meta.ErrNotFound)
	again := must[meta.Rev](t)(put(ctx, v, 0))
	if again == first || again == second {
		t.Fatal("a noun that was made anew has an old revision")
	}
}

func testOrder(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	for _, n := range []string{"b", "a", "a-b"} {
		must[meta.Rev](t)(s.PutNode(ctx, node(n), 0))
		for range 2 {
			must[meta.Rev](t)(s.PutPool(ctx, spec.Pool{ID: spec.NewID(), Node: n}, 0))
		}
		must[meta.Rev](t)(s.CreateVolume(ctx, volume(n)))
	}
	var names, vols []string
	for _, n := range must[[]meta.Versioned[spec.Node]](t)(s.Nodes(ctx)) {
		names = append(names, n.Value.Name)
	}
	same(t, names, []string{"a", "a-b", "b"})
	for _, v := range must[[]meta.Versioned[spec.Volume]](t)(s.Volumes(ctx)) {
		vols = append(vols, v.Value.Name)
	}
	same(t, vols, []string{"a", "a-b", "b"})
	pools := must[[]meta.Versioned[spec.Pool]](t)(s.Pools(ctx))
	if len(pools) != 6 {
		t.Fatalf("%d pools, want 6", len(pools))
	}
	for i := range pools[1:] {
		a, b := pools[i].Value, pools[i+1].Value
		if a.Node > b.Node || a.Node == b.Node && a.ID >= b.ID {
			t.Fatalf("pool %s/%s stands before %s/%s", a.Node, a.ID, b.Node, b.ID)
		}
	}
}

func testVolumeNames(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	_, err := s.VolumeByName(ctx, "db")
	want(t, err, meta.ErrNotFound)
	v := volume("db")
	rev := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	same(t, must[meta.Versioned[spec.Volume]](t)(s.VolumeByName(ctx, "db")), meta.Versioned[spec.Volume]{Value: v, Rev: rev})
	_, err = s.CreateVolume(ctx, volume("db"))
	want(t, err, meta.ErrExists)
	twin := volume("other")
	twin.ID = v.ID
	_, err = s.CreateVolume(ctx, twin)
	want(t, err, meta.ErrExists)
	_, err = s.VolumeByName(ctx, "other")
	want(t, err, meta.ErrNotFound)
	renamed := v
	renamed.Name = "new"
	_, err = s.PutVolume(ctx, renamed, rev, meta.Cond{})
	want(t, err, meta.ErrConflict)
	must[meta.Rev](t)(s.CreateVolume(ctx, volume("second")))
	renamed.Name = "second"
	_, err = s.PutVolume(ctx, renamed, rev, meta.Cond{})
	want(t, err, meta.ErrConflict)
	ok(t, s.DeleteVolume(ctx, v.ID, rev))
	_, err = s.VolumeByName(ctx, "db")
	want(t, err, meta.ErrNotFound)
	must[meta.Rev](t)(s.CreateVolume(ctx, volume("db")))
}

func testVolumeConflict(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	v := volume("db")
	_, err := s.PutVolume(ctx, v, 5, meta.Cond{})
	want(t, err, meta.ErrNotFound)
	want(t, s.DeleteVolume(ctx, v.ID, 5), meta.ErrNotFound)
	first := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	_, err = s.PutVolume(ctx, v, 0, meta.Cond{})
	want(t, err, meta.ErrConflict)
	v.State.Term = 7
	second := must[meta.Rev](t)(s.PutVolume(ctx, v, first, meta.Cond{}))
	v.State.Term = 8
	_, err = s.PutVolume(ctx, v, first, meta.Cond{})
	want(t, err, meta.ErrConflict)
	want(t, s.DeleteVolume(ctx, v.ID, first), meta.ErrConflict)
	got := must[meta.Versioned[spec.Volume]](t)(s.Volume(ctx, v.ID))
	if got.Value.State.Term != 7 || got.Rev != second {
		t.Fatalf("a refused write left term %d at %d", got.Value.State.Term, got.Rev)
	}
	ok(t, s.DeleteVolume(ctx, v.ID, second))
	_, err = s.PutVolume(ctx, v, second, meta.Cond{})
	want(t, err, meta.ErrNotFound)
}

func testNodeGone(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	v := volume("db")
	rev := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	stop := hold(t, ctx, s, "n1")
	_, err := s.PutVolume(ctx, v, rev, meta.Cond{NodeGone: "n1"})
	want(t, err, meta.ErrConflict)
	got := must[meta.Versioned[spec.Volume]](t)(s.Volume(ctx, v.ID))
	if got.Rev != rev {
		t.Fatal("a write whose condition didn't hold was done")
	}
	rev = must[meta.Rev](t)(s.PutVolume(ctx, v, rev, meta.Cond{NodeGone: "n2"}))
	stop()
	rev2 := must[meta.Rev](t)(s.PutVolume(ctx, v, rev, meta.Cond{NodeGone: "n1"}))
	_, err = s.PutVolume(ctx, v, rev, meta.Cond{NodeGone: "n1"})
	want(t, err, meta.ErrConflict)
	if rev2 == rev {
		t.Fatal("a write didn't change the revision")
	}
}

// testConcurrent has writers count in one record; none of their steps may be lost.
func testConcurrent(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	v := volume("db")
	must[meta.Rev](t)(s.CreateVolume(ctx, v))
	const writers, steps = 4, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for done := 0; done < steps; {
				cur, err := s.Volume(ctx, v.ID)
				if err == nil {
					cur.Value.State.Term++
					_, err = s.PutVolume(ctx, cur.Value, cur.Rev, meta.Cond{})
				}
				switch {
				case err == nil:
					done++
				case !errors.Is(err, meta.ErrConflict):
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := must[meta.Versioned[spec.Volume]](t)(s.Volume(ctx, v.ID)).Value.State.Term; got != writers*steps {
		t.Fatalf("%d steps were counted, want %d", got, writers*steps)
	}
}

// testIsolation changes what was given and what was got; the store must not notice.
func testIsolation(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	v := volume("db")
	must[meta.Rev](t)(s.CreateVolume(ctx, v))
	v.State.Columns[0].Members[0].Node = "changed"
	got := must[meta.Versioned[spec.Volume]](t)(s.Volume(ctx, v.ID))
	got.Value.State.Columns[0].Members[0].Node = "changed"
	got = must[meta.Versioned[spec.Volume]](t)(s.Volume(ctx, v.ID))
	if n := got.Value.State.Columns[0].Members[0].Node; n != "n1" {
		t.Fatalf("the store's record says node %q", n)
	}
}

func testManyVolumes(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	const many = 2300 // more than two pages
	var wg sync.WaitGroup
	for w := range 16 {
		wg.Go(func() {
			for i := w; i < many; i += 16 {
				if _, err := s.CreateVolume(ctx, volume(fmt.Sprintf("v%05d", i))); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	list := must[[]meta.Versioned[spec.Volume]](t)(s.Volumes(ctx))
	if len(list) != many {
		t.Fatalf("%d volumes, want %d", len(list), many)
	}
	for i, v := range list {
		if v.Value.Name != fmt.Sprintf("v%05d", i) {
			t.Fatalf("volume %d is %s", i, v.Value.Name)
		}
	}
}

func testCancelled(t *testing.T, ctx context.Context, h Harness) {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	_, err := h.Store.Volumes(ctx)
	want(t, err, context.Canceled)
	_, err = h.Store.CreateVolume(ctx, volume("db"))
	want(t, err, context.Canceled)
	want(t, h.Store.Watch(ctx, func(meta.Event) error { return nil }), context.Canceled)
	want(t, h.Store.HoldLease(ctx, "n1", func() {}, func() {}), context.Canceled)
	want(t, h.Store.Lead(ctx, "n1", func(context.Context) {}), context.Canceled)
}
