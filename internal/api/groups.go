package api

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// CreateGroup implements the call. The plan is one record; the leader and the volumes' coordinators do the rest. Everything that
// stands against it is looked for first, so that mostly nothing has to be taken back.
func (x snapshotService) CreateGroup(ctx context.Context, r *pb.CreateGroupRequest) (*pb.SnapshotGroup, error) {
	if err := spec.CheckGroup(r.Name, r.Volumes); err != nil {
		return nil, err
	}
	g := spec.Group{ID: spec.NewID(), Name: r.Name, Asked: x.s.cfg.Now().UTC(), Phase: spec.GroupPreparing, Attempt: 1}
	err := retry(ctx, func() error { return x.planGroup(ctx, &g, r.Volumes) })
	if err != nil {
		return nil, err
	}
	return x.awaitGroup(ctx, g)
}

// planGroup records what shall be, or finds that somebody asked for just that before.
func (x snapshotService) planGroup(ctx context.Context, g *spec.Group, names []string) error {
	c, err := x.s.cfg.Store.Cluster(ctx)
	if err != nil {
		return err
	}
	all, err := x.s.cfg.Store.Volumes(ctx)
	if err != nil {
		return err
	}
	vols, err := pick(all, names)
	if err != nil {
		return err
	}
	g.Volumes = nil
	for _, v := range vols {
		g.Volumes = append(g.Volumes, v.ID)
	}
	if id, have := findGroup(c.Value, all, g.Name); id != "" {
		slices.Sort(have)
		want := slices.Sorted(slices.Values(g.Volumes))
		if !slices.Equal(have, want) {
			return errorf(meta.ErrExists, "there is a group %s already, of other volumes; choose another name, or delete it: keelson snapshot delete --group %s", g.Name, g.Name)
		}
		g.ID = id
		return nil
	}
	if err := groupable(c.Value, vols, g.Name); err != nil {
		return err
	}
	c.Value.Groups = append(slices.Clone(c.Value.Groups), *g)
	_, err = x.s.cfg.Store.PutCluster(ctx, c.Value, c.Rev)
	return err
}

// pick finds volumes by name.
func pick(all []meta.Versioned[spec.Volume], names []string) (list []spec.Volume, err error) {
	for _, name := range names {
		i := slices.IndexFunc(all, func(v meta.Versioned[spec.Volume]) bool { return v.Value.Name == name && v.Value.ReadOnly == nil })
		if i < 0 {
			return nil, noVolume(name)
		}
		list = append(list, all[i].Value)
	}
	return list, nil
}

// findGroup returns the id and the volumes of a group that is there or being taken; "" if there is none of that name.
func findGroup(c spec.Cluster, all []meta.Versioned[spec.Volume], name string) (id string, volumes []string) {
	for _, g := range c.Groups {
		if g.Name == name && (g.Under() || g.Phase == spec.GroupDone) {
			return g.ID, slices.Clone(g.Volumes)
		}
	}
	for _, v := range all {
		for _, s := range v.Value.Snapshots {
			if s.Group != "" && s.Name == name && s.State == spec.SnapshotReady {
				id, volumes = s.Group, append(volumes, v.Value.ID)
			}
		}
	}
	return id, volumes
}

// groupable reports why no group of that name can be taken of the volumes.
func groupable(c spec.Cluster, vols []spec.Volume, name string) error {
	under := 0
	for _, g := range c.Groups {
		if g.Phase != spec.GroupFailed {
			under++
		}
	}
	if under >= spec.MaxGroups {
		return errorf(errAgain, "%d group snapshots are under way already, which is as many as may be; try again", under)
	}
	for _, v := range vols {
		switch {
		case v.Deleting:
			return errorf(errRefused, "volume %s is being deleted", v.Name)
		case preparing(&v) != "":
			return errorf(errAgain, "volume %s %s", v.Name, preparing(&v))
		}
		v.Snapshots = slices.Clone(v.Snapshots)
		if err := v.AddSnapshot(spec.Snapshot{Name: name}, c.Settings.SnapshotLimit()); err != nil {
			return err
		}
	}
	return nil
}

