package replica

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

func TestFencing(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	confirm := func(term uint64, session uint32, want wire.Status) {
		t.Helper()
		g.want(&wire.Request{Kind: wire.KindConfirm, Term: term, Session: session}, want)
	}
	confirm(1, 1, wire.StatusOldSession) // nothing was fenced
	g.term, g.session = 4, 0
	g.fence() // 5
	confirm(5, 1, wire.StatusOK)
	confirm(4, 1, wire.StatusFenced)
	confirm(6, 1, wire.StatusOldSession)
	confirm(5, 2, wire.StatusOldSession)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 4, Session: 9}, wire.StatusFenced)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 5, Session: 3}, wire.StatusOK)
	confirm(5, 1, wire.StatusOldSession)
	confirm(5, 3, wire.StatusOK)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 5, Session: 2}, wire.StatusOldSession)
	confirm(5, 3, wire.StatusOK)
	g.n.PowerLoss()
	g.reopen()
	confirm(5, 3, wire.StatusOldSession)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 4, Session: 1}, wire.StatusFenced)
	q := g.want(&wire.Request{Kind: wire.KindFence, Term: 5, Session: 1}, wire.StatusOK)
	if q.Fence.PrevFence != 5 || q.Fence.Run != "boot2" {
		t.Fatalf("%+v", q.Fence)
	}
}

// A replica that doesn't know a term which it had promised says so, to everyone who asks, until it is fenced by
// somebody who takes it for what it is.
func TestFenceOfRolledBackReplica(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.term = 2
	g.fence() // 3
	for term := uint64(7); term < 9; term++ {
		q := g.want(&wire.Request{Kind: wire.KindFence, Term: term, Session: 1, Period: 6}, wire.StatusOK)
		if q.Fence.PrevFence != 3 {
			t.Fatalf("asked by term %d: %+v", term, q.Fence)
		}
		g.want(&wire.Request{Kind: wire.KindConfirm, Term: term, Session: 1}, wire.StatusOldSession)
		g.n.PowerLoss()
		g.reopen()
	}
	g.want(&wire.Request{Kind: wire.KindFence, Term: 9, Session: 1}, wire.StatusOK)
	g.want(&wire.Request{Kind: wire.KindConfirm, Term: 9, Session: 1}, wire.StatusOK)
}

func TestSinceConfirm(t *testing.T) {
	g := newRig(t, 2, testSize)
	g.create()
	if f := g.fence(); f.SinceConfirm >= 0 {
		t.Fatalf("new replica: %v", f.SinceConfirm)
	}
	g.want(&wire.Request{Kind: wire.KindFence, Session: 2}, wire.StatusOK)
	near := func(got, want time.Duration) {
		t.Helper()
		if got < want || got > want+200*time.Millisecond {
			t.Fatalf("confirmed %v ago, want %v", got, want)
		}
	}
	g.session = 2
	g.w.RunFor(2 * time.Second)
	g.want(&wire.Request{Kind: wire.KindConfirm}, wire.StatusOK)
	g.w.RunFor(time.Second)
	near(g.fence().SinceConfirm, time.Second)
	g.w.RunFor(time.Second)
	g.want(&wire.Request{Kind: wire.KindConfirm}, wire.StatusOK)
	// A new session in the same term: what counts is the term before.
	near(g.want(&wire.Request{Kind: wire.KindFence, Session: 7}, wire.StatusOK).Fence.SinceConfirm, 2*time.Second)
	// A refused one confirms nothing.
	g.w.RunFor(time.Second)
	g.want(&wire.Request{Kind: wire.KindConfirm, Session: 1}, wire.StatusOldSession)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 1}, wire.StatusFenced)
	near(g.fence().SinceConfirm, time.Second)
	// Since a restart, it can only say that it was before it was opened.
	g.n.Crash()
	g.reopen()
	near(g.fence().SinceConfirm, 0)
}

// TestFenceDrains: when the fence is answered it is durable, all older requests are answered, and none is accepted.
func TestFenceDrains(t *testing.T) {
	for seed := range uint64(200) {
		g := newRig(t, seed, testSize)
		g.create()
		g.fence()
		old := 0
		n := 1 + g.w.Rand().IntN(6)
		for i := range n {
			var q *wire.Request
			switch g.w.Rand().IntN(3) {
			case 0:
				q = writeOf(int64(i)*block.ChunkSize, fill(1, block.Size))
			case 1:
				q = &wire.Request{Kind: wire.KindFlush}
			default:
				q = &wire.Request{Kind: wire.KindRead, Data: aligned(block.Size), Sums: make([]uint64, 1)}
			}
			g.submit(q, func() {
				if old++; q.Status != wire.StatusOK {
					t.Fatalf("seed %d: drained %v: %v", seed, q.Kind, q.Status)
				}
			})
		}
		g.w.Run(func() bool { return false }, g.w.Rand().IntN(10))
		fence := func(term uint64, session uint32) *wire.Request {
			q := &wire.Request{Kind: wire.KindFence, Term: term, Session: session}
			g.submit(q, func() {
				if q.Status == wire.StatusOK && old != n {
					t.Fatalf("seed %d: fence answered with %d of %d older requests answered", seed, old, n)
				}
				q.Tag = 1
			})
			return q
		}
		f := fence(2, 1)
		late := writeOf(5*block.ChunkSize, fill(9, block.Size))
		g.submit(late, func() {})
		superseded := g.w.Chance(0.3)
		last := f
		if superseded {
			g.w.Run(func() bool { return false }, g.w.Rand().IntN(6))
			if f.Tag == 1 {
				continue
			}
			last = fence(2+uint64(g.w.Rand().IntN(2)), 2)
		}
		g.w.Run(func() bool { return last.Tag == 1 && f.Tag == 1 }, maxStep) // in any order
		if last.Status != wire.StatusOK || last.Fence == nil || late.Status != wire.StatusFenced {
			t.Fatalf("seed %d: fence %v, late write %v", seed, last.Status, late.Status)
		}
		if n := g.r.Stats().Unrec; n != int64(len(last.Fence.Journal)) {
			t.Fatalf("seed %d: %d of %d chunks are to be reconciled", seed, n, len(last.Fence.Journal))
		}
		if superseded && f.Status == wire.StatusOK {
			t.Fatalf("seed %d: a fence that another one overtook was answered OK", seed)
		}
		g.n.PowerLoss()
		g.reopen()
		g.term = last.Term
		if p := g.fence().PrevFence; p != last.Term {
			t.Fatalf("seed %d: fence %d was answered, %d is durable", seed, last.Term, p)
		}
	}
}

