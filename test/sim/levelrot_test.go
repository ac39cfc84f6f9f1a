package sim_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

// rot flips bits in what snapshots hold themselves, each in one of at least two intact copies, before the last scrub; it is drawn apart, so that the
// rest of the run is what it was. Until mended looks, these blocks aren't compared.
func (s *snapsOf) rot() {
	v := s.v
	s.rotten = nil
	rng := rand.New(rand.NewPCG(v.c.seed, 0x6c6576656c+uint64(v.i)))
	if !v.c.snapshots() {
		return
	}
	for _, x := range v.rec.Snapshots {
		k := s.known[x.ID]
		if x.State != spec.SnapshotReady || k == nil || k.held == nil {
			continue
		}
		blocks := slices.Sorted(maps.Keys(k.held))
		for range min(2, len(blocks)) {
			blk := blocks[rng.IntN(len(blocks))]
			col, off := v.locate(int64(blk) * block.Size)
			good := v.intact(col)
			if len(good) < 2 || v.tainted[int64(blk)] || s.rotten[blk] {
				continue
			}
			copied := good[rng.IntN(len(good))]
			if !copied.heldIn(x.Period, off) {
				continue
			}
			if copied.n.sn.Disk().FlipBit(fmt.Sprintf("%s/snaps/%016x/data", copied.dir, x.Period), off+rng.Int64N(block.Size)) {
				if s.rotten == nil {
					s.rotten = map[int]bool{}
				}
				s.rotten[blk] = true
				v.c.count("rotten in snapshots")
			}
		}
	}
}

// heldIn reports whether a copy's snapshot has what is at off itself.
func (k *replicaCopy) heldIn(period uint64, off int64) bool {
	pieces, _ := k.mapEntry(period, off/block.ChunkSize)
	return pieces>>(off%block.ChunkSize/(64<<10))&1 != 0
}

// mended checks that every copy of every snapshot is what it was, also where bits were flipped, after a scrub that left nothing.
func (s *snapsOf) mended() {
	if s.rotten == nil {
		return
	}
	s.rotten = nil
	s.check("after the last scrub")
	s.v.c.count("snapshots mended")
}
