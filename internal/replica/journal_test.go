package replica

import (
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// TestJournalMoves: entries that are live stay, however often the ring goes round.
func TestJournalMoves(t *testing.T) {
	g := newRig(t, 1, 40*block.ChunkSize)
	g.create()
	g.fence()
	for c := range int64(20) {
		g.write(c*block.ChunkSize, fill(1, block.Size))
	}
	for i := range 3 * journalSlots {
		g.period++ // a coordinator that never makes a checkpoint
		g.write(int64(20+i%7)*block.ChunkSize, fill(uint64(i), block.Size))
		if i%200 != 0 {
			continue
		}
		g.n.PowerLoss()
		g.reopen()
		g.period -= g.term << 32
		p := g.period
		f := g.fence()
		g.period += p
		for c := range int64(20) {
			if !journalHas(f, c) || f.AllChunks {
				t.Fatalf("round %d: chunk %d has left the journal", i, c)
			}
		}
	}
	g.n.PowerLoss()
	g.reopen()
	if f := g.fence(); len(f.Journal) != 27 {
		t.Fatalf("%d chunks in the journal, want 27", len(f.Journal))
	}
}

// TestJournalSharesBlocks: requests that come while a block is written share the next one.
func TestJournalSharesBlocks(t *testing.T) {
	g := newRig(t, 2, 64*block.ChunkSize)
	g.create()
	g.fence()
	done := 0
	for c := range int64(64) {
		g.submit(writeOf(c*block.ChunkSize, fill(1, block.Size)), func() { done++ })
	}
	g.w.Run(func() bool { return done == 64 }, maxStep)
	if s := g.r.Stats(); s.JournalBlocks != 2 || s.Journal != 64 {
		t.Fatalf("%+v", s)
	}
}

// TestJournalOverflow: more chunks than the journal names make it name all of them, until a checkpoint.
func TestJournalOverflow(t *testing.T) {
	for _, crash := range []bool{false, true} {
		g := newRig(t, 3, 32*block.ChunkSize)
		g.limit = 8
		g.create()
		g.fence()
		for c := range int64(20) {
			g.write(c*block.ChunkSize, fill(uint64(c+1), block.Size))
		}
		g.flush()
		if s := g.r.Stats(); !s.AllChunks || s.Journal > 8 {
			t.Fatalf("%+v", s)
		}
		if !crash {
			// The engine lives: it knows from the gens which chunks they are.
			if f := g.fence(); len(f.Journal) != 20 || f.AllChunks || !f.Exact {
				t.Fatalf("%+v", f)
			}
		} else {
			g.n.PowerLoss()
			g.reopen()
			if f := g.fence(); !f.AllChunks || f.Exact {
				t.Fatalf("%+v", f)
			}
		}
		g.checkpoint()
		if s := g.r.Stats(); !s.AllChunks || s.Unrec < 20 {
			t.Fatalf("what isn't reconciled was dropped: %+v", s)
		}
		for c := range int64(32) {
			g.touch(c)
		}
		g.checkpoint()
		g.checkpoint()
		if s := g.r.Stats(); s.AllChunks || s.Journal != 0 {
			t.Fatalf("%+v", s)
		}
		g.n.PowerLoss()
		g.reopen()
		if f := g.fence(); f.AllChunks || len(f.Journal) != 0 || !f.Exact {
			t.Fatalf("%+v", f)
		}
		for c := range int64(20) {
			if q := g.read(c*block.ChunkSize, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(c+1), block.Size)) {
				t.Fatalf("chunk %d: %v", c, q.Status)
			}
		}
	}
}

// TestOverflowInNextPeriod: after an overflow, writes of the next period are journaled one by one again.
func TestOverflowInNextPeriod(t *testing.T) {
	g := newRig(t, 4, 32*block.ChunkSize)
	g.limit = 8
	g.create()
	g.fence()
	for c := range int64(20) {
		g.write(c*block.ChunkSize, fill(1, block.Size))
	}
	old := g.period
	g.period++
	g.write(3*block.ChunkSize, fill(2, block.Size))
	g.flush()
	g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: old}, wire.StatusOK)
	g.n.PowerLoss()
	g.reopen()
	if f := g.fence(); f.AllChunks || len(f.Journal) != 1 || f.Journal[0].Chunk != 3 {
		t.Fatalf("%+v", f)
	}
}

func TestJournalWriteFails(t *testing.T) {
	g := newRig(t, 5, testSize)
	g.create()
	g.fence()
	g.n.Disk().Fail(false, true, false)
	g.want(writeOf(0, fill(1, block.Size)), wire.StatusIOError)
	g.n.Disk().Fail(false, false, false)
	if q := g.read(0, block.Size); q.Status != wire.StatusOK || !block.IsZero(q.Data) {
		t.Fatalf("%v", q.Status)
	}
	g.write(0, fill(1, block.Size))
	g.n.PowerLoss()
	g.reopen()
	if f := g.fence(); f.AllChunks || !journalHas(f, 0) {
		t.Fatalf("%+v", f)
	}
}

// TestOverflowCrash: what was answered before the overflow was durable is in the journal, one way or the other.
func TestOverflowCrash(t *testing.T) {
	for seed := range uint64(400) {
		g := newRig(t, seed, 12*block.ChunkSize)
		g.limit = 3
		g.create()
		g.fence()
		rng := g.w.Rand()
		wrote := map[int64]bool{}
		for i := range 10 {
			c := int64(i)
			q := writeOf(c*block.ChunkSize, fill(1, block.Size))
			q.FUA = rng.IntN(2) == 0
			g.submit(q, func() {
				if q.FUA {
					wrote[c] = true
				}
			})
			g.w.Run(func() bool { return false }, rng.IntN(4))
		}
		g.n.PowerLoss()
		g.reopen()
		f := g.fence()
		for c := range wrote {
			if !journalHas(f, c) {
				t.Fatalf("seed %d: chunk %d isn't in the journal", seed, c)
			}
		}
	}
}

// TestOverflowKeeps: chunks that aren't reconciled stay so through an overflow and the death of the engine.
func TestOverflowKeeps(t *testing.T) {
	g := newRig(t, 1, 12*block.ChunkSize)
	g.limit = 4
	g.create()
	g.fence()
	g.write(0, fill(1, block.Size))
	g.fence() // chunk 0 is to be reconciled
	for c := range int64(8) {
		g.write((4+c)*block.ChunkSize, fill(2, block.Size))
	}
	if s := g.r.Stats(); !s.AllChunks {
		t.Fatalf("%+v", s)
	}
	for i := range journalSlots + 5 { // until nothing older is left in the ring
		g.period++
		g.write(4*block.ChunkSize, fill(uint64(i), block.Size))
	}
	g.n.Crash()
	g.reopen()
	g.session++
	g.want(&wire.Request{Kind: wire.KindFence}, wire.StatusOK)
	for c := range int64(12) {
		g.sums(c)
	}
	g.checkpoint()
	if f := g.fence(); !journalHas(f, 0) {
		t.Fatalf("%+v", f)
	}
}
