package metatest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// background runs fn until stop, which waits for it and expects it to end with its context's error.
func background(t *testing.T, ctx context.Context, fn func(ctx context.Context) error) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v, want %v", err, context.Canceled)
				}
			case <-time.After(patience):
				t.Error("it didn't end with its context")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// receive waits for a value.
func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	panic("unreachable")
}

// hold takes a node's lease, and returns when it is held.
func hold(t *testing.T, ctx context.Context, s meta.Store, node string) (stop func()) {
	t.Helper()
	held := make(chan struct{}, 100)
	stop = background(t, ctx, func(ctx context.Context) error {
		return s.HoldLease(ctx, node, func() { held <- struct{}{} }, func() { t.Error("the lease was lost") })
	})
	receive(t, held, "the lease of "+node)
	return stop
}

func testLease(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	alive := func() map[string]bool { t.Helper(); return must[map[string]bool](t)(s.Alive(ctx)) }
	same(t, alive(), map[string]bool{})
	stop1 := hold(t, ctx, s, "n1")
	stop2 := hold(t, ctx, s, "n2")
	same(t, alive(), map[string]bool{"n1": true, "n2": true})
	stop1()
	same(t, alive(), map[string]bool{"n2": true}) // given up at once, not after the TTL
	stop1 = hold(t, ctx, s, "n1")
	same(t, alive(), map[string]bool{"n1": true, "n2": true})
	stop1()
	stop2()
	same(t, alive(), map[string]bool{})
}

func testLeaseLost(t *testing.T, ctx context.Context, h Harness) {
	calls := make(chan string, 100)
	background(t, ctx, func(ctx context.Context) error {
		return h.Store.HoldLease(ctx, "n1", func() { calls <- "held" }, func() { calls <- "lost" })
	})
	same(t, receive(t, calls, "the lease"), "held")
	h.LoseLease("n1")
	same(t, receive(t, calls, "the loss"), "lost")
	same(t, receive(t, calls, "the lease again"), "held")
	same(t, must[map[string]bool](t)(h.Store.Alive(ctx)), map[string]bool{"n1": true})
}

// follow watches, and returns the events.
func follow(t *testing.T, ctx context.Context, s meta.Store) <-chan meta.Event {
	t.Helper()
	events := make(chan meta.Event, 10000)
	background(t, ctx, func(ctx context.Context) error {
		return s.Watch(ctx, func(ev meta.Event) error { events <- ev; return nil })
	})
	return events
}

// untilSynced returns the events up to Synced.
func untilSynced(t *testing.T, events <-chan meta.Event) []meta.Event {
	t.Helper()
	var out []meta.Event
	for {
		ev := receive(t, events, "Synced")
		if ev.Kind == meta.Synced {
			return out
		}
		out = append(out, ev)
	}
}

func testWatchState(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	c := spec.Cluster{ID: spec.NewID(), Name: "c", Settings: spec.DefaultSettings()}
	n, p, v := node("n1"), spec.Pool{ID: spec.NewID(), Node: "n1"}, volume("db")
	crev := must[meta.Rev](t)(s.PutCluster(ctx, c, 0))
	nrev := must[meta.Rev](t)(s.PutNode(ctx, n, 0))
	prev := must[meta.Rev](t)(s.PutPool(ctx, p, 0))
	vrev := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	must[meta.Rev](t)(s.PutToken(ctx, spec.Token{ID: spec.NewID()}, 0))
	hold(t, ctx, s, "n1")
	got := map[meta.EventKind]meta.Event{}
	for _, ev := range untilSynced(t, follow(t, ctx, s)) {
		if _, twice := got[ev.Kind]; twice {
			t.Fatalf("two events of kind %d", ev.Kind)
		}
		got[ev.Kind] = ev
	}
	lease := got[meta.LeaseHeld]
	lease.Rev = 0
	got[meta.LeaseHeld] = lease
	same(t, got, map[meta.EventKind]meta.Event{
		meta.ClusterPut: {Kind: meta.ClusterPut, Rev: crev, Cluster: c},
		meta.NodePut:    {Kind: meta.NodePut, Rev: nrev, Node: n},
		meta.PoolPut:    {Kind: meta.PoolPut, Rev: prev, Pool: p},
		meta.VolumePut:  {Kind: meta.VolumePut, Rev: vrev, Volume: v},
		meta.LeaseHeld:  {Kind: meta.LeaseHeld, Node: spec.Node{Name: "n1"}},
	})
}

