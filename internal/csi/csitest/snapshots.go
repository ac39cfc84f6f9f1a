package csitest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"keelson.io/keelson/internal/csi"
)

// CreateSnapshot implements csi.Keelson.
func (w *view) CreateSnapshot(_ context.Context, volume, name string) (csi.Snapshot, error) {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[volume]
	switch {
	case err != nil:
		return csi.Snapshot{}, err
	case v == nil:
		return csi.Snapshot{}, problem(csi.ErrNotFound, "there is no volume %q", volume)
	}
	for _, s := range w.m.snapshots {
		if s.Volume == volume && s.Name == name {
			return s, nil
		}
	}
	s := csi.Snapshot{Name: name, Volume: volume, Size: v.Size, Taken: time.Now(), Ready: true}
	w.m.snapshots = append(w.m.snapshots, s)
	return s, nil
}

// DeleteSnapshot implements csi.Keelson.
func (w *view) DeleteSnapshot(_ context.Context, volume, name string) error {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return err
	}
	for i, s := range w.m.snapshots {
		if s.Volume == volume && s.Name == name && s.Group != "" {
			return problem(csi.ErrInvalid, "snapshot %s of volume %s is one of a group", name, volume)
		}
		if s.Volume == volume && s.Name == name {
			w.m.snapshots = append(w.m.snapshots[:i:i], w.m.snapshots[i+1:]...)
			return nil
		}
	}
	return problem(csi.ErrNotFound, "volume %s has no snapshot %q", volume, name)
}

// CreateGroup implements csi.Keelson.
func (w *view) CreateGroup(_ context.Context, name string, volumes []string) (list []csi.Snapshot, err error) {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return nil, err
	}
	for _, s := range w.m.snapshots {
		if s.Group == name {
			list = append(list, s)
		}
	}
	if len(list) > 0 {
		for _, s := range list {
			if len(list) != len(volumes) || !slices.Contains(volumes, s.Volume) {
				return nil, problem(csi.ErrExists, "there is a group %s already, of other volumes", name)
			}
		}
		return list, nil
	}
	now := time.Now()
	for _, id := range volumes {
		v := w.m.volumes[id]
		if v == nil {
			return nil, problem(csi.ErrNotFound, "there is no volume %q", id)
		}
		list = append(list, csi.Snapshot{Name: name, Volume: id, Size: v.Size, Taken: now, Ready: true, Group: name})
	}
	w.m.snapshots = append(w.m.snapshots, list...)
	return list, nil
}

// DeleteGroup implements csi.Keelson.
func (w *view) DeleteGroup(_ context.Context, name string) error {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return err
	}
	before := len(w.m.snapshots)
	w.m.snapshots = slices.DeleteFunc(w.m.snapshots, func(s csi.Snapshot) bool { return s.Group == name })
	if len(w.m.snapshots) == before {
		return problem(csi.ErrNotFound, "there is no group %q", name)
	}
	return nil
}

// Snapshots implements csi.Keelson.
func (w *view) Snapshots(_ context.Context, volume string) (out []csi.Snapshot, err error) {
	leave, err := w.enter()
	defer leave()
	for _, s := range w.m.snapshots {
		if volume == "" || s.Volume == volume {
			out = append(out, s)
		}
	}
	return out, err
}

// SetSchedule implements csi.Keelson.
func (w *view) SetSchedule(_ context.Context, volume, _ string) error {
	leave, err := w.enter()
	defer leave()
	if err == nil && w.m.volumes[volume] == nil {
		err = problem(csi.ErrNotFound, "there is no volume %q", volume)
	}
	return err
}

// Clone implements csi.Keelson.
func (w *view) Clone(_ context.Context, r csi.Request, volume, _ string) (csi.Volume, error) {
	leave, err := w.enter()
	defer leave()
	name := r.Name
	from, old := w.m.volumes[volume], w.m.volumes[name]
	switch {
	case err != nil:
		return csi.Volume{}, err
	case from == nil:
		return csi.Volume{}, problem(csi.ErrNotFound, "there is no volume %q", volume)
	case old != nil && w.m.origins[name] != volume:
		return csi.Volume{}, problem(csi.ErrExists, "there is a volume named %s already", name)
	case old != nil:
		return old.Volume, nil
	}
	clone := *from
	clone.Name, clone.Size, clone.Node, clone.device = name, max(r.Size, from.Size), "", ""
	clone.ZoneSpread, clone.NodeSelector, clone.Media, clone.Topology = r.ZoneSpread, maps.Clone(r.NodeSelector), r.Media, r.Topology
	clone.Limits, clone.Placement, clone.Replicas = r.Limits, r.Placement, cmp.Or(r.Replicas, from.Replicas)
	if w.m.origins == nil {
		w.m.origins = map[string]string{}
	}
	w.m.volumes[name], w.m.origins[name] = &clone, volume
	return clone.Volume, nil
}
