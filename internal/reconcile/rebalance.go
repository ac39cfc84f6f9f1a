package reconcile

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// balance is what a pool promises to volumes, for rebalancing.
type balance struct {
	spec.Pool
	promised int64
}

// percent is how much of what a pool has for volumes it promises, with more bytes than now.
func (b balance) percent(more int64) float64 {
	return 100 * float64(b.promised+more) / float64(max(1, b.Capacity-b.Reserve))
}

// rebalance moves copies from the pools that promise the most of their capacity to ones that promise less, if that is wanted.
//
// A move begins only if the two differ by more than the setting, and the pool that gets the copy promises no more than the one
// that had it afterwards: so no move is ever undone by another. At most as many copies as the setting says are on their way at
// once, those that a person moves included, and none while the volume has anything else to do.
func (r *Runner) rebalance(now time.Time) plan {
	v := r.view
	var p plan
	limit := float64(v.Settings.Rebalance)
	if limit <= 0 {
		return p
	}
	budget := cmp.Or(v.Settings.RebalanceMoves, spec.DefaultRebalanceMoves)
	var idle []meta.Versioned[spec.Volume]
	for _, vol := range v.Volumes {
		for _, col := range vol.Value.State.Columns {
			for _, m := range col.Members {
				if m.Evict == spec.EvictMove {
					budget--
				}
			}
		}
		if v.settled(&vol.Value) {
			idle = append(idle, vol)
		}
	}
	slices.SortFunc(idle, func(a, b meta.Versioned[spec.Volume]) int { return cmp.Compare(a.Value.Name, b.Value.Name) })
	pools := v.balances()
	for _, from := range pools {
		if budget <= 0 {
			break
		}
		if ch, ok := r.lighten(from, pools, idle, limit, now); ok {
			p.changes = append(p.changes, ch)
			budget--
			break // what that makes of the shares is seen in the next pass
		}
	}
	return p
}

// balances are the pools in service that may have copies moved to or from them, the one that promises the most first.
func (v *View) balances() []balance {
	leaving := map[string]int64{}
	for _, vol := range v.Volumes {
		for _, col := range vol.Value.State.Columns {
			for _, m := range col.Members {
				if m.Removing {
					leaving[m.Pool] += spec.ColumnSize(vol.Value.Planned(), vol.Value.Columns)
				}
			}
		}
	}
	c := v.cluster()
	var list []balance
	for _, p := range c.Pools {
		if n := v.Nodes[p.Node]; v.Alive(p.Node) && !n.Closed() && !p.Draining {
			list = append(list, balance{p.Pool, p.Provisioned - leaving[p.ID]})
		}
	}
	slices.SortFunc(list, func(a, b balance) int {
		return cmp.Or(cmp.Compare(b.percent(0), a.percent(0)), cmp.Compare(a.ID, b.ID))
	})
	return list
}

// lighten moves one copy away from a pool: the largest for which there is a better place.
func (r *Runner) lighten(from balance, pools []balance, idle []meta.Versioned[spec.Volume], limit float64, now time.Time) (change, bool) {
	type candidate struct {
		vol    meta.Versioned[spec.Volume]
		column int
		member int
		size   int64
	}
	var list []candidate
	for _, vol := range idle {
		for i, col := range vol.Value.State.Columns {
			for j, m := range col.Members {
				if m.Pool == from.ID {
					list = append(list, candidate{vol, i, j, spec.ColumnSize(vol.Value.Planned(), vol.Value.Columns)})
				}
			}
		}
	}
	slices.SortStableFunc(list, func(a, b candidate) int { return cmp.Compare(b.size, a.size) })
	for _, x := range list {
		var better []string
		for _, to := range pools {
			if from.percent(0)-to.percent(0) > limit && to.percent(x.size) <= from.percent(-x.size) {
				better = append(better, to.ID)
			}
		}
		if len(better) == 0 {
			continue
		}
		next := cloneVolume(x.vol.Value)
		col := &next.State.Columns[x.column]
		old := col.Members[x.member]
		choice, err := place.Place(r.view.cluster(), place.Request{Volume: next, Column: x.column, Replacing: old.Replica, Pools: better})
		if err != nil {
			continue
		}
		why := fmt.Sprintf("moved here, as pool %s of node %s promises %.0f %% of its capacity; %s", old.Pool, old.Node, from.percent(0), choice[0].Reason)
		col.Relocate(x.member, spec.EvictMove, newMember(choice[0], why, now))
		return change{old: x.vol, new: next, what: fmt.Sprintf("rebalancing: the replica of node %s moves to node %s", old.Node, choice[0].Node)}, true
	}
	return change{}, false
}
