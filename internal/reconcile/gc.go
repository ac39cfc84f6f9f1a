package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// gc ends the deletion of volumes. The engines remove their replicas of a volume that is being deleted and drop those
// members from its record; members whose node, or pool, is away are dropped here, and a record without members is
// deleted. What may be left of replicas on a node that is away is noted with its pool first: the node removes it when it is back.
func gc(v *View, volumes []meta.Versioned[spec.Volume], now time.Time) plan {
	var p plan
	for _, vol := range volumes {
		if !vol.Value.Deleting {
			continue
		}
		next := cloneVolume(vol.Value)
		left, dropped := 0, 0
		leftovers := map[string][]string{}
		for i := range next.State.Columns {
			col := &next.State.Columns[i]
			kept := col.Members[:0]
			for _, m := range col.Members {
				lost, due := v.lost(m, now)
				if lost {
					dropped++
					if _, there := v.Pools[m.Pool]; there {
						leftovers[m.Pool] = append(leftovers[m.Pool], m.Replica)
					}
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
			p.changes = append(p.changes, change{old: vol, remove: true, leftovers: leftovers, what: "deleted volume is gone"})
		case dropped > 0:
			p.changes = append(p.changes, change{old: vol, new: next, leftovers: leftovers, what: "replicas on nodes that are away no longer hold up a deletion"})
		}
	}
	return p
}

// leaveBehind notes with their pools what replicas of a volume that is being deleted may have left there. It comes before
// the change that drops them from the volume's record: a note too many does no harm.
func (r *Runner) leaveBehind(ctx context.Context, leftovers map[string][]string) error {
	for id, replicas := range leftovers {
		err := meta.ErrConflict
		for errors.Is(err, meta.ErrConflict) {
			err = r.note(ctx, id, replicas)
		}
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return err
		}
	}
	return nil
}

func (r *Runner) note(ctx context.Context, pool string, replicas []string) error {
	p, err := r.cfg.Store.Pool(ctx, pool)
	if err != nil {
		return err
	}
	list := slices.Clone(p.Value.Leftovers)
	for _, rep := range replicas {
		if len(list) < spec.MaxLeftovers && !slices.Contains(list, rep) {
			list = append(list, rep)
		}
	}
	if len(list) == len(p.Value.Leftovers) {
		return nil
	}
	p.Value.Leftovers = list
	_, err = r.cfg.Store.PutPool(ctx, p.Value, p.Rev)
	return err
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
