package replica

import (
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

func (g *rig) verify(off, n int64) *wire.Request {
	g.t.Helper()
	return g.do(&wire.Request{Kind: wire.KindVerify, Off: off, Len: n, Sums: make([]uint64, block.MaxBlocks)})
}

func (g *rig) wantVerified(off, n int64, bad ...int) {
	g.t.Helper()
	q := g.verify(off, n)
	want, status := [16]uint64{}, wire.StatusOK
	for _, b := range bad {
		want[b/64] |= 1 << (b % 64)
		status = wire.StatusBadSum
	}
	if q.Status != status || q.Bad != want || len(q.Sums) != int(n/block.Size) {
		g.t.Fatalf("verify of %d at %d: %v, bad %x, %d sums; want %v", n, off, q.Status, q.Bad, len(q.Sums), bad)
	}
}

// Verification looks at the disk wherever the damage is: also where the sums say zeros, and at what can't be read.
func TestVerify(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, 256*block.Size))
	g.write(block.ChunkSize, fill(2, block.Size))
	g.wantVerified(0, block.MaxIO)
	g.wantVerified(2*block.ChunkSize, block.MaxIO) // never written
	d := g.n.Disk()
	d.FlipBit(file("head"), 3*block.Size+5)
	d.FlipBit(file("head"), 200*block.Size)
	g.wantVerified(0, block.MaxIO, 3, 200)
	g.wantVerified(200*block.Size, 8*block.Size, 0)
	d.BreakSector(file("head"), 7*block.Size)
	g.wantVerified(0, block.MaxIO, 3, 7, 200)
	g.write(3*block.Size, fill(9, 5*block.Size))
	g.write(200*block.Size, fill(9, block.Size))
	g.wantVerified(0, block.MaxIO)

	g.want(&wire.Request{Kind: wire.KindZero, Off: block.ChunkSize, Len: 4 * block.Size}, wire.StatusOK)
	g.wantVerified(block.ChunkSize, block.MaxIO)
	if d.FlipBit(file("head"), block.ChunkSize+block.Size) {
		g.wantVerified(block.ChunkSize, block.MaxIO, 1)
	}
	if s := g.r.Stats(); s.Verified < 7*block.MaxIO {
		t.Errorf("%d bytes counted", s.Verified)
	}
	for _, q := range []wire.Request{
		{Off: block.ChunkSize - block.Size, Len: 2 * block.Size}, {Off: 0, Len: block.MaxIO + block.Size}, {Off: 0, Len: 0},
		{Off: testSize, Len: block.Size}, {Off: 1, Len: block.Size}, {Off: 0, Len: -block.Size},
	} {
		q.Kind, q.Sums = wire.KindVerify, make([]uint64, block.PerChunk)
		g.want(&q, wire.StatusBadRequest)
	}
	g.want(&wire.Request{Kind: wire.KindVerify, Len: block.MaxIO, Sums: make([]uint64, 1)}, wire.StatusBadRequest)
	g.want(&wire.Request{Kind: wire.KindVerify, Len: block.Size, Sums: make([]uint64, 1), Session: 77}, wire.StatusOldSession)
}

// Whoever verifies everything must not push out the sums of chunks that are in use.
func TestVerifyLeavesTheCache(t *testing.T) {
	g := newRig(t, 2, testSize)
	g.cache = 2
	g.create()
	g.fence()
	for chunk := range block.Chunks(testSize) {
		g.write(chunk*block.ChunkSize, fill(uint64(chunk+1), block.Size))
	}
	g.checkpoint()
	g.read(0, block.Size)
	before := g.r.Stats().SumsReads
	for chunk := int64(1); chunk < block.Chunks(testSize); chunk++ {
		g.wantVerified(chunk*block.ChunkSize, block.Size)
	}
	mid := g.r.Stats().SumsReads
	g.read(0, block.Size)
	if after := g.r.Stats().SumsReads; after != mid || mid == before {
		t.Errorf("the sums in use were read again: %d, %d, %d", before, mid, after)
	}
}