// TestFenceOfDeadEngine: a fence that a dead engine wrote, and that its successor has told of, outlives a power loss.
func TestFenceOfDeadEngine(t *testing.T) {
	told := 0
	for seed := range uint64(100) {
		g := newRig(t, seed, testSize)
		g.create()
		g.fence()
		g.submit(&wire.Request{Kind: wire.KindFence, Term: 2, Session: 1}, func() {})
		g.w.Run(func() bool { return false }, g.w.Rand().IntN(3))
		g.n.Crash()
		g.reopen()
		prev := g.want(&wire.Request{Kind: wire.KindFence, Term: 2, Session: 2}, wire.StatusOK).Fence.PrevFence
		if prev == 2 {
			told++
		}
		g.n.PowerLoss()
		g.reopen()
		g.term = 2
		if p := g.fence().PrevFence; p != 2 {
			t.Fatalf("seed %d: fence %d is durable, 2 was answered (and %d before)", seed, p, prev)
		}
	}
	if told == 0 {
		t.Fatal("no dead engine's fence ever reached the disk: the test tests nothing")
	}
}

// TestFenceFails: a fence that can't be made durable is not answered OK, and can be asked again.
func TestFenceFails(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	g.n.Disk().Fail(false, true, false)
	g.want(&wire.Request{Kind: wire.KindFence, Term: 2}, wire.StatusIOError)
	g.want(&wire.Request{Kind: wire.KindConfirm, Term: 1}, wire.StatusFenced)
	g.n.Disk().Fail(false, false, false)
	f := g.want(&wire.Request{Kind: wire.KindFence, Term: 2}, wire.StatusOK).Fence
	if f.PrevFence != 1 {
		t.Fatalf("%+v", f)
	}
	g.n.PowerLoss()
	g.reopen()
	g.term = 2
	if p := g.fence().PrevFence; p != 2 {
		t.Fatalf("fence %d is durable", p)
	}
}

// TestReconcileOutlivesCheckpoint: what a new term has to reconcile stays in the journal until it is touched.
func TestReconcileOutlivesCheckpoint(t *testing.T) {
	g := newRig(t, 3, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, block.Size))
	g.write(block.ChunkSize, fill(1, block.Size))
	f := g.fence()
	if len(f.Journal) != 2 || !f.Exact {
		t.Fatalf("%+v", f)
	}
	g.touch(1)
	g.checkpoint()
	if s := g.r.Stats(); s.Journal != 1 || s.Unrec != 1 {
		t.Fatalf("%+v", s)
	}
	g.n.Crash()
	g.reopen()
	g.session++
	// Another session of the same term: chunk 0 is still to be reconciled, and a checkpoint doesn't end that.
	f = g.want(&wire.Request{Kind: wire.KindFence}, wire.StatusOK).Fence
	if len(f.Journal) != 1 || !journalHas(f, 0) || f.Exact {
		t.Fatalf("%+v", f)
	}
	g.sums(0)
	g.checkpoint()
	if f = g.fence(); !journalHas(f, 0) {
		t.Fatalf("%+v", f)
	}
	g.touch(0)
	g.checkpoint()
	if f = g.fence(); len(f.Journal) != 0 || !f.Exact {
		t.Fatalf("%+v", f)
	}
}

// TestNewerFenceEndsWaitingOne: while a disk hangs, fences don't pile up: each newer one ends the one that waits, and only the last is
// answered when all has ended.
func TestNewerFenceEndsWaitingOne(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	g.n.Disk().SetStuck(true)
	ended := false
	g.submit(writeOf(0, fill(1, block.Size)), func() { ended = true })
	var list []*wire.Request
	open := 0
	for i, f := range []struct {
		term    uint64
		session uint32
	}{{1, 8}, {1, 9}, {2, 1}, {2, 2}} {
		q := &wire.Request{Kind: wire.KindFence, Term: f.term, Session: f.session}
		list = append(list, q)
		open++
		g.submit(q, func() { open-- })
		g.w.RunFor(time.Minute)
		if open != 1 || ended {
			t.Fatalf("after fence %d: %d wait, the write has ended: %v", i, open, ended)
		}
	}
	g.n.Disk().SetStuck(false)
	g.w.RunFor(time.Minute)
	want := []wire.Status{wire.StatusOldSession, wire.StatusFenced, wire.StatusOldSession, wire.StatusOK}
	for i, q := range list {
		if q.Status != want[i] {
			t.Errorf("fence %d: %v, want %v", i, q.Status, want[i])
		}
	}
	if !ended || open != 0 {
		t.Fatalf("%d fences wait, the write has ended: %v", open, ended)
	}
}
