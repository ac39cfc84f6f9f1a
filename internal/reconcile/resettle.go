package reconcile

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// resettle moves the copies of volumes that are to lie where their own rules want them, and don't: clones that were asked for at another place
// than their origin's. One copy of a column moves at a time, by the steps of a replacement, and the next one when the volume
// lacks nothing. When no copy has to move any more the wish is taken back.
func (r *Runner) resettle(now time.Time) plan {
	var p plan
	active := 0
	for _, vol := range r.view.Volumes {
		if rebuilding(&vol.Value) {
			active++
		}
	}
	for _, vol := range r.view.sorted() {
		x := &vol.Value
		if !x.Resettle || x.Cloning() || !r.view.settled(x) {
			continue
		}
		if active >= MaxRebuilds {
			p.deadline(now.Add(retry))
			continue
		}
		next := cloneVolume(*x)
		var blocked error
		var what string
		for i := range next.State.Columns {
			m, ok, err := place.Resettle(r.view.cluster(), next, i)
			if err != nil {
				blocked = err
			}
			if !ok {
				continue
			}
			col := &next.State.Columns[i]
			from := col.Members[m.Leaves]
			reason := fmt.Sprintf("moved here, as its place on node %s isn't what is asked for: %s; %s", from.Node, m.Why, m.Reason)
			col.Relocate(m.Leaves, spec.EvictMove, newMember(m.Choice, reason, now))
			what = fmt.Sprintf("the replica of node %s moves to node %s, where it is asked for", from.Node, m.Node)
		}
		switch {
		case what != "":
			active++
		case blocked != nil:
			r.tell(x.Name, "a copy can't be brought to where it is asked for: "+blocked.Error())
			p.deadline(now.Add(retryMax))
			continue
		default:
			next.Resettle = false
			what = "all its copies lie where they are asked for"
		}
		r.tell(x.Name, "")
		p.changes = append(p.changes, change{old: vol, new: next, what: what})
	}
	return p
}
