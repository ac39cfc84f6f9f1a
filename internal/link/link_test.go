package link_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/wire"
)

const cluster = "00112233445566ff"

// replica is a member in memory. While hold is set it keeps what it is asked.
type replica struct {
	loop  aio.Loop
	data  []byte
	sums  []uint64
	hold  bool
	held  []*wire.Request
	asked int
	bad   bool // says that the second block of each read is bad
}

func newReplica(loop aio.Loop, blocks int) *replica {
	return &replica{loop: loop, data: make([]byte, blocks*block.Size), sums: make([]uint64, blocks)}
}

func (m *replica) Submit(r *wire.Request) {
	m.asked++
	if m.hold {
		m.held = append(m.held, r)
		return
	}
	m.loop.Post(func() { m.run(r) })
}

func (m *replica) release() {
	m.hold = false
	for _, r := range m.held {
		m.loop.Post(func() { m.run(r) })
	}
	m.held = nil
}

func (m *replica) run(r *wire.Request) {
	b := int(r.Off / block.Size)
	switch r.Kind {
	case wire.KindWrite:
		for i, s := range r.Sums {
			if block.Sum(r.Data[i*block.Size:(i+1)*block.Size]) != s {
				r.Status = wire.StatusBadSum
			}
		}
		copy(m.data[r.Off:], r.Data)
		copy(m.sums[b:], r.Sums)
	case wire.KindRead:
		copy(r.Data, m.data[r.Off:])
		copy(r.Sums, m.sums[b:])
		if m.bad {
			r.Status, r.Bad[0] = wire.StatusBadSum, 2
		}
	case wire.KindFence:
		r.Fence = &wire.FenceReply{Run: "run", Checkpoint: 5, Journal: []wire.JournalEntry{{Chunk: 1, Period: 2}}}
	case wire.KindSums:
		r.Sums = r.Sums[:copy(r.Sums, m.sums)]
	}
	r.Done(r)
}

// side is one engine of the test.
type side struct {
	node  *sim.Node
	loop  *sim.Loop
	links *link.Links
	log   *strings.Builder
}

func start(n *sim.Node, clusterID string, members map[wire.ReplicaID]wire.Member) *side {
	s := &side{node: n, loop: n.Start(), log: &strings.Builder{}}
	s.links = link.New(link.Config{
		Loop: s.loop, Self: n.Name(), Cluster: clusterID, Incarnation: 1,
		Log: slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Local: func(id wire.ReplicaID) (wire.Member, bool) {
			m, ok := members[id]
			return m, ok
		},
	})
	return s
}

type fixture struct {
	t     *testing.T
	w     *sim.World
	a, b  *side
	m     *replica
	peer  *link.Peer
	moves []bool
	stop  func()
}

func newFixture(t *testing.T, cfg sim.Config) *fixture {
	f := &fixture{t: t, w: sim.New(cfg)}
	na, nb := f.w.NewNode("a"), f.w.NewNode("b")
	members := map[wire.ReplicaID]wire.Member{}
	f.b = start(nb, cluster, members)
	f.m = newReplica(f.b.loop, 1024)
	members[7] = f.m
	f.a = start(na, cluster, nil)
	f.peer = f.a.links.Peer("b", "b:9501", 0)
	f.stop = f.peer.Subscribe(func(up bool) { f.moves = append(f.moves, up) })
	f.until("the link is up", f.peer.Up)
	return f
}

func (f *fixture) until(what string, cond func() bool) {
	f.t.Helper()
	if !f.w.Run(cond, 1_000_000) {
		f.t.Fatalf("never: %s\na: %s\nb: %s", what, f.a.log, f.b.log)
	}
}

func (f *fixture) newRequest(k wire.Kind, off int64, blocks int) (*wire.Request, *int) {
	done := new(int)
	r := &wire.Request{Kind: k, Replica: 7, Term: 1, Off: off, Len: int64(blocks * block.Size)}
	if k == wire.KindRead || k == wire.KindWrite {
		r.Data = f.a.loop.Buffers().Get(blocks * block.Size)
		r.Sums = make([]uint64, blocks)
	}
	r.Done = func(*wire.Request) { *done++ }
	return r, done
}

func (f *fixture) ask(r *wire.Request, done *int) {
	f.t.Helper()
	f.peer.Submit(r)
	if *done != 0 {
		f.t.Fatal("Done was called inside Submit")
	}
	f.until("answered", func() bool { return *done == 1 })
}

func fill(r *wire.Request, v byte) {
	for i := range r.Data {
		r.Data[i] = v + byte(i/block.Size)
	}
	block.SumAll(r.Sums, r.Data)
}

