package reconcile

import (
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// deviceGrace is how long a volume that is to show a snapshot may be without a node that has it attached.
const deviceGrace = 3 * time.Minute

// devices deletes the volumes that showed snapshots and that no node has any more: nobody finished attaching or detaching them. A
// snapshot whose volume is gone, or going, isn't attached.
func (r *Runner) devices(now time.Time) (p plan) {
	v, seen := r.view, map[string]time.Time{}
	for _, vol := range v.sorted() {
		x := &vol.Value
		if x.ReadOnly != nil && !x.Deleting && (x.State.Node == "" || x.State.Frontend == spec.FrontendNone) {
			since, ok := r.idle[x.ID]
			if !ok {
				since = now
			}
			seen[x.ID] = since
			if end := since.Add(deviceGrace); now.Before(end) {
				p.deadline(end)
			} else {
				next := copyVolume(*x)
				next.Deleting = true
				p.changes = append(p.changes, change{old: vol, new: next, what: "the snapshot that it showed isn't attached any more"})
			}
		}
		if ch, ok := v.freeSnapshots(vol); ok {
			p.changes = append(p.changes, ch)
		}
	}
	r.idle = seen
	return p
}

// freeSnapshots notes which of a volume's snapshots aren't attached any more.
func (v *View) freeSnapshots(vol meta.Versioned[spec.Volume]) (change, bool) {
	next := copyVolume(vol.Value)
	found := false
	for i := range next.Snapshots {
		s := &next.Snapshots[i]
		if s.Device.Volume == "" {
			continue
		}
		if d, ok := v.Volumes[s.Device.Volume]; !ok || d.Value.Deleting {
			s.Device, found = spec.SnapshotDevice{}, true
		}
	}
	return change{old: vol, new: next, what: "a snapshot of it isn't attached any more"}, found
}
