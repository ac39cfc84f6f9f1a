package reconcile

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// rebuild replaces replicas whose nodes, or pools, are away. The steps of one replacement, each a transaction of its own:
//
//	away for RebuildAfter -> the old member is marked Removing, and a new, stale one is added
//	the coordinator brings the new one up to date (a detached volume is served by some node meanwhile)
//	as many members are in sync as were asked for -> whatever is too many is dropped from the record
//
// If the old node comes back first, its replica catches up, and it's the new one that is too many.
func (r *Runner) rebuild(volumes []meta.Versioned[spec.Volume], now time.Time) plan {
	v := r.view
	var p plan
	active := 0
	for _, vol := range volumes {
		if rebuilding(&vol.Value) {
			active++
		}
	}
	for _, vol := range volumes {
		if vol.Value.Deleting {
			continue
		}
		next := cloneVolume(vol.Value)
		ch := change{old: vol}
		// A volume counts once, however many of its columns are rebuilt.
		allowed := active < MaxRebuilds || rebuilding(&vol.Value)
		for i := range next.State.Columns {
			if stays := v.recall(&next, i); stays != "" {
				ch.what = stays
				continue
			}
			if dropped := v.dropSurplus(&next, i); dropped != "" {
				ch.what = dropped
				continue
			}
			added, cond, due, err := r.replace(&next, i, now, allowed)
			p.deadline(due)
			if err == nil && added == "" {
				added, due, err = r.evict(&next, i, now, allowed)
				p.deadline(due)
			}
			if err != nil {
				r.tell(vol.Value.Name, "no replacement can be placed: "+err.Error())
				p.deadline(now.Add(retryMax))
			} else if added != "" {
				r.tell(vol.Value.Name, "")
				ch.what, ch.cond = added, cond
			}
		}
		if ch.what != "" {
			if !rebuilding(&vol.Value) && rebuilding(&next) {
				active++
			}
			ch.new = next
			p.changes = append(p.changes, ch)
			continue
		}
		if s, ok := v.needsService(&vol.Value, now); ok {
			p.serve = append(p.serve, s)
		}
	}
	return p
}

// rebuilding reports whether a column has a replacement.
func rebuilding(vol *spec.Volume) bool {
	for _, c := range vol.State.Columns {
		if len(c.Members) > vol.Replicas {
			return true
		}
	}
	return false
}

// dropSurplus drops members of column i that aren't needed any more once enough are in sync, and says so. One that is in
// sync itself is only marked while the volume is attached: what was acknowledged and not flushed is on it too, so the
// coordinator has to flush the others and make it stale before it can be dropped. After a detachment all is durable.
func (v *View) dropSurplus(vol *spec.Volume, i int) string {
	col := &vol.State.Columns[i]
	if len(col.Members) <= vol.Replicas {
		return ""
	}
	keep := v.keepers(vol, col)
	if len(keep) < vol.Replicas {
		return ""
	}
	var kept []spec.Member
	dropped := ""
	for _, m := range col.Members {
		switch {
		case keep[m.Replica]:
			m.Removing = false
			kept = append(kept, m)
		case m.State == spec.InSync && vol.State.Node != "":
			if !m.Removing {
				m.Removing = true
				dropped = fmt.Sprintf("replica %s on node %s is no longer needed: it leaves the in-sync set", m.Replica, m.Node)
			}
			kept = append(kept, m)
		default:
			dropped = fmt.Sprintf("replica %s on node %s is no longer needed: %d others are in sync", m.Replica, m.Node, len(keep))
		}
	}
	if dropped == "" {
		return ""
	}
	col.Members = kept
	return dropped
}

// replace adds a new member for one of column i that is away, or that is missing altogether. The change holds only if
// cond does: that the node is still gone.
func (r *Runner) replace(vol *spec.Volume, i int, now time.Time, allowed bool) (what string, cond meta.Cond, due time.Time, err error) {
	v := r.view
	col := &vol.State.Columns[i]
	var wait plan
	if col.Staying() < vol.Replicas && v.hasSource(col, -1) {
		if !allowed {
			return "", cond, now.Add(retry), nil
		}
		choice, err := place.Place(v.cluster(), place.Request{Volume: *vol, Column: i})
		if err != nil {
			return "", cond, due, err
		}
		col.Members = append(col.Members, newMember(choice[0], choice[0].Reason, now))
		return fmt.Sprintf("a replica that is missing is built on node %s", choice[0].Node), cond, due, nil
	}
	for j, m := range col.Members {
		if m.Removing {
			continue
		}
		lost, at := v.lost(m, now)
		switch {
		case !lost:
			wait.deadline(at)
			continue
		case !v.hasSource(col, j):
			continue // nothing to rebuild it from
		case !allowed:
			return "", cond, now.Add(retry), nil
		}
		choice, err := place.Place(v.cluster(), place.Request{Volume: *vol, Column: i})
		if err != nil {
			return "", cond, wait.due, err
		}
		if !v.Alive(m.Node) {
			cond.NodeGone = m.Node
		}
		v.supersede(col, j, now)
		reason := fmt.Sprintf("replaces the copy on node %s, which is away; %s", m.Node, choice[0].Reason)
		col.Members = append(col.Members, newMember(choice[0], reason, now))
		return fmt.Sprintf("rebuilding the replica of node %s, which is away, on node %s", m.Node, choice[0].Node), cond, wait.due, nil
	}
	return "", cond, wait.due, nil
}

// newMember is an empty replica, which the coordinator is to fill.
func newMember(c place.Choice, reason string, now time.Time) spec.Member {
	return spec.Member{Replica: spec.NewID(), Node: c.Node, Pool: c.Pool, State: spec.Stale, Since: now.UTC(), Reason: reason}
}

// hasSource reports whether a member other than number j is there to rebuild from.
func (v *View) hasSource(col *spec.Column, j int) bool {
	for k, m := range col.Members {
		if k != j && v.usable(m) {
			return true
		}
	}
	return false
}

// supersede marks member j as Removing, and drops members that were replaced before, aren't in sync and are
// still away: they won't be waited for any longer, and a column stays small however many nodes fail in turn.
func (v *View) supersede(col *spec.Column, j int, now time.Time) {
	var kept []spec.Member
	for k, m := range col.Members {
		lost, _ := v.lost(m, now)
		if m.Removing && m.State != spec.InSync && lost {
			continue
		}
		m.Removing = m.Removing || k == j
		kept = append(kept, m)
	}
	col.Members = kept
}

// cluster is the view as placement wants it.
func (v *View) cluster() place.Cluster {
	c := place.Cluster{Overcommit: v.Settings.Overcommit}
	for _, n := range v.Nodes {
		c.Nodes = append(c.Nodes, place.Node{Node: n, Alive: v.Alive(n.Name)})
	}
	provisioned := map[string]int64{}
	for _, vol := range v.Volumes {
		size := spec.ColumnSize(vol.Value.Planned(), vol.Value.Columns)
		for _, col := range vol.Value.State.Columns {
			for _, m := range col.Members {
				provisioned[m.Pool] += size
			}
		}
	}
	for _, p := range v.Pools {
		c.Pools = append(c.Pools, place.Pool{Pool: p, Provisioned: provisioned[p.ID], Free: -1})
	}
	c.Groups = place.GroupsOf(func(yield func(spec.Volume) bool) {
		for _, vol := range v.Volumes {
			if !yield(vol.Value) {
				return
			}
		}
	})
	return c
}