func TestRequests(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 1})
	for _, blocks := range []int{1, 3, 256} {
		w, done := f.newRequest(wire.KindWrite, 8*block.Size, blocks)
		fill(w, byte(blocks))
		f.ask(w, done)
		r, rdone := f.newRequest(wire.KindRead, 8*block.Size, blocks)
		f.ask(r, rdone)
		if w.Status != wire.StatusOK || r.Status != wire.StatusOK || !bytes.Equal(w.Data, r.Data) || r.Sums[blocks-1] != w.Sums[blocks-1] {
			t.Fatalf("%d blocks: write %v, read %v", blocks, w.Status, r.Status)
		}
		f.a.loop.Buffers().Put(w.Data)
		f.a.loop.Buffers().Put(r.Data)
	}
	fence, done := f.newRequest(wire.KindFence, 0, 0)
	f.ask(fence, done)
	if fence.Fence == nil || fence.Fence.Run != "run" || len(fence.Fence.Journal) != 1 {
		t.Fatalf("fence answered %+v", fence.Fence)
	}
	sums, done := f.newRequest(wire.KindSums, 0, 0)
	f.ask(sums, done)
	if len(sums.Sums) != 1024 || sums.Sums[9] == 0 {
		t.Fatalf("%d sums", len(sums.Sums))
	}
	none, done := f.newRequest(wire.KindRead, 0, 1)
	none.Replica = 8
	f.ask(none, done)
	if none.Status != wire.StatusNotFound {
		t.Fatalf("an unknown replica answered %v", none.Status)
	}
	if n := f.b.loop.Outstanding(); n != 0 {
		t.Fatalf("%d buffers leaked", n)
	}
}

func TestBadSumsComeThrough(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 2})
	w, done := f.newRequest(wire.KindWrite, 0, 2)
	fill(w, 1)
	w.Sums[1]++
	f.ask(w, done)
	if w.Status != wire.StatusBadSum {
		t.Fatalf("write with a wrong sum: %v", w.Status)
	}
	f.m.bad = true
	r, done := f.newRequest(wire.KindRead, 0, 2)
	f.ask(r, done)
	if r.Status != wire.StatusBadSum || r.Bad[0] != 2 || !bytes.Equal(r.Data, w.Data) || r.Sums[1] != w.Sums[1] {
		t.Fatalf("read of a bad block: %v, bad %b", r.Status, r.Bad[0])
	}
}

func TestLossAndReconnect(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 3})
	f.m.hold = true
	const n = 1500 // more than the window
	answered := 0
	var first *wire.Request
	for range n {
		r, _ := f.newRequest(wire.KindConfirm, 0, 0)
		r.Done = func(r *wire.Request) {
			if r.Status != wire.StatusLost {
				t.Errorf("answered %v", r.Status)
			}
			if len(f.moves) != 1 {
				t.Error("the subscriber was told before the requests were answered")
			}
			answered++
		}
		f.peer.Submit(r)
		if first == nil {
			first = r
		}
	}
	f.until("the member was asked", func() bool { return f.m.asked == 1024 })
	f.w.BreakConns(f.a.node, f.b.node)
	f.until("all requests are lost", func() bool { return answered == n })
	late, done := f.newRequest(wire.KindConfirm, 0, 0)
	if f.peer.Up() {
		t.Fatal("still up")
	}
	f.ask(late, done)
	if late.Status != wire.StatusLost {
		t.Fatalf("asked while down: %v", late.Status)
	}
	f.until("up again", f.peer.Up)
	f.m.release() // the old connection's requests run to their end, and nobody hears of it
	f.w.RunFor(time.Second)
	if answered != n {
		t.Fatalf("%d answers to %d requests", answered, n)
	}
	if got := fmt.Sprint(f.moves); got != "[true false true]" {
		t.Fatalf("the subscriber saw %s", got)
	}
	again, done := f.newRequest(wire.KindConfirm, 0, 0)
	f.ask(again, done)
	if again.Status != wire.StatusOK {
		t.Fatalf("after the reconnect: %v", again.Status)
	}
	f.stop()
	f.until("closed when nobody needs it", func() bool { return !f.peer.Up() })
	if f.w.RunFor(10 * time.Second); f.peer.Up() {
		t.Fatal("connected for nobody")
	}
}

func TestSilenceClosesTheConnection(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 4, ConnTimeout: time.Hour})
	f.w.RunFor(30 * time.Second)
	if len(f.moves) != 1 {
		t.Fatalf("an idle connection moved: %v", f.moves)
	}
	r, done := f.newRequest(wire.KindConfirm, 0, 0)
	f.w.Cut(f.a.node, f.b.node)
	began := f.w.Now()
	f.ask(r, done)
	if took := f.w.Now() - began; r.Status != wire.StatusLost || took < time.Second || took > 3*time.Second {
		t.Fatalf("%v after %v", r.Status, took)
	}
	f.w.RunFor(20 * time.Second)
	if !strings.Contains(f.b.log.String(), "too long") {
		t.Fatalf("the other side never noticed: %s", f.b.log)
	}
	f.w.HealAll()
	f.until("up again", f.peer.Up)
}

