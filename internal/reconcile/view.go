package reconcile

import (
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// View is what the leader knows. Times are this process's monotonic ones.
type View struct {
	Settings spec.Settings
	Cluster  meta.Versioned[spec.Cluster]
	Nodes    map[string]spec.Node
	Pools    map[string]spec.Pool
	Volumes  map[string]meta.Versioned[spec.Volume]
	// Unproven are those of which nothing may be concluded yet. Invariant: a volume is in one of the two.
	Unproven map[string]meta.Versioned[spec.Volume]
	// GoneSince has, for each node without a lease, when this leader saw that first.
	GoneSince map[string]time.Time

	// synced is set while the view is whole; nothing may be decided on a part of it.
	synced bool
	// held has the nodes whose lease was seen since the last Resync.
	held map[string]bool
}

func newView() *View {
	return &View{Settings: spec.DefaultSettings(), Nodes: map[string]spec.Node{}, Pools: map[string]spec.Pool{},
		Volumes: map[string]meta.Versioned[spec.Volume]{}, Unproven: map[string]meta.Versioned[spec.Volume]{}, GoneSince: map[string]time.Time{}, held: map[string]bool{}}
}

// Alive reports whether a node is known and holds its lease.
func (v *View) Alive(node string) bool {
	_, known := v.Nodes[node]
	_, gone := v.GoneSince[node]
	return known && !gone
}

// Away reports whether a node is gone for good, as far as the settings say. If it's gone, but not for long enough, due is when
// it will have been.
func (v *View) Away(node string, now time.Time) (away bool, due time.Time) {
	if _, known := v.Nodes[node]; !known {
		return true, time.Time{}
	}
	since, gone := v.GoneSince[node]
	if !gone {
		return false, time.Time{}
	}
	due = since.Add(v.Settings.RebuildAfter)
	return !now.Before(due), due
}

// lost is Away for a member: also a pool that is in service no more doesn't come back.
func (v *View) lost(m spec.Member, now time.Time) (lost bool, due time.Time) {
	if _, there := v.Pools[m.Pool]; !there {
		return true, time.Time{}
	}
	return v.Away(m.Node, now)
}

// usable reports whether a member is in sync on a node and pool that are there.
func (v *View) usable(m spec.Member) bool {
	_, pool := v.Pools[m.Pool]
	return m.State == spec.InSync && v.Alive(m.Node) && pool
}

// settled reports whether a volume is all right: the loops have nothing to do with it, whatever the time.
func (v *View) settled(vol *spec.Volume) bool {
	if vol.Deleting {
		return false
	}
	for _, c := range vol.State.Columns {
		if len(c.Members) != vol.Replicas {
			return false
		}
		for _, m := range c.Members {
			if _, leave := v.mustLeave(m); leave || m.Removing || !v.usable(m) {
				return false
			}
		}
	}
	return true
}

// apply takes one event over.
func (v *View) apply(e meta.Event, now time.Time) {
	switch e.Kind {
	case meta.Resync:
		gone := v.GoneSince
		*v = *newView()
		v.GoneSince = gone
	case meta.Synced:
		v.begin(now)
	case meta.ClusterPut:
		v.Settings = e.Cluster.Settings
		v.Cluster = meta.Versioned[spec.Cluster]{Value: e.Cluster, Rev: e.Rev}
	case meta.NodePut:
		v.Nodes[e.Node.Name] = e.Node
		if _, gone := v.GoneSince[e.Node.Name]; v.synced && !gone && !v.held[e.Node.Name] {
			v.GoneSince[e.Node.Name] = now // it is new, and hasn't taken its lease yet
		}
	case meta.NodeDeleted:
		delete(v.Nodes, e.Node.Name)
		delete(v.GoneSince, e.Node.Name)
	case meta.PoolPut:
		v.Pools[e.Pool.ID] = e.Pool
	case meta.PoolDeleted:
		delete(v.Pools, e.Pool.ID)
	case meta.VolumePut:
		delete(v.Volumes, e.Volume.ID)
		delete(v.Unproven, e.Volume.ID)
		if e.Volume.Unproven != nil {
			v.Unproven[e.Volume.ID] = meta.Versioned[spec.Volume]{Value: e.Volume, Rev: e.Rev}
		} else {
			v.Volumes[e.Volume.ID] = meta.Versioned[spec.Volume]{Value: e.Volume, Rev: e.Rev}
		}
	case meta.VolumeDeleted:
		delete(v.Volumes, e.Volume.ID)
		delete(v.Unproven, e.Volume.ID)
	case meta.LeaseHeld:
		v.held[e.Node.Name] = true
		delete(v.GoneSince, e.Node.Name)
	case meta.LeaseGone:
		delete(v.held, e.Node.Name)
		if _, known := v.GoneSince[e.Node.Name]; !known {
			v.GoneSince[e.Node.Name] = now
		}
	}
}

// begin notes that the view is whole, and which nodes have no lease.
func (v *View) begin(now time.Time) {
	v.synced = true
	for name := range v.Nodes {
		if _, gone := v.GoneSince[name]; !gone && !v.held[name] {
			v.GoneSince[name] = now
		}
	}
}
