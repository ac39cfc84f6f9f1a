package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// localityAfter is how long a volume has to be attached to a node before a copy that is only preferred there follows it.
const localityAfter = 30 * time.Second

// attachedSince is where a volume is attached, and when this leader saw that first.
type attachedSince struct {
	term  uint64
	since time.Time
}

// follow brings copies to the nodes where volumes are attached, if they ask for that. The steps are those of a replacement: the new,
// stale member is added and the one that is to go is marked in one transaction; the coordinator brings the new one up to date; then the
// old one is dropped. Only volumes that lack nothing are moved, one step at a time, so one that wanders between nodes isn't copied more
// than once at a time.
func (r *Runner) follow(now time.Time) plan {
	var p plan
	active := 0
	var list []meta.Versioned[spec.Volume]
	for id, vol := range r.view.Volumes {
		if rebuilding(&vol.Value) {
			active++
		}
		if !r.view.mayFollow(&vol.Value) {
			delete(r.attached, id)
			continue
		}
		list = append(list, vol)
	}
	slices.SortFunc(list, func(a, b meta.Versioned[spec.Volume]) int { return strings.Compare(a.Value.Name, b.Value.Name) })
	for _, vol := range list {
		if due := r.followDue(&vol.Value, now); now.Before(due) {
			p.deadline(due)
			continue
		}
		if active >= MaxRebuilds {
			p.deadline(now.Add(retry))
			continue
		}
		next, what, err := r.bring(vol.Value, now)
		if err != nil {
			r.tell(vol.Value.Name, "no copy can be brought to the node where the volume is attached: "+err.Error())
			p.deadline(now.Add(retryMax))
			continue
		}
		r.tell(vol.Value.Name, "")
		p.changes = append(p.changes, change{old: vol, new: next, what: what})
		active++
	}
	return p
}

// mayFollow reports whether copies of a volume should follow it, at least one hasn't, and nothing else is being done with it.
func (v *View) mayFollow(vol *spec.Volume) bool {
	st := &vol.State
	if !vol.Placement.Follows() || st.Node == "" || st.Frontend == spec.FrontendNone || !v.Alive(st.Node) || !v.settled(vol) {
		return false
	}
	return slices.ContainsFunc(st.Columns, func(c spec.Column) bool { return !place.HasCopy(c, st.Node) })
}

// followDue is when copies of a volume may follow it.
func (r *Runner) followDue(vol *spec.Volume, now time.Time) time.Time {
	a, ok := r.attached[vol.ID]
	if !ok || a.term != vol.State.Term {
		a = attachedSince{vol.State.Term, now}
		r.attached[vol.ID] = a
	}
	if vol.Placement.Locality == spec.LocalityRequire {
		return a.since
	}
	return a.since.Add(localityAfter)
}

// bring adds members on the node where the volume is attached to all columns that have none.
func (r *Runner) bring(vol spec.Volume, now time.Time) (spec.Volume, string, error) {
	next, node := cloneVolume(vol), vol.State.Node
	for i := range next.State.Columns {
		col := &next.State.Columns[i]
		if place.HasCopy(*col, node) {
			continue
		}
		choice, leaves, err := place.Follow(r.view.cluster(), next, i, node)
		if err != nil {
			return spec.Volume{}, "", err
		}
		reason := "follows the volume to the node where it is attached"
		if leaves < 0 {
			col.Members = append(col.Members, newMember(choice, reason+"; "+choice.Reason, now))
			continue
		}
		reason += fmt.Sprintf(", from node %s; %s", col.Members[leaves].Node, choice.Reason)
		col.Relocate(leaves, spec.EvictMove, newMember(choice, reason, now))
	}
	return next, fmt.Sprintf("a copy follows the volume to node %s, where it is attached", node), nil
}
