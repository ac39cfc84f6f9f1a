package reconcile

import (
	"cmp"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// snapshots finds the detached volumes that must be served for their snapshots, carries clones from their origins' records to
// their own, and does what schedules ask for. A clone's way:
//
//	its own record, pending -> a job in its origin's -> the coordinator makes the copies, and says which -> those are in sync in
//	the clone's record, and it isn't pending any more -> the job is dropped, and the snapshot that was made for it
func (r *Runner) snapshots(now time.Time) (p plan) {
	v := r.view
	for _, vol := range v.sorted() {
		x := &vol.Value
		if x.Deleting {
			continue
		}
		if x.SnapshotWork() {
			if s, ok := v.needsSnapshotter(x, now); ok {
				s.group = slices.ContainsFunc(x.Snapshots, func(x spec.Snapshot) bool { return x.Grouped() })
				p.serve = append(p.serve, s)
			}
		}
		if ch, ok := v.cloneStep(vol); ok {
			p.changes = append(p.changes, ch)
			continue
		}
		if ch, ok := v.orphan(vol); ok {
			p.changes = append(p.changes, ch)
			continue
		}
		if ch, ok := v.cleanClones(vol); ok {
			p.changes = append(p.changes, ch)
			continue
		}
		ch, due, ok := scheduleStep(vol, v.Settings.MaxSnapshots, now)
		p.deadline(due)
		if ok {
			p.changes = append(p.changes, ch)
		}
	}
	return p
}

// sorted returns the volumes in the order of their names.
func (v *View) sorted() (list []meta.Versioned[spec.Volume]) {
	for _, vol := range v.Volumes {
		list = append(list, vol)
	}
	slices.SortFunc(list, func(a, b meta.Versioned[spec.Volume]) int { return cmp.Compare(a.Value.Name, b.Value.Name) })
	return list
}

// needsSnapshotter reports whether a volume that nobody holds has something to be done for its snapshots, and which node should do it.
func (v *View) needsSnapshotter(vol *spec.Volume, now time.Time) (service, bool) {
	if vol.State.Node != "" && vol.State.Frontend != spec.FrontendNone || vol.Cloning() {
		return service{}, false
	}
	s, _, ok := v.server(vol, now)
	return s, ok
}

// copyVolume copies what the loops of snapshots change.
func copyVolume(v spec.Volume) spec.Volume {
	v = cloneVolume(v)
	v.Snapshots, v.Clones = slices.Clone(v.Snapshots), slices.Clone(v.Clones)
	if v.Source != nil {
		s := *v.Source
		v.Source = &s
	}
	return v
}

// cloneStep is the next step of a clone that is pending.
func (v *View) cloneStep(clone meta.Versioned[spec.Volume]) (change, bool) {
	x := &clone.Value
	if !x.Cloning() {
		return change{}, false
	}
	origin, ok := v.Volumes[x.Source.Volume]
	if !ok {
		return change{}, false // it waits to be deleted
	}
	i := slices.IndexFunc(origin.Value.Clones, func(j spec.CloneJob) bool { return j.Volume == x.ID })
	if i < 0 {
		s := origin.Value.SnapshotByName(x.Source.Snapshot)
		if s == nil || s.State != spec.SnapshotReady || origin.Value.Deleting {
			return change{}, false
		}
		next := copyVolume(origin.Value)
		next.Clones = append(next.Clones, cloneJob(x, &origin.Value))
		return change{old: origin, new: next, what: "a clone is to be made of it"}, true
	}
	job := origin.Value.Clones[i]
	if !job.Done && job.Stale(&origin.Value) {
		return renewJob(clone, origin, i), true
	}
	if !job.Done {
		return change{}, false
	}
	made := map[string]bool{}
	for _, m := range job.Members {
		made[m.Replica] = m.Made
	}
	next := copyVolume(*x)
	next.Source.Pending, next.Source.Desc = false, nil
	for c := range next.State.Columns {
		for k := range next.State.Columns[c].Members {
			if m := &next.State.Columns[c].Members[k]; !made[m.Replica] {
				m.State = spec.Stale
			}
		}
	}
	return change{old: clone, new: next, what: "its copies were made"}, true
}

// renewJob puts a clone's replicas beside others of its origin, as those beside which they were to be made are gone: first in
// the clone's record, then in the job.
func renewJob(clone, origin meta.Versioned[spec.Volume], i int) change {
	if job := cloneJob(&clone.Value, &origin.Value); !job.Stale(&origin.Value) {
		next := copyVolume(origin.Value)
		next.Clones[i] = job
		return change{old: origin, new: next, what: "replicas beside which a clone was to be made are gone"}
	}
	next := copyVolume(clone.Value)
	members := cloneJob(&clone.Value, &origin.Value).Members
	for c := range next.State.Columns {
		if slices.ContainsFunc(members, func(m spec.CloneMember) bool { return m.Column == c }) {
			continue
		}
		next.State.Columns[c].Members = nil
		for _, m := range origin.Value.State.Columns[c].Members {
			if m.State == spec.InSync && !m.Removing {
				m.Replica, m.Run, m.Reason = spec.NewID(), "", "beside the copy of "+origin.Value.Name+" that it was made from"
				next.State.Columns[c].Members = append(next.State.Columns[c].Members, m)
			}
		}
	}
	return change{old: clone, new: next, what: "it is made beside other replicas of its origin"}
}

// cloneJob pairs the replicas of a clone with those of its origin, in the same pool.
func cloneJob(clone, origin *spec.Volume) spec.CloneJob {
	job := spec.CloneJob{Volume: clone.ID, Snapshot: clone.Source.Snapshot, Desc: clone.Source.Desc}
	for c, col := range clone.State.Columns {
		for _, m := range col.Members {
			for _, from := range origin.State.Columns[c].Members {
				if from.Pool == m.Pool {
					job.Members = append(job.Members, spec.CloneMember{Column: c, From: from.Replica, Replica: m.Replica})
				}
			}
		}
	}
	return job
}

// cleanClones drops what is left of clones that are made, or gone.
func (v *View) cleanClones(vol meta.Versioned[spec.Volume]) (change, bool) {
	pending := func(id string) bool {
		c, ok := v.Volumes[id]
		return ok && c.Value.Cloning() && !c.Value.Deleting
	}
	next := copyVolume(vol.Value)
	next.Clones = slices.DeleteFunc(next.Clones, func(j spec.CloneJob) bool { return !pending(j.Volume) })
	changed := len(next.Clones) < len(vol.Value.Clones)
	for i := range next.Snapshots {
		if s := &next.Snapshots[i]; s.For != "" && s.State != spec.SnapshotDeleting && !pending(s.For) {
			s.State, changed = spec.SnapshotDeleting, true
		}
	}
	return change{old: vol, new: next, what: "a clone of it is made"}, changed
}

// scheduleStep asks for the snapshots whose time has come, and has those deleted that are too many. due is when to look again.
func scheduleStep(vol meta.Versioned[spec.Volume], limit int, now time.Time) (ch change, due time.Time, ok bool) {
	x := &vol.Value
	if len(x.Schedules) == 0 || x.Cloning() {
		return change{}, time.Time{}, false
	}
	next := copyVolume(*x)
	for _, s := range x.Schedules {
		at := s.Next(x.LastScheduled(s))
		if at.After(now) {
			if due.IsZero() || at.Before(due) {
				due = at
			}
		} else if next.AddScheduled(s, now, limit) {
			ok = true
		}
		ok = next.Retain(s) || ok
	}
	return change{old: vol, new: next, what: "its snapshot schedule"}, due, ok
}
