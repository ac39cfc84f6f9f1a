package replica

import (
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// TestRecomputedDuringCheckpoint: sums that were recomputed too late for a checkpoint are not taken as written by it.
func TestRecomputedDuringCheckpoint(t *testing.T) {
	for delay := range 40 {
		g := newRig(t, uint64(delay), testSize)
		g.create()
		g.fence()
		for c := range int64(4) {
			g.write(c*block.ChunkSize, fill(uint64(c+1), block.Size))
		}
		g.n.Crash()
		g.reopen()
		g.session++
		g.want(&wire.Request{Kind: wire.KindFence}, wire.StatusOK)
		g.flush()
		answered := false
		q := &wire.Request{Kind: wire.KindSums, Off: int64(delay%4) * block.ChunkSize, Sums: make([]uint64, block.PerChunk)}
		g.submit(q, func() { answered = true })
		g.w.Run(func() bool { return answered }, delay/4)
		cp := &wire.Request{Kind: wire.KindCheckpoint, Period: g.period}
		g.period++
		ended := false
		g.submit(cp, func() { ended = true })
		g.until(&ended)
		g.until(&answered)
		g.n.PowerLoss()
		g.reopen()
		g.fence()
		for c := range int64(4) {
			if q := g.read(c*block.ChunkSize, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(c+1), block.Size)) {
				t.Fatalf("delay %d: chunk %d: %v", delay, c, q.Status)
			}
		}
	}
}

// TestCheckpointCrash crashes at every step of a checkpoint: it is there or not, and the journal has what it must.
func TestCheckpointCrash(t *testing.T) {
	there := 0
	for step := range 60 {
		g := newRig(t, uint64(step), testSize)
		g.create()
		g.fence()
		g.write(0, fill(1, block.Size))
		g.write(block.ChunkSize, fill(2, block.Size))
		g.flush()
		p := g.period
		g.period++
		ended := false
		g.submit(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, func() { ended = true })
		w := writeOf(2*block.ChunkSize, fill(3, block.Size)) // of the next period, beside it
		w.FUA = true
		wrote := false
		g.submit(w, func() { wrote = true })
		g.w.Run(func() bool { return ended && wrote }, step)
		g.n.PowerLoss()
		g.reopen()
		f := g.fence()
		switch f.Checkpoint {
		case 0:
			if ended || !journalHas(f, 0) || !journalHas(f, 1) {
				t.Fatalf("step %d: ended %v, %+v", step, ended, f)
			}
		case p:
			there++
			if journalHas(f, 0) || journalHas(f, 1) {
				t.Fatalf("step %d: %+v", step, f)
			}
		default:
			t.Fatalf("step %d: %+v", step, f)
		}
		if wrote && !journalHas(f, 2) {
			t.Fatalf("step %d: the write of the next period isn't in the journal: %+v", step, f)
		}
		for c := range int64(3) {
			q := g.read(c*block.ChunkSize, block.Size)
			if q.Status != wire.StatusOK || (c < 2 || wrote) && string(q.Data) != string(fill(uint64(c+1), block.Size)) {
				t.Fatalf("step %d: chunk %d: %v", step, c, q.Status)
			}
		}
	}
	if there == 0 || there == 60 {
		t.Fatalf("%d of 60: the steps don't span the checkpoint", there)
	}
}

// TestCheckpointWithoutFlush: sums never outlive the data that they are of, whatever the coordinator forgot.
func TestCheckpointWithoutFlush(t *testing.T) {
	for seed := range uint64(20) {
		g := newRig(t, seed, testSize)
		g.create()
		g.fence()
		g.checkpoint()
		g.write(0, fill(1, 8*block.Size))
		p := g.period
		g.period++
		g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, wire.StatusOK)
		g.n.PowerLoss()
		g.reopen()
		g.fence()
		if q := g.read(0, 8*block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(1, 8*block.Size)) {
			t.Fatalf("seed %d: %v", seed, q.Status)
		}
	}
}

// TestCheckpointFails: a checkpoint that fails at any step changes nothing that matters.
func TestCheckpointFails(t *testing.T) {
	failed := 0
	for step := range 40 {
		g := newRig(t, uint64(step), testSize)
		g.create()
		g.fence()
		g.write(0, fill(1, block.Size))
		g.write(block.ChunkSize, fill(2, block.Size))
		g.flush()
		p := g.period
		g.period++
		q := &wire.Request{Kind: wire.KindCheckpoint, Period: p}
		ended := false
		g.submit(q, func() { ended = true })
		g.w.Run(func() bool { return ended }, step/2)
		g.n.Disk().Fail(false, step%4 < 3, step%4 > 0)
		g.until(&ended)
		g.n.Disk().Fail(false, false, false)
		f := g.fence()
		if q.Status == wire.StatusOK {
			if f.Checkpoint != p || len(f.Journal) != 0 {
				t.Fatalf("step %d: %+v", step, f)
			}
			continue
		}
		failed++
		if q.Status != wire.StatusIOError || f.Checkpoint != 0 || len(f.Journal) != 2 {
			t.Fatalf("step %d: %v, %+v", step, q.Status, f)
		}
		g.touch(0)
		g.touch(1)
		g.checkpoint()
		g.n.PowerLoss()
		g.reopen()
		if f := g.fence(); len(f.Journal) != 0 || !f.Exact {
			t.Fatalf("step %d: %+v", step, f)
		}
		for c := range int64(2) {
			if q := g.read(c*block.ChunkSize, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(c+1), block.Size)) {
				t.Fatalf("step %d: chunk %d: %v", step, c, q.Status)
			}
		}
	}
	if failed == 0 {
		t.Fatal("no checkpoint failed")
	}
}