func testWatchChanges(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	events := follow(t, ctx, s)
	if state := untilSynced(t, events); len(state) != 0 {
		t.Fatalf("an empty store sent %+v", state)
	}
	expect := func(want meta.Event) {
		t.Helper()
		got := receive(t, events, fmt.Sprintf("event %d", want.Kind))
		if want.Rev == 0 {
			got.Rev = 0
		}
		same(t, got, want)
	}
	n := node("n1")
	nrev := must[meta.Rev](t)(s.PutNode(ctx, n, 0))
	expect(meta.Event{Kind: meta.NodePut, Rev: nrev, Node: n})
	stop := hold(t, ctx, s, "n1")
	expect(meta.Event{Kind: meta.LeaseHeld, Node: spec.Node{Name: "n1"}})
	must[meta.Rev](t)(s.PutToken(ctx, spec.Token{ID: spec.NewID()}, 0)) // isn't shown
	v := volume("db")
	vrev := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	expect(meta.Event{Kind: meta.VolumePut, Rev: vrev, Volume: v})
	v.State.Term++
	vrev = must[meta.Rev](t)(s.PutVolume(ctx, v, vrev, meta.Cond{}))
	expect(meta.Event{Kind: meta.VolumePut, Rev: vrev, Volume: v})
	ok(t, s.DeleteVolume(ctx, v.ID, vrev))
	expect(meta.Event{Kind: meta.VolumeDeleted, Volume: spec.Volume{ID: v.ID}})
	p := spec.Pool{ID: spec.NewID(), Node: "n1"}
	prev := must[meta.Rev](t)(s.PutPool(ctx, p, 0))
	expect(meta.Event{Kind: meta.PoolPut, Rev: prev, Pool: p})
	ok(t, s.DeletePool(ctx, p.ID, prev))
	expect(meta.Event{Kind: meta.PoolDeleted, Pool: spec.Pool{ID: p.ID}})
	stop()
	expect(meta.Event{Kind: meta.LeaseGone, Node: spec.Node{Name: "n1"}})
	ok(t, s.DeleteNode(ctx, "n1", nrev))
	expect(meta.Event{Kind: meta.NodeDeleted, Node: spec.Node{Name: "n1"}})
}

func testWatchStops(t *testing.T, ctx context.Context, h Harness) {
	mine := errors.New("enough")
	must[meta.Rev](t)(h.Store.PutNode(ctx, node("n1"), 0))
	calls := 0
	err := h.Store.Watch(ctx, func(meta.Event) error { calls++; return mine })
	if !errors.Is(err, mine) || calls != 1 {
		t.Fatalf("%d calls, error %v", calls, err)
	}
}

// testWatchOrder changes one record while watchers come and go: each must see every later change, in order.
func testWatchOrder(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	v := volume("db")
	rev := must[meta.Rev](t)(s.CreateVolume(ctx, v))
	const changes = 50
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			last := uint64(0)
			begun := false
			err := s.Watch(ctx, func(ev meta.Event) error {
				if ev.Kind != meta.VolumePut {
					return nil
				}
				if begun && ev.Volume.State.Term != last+1 {
					return fmt.Errorf("term %d after %d", ev.Volume.State.Term, last)
				}
				begun, last = true, ev.Volume.State.Term
				if last == changes {
					return context.Canceled
				}
				return nil
			})
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			done <- err
		}()
	}
	for range changes {
		v.State.Term++
		rev = must[meta.Rev](t)(s.PutVolume(ctx, v, rev, meta.Cond{}))
	}
	for range cap(done) {
		ok(t, receive(t, done, "a watcher"))
	}
}

// testLead has three nodes campaign, and ends their leaderships one after the other.
func testLead(t *testing.T, ctx context.Context, h Harness) {
	s := h.Store
	same(t, must[string](t)(s.Leader(ctx)), "")
	began := make(chan string, 10)
	var mu sync.Mutex
	leading := 0
	stops := map[string]func(){}
	for _, n := range []string{"n1", "n2", "n3"} {
		stops[n] = background(t, ctx, func(ctx context.Context) error {
			return s.Lead(ctx, n, func(ctx context.Context) {
				mu.Lock()
				leading++
				if leading > 1 {
					t.Errorf("%s leads beside another", n)
				}
				mu.Unlock()
				began <- n
				<-ctx.Done()
				mu.Lock()
				leading--
				mu.Unlock()
			})
		})
	}
	seen := map[string]bool{}
	for range 3 {
		n := receive(t, began, "a leader")
		if seen[n] {
			t.Fatalf("%s leads again after it stopped", n)
		}
		seen[n] = true
		same(t, must[string](t)(s.Leader(ctx)), n)
		stops[n]()
	}
	same(t, must[string](t)(s.Leader(ctx)), "")
}
