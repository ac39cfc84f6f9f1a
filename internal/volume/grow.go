package volume

import (
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// grow admits the size that the newest record gives the volume, if that is larger than what is served. All in-sync members are
// that large by then; those on their way to be in sync that aren't are given up, and come back when they have grown.
//
// Invariant: no transaction of this volume is under way, so the members' roles are what the record says. What is written beyond the end of
// a snapshot is of a later period: it waits while one is being taken.
func (v *Volume) grow() {
	if v.rec.Size <= v.size || v.snaps.pending != 0 && !invariant.Mutant("grow-within-snapshot") {
		return
	}
	for i, c := range v.columns {
		c.size = spec.ColumnSize(v.rec.Size, len(v.columns))
		if words := int((block.Chunks(c.size) + 63) / 64); words > len(c.dirty) {
			c.dirty = append(c.dirty, make([]uint64, words-len(c.dirty))...)
		}
		for _, m := range v.rec.State.Columns[i].Members {
			if slot := c.rc.Slot(m.Replica); slot >= 0 && !v.rec.Holds(m, v.rec.Size) {
				c.rc.TooSmall(slot, v.loop.Now())
			}
		}
	}
	v.log.Info("volume grown", "from", v.size, "to", v.rec.Size)
	v.size = v.rec.Size
	v.scrub.resized()
	if v.cfg.Resized != nil {
		v.loop.Post(v.cfg.Resized)
	}
}

// resized has the count of chunks begun anew before the next step: with several columns a position stands for another chunk now.
func (s *scrubber) resized() { s.moved = len(s.v.columns) > 1 }

// rewind goes back to the first chunk if positions have changed their meaning.
func (s *scrubber) rewind() {
	if s.moved {
		s.moved, s.position, s.at, s.saved, s.gens, s.levels = false, 0, 0, 0, scrubGens{}, scrubLevels{}
	}
}

// fits takes the changes out of change that would let a member in that is too small for the volume in rec, and returns them.
func fits(rec *spec.Volume, column int, change *repl.Change) (out []repl.MemberChange) {
	members := rec.State.Columns[column].Members
	change.Members = slices.DeleteFunc(slices.Clone(change.Members), func(mc repl.MemberChange) bool {
		i := slices.IndexFunc(members, func(m spec.Member) bool { return m.Replica == mc.Replica })
		if change.Attach || mc.State == spec.Stale || i < 0 || rec.Holds(members[i], rec.Size) {
			return false
		}
		out = append(out, mc)
		return true
	})
	return out
}
