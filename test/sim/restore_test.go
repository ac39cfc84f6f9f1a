package sim_test

import (
	"slices"

	"keelson.io/keelson/internal/spec"
)

// restoring is a restore that was asked for: what each block is to become.
type restoring struct {
	id   string
	want map[int]uint64
}

// idle reports whether no client waits for anything, and no write is left whose outcome isn't known.
func (v *vol) idle() bool {
	for _, n := range v.c.nodes {
		if g := n.guests[v.i]; g != nil && len(g.pending) > 0 {
			return false
		}
	}
	for _, blk := range v.hist.written {
		if v.hist.blocks[blk].open > 0 {
			return false
		}
	}
	return true
}

// askRestore asks that a volume become what a snapshot holds, if nobody uses it at this moment; until that is done nobody does. It reports
// whether it asked. Volumes with damage are left alone: what a damaged block of a snapshot is, isn't known.
func (s *snapsOf) askRestore(next *spec.Volume) bool {
	v := s.v
	if s.restoring != nil || next.Growth.To != 0 || len(v.tainted) > 0 || len(v.loss) > 0 || !v.idle() ||
		slices.ContainsFunc(next.Snapshots, func(x spec.Snapshot) bool { return x.State != spec.SnapshotReady }) {
		return false
	}
	x := next.Snapshots[v.c.w.Rand().IntN(len(next.Snapshots))]
	k := s.known[x.ID]
	if k == nil || k.period == 0 || k.partly || x.Size != next.Size {
		return false
	}
	r := &restoring{id: x.ID, want: map[int]uint64{}}
	for _, blk := range v.hist.written {
		val := k.held[blk]
		if val&tornBit != 0 {
			return false
		}
		r.want[blk] = val
	}
	for blk, val := range r.want {
		b := &v.hist.blocks[blk]
		b.sure, b.maybe = false, append(b.maybe, val)
	}
	s.restoring = r
	next.Restore = &spec.Restore{Snapshot: x.ID}
	v.c.count("restores asked for")
	return true
}

// restored begins the histories of all blocks anew, and checks that every in-sync copy durably has what the snapshot held.
func (s *snapsOf) restored() {
	r, v := s.restoring, s.v
	s.restoring = nil
	v.hist.tick()
	for _, blk := range v.hist.written {
		val := r.want[blk]
		v.hist.restart(blk, val)
		if v.tainted[int64(blk)] {
			continue
		}
		v.inSyncCopies(blk, func(k *replicaCopy, off int64) {
			if !k.holds(off, blk, val, true) {
				v.c.fail("snapshot %s was restored, and replica %s on %s doesn't durably have write %d in block %d", r.id, k.id, k.n.name, val, blk)
			}
		})
	}
	v.c.count("restores")
}

// restart begins a new segment of a block's history, in which it is known and durable.
func (h *history) restart(blk int, val uint64) {
	b := &h.blocks[blk]
	b.segs = append(b.segs, segment{init: val})
	b.sure, b.dirty, b.lastRet, b.last = true, false, *h.clock, val
	b.known, b.maybe = true, append(b.maybe[:0], val)
}