func TestWindowKeepsMemoryBounded(t *testing.T) {
	// The answering side has memory for one request only, and must still answer all.
	f := newFixture(t, sim.Config{Seed: 5})
	var hog [][]byte
	for {
		b := f.b.loop.Buffers().Get(1 << 20)
		if b == nil {
			break
		}
		hog = append(hog, b)
	}
	f.m.hold = true
	const n = 40
	answered := 0
	for i := range n {
		w, _ := f.newRequest(wire.KindWrite, int64(i%4)<<20, 256)
		fill(w, byte(i))
		w.Done = func(r *wire.Request) {
			if r.Status != wire.StatusOK {
				t.Error(r.Status)
			}
			answered++
		}
		f.peer.Submit(w)
	}
	f.w.RunFor(time.Second)
	if f.m.asked != 16 {
		t.Fatalf("%d MiB are unanswered", f.m.asked)
	}
	if s := f.a.links.Status(); len(s) != 1 || s[0].InFlight != 16 || s[0].Waiting != n-16 {
		t.Fatalf("status %+v", s)
	}
	f.m.release()
	f.until("all written", func() bool { return answered == n })
	for _, b := range hog {
		f.b.loop.Buffers().Put(b)
	}
}

func TestCloseAnswersEverything(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 6})
	f.m.hold = true
	r, done := f.newRequest(wire.KindConfirm, 0, 0)
	f.peer.Submit(r)
	f.a.links.Close()
	f.a.links.Close()
	if *done != 0 {
		t.Fatal("answered inside Close")
	}
	f.until("lost", func() bool { return *done == 1 })
	if r.Status != wire.StatusLost {
		t.Fatal(r.Status)
	}
	f.b.links.Close()
	f.w.RunFor(5 * time.Second)
	if f.peer.Up() {
		t.Fatal("up after Close")
	}
}

// crash kills one side again and again while requests flow: each is answered once.
func TestMemberCrashes(t *testing.T) {
	for seed := range uint64(20) {
		f := newFixture(t, sim.Config{Seed: seed})
		sent, answered := 0, 0
		for range 20 {
			for range 50 {
				w, _ := f.newRequest(wire.KindWrite, int64(sent%1024)*block.Size, 1)
				fill(w, byte(sent))
				w.Done = func(r *wire.Request) {
					answered++
					f.a.loop.Buffers().Put(r.Data)
				}
				sent++
				f.peer.Submit(w)
			}
			steps := f.w.Rand().IntN(400)
			f.w.Run(func() bool { steps--; return steps < 0 }, 1000)
			f.b.node.Crash()
			members := map[wire.ReplicaID]wire.Member{}
			f.b = start(f.b.node, cluster, members)
			f.m = newReplica(f.b.loop, 1024)
			members[7] = f.m
			if f.w.Chance(0.7) {
				f.until("up", f.peer.Up)
			}
		}
		f.until("all answered", func() bool { return answered == sent })
		f.w.RunFor(3 * time.Second)
		if answered != sent || f.a.loop.Outstanding() != 0 {
			t.Fatalf("seed %d: %d answers to %d requests", seed, answered, sent)
		}
	}
}

func TestNothingIsAllocatedForAnIO(t *testing.T) {
	// The simulation allocates events; so the two sides are joined by a pipe here.
	la, lb := newPipe(), newPipe()
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	m := newReplica(nil, 16)
	link.New(link.Config{Loop: lb, Self: "b", Cluster: cluster, Log: log,
		Local: func(wire.ReplicaID) (wire.Member, bool) { return instant{m}, true }})
	links := link.New(link.Config{Loop: la, Self: "a", Cluster: cluster, Log: log})
	la.other, lb.other = lb, la
	p := links.Peer("b", "", 0)
	p.Subscribe(func(bool) {})
	la.pump()
	if !p.Up() {
		t.Fatal("not up")
	}
	done := 0
	w := &wire.Request{Kind: wire.KindWrite, Replica: 1, Data: make([]byte, block.Size), Sums: make([]uint64, 1)}
	r := &wire.Request{Kind: wire.KindRead, Replica: 1, Data: make([]byte, block.Size), Sums: make([]uint64, 1)}
	w.Done = func(*wire.Request) { done++ }
	r.Done = w.Done
	fill(w, 9)
	round := func() {
		p.Submit(w)
		la.pump()
		p.Submit(r)
		la.pump()
	}
	round()
	if n := testing.AllocsPerRun(200, round); n != 0 {
		t.Fatalf("%v allocations", n)
	}
	if done < 400 || r.Status != wire.StatusOK {
		t.Fatalf("%d answers, %v", done, r.Status)
	}
}