// awaitGroup waits until all of a group is there, or nothing of it any more.
func (x snapshotService) awaitGroup(ctx context.Context, g spec.Group) (*pb.SnapshotGroup, error) {
	for pause := snapPoll; ; pause = min(2*pause, snapPollMax) {
		c, err := x.s.cfg.Store.Cluster(ctx)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(c.Value.Groups, func(x spec.Group) bool { return x.ID == g.ID })
		switch {
		case i < 0:
			out, err := x.group(ctx, g.Name)
			if err != nil {
				return nil, errorf(errRefused, "group %s wasn't taken, or was deleted since: %v", g.Name, err)
			}
			return out, nil
		case c.Value.Groups[i].Phase == spec.GroupFailed:
			return nil, errorf(errRefused, "group %s wasn't taken, and nothing is left of it: %s", g.Name, c.Value.Groups[i].Reason)
		}
		select {
		case <-ctx.Done():
			return nil, errorf(errAgain, "group %s isn't taken yet, and goes on", g.Name)
		case <-time.After(pause):
		}
	}
}

// group reads a group that is there.
func (x snapshotService) group(ctx context.Context, name string) (*pb.SnapshotGroup, error) {
	all, err := x.s.cfg.Store.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	out := &pb.SnapshotGroup{Name: name}
	for _, v := range all {
		for i := range v.Value.Snapshots {
			s := &v.Value.Snapshots[i]
			if s.Group == "" || s.Name != name || s.State != spec.SnapshotReady {
				continue
			}
			out.Snapshots = append(out.Snapshots, snapshotProto(&v.Value, s, nil))
			out.Taken = timestamppb.New(s.Taken)
		}
	}
	if len(out.Snapshots) == 0 {
		return nil, errorf(errMissing, "there is no group %q; `keelson snapshot list` shows them", name)
	}
	return out, nil
}

// GetGroup implements the call.
func (x snapshotService) GetGroup(ctx context.Context, r *pb.GetGroupRequest) (*pb.SnapshotGroup, error) {
	if err := spec.CheckName("group name", r.Name); err != nil {
		return nil, errorf(errMissing, "there is no group %q: %v", r.Name, err)
	}
	return x.group(ctx, r.Name)
}

// DeleteGroup implements the call.
func (x snapshotService) DeleteGroup(ctx context.Context, r *pb.DeleteGroupRequest) (*pb.DeleteGroupResponse, error) {
	var g spec.Group
	err := retry(ctx, func() error {
		c, err := x.s.cfg.Store.Cluster(ctx)
		if err != nil {
			return err
		}
		if g, err = x.endOf(ctx, c.Value, r.Name); err != nil || g.Phase != spec.GroupDeleting {
			return err
		}
		c.Value.Groups = append(slices.Clone(c.Value.Groups), g)
		_, err = x.s.cfg.Store.PutCluster(ctx, c.Value, c.Rev)
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, id := range g.Volumes {
		err := x.await(ctx, id, "the deletion of group "+r.Name, func(v *spec.Volume) (bool, error) { return v.InGroup(g.ID) == nil, nil })
		if err != nil {
			return nil, err
		}
	}
	return &pb.DeleteGroupResponse{}, nil
}

// endOf makes up the deletion of a group; one that is being deleted already has no phase.
func (x snapshotService) endOf(ctx context.Context, c spec.Cluster, name string) (spec.Group, error) {
	var g spec.Group
	for _, o := range c.Groups {
		switch {
		case o.Name != name || o.Phase == spec.GroupFailed:
		case o.Phase == spec.GroupDeleting || o.Phase == spec.GroupFailing:
			o.Phase = ""
			return o, nil
		default:
			return g, errorf(errAgain, "group %s is being taken; try again", name)
		}
	}
	all, err := x.s.cfg.Store.Volumes(ctx)
	if err != nil {
		return g, err
	}
	g = spec.Group{Name: name, Asked: x.s.cfg.Now().UTC(), Phase: ""}
	for _, v := range all {
		for _, s := range v.Value.Snapshots {
			if s.Group == "" || s.Name != name {
				continue
			}
			if why := v.Value.SnapshotInUse(s.ID); why != "" {
				return g, errorf(errRefused, "group %s can't be deleted now: snapshot %s of volume %s: %s", name, s.Name, v.Value.Name, why)
			}
			g.ID, g.Volumes = s.Group, append(g.Volumes, v.Value.ID)
			if s.State != spec.SnapshotDeleting {
				g.Phase = spec.GroupDeleting
			}
		}
	}
	if g.ID == "" {
		return g, errorf(errMissing, "there is no group %q; `keelson snapshot list` shows them", name)
	}
	return g, nil
}

// alone reports why a snapshot can't be deleted by itself.
func alone(v *spec.Volume, s *spec.Snapshot) error {
	if s.Group == "" || s.State == spec.SnapshotDeleting {
		return nil
	}
	return &spec.InvalidError{Field: "snapshot", Value: v.Name + "/" + s.Name,
		Legal: fmt.Sprintf("one that is no part of a group: delete the group, keelson snapshot delete --group %s", s.Name)}
}
