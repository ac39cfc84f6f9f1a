package replica

import (
	"fmt"
	"slices"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// newKept is a replica of 70 chunks, whose map of a snapshot has three sectors; the snapshot holds chunks 0 and 35.
func newKept(t *testing.T) (g *rig, p uint64) {
	t.Helper()
	g = newRig(t, 5, 70*block.ChunkSize)
	g.create()
	g.fence()
	for _, chunk := range []int64{0, 1, 35, 61} {
		g.write(chunk*block.ChunkSize, fill(uint64(chunk+1), 4*block.Size))
	}
	p = g.period
	g.want(&wire.Request{Kind: wire.KindSnaps, Sums: []uint64{p, uint64(g.d.Size)}}, wire.StatusOK)
	g.checkpoint()
	g.write(0, fill(100, 4*block.Size))
	g.write(35*block.ChunkSize, fill(101, 4*block.Size))
	return g, p
}

func (g *rig) verifySnap(p uint64, chunk int64) *wire.Request {
	g.t.Helper()
	return g.do(&wire.Request{Kind: wire.KindSnapVerify, Period: p, Off: chunk * block.ChunkSize, Len: 8 * block.Size, Sums: make([]uint64, 8)})
}

func (g *rig) snapSums(p uint64, chunk int64) []uint64 {
	g.t.Helper()
	return g.want(&wire.Request{Kind: wire.KindSnapSums, Period: p, Off: chunk * block.ChunkSize, Sums: make([]uint64, block.PerChunk)}, wire.StatusOK).Sums
}

// A snapshot's damaged block is found and mended in place, with nothing but what it had; also what is found in the head is verified.
func TestMendSnapshot(t *testing.T) {
	g, p := newKept(t)
	level := file(fmt.Sprintf("snaps/%016x/data", p))
	was := g.snapSums(p, 0)
	for _, chunk := range []int64{0, 1, 35, 61, 5} {
		if q := g.verifySnap(p, chunk); q.Status != wire.StatusOK {
			t.Fatalf("chunk %d: %v", chunk, q.Status)
		}
	}
	g.n.Disk().FlipBit(level, 2*block.Size+9)
	g.n.Disk().BreakSector(level, 3*block.Size)
	g.n.Disk().FlipBit(file("head"), block.ChunkSize+block.Size)
	if q := g.verifySnap(p, 0); q.Status != wire.StatusBadSum || q.Bad[0] != 1<<2|1<<3 || !slices.Equal(q.Sums, was[:8]) {
		t.Fatalf("%v, %x", q.Status, q.Bad)
	}
	if q := g.verifySnap(p, 1); q.Status != wire.StatusBadSum || q.Bad[0] != 1<<1 {
		t.Fatalf("%v, %x", q.Status, q.Bad)
	}
	right := fill(1, 4*block.Size)[2*block.Size:]
	mend := func(chunk int64, data []byte, sums []uint64, want wire.Status) {
		t.Helper()
		g.want(&wire.Request{Kind: wire.KindSnapMend, Period: p, Off: chunk*block.ChunkSize + 2*block.Size, Data: data, Sums: slices.Clone(sums)}, want)
	}
	other := fill(9, 2*block.Size)
	otherSums := make([]uint64, 2)
	block.SumAll(otherSums, other)
	mend(0, other, otherSums, wire.StatusBadRequest)
	mend(1, other, otherSums, wire.StatusBadRequest) // it doesn't hold that itself
	copied := aligned(2 * block.Size)
	copy(copied, right)
	mend(0, copied, was[2:4], wire.StatusOK)
	g.n.PowerLoss()
	g.reopen()
	g.fence()
	if q := g.verifySnap(p, 0); q.Status != wire.StatusOK {
		t.Fatalf("%v, %x", q.Status, q.Bad)
	}
}

// Sums are mended by sealing with the same; with others that is refused.
func TestMendSnapshotSums(t *testing.T) {
	g, p := newKept(t)
	was := slices.Clone(g.snapSums(p, 35))
	g.n.Disk().FlipBit(file(fmt.Sprintf("snaps/%016x/sums", p)), 35*sumsSize+3)
	if q := g.verifySnap(p, 35); q.Status != wire.StatusIOError {
		t.Fatalf("%v", q.Status)
	}
	other := slices.Clone(was)
	other[3]++
	seal := &wire.Request{Kind: wire.KindSnapSeal, Period: p, Off: 35 * block.ChunkSize, Sums: other}
	g.want(seal, wire.StatusBadRequest)
	g.want(&wire.Request{Kind: wire.KindSnapSeal, Period: p, Off: 35 * block.ChunkSize, Sums: was}, wire.StatusOK)
	if q := g.verifySnap(p, 35); q.Status != wire.StatusOK {
		t.Fatalf("%v", q.Status)
	}
}

// What a damaged map doesn't tell isn't taken for told when the map is written for other chunks: neither those of other sectors, nor those of the same.
func TestDamagedMapStaysDamaged(t *testing.T) {
	g, p := newKept(t)
	was := slices.Clone(g.snapSums(p, 0))
	reopen := func() {
		g.close()
		g.reopen()
		g.fence()
	}
	g.flush()
	g.n.Disk().FlipBit(file(fmt.Sprintf("snaps/%016x/meta", p)), snapHeader+40)
	reopen()
	g.write(61*block.ChunkSize, fill(102, block.Size)) // preserved in another sector of the same block
	reopen()
	for chunk, want := range map[int64]wire.Status{0: wire.StatusIOError, 1: wire.StatusIOError, 35: wire.StatusOK, 61: wire.StatusOK} {
		if q := g.verifySnap(p, chunk); q.Status != want {
			t.Fatalf("chunk %d: %v, want %v", chunk, q.Status, want)
		}
	}
	g.want(&wire.Request{Kind: wire.KindSnapSeal, Period: p, Sums: was}, wire.StatusOK)
	if q := g.verifySnap(p, 0); q.Status != wire.StatusOK {
		t.Fatalf("%v, %x", q.Status, q.Bad)
	}
	for chunk := int64(1); chunk < mapPerSector; chunk++ {
		if q := g.verifySnap(p, chunk); q.Status != wire.StatusIOError {
			t.Fatalf("chunk %d: %v", chunk, q.Status)
		}
		g.want(&wire.Request{Kind: wire.KindSnapDrop, Period: p, Off: chunk * block.ChunkSize}, wire.StatusOK)
	}
	reopen()
	for _, chunk := range []int64{0, 1, 29, 35} {
		if q := g.verifySnap(p, chunk); q.Status != wire.StatusOK {
			t.Fatalf("chunk %d: %v", chunk, q.Status)
		}
	}
}

// What isn't known of a snapshot that is deleted isn't known of the older one either, that needed it.
func TestDamagedMapIsHandedOver(t *testing.T) {
	g, older := newKept(t)
	newer := g.period
	list := []uint64{older, uint64(g.d.Size), newer, uint64(g.d.Size)}
	g.want(&wire.Request{Kind: wire.KindSnaps, Sums: list}, wire.StatusOK)
	g.checkpoint()
	g.write(block.ChunkSize, fill(103, block.Size)) // held by the newer one alone
	g.flush()
	g.n.Disk().FlipBit(file(fmt.Sprintf("snaps/%016x/meta", newer)), snapHeader+40)
	for range 2 {
		g.close()
		g.reopen()
		g.fence()
		for chunk, want := range map[int64]wire.Status{1: wire.StatusIOError, 35: wire.StatusOK, 61: wire.StatusOK} {
			if q := g.verifySnap(older, chunk); q.Status != want {
				t.Fatalf("chunk %d: %v, want %v", chunk, q.Status, want)
			}
		}
		g.want(&wire.Request{Kind: wire.KindSnaps, Sums: list[:2]}, wire.StatusOK)
	}
}
