package replica

import (
	"bytes"
	"errors"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// grow makes the replica larger and waits for it.
func (g *rig) grow(size int64) error {
	g.t.Helper()
	d := g.r.Desc()
	d.Size = size
	var err error
	ok := false
	g.r.Grow(d, func(e error) { err, ok = e, true })
	g.until(&ok)
	if err == nil {
		g.d = d
	}
	return err
}

// expectZeros checks that a range reads as zeros, with sums that say "never written".
func (g *rig) expectZeros(off int64, n int) {
	g.t.Helper()
	q := g.want(&wire.Request{Kind: wire.KindRead, Off: off, Data: aligned(n), Sums: make([]uint64, n/block.Size)}, wire.StatusOK)
	if !block.IsZero(q.Data) {
		g.t.Fatalf("%d bytes at %d aren't zeros", n, off)
	}
	for i, s := range q.Sums {
		if s != 0 {
			g.t.Fatalf("block %d after %d has the sum %x", i, off, s)
		}
	}
}

// The sizes are not multiples of a chunk, and go across blocks of gens: 254 chunks are in one.
var growSizes = []struct{ from, to int64 }{
	{10<<20 + 3*block.Size, 10<<20 + 4*block.Size},
	{10<<20 + 3*block.Size, 50 << 20},
	{253 * block.ChunkSize, 255*block.ChunkSize + block.Size},
	{254 * block.ChunkSize, 600 * block.ChunkSize},
}

func TestGrow(t *testing.T) {
	for _, x := range growSizes {
		g := newRig(t, 1, x.from)
		g.create()
		g.fence()
		old := fill(7, 2*block.Size)
		g.write(x.from-2*block.Size, old)
		g.checkpoint()
		g.want(writeOf(x.from, fill(1, block.Size)), wire.StatusBadRequest)
		if err := g.grow(x.to); err != nil {
			t.Fatal(err)
		}
		if f := g.fence(); f.Size != x.to {
			t.Fatalf("the fence says %d bytes, want %d", f.Size, x.to)
		}
		g.expectZeros(x.from, block.Size)
		g.expectZeros(x.to-block.Size, block.Size)
		for c, gen := range g.gens() {
			if last := (x.from - 1) / block.ChunkSize; int64(c) > last && gen != 0 {
				t.Fatalf("chunk %d, which is new, has the gen %x", c, gen)
			}
		}
		g.write(x.to-block.Size, fill(9, block.Size))
		g.want(writeOf(x.to, fill(1, block.Size)), wire.StatusBadRequest)
		g.checkpoint()
		g.close()
		g.reopen()
		g.fence()
		if q := g.read(x.from-2*block.Size, 2*block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, old) {
			t.Fatalf("what was there before: %v", q.Status)
		}
		if q := g.read(x.to-block.Size, block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, fill(9, block.Size)) {
			t.Fatalf("what was written to the new range: %v", q.Status)
		}
		if gens := g.gens(); gens[len(gens)-1] == 0 {
			t.Fatal("the last chunk has no gen")
		}
		g.close()
	}
}

func TestGrowRefuses(t *testing.T) {
	g := newRig(t, 1, 10<<20)
	g.create()
	for what, change := range map[string]func(*Desc){
		"smaller":         func(d *Desc) { d.Size -= block.Size },
		"no multiple":     func(d *Desc) { d.Size++ },
		"too large":       func(d *Desc) { d.Size = maxSize + block.Size },
		"another replica": func(d *Desc) { d.Replica++ },
		"another column":  func(d *Desc) { d.Column, d.Columns = 1, 2 },
		"long policy":     func(d *Desc) { d.Policy = append(append([]byte(`"`), bytes.Repeat([]byte("x"), maxDesc)...), '"') },
	} {
		d := g.r.Desc()
		change(&d)
		var err error
		ok := false
		g.r.Grow(d, func(e error) { err, ok = e, true })
		g.until(&ok)
		if !errors.Is(err, ErrDesc) || g.r.Desc().Size != 10<<20 {
			t.Errorf("%s: %v, %d bytes", what, err, g.r.Desc().Size)
		}
	}
	if err := g.grow(10 << 20); err != nil {
		t.Errorf("the size that it has: %v", err)
	}
	g.close()
}

// A crash at any step of growing leaves a replica of the old size or of the new one, with what was written, and growing it again
// gives a new range of zeros. What is written there then survives as anything does.
func TestGrowCrash(t *testing.T) {
	grown, redone := 0, 0
	for seed := range uint64(seeds(60)) {
		x := growSizes[seed%uint64(len(growSizes))]
		g := newRig(t, seed, x.from)
		g.create()
		g.fence()
		old := fill(7, 2*block.Size)
		g.write(x.from-2*block.Size, old)
		g.flush()
		d := g.r.Desc()
		d.Size = x.to
		answered := false
		g.r.Grow(d, func(err error) { answered = err == nil })
		for range 3 { // writes go on meanwhile
			g.submit(writeOf(0, fill(3, block.Size)), func() {})
		}
		g.w.Run(func() bool { return answered }, g.w.Rand().IntN(120))
		if g.w.Chance(0.5) {
			g.n.PowerLoss()
		} else {
			g.n.Crash()
		}
		g.reopen()
		switch size := g.r.Desc().Size; {
		case size == x.to:
			grown++
		case size != x.from || answered:
			t.Fatalf("seed %d: %d bytes, and growing was answered: %v", seed, size, answered)
		default:
			redone++
			if err := g.grow(x.to); err != nil {
				t.Fatal(err)
			}
		}
		g.d.Size = x.to
		g.fence()
		if q := g.read(x.from-2*block.Size, 2*block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, old) {
			t.Fatalf("seed %d: what was there before: %v", seed, q.Status)
		}
		g.expectZeros(x.to-block.Size, block.Size)
		g.write(x.to-block.Size, fill(9, block.Size))
		g.flush()
		g.n.PowerLoss()
		g.reopen()
		if f := g.fence(); f.Size != x.to || !journalHas(f, (x.to-1)/block.ChunkSize) {
			t.Fatalf("seed %d: %d bytes, journal %v", seed, f.Size, f.Journal)
		}
		if q := g.read(x.to-block.Size, block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, fill(9, block.Size)) {
			t.Fatalf("seed %d: what was written to the new range: %v", seed, q.Status)
		}
		g.close()
	}
	if grown == 0 || redone == 0 {
		t.Errorf("%d crashes after, %d before the growth was durable: the test shows nothing", grown, redone)
	}
}

// One damaged copy of meta after a growth leaves the new size: what was written to the new range isn't given up.
func TestGrowIsInBothCopiesOfMeta(t *testing.T) {
	for slot := range int64(2) {
		g := newRig(t, 5, 10<<20)
		g.create()
		g.fence()
		if err := g.grow(20 << 20); err != nil {
			t.Fatal(err)
		}
		g.close()
		g.edit(metaName, slot*metaSlotSize, func(page []byte) { page[100] ^= 1 })
		g.reopen()
		if size := g.r.Desc().Size; size != 20<<20 {
			t.Errorf("without copy %d: %d bytes", slot, size)
		}
		g.close()
	}
}
