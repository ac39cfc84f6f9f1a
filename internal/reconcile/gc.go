package reconcile

import (
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// gc ends the deletion of volumes. The engines remove their replicas of a volume that is being deleted and drop those
// members from its record; members whose node, or pool, is away are dropped here (what is left of them is removed when
// it comes back, as no record names it), and a record without members is deleted.
func gc(v *View, volumes []meta.Versioned[spec.Volume], now time.Time) plan {
	var p plan
	for _, vol := range volumes {
		if !vol.Value.Deleting {
			continue
		}
		next := cloneVolume(vol.Value)
		left, dropped := 0, 0
		for i := range next.State.Columns {
			col := &next.State.Columns[i]
			kept := col.Members[:0]
			for _, m := range col.Members {
				lost, due := v.lost(m, now)
				if lost {
					dropped++
					continue
				}
				p.deadline(due)
				kept = append(kept, m)
			}
			col.Members = kept
			left += len(kept)
		}
		switch {
		case left == 0:
			p.changes = append(p.changes, change{old: vol, remove: true, what: "deleted volume is gone"})
		case dropped > 0:
			p.changes = append(p.changes, change{old: vol, new: next, what: "replicas on nodes that are away no longer hold up a deletion"})
		}
	}
	return p
}

// cloneVolume copies what the loops change.
func cloneVolume(v spec.Volume) spec.Volume {
	cols := make([]spec.Column, len(v.State.Columns))
	for i, c := range v.State.Columns {
		cols[i].Members = append([]spec.Member(nil), c.Members...)
	}
	v.State.Columns = cols
	return v
}
