package reconcile

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// mustLeave reports whether a member's pool is being drained, or its node decommissioned, and why.
func (v *View) mustLeave(m spec.Member) (why string, leave bool) {
	if v.Nodes[m.Node].Upkeep == spec.Decommission {
		return "node " + m.Node + " is being decommissioned", true
	}
	if v.Pools[m.Pool].Draining {
		return "pool " + m.Pool + " of node " + m.Node + " is being drained", true
	}
	return "", false
}

// evict moves one copy of column i that has to leave: it is marked, and a new member is added. One copy of a column moves at a
// time. The steps after that are those of a rebuild.
func (r *Runner) evict(vol *spec.Volume, i int, now time.Time, allowed bool) (what string, due time.Time, err error) {
	v := r.view
	col := &vol.State.Columns[i]
	if len(col.Members) > vol.Replicas || !v.hasSource(col, -1) {
		return "", due, nil
	}
	for j, m := range col.Members {
		why, leave := v.mustLeave(m)
		if !leave || m.Removing {
			continue
		}
		if !allowed {
			return "", now.Add(retry), nil
		}
		req := place.Request{Volume: *vol, Column: i, Replacing: m.Replica}
		if m.Node == vol.State.Node {
			req.Near = m.Node
		}
		choice, err := place.Place(v.cluster(), req)
		if err != nil {
			return "", due, fmt.Errorf("%s: %w", why, err)
		}
		reason := fmt.Sprintf("moved here, as %s; %s", why, choice[0].Reason)
		col.Relocate(j, spec.EvictDrain, newMember(choice[0], reason, now))
		return fmt.Sprintf("moving the replica of node %s to node %s: %s", m.Node, choice[0].Node, why), due, nil
	}
	return "", due, nil
}

// recall lets members of column i stay that were to be removed for a reason that is gone: an upkeep that was called off, or a
// lower number of copies.
func (v *View) recall(vol *spec.Volume, i int) (what string) {
	col := &vol.State.Columns[i]
	for j := range col.Members {
		m := &col.Members[j]
		if _, leave := v.mustLeave(*m); m.Evict == spec.EvictDrain && !leave {
			m.Evict, m.Removing = "", false
			what = fmt.Sprintf("replica %s on node %s stays: it needn't leave any more", m.Replica, m.Node)
		}
	}
	for j := range col.Members {
		m := &col.Members[j]
		if m.Removing && m.Evict == "" && v.usable(*m) && col.Staying() < vol.Replicas {
			m.Removing = false
			what = fmt.Sprintf("replica %s on node %s stays: %d copies are wanted", m.Replica, m.Node, vol.Replicas)
		}
	}
	return what
}

// keepers are the members of a column to be kept, as many as there shall be, or fewer if so few are usable: first those that
// nobody wants to remove. The copy where the volume is attached is kept before others, and then those in zones that have none.
func (v *View) keepers(vol *spec.Volume, col *spec.Column) map[string]bool {
	keep := map[string]bool{}
	zones := map[string]bool{}
	pick := func(fits func(spec.Member) bool) {
		for _, m := range col.Members {
			if len(keep) < vol.Replicas && !keep[m.Replica] && v.usable(m) && fits(m) {
				keep[m.Replica] = true
				zones[v.Nodes[m.Node].Zone] = true
			}
		}
	}
	stays := func(m spec.Member) bool { return !m.Removing }
	pick(func(m spec.Member) bool { return stays(m) && m.Node == vol.State.Node })
	pick(func(m spec.Member) bool { return stays(m) && !zones[v.Nodes[m.Node].Zone] })
	pick(stays)
	// One that was given up because it was away, and is back, is as good; one that was told to leave isn't.
	pick(func(m spec.Member) bool { return m.Removing && m.Evict == "" })
	return keep
}
