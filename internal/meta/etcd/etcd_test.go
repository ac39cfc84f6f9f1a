package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/metatest"
	"keelson.io/keelson/internal/spec"
)

const patience = 30 * time.Second

func TestContract(t *testing.T) {
	metatest.Run(t, func(t *testing.T) metatest.Harness {
		s := empty(t)
		return metatest.Harness{Store: s, LoseLease: func(node string) {
			resp, err := s.c.Get(t.Context(), leasePrefix+node)
			if err != nil || len(resp.Kvs) != 1 {
				t.Fatalf("lease of %s: %v, %v", node, resp, err)
			}
			if _, err := s.c.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
				t.Fatal(err)
			}
		}}
	})
}

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

// during runs fn until the test ends.
func during(t *testing.T, fn func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- fn(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := receive(t, done, "an end"); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestUnreachable(t *testing.T) {
	w := newWire(t)
	w.setCut(true)
	s, err := New(Config{Endpoints: []string{w.endpoint()}, Timeout: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Volumes(t.Context()); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("read: %v", err)
	}
	if _, err := s.CreateVolume(t.Context(), spec.Volume{ID: spec.NewID(), Name: "v"}); !errors.Is(err, meta.ErrUnavailable) {
		t.Errorf("write: %v", err)
	}
	if _, err := New(Config{}); err == nil {
		t.Error("a store without endpoints was made")
	}
}

// TestCutLease cuts a node off: its lease must be lost on both sides, and be taken anew after healing.
func TestCutLease(t *testing.T) {
	direct, w := empty(t), newWire(t)
	s := open(t, w.endpoint())
	calls := make(chan string, 10)
	during(t, func(ctx context.Context) error {
		return s.HoldLease(ctx, "n1", func() { calls <- "held" }, func() { calls <- "lost" })
	})
	if c := receive(t, calls, "the lease"); c != "held" {
		t.Fatal(c)
	}
	events := make(chan meta.Event, 100)
	during(t, func(ctx context.Context) error {
		return direct.Watch(ctx, func(ev meta.Event) error { events <- ev; return nil })
	})
	w.setCut(true)
	if c := receive(t, calls, "the loss, though etcd can't be asked"); c != "lost" {
		t.Fatal(c)
	}
	for ev := receive(t, events, "LeaseGone"); ev.Kind != meta.LeaseGone; ev = receive(t, events, "LeaseGone") {
	}
	w.setCut(false)
	if c := receive(t, calls, "the lease again"); c != "held" {
		t.Fatal(c)
	}
	for ev := receive(t, events, "LeaseHeld"); ev.Kind != meta.LeaseHeld; ev = receive(t, events, "LeaseHeld") {
	}
}

// TestLeaseOutlivesItsHolder: a process that takes a node's lease while that of its dead predecessor is still there
// keeps it when the older one ends.
func TestLeaseOutlivesItsHolder(t *testing.T) {
	s := empty(t)
	old, err := s.take(t.Context(), leasePrefix+"n1", "n1")
	if err != nil {
		t.Fatal(err)
	}
	held := make(chan struct{}, 10)
	during(t, func(ctx context.Context) error {
		return s.HoldLease(ctx, "n1", func() { held <- struct{}{} }, func() { t.Error("lost") })
	})
	receive(t, held, "the lease")
	s.revoke(t.Context(), old)
	alive, err := s.Alive(t.Context())
	if err != nil || !alive["n1"] {
		t.Fatalf("%v, %v", alive, err)
	}
}

// TestCutLeader cuts the leader off: its context must end before another leads.
func TestCutLeader(t *testing.T) {
	direct, w := empty(t), newWire(t)
	s := open(t, w.endpoint())
	events := make(chan string, 10)
	lead := func(ctx context.Context, s *Store, node string) error {
		return s.Lead(ctx, node, func(ctx context.Context) {
			events <- node + " leads"
			<-ctx.Done()
			events <- node + " ends"
		})
	}
	during(t, func(ctx context.Context) error { return lead(ctx, s, "n1") })
	if e := receive(t, events, "a leader"); e != "n1 leads" {
		t.Fatal(e)
	}
	during(t, func(ctx context.Context) error { return lead(ctx, direct, "n2") })
	w.setCut(true)
	if e := receive(t, events, "the end of a leadership"); e != "n1 ends" {
		t.Fatal(e)
	}
	if e := receive(t, events, "a new leader"); e != "n2 leads" {
		t.Fatal(e)
	}
	if n, err := direct.Leader(t.Context()); err != nil || n != "n2" {
		t.Fatalf("leader %q, %v", n, err)
	}
	w.setCut(false)
}

// TestWatchThroughCuts cuts a watcher off again and again: it must see every change, and no Resync.
func TestWatchThroughCuts(t *testing.T) {
	direct, w := empty(t), newWire(t)
	s := open(t, w.endpoint())
	events := make(chan meta.Event, 1000)
	during(t, func(ctx context.Context) error {
		return s.Watch(ctx, func(ev meta.Event) error { events <- ev; return nil })
	})
	if ev := receive(t, events, "Synced"); ev.Kind != meta.Synced {
		t.Fatalf("%+v", ev)
	}
	v := spec.Volume{ID: spec.NewID(), Name: "v"}
	rev, err := direct.CreateVolume(t.Context(), v)
	for i := uint64(0); i < 30 && err == nil; i++ {
		w.setCut(i%10 >= 5)
		if ev := (meta.Event{}); i%10 < 5 {
			for ev.Volume.State.Term != v.State.Term || ev.Kind == 0 {
				next := receive(t, events, fmt.Sprintf("term %d", v.State.Term))
				if next.Kind != meta.VolumePut || ev.Kind != 0 && next.Volume.State.Term != ev.Volume.State.Term+1 {
					t.Fatalf("%+v after %+v", next, ev)
				}
				ev = next
			}
		}
		v.State.Term++
		rev, err = direct.PutVolume(t.Context(), v, rev, meta.Cond{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestWatchAfterCompaction lets a watcher miss changes for good: it must be sent the state anew.
func TestWatchAfterCompaction(t *testing.T) {
	direct, w := empty(t), newWire(t)
	s := open(t, w.endpoint())
	gone := spec.Node{Name: "gone"}
	rev, err := direct.PutNode(t.Context(), gone, 0)
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan meta.Event, 1000)
	during(t, func(ctx context.Context) error {
		return s.Watch(ctx, func(ev meta.Event) error { events <- ev; return nil })
	})
	for ev := receive(t, events, "Synced"); ev.Kind != meta.Synced; ev = receive(t, events, "Synced") {
	}
	w.setCut(true)
	if err := direct.DeleteNode(t.Context(), gone.Name, rev); err != nil {
		t.Fatal(err)
	}
	rev, err = direct.PutNode(t.Context(), spec.Node{Name: "here"}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := direct.c.Compact(t.Context(), int64(rev), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	w.setCut(false)
	var kinds []meta.EventKind
	for !slices.Contains(kinds, meta.Synced) {
		ev := receive(t, events, "the state anew")
		kinds = append(kinds, ev.Kind)
		if ev.Kind == meta.NodePut && ev.Node.Name != "here" {
			t.Errorf("node %q was sent", ev.Node.Name)
		}
	}
	if !slices.Equal(kinds, []meta.EventKind{meta.Resync, meta.NodePut, meta.Synced}) {
		t.Fatalf("got events %v", kinds)
	}
}

func TestNewerFormat(t *testing.T) {
	s := empty(t)
	for key, value := range map[string]string{
		nodePrefix + "n1": `{"v":2,"data":{"name":"n1"}}`,
		nodePrefix + "n2": `{"data":{"name":"n2"}}`,
		nodePrefix + "n3": `garbage`,
	} {
		if _, err := s.c.Put(t.Context(), key, value); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Node(t.Context(), key[len(nodePrefix):]); !errors.Is(err, meta.ErrFormat) {
			t.Errorf("%s: %v", value, err)
		}
	}
	if _, err := s.Nodes(t.Context()); !errors.Is(err, meta.ErrFormat) {
		t.Errorf("list: %v", err)
	}
	if err := s.Watch(t.Context(), func(meta.Event) error { return nil }); !errors.Is(err, meta.ErrFormat) {
		t.Errorf("watch: %v", err)
	}
}

func BenchmarkVolumes10000(b *testing.B) {
	s, err := New(Config{Endpoints: []string{endpoint}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	if _, err := s.c.Delete(b.Context(), root, clientv3.WithPrefix()); err != nil {
		b.Fatal(err)
	}
	for i := range 10000 {
		v := spec.Volume{ID: spec.NewID(), Name: fmt.Sprintf("v%05d", i), Size: 1 << 30, Replicas: 2, Columns: 1}
		for range 2 {
			m := spec.Member{Replica: spec.NewID(), Node: "n1", Pool: spec.NewID(), State: spec.InSync, Run: spec.NewID(), Reason: "zone z1 had no copy"}
			v.State.Columns = []spec.Column{{Members: []spec.Member{m, m}}}
		}
		if _, err := s.CreateVolume(b.Context(), v); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if list, err := s.Volumes(b.Context()); err != nil || len(list) != 10000 {
			b.Fatal(len(list), err)
		}
	}
}
