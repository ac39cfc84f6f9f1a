package reconcile

import (
	"context"
	"errors"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Times of snapshots of several volumes.
const (
	// groupLimit is how long one may take until it is given up: volumes that nobody has attached must first be served.
	groupLimit = time.Minute
	// groupKept is how long one that failed stays in the list for who asked for it.
	groupKept = time.Minute
)

// groupWatch is when this leader saw each group first, or first in the phase in which it only waits to be dropped.
type groupWatch map[string]time.Time

// concerns reports whether an event may let a group go on.
func (v *View) concerns(e meta.Event) bool {
	switch e.Kind {
	case meta.ClusterPut, meta.Synced:
		return len(v.Cluster.Value.Groups) > 0
	case meta.VolumePut, meta.VolumeDeleted:
		return slices.ContainsFunc(v.Cluster.Value.Groups, func(g spec.Group) bool { return slices.Contains(g.Volumes, e.Volume.ID) })
	}
	return false
}

// groups does what is next for every group that has no volume in common with an earlier one. It doesn't wait for bursts of events to
// end, as volumes are frozen meanwhile. due is when to look again.
func (r *Runner) groups(ctx context.Context, now time.Time) (due time.Time) {
	if !r.view.synced {
		return time.Time{}
	}
	list := slices.Clone(r.view.Cluster.Value.Groups)
	taken := map[string]bool{}
	known := groupWatch{}
	var wait plan
	for _, g := range list {
		key := g.ID
		if !g.Under() {
			key += string(g.Phase)
		}
		known[key] = now
		if since, ok := r.since[key]; ok {
			known[key] = since
		}
		free := !slices.ContainsFunc(g.Volumes, func(id string) bool { return taken[id] })
		if g.Phase != spec.GroupFailed {
			for _, id := range g.Volumes {
				taken[id] = true
			}
		}
		if !free {
			known[key] = now // its turn hasn't come
			continue
		}
		limit := groupLimit
		if g.Phase == spec.GroupFailed {
			limit = groupKept
		}
		end := known[key].Add(limit)
		if now.Before(end) {
			wait.deadline(end)
		}
		step := g.Step(r.view.volume, r.view.Settings.SnapshotLimit(), time.Now(), !now.Before(end))
		if err := r.commitGroup(ctx, g, step); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("a group snapshot can't go on; it is tried again", "group", g.Name, "err", err)
			wait.deadline(now.Add(retry))
		}
	}
	r.since = known
	return wait.due
}

func (v *View) volume(id string) *spec.Volume {
	x, ok := v.Volumes[id]
	if !ok {
		return nil
	}
	return &x.Value
}

// commitGroup makes a step's changes, each a transaction. That somebody else changed a record brings us back with their event.
func (r *Runner) commitGroup(ctx context.Context, g spec.Group, s spec.GroupStep) error {
	if s.Group != nil || s.Drop {
		c := r.view.Cluster
		c.Value.Groups = slices.Clone(c.Value.Groups)
		i := slices.IndexFunc(c.Value.Groups, func(x spec.Group) bool { return x.ID == g.ID })
		if i < 0 {
			return nil
		}
		if s.Drop {
			c.Value.Groups = slices.Delete(c.Value.Groups, i, i+1)
		} else {
			c.Value.Groups[i] = *s.Group
		}
		rev, err := r.cfg.Store.PutCluster(ctx, c.Value, c.Rev)
		if err == nil {
			r.view.Cluster = meta.Versioned[spec.Cluster]{Value: c.Value, Rev: rev}
			r.logGroup(g, s)
		}
		return unlessChanged(err)
	}
	for _, x := range s.Volumes {
		rev, err := r.cfg.Store.PutVolume(ctx, x, r.view.Volumes[x.ID].Rev, meta.Cond{})
		if err := unlessChanged(err); err != nil {
			return err
		}
		if err == nil {
			r.view.Volumes[x.ID] = meta.Versioned[spec.Volume]{Value: x, Rev: rev}
		}
	}
	return nil
}

func (r *Runner) logGroup(g spec.Group, s spec.GroupStep) {
	switch {
	case s.Group == nil:
	case s.Group.Phase == spec.GroupFailing:
		r.cfg.Log.Warn("a group snapshot failed", "group", g.Name, "phase", g.Phase, "attempt", g.Attempt, "reason", s.Group.Reason)
	default:
		r.cfg.Log.Info("group snapshot goes on", "group", g.Name, "phase", s.Group.Phase, "attempt", s.Group.Attempt)
	}
}

func unlessChanged(err error) error {
	if errors.Is(err, meta.ErrConflict) || errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	return err
}

// orphan deletes what a leader that had been replaced asked for after its group was given up.
func (v *View) orphan(vol meta.Versioned[spec.Volume]) (change, bool) {
	next := copyVolume(vol.Value)
	found := false
	for i := range next.Snapshots {
		x := &next.Snapshots[i]
		if x.Grouped() && !slices.ContainsFunc(v.Cluster.Value.Groups, func(g spec.Group) bool { return g.ID == x.Group }) {
			x.State, x.Part, found = spec.SnapshotDeleting, spec.GroupPart{}, true
		}
	}
	return change{old: vol, new: next, what: "its group snapshot was given up"}, found
}
