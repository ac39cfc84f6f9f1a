package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

type snapshotService struct{ s *Server }

// How often a record is looked at while something is waited for.
const (
	snapPoll    = 10 * time.Millisecond
	snapPollMax = 250 * time.Millisecond
)

// change changes a volume's record, as often as it takes; the record is returned as it was written.
func (x snapshotService) change(ctx context.Context, volume string, fn func(*spec.Volume) error) (out spec.Volume, err error) {
	err = retry(ctx, func() error {
		vol, err := x.s.volume(ctx, volume)
		if err != nil {
			return err
		}
		if vol.Value.Deleting {
			return errorf(errRefused, "volume %s is being deleted", volume)
		}
		vol.Value.Snapshots = slices.Clone(vol.Value.Snapshots)
		if err := fn(&vol.Value); err != nil {
			if errors.Is(err, errUnchanged) {
				out = vol.Value
				return nil
			}
			return err
		}
		out = vol.Value
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	return out, err
}

var errUnchanged = errors.New("nothing to change")

// await reads the record until fn says that it is so.
func (x snapshotService) await(ctx context.Context, id, what string, fn func(*spec.Volume) (bool, error)) error {
	for pause := snapPoll; ; pause = min(2*pause, snapPollMax) {
		vol, err := x.s.cfg.Store.Volume(ctx, id)
		if err != nil {
			return err
		}
		if done, err := fn(&vol.Value); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errorf(errAgain, "volume %s: %s isn't done yet, and goes on: `keelson volume show %s` says what it waits for", vol.Value.Name, what, vol.Value.Name)
		case <-time.After(pause):
		}
	}
}

// CreateSnapshot implements the call.
func (x snapshotService) CreateSnapshot(ctx context.Context, r *pb.CreateSnapshotRequest) (*pb.Snapshot, error) {
	limit, err := x.limit(ctx)
	if err != nil {
		return nil, err
	}
	if r.Name == "" {
		r.Name = "snap-" + x.s.cfg.Now().UTC().Format("20060102-150405")
	}
	s := spec.Snapshot{ID: spec.NewID(), Name: r.Name, Asked: x.s.cfg.Now().UTC()}
	vol, err := x.change(ctx, r.Volume, func(v *spec.Volume) error {
		if v.Cloning() {
			return errorf(errAgain, "volume %s %s", v.Name, preparing(v))
		}
		if old := v.SnapshotByName(s.Name); old != nil && old.Name == s.Name && old.State != spec.SnapshotDeleting {
			s.ID = old.ID
			return errUnchanged
		}
		return v.AddSnapshot(s, limit)
	})
	if err != nil {
		return nil, err
	}
	var out *pb.Snapshot
	err = x.await(ctx, vol.ID, "snapshot "+r.Name, func(v *spec.Volume) (bool, error) {
		got := v.SnapshotByName(s.ID)
		if got == nil || got.State == spec.SnapshotDeleting {
			return false, errorf(errMissing, "snapshot %s of volume %s was deleted meanwhile", r.Name, v.Name)
		}
		out = snapshotProto(v, got, nil)
		return got.State == spec.SnapshotReady, nil
	})
	return out, err
}

func (x snapshotService) limit(ctx context.Context) (int, error) {
	c, err := x.s.cfg.Store.Cluster(ctx)
	return c.Value.Settings.SnapshotLimit(), err
}

// ListSnapshots implements the call.
func (x snapshotService) ListSnapshots(ctx context.Context, r *pb.ListSnapshotsRequest) (*pb.ListSnapshotsResponse, error) {
	v, err := x.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	out, found := &pb.ListSnapshotsResponse{}, r.Volume == ""
	for i := range v.volumes {
		vol := &v.volumes[i]
		if r.Volume != "" && vol.Name != r.Volume {
			continue
		}
		found = true
		for k := range vol.Snapshots {
			out.Snapshots = append(out.Snapshots, snapshotProto(vol, &vol.Snapshots[k], v.liveVolumes[vol.ID]))
		}
	}
	if !found {
		return nil, noVolume(r.Volume)
	}
	return out, nil
}

// DeleteSnapshot implements the call.
func (x snapshotService) DeleteSnapshot(ctx context.Context, r *pb.DeleteSnapshotRequest) (*pb.DeleteSnapshotResponse, error) {
	id := ""
	vol, err := x.change(ctx, r.Volume, func(v *spec.Volume) error {
		s := v.SnapshotByName(r.Name)
		if s == nil {
			return noSnapshot(v.Name, r.Name)
		}
		if err := alone(v, s); err != nil {
			return err
		}
		if why := v.SnapshotInUse(s.ID); why != "" {
			return errorf(errRefused, "snapshot %s of volume %s can't be deleted now: %s", s.Name, v.Name, why)
		}
		id = s.ID
		if s.State == spec.SnapshotDeleting {
			return errUnchanged
		}
		s.State = spec.SnapshotDeleting
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &pb.DeleteSnapshotResponse{}, x.await(ctx, vol.ID, "the deletion of snapshot "+r.Name, func(v *spec.Volume) (bool, error) {
		return v.SnapshotByName(id) == nil, nil
	})
}

func noSnapshot(volume, name string) error {
	return errorf(errMissing, "volume %s has no snapshot %q; `keelson snapshot list %s` shows them", volume, name, volume)
}

// ready finds a snapshot that can be used.
func ready(v *spec.Volume, name string) (*spec.Snapshot, error) {
	s := v.SnapshotByName(name)
	if s == nil {
		return nil, noSnapshot(v.Name, name)
	}
	if s.State != spec.SnapshotReady {
		return nil, errorf(errRefused, "snapshot %s of volume %s is %s", name, v.Name, s.State)
	}
	return s, nil
}

// RestoreVolume implements the call.
func (x snapshotService) RestoreVolume(ctx context.Context, r *pb.RestoreVolumeRequest) (*pb.Volume, error) {
	vol, err := x.change(ctx, r.Volume, func(v *spec.Volume) error {
		s, err := ready(v, r.Snapshot)
		switch {
		case err != nil:
			return err
		case v.State.Node != "" && v.State.Frontend != spec.FrontendNone:
			return errorf(errRefused, "volume %s is attached to node %s; detach it first: keelson volume detach %s", v.Name, v.State.Node, v.Name)
		case v.Restore != nil && v.Restore.Snapshot == s.ID:
			return errUnchanged
		case v.Restore != nil || v.Cloning():
			return errorf(errAgain, "volume %s %s", v.Name, preparing(v))
		case s.Size != v.Planned():
			return errorf(errRefused, "volume %s has grown since snapshot %s was taken, so it can't be restored in place; make a volume of it: keelson volume create NAME --from-snapshot %s/%s", v.Name, s.Name, v.Name, s.Name)
		}
		v.Restore = &spec.Restore{Snapshot: s.ID}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = x.await(ctx, vol.ID, "restoring snapshot "+r.Snapshot, func(v *spec.Volume) (bool, error) { return v.Restore == nil, nil })
	if err != nil {
		return nil, err
	}
	return volumeService(x).GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Volume})
}

// CloneVolume implements the call. The clone's record comes first; the leader and the origin's coordinator do the rest.
func (x snapshotService) CloneVolume(ctx context.Context, r *pb.CloneVolumeRequest) (*pb.Volume, error) {
	clone, err := x.begin(ctx, r)
	if err != nil {
		return nil, err
	}
	err = x.await(ctx, clone, "making it", func(v *spec.Volume) (bool, error) { return !v.Cloning(), nil })
	if err != nil {
		return nil, err
	}
	return volumeService(x).GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Name})
}

// begin records the clone, and returns its id. Asking again for the same clone is no error.
func (x snapshotService) begin(ctx context.Context, r *pb.CloneVolumeRequest) (string, error) {
	if err := spec.CheckName("volume name", r.Name); err != nil {
		return "", err
	}
	origin, err := x.s.volume(ctx, r.FromVolume)
	if err != nil {
		return "", err
	}
	v := &origin.Value
	if old, err := x.s.cfg.Store.VolumeByName(ctx, r.Name); err == nil {
		if s := old.Value.Source; s != nil && s.Volume == v.ID && !old.Value.Deleting {
			return old.Value.ID, nil
		}
		return "", errorf(meta.ErrExists, "there is a volume named %s already; choose another name", r.Name)
	} else if !errors.Is(err, meta.ErrNotFound) {
		return "", err
	}
	if v.Deleting || v.Cloning() {
		return "", errorf(errRefused, "volume %s is being deleted or made", v.Name)
	}
	id := spec.NewID()
	s := &spec.Snapshot{ID: spec.NewID(), Name: "clone-" + id, Asked: x.s.cfg.Now().UTC(), For: id, Size: v.Size}
	if r.FromSnapshot != "" {
		if s, err = ready(v, r.FromSnapshot); err != nil {
			return "", err
		}
	}
	clone, err := x.cloneOf(ctx, v, s, r, id)
	if err != nil {
		return "", err
	}
	if err := describe(&clone); err != nil {
		return "", err
	}
	if _, err := x.s.cfg.Store.CreateVolume(ctx, clone); err != nil {
		return "", err
	}
	if r.FromSnapshot == "" {
		_, err = x.change(ctx, r.FromVolume, func(v *spec.Volume) error { return v.AddSnapshot(*s, spec.MaxMaxSnapshots) })
	}
	return id, err
}

// cloneOf makes up the clone's record: its copies are where those of the origin are that are in sync.
func (x snapshotService) cloneOf(ctx context.Context, v *spec.Volume, s *spec.Snapshot, r *pb.CloneVolumeRequest, id string) (spec.Volume, error) {
	now := x.s.cfg.Now().UTC().Truncate(time.Second)
	c := spec.Volume{
		ID: id, Name: r.Name, Size: s.Size, Replicas: v.Replicas, Columns: v.Columns, ZoneSpread: v.ZoneSpread, NodeSelector: v.NodeSelector,
		Topology: v.Topology, Media: v.Media, Created: now, Limits: v.Limits, Placement: v.Placement,
		Source: &spec.Source{Volume: v.ID, Snapshot: s.ID, Pending: true},
	}
	elsewhere := askedOfClone(&c, r) || v.Resettle
	if err := c.Validate(); err != nil {
		return c, err
	}
	if err := x.s.shareKey(ctx, v, &c); err != nil {
		return c, err
	}
	if r.Size != 0 && r.Size != c.Size {
		if err := c.PlanGrowth(r.Size); err != nil {
			return c, err
		}
	}
	cluster, err := x.s.cfg.Store.Cluster(ctx)
	if err != nil {
		return c, err
	}
	c.Source.Desc, err = json.Marshal(map[string]any{
		"cluster": cluster.Value.ID, "volume": c.ID, "name": c.Name, "columns": c.Columns, "size": spec.ColumnSize(c.Size, c.Columns),
	})
	if err != nil {
		return c, err
	}
	for _, col := range v.State.Columns {
		var members []spec.Member
		for _, m := range col.Members {
			if m.State == spec.InSync && !m.Removing {
				members = append(members, spec.Member{
					Replica: spec.NewID(), Node: m.Node, Pool: m.Pool, State: spec.InSync, Since: now, Reason: "beside the copy of " + v.Name + " that it was made from",
				})
			}
		}
		c.State.Columns = append(c.State.Columns, spec.Column{Members: members})
	}
	if elsewhere {
		return c, x.s.settle(ctx, &c)
	}
	return c, nil
}

// SetSchedule implements the call.
func (x snapshotService) SetSchedule(ctx context.Context, r *pb.SetScheduleRequest) (*pb.SetScheduleResponse, error) {
	list, err := spec.ParseSchedules("schedule", r.Schedule, x.s.cfg.Now().UTC())
	if err != nil {
		return nil, err
	}
	_, err = x.change(ctx, r.Volume, func(v *spec.Volume) error {
		v.Schedules = list
		return nil
	})
	return &pb.SetScheduleResponse{Schedule: spec.FormatSchedules(list)}, err
}

// preparing says what a volume waits for before it can be attached; "" is nothing.
func preparing(v *spec.Volume) string {
	switch {
	case v.Cloning():
		return "is still being made from another one"
	case v.Restore != nil:
		return "is being restored to a snapshot"
	}
	return ""
}

// deletable reports why a volume can't be deleted.
func (s *Server) deletable(ctx context.Context, v *spec.Volume) error {
	n := 0
	for _, x := range v.Snapshots {
		if x.Schedule == "" && x.For == "" && x.State != spec.SnapshotDeleting {
			n++
		}
	}
	if n > 0 {
		return errorf(errRefused, "volume %s has %d snapshots; delete them first: `keelson snapshot list %s` shows them", v.Name, n, v.Name)
	}
	if len(v.Clones) > 0 {
		return errorf(errRefused, "a clone is being made of volume %s; try again", v.Name)
	}
	if !v.Cloning() {
		return nil
	}
	if _, err := s.cfg.Store.Volume(ctx, v.Source.Volume); errors.Is(err, meta.ErrNotFound) {
		return nil // it can't be made any more
	}
	return errorf(errAgain, "volume %s %s; try again", v.Name, preparing(v))
}

func snapshotProto(v *spec.Volume, s *spec.Snapshot, live *pb.LiveVolume) *pb.Snapshot {
	m := &pb.Snapshot{
		Id: s.ID, Name: s.Name, Volume: v.Name, VolumeId: v.ID, State: string(s.State), Size: s.Size,
		Asked: timestamppb.New(s.Asked), Schedule: s.Schedule, Used: -1, Attached: s.Device.Node,
	}
	if s.Group != "" {
		m.Group = s.Name
	}
	if !s.Taken.IsZero() {
		m.Taken = timestamppb.New(s.Taken)
	}
	for _, l := range live.GetSnapshots() {
		if l.Period == s.Period {
			m.Used = l.Used
		}
	}
	return m
}

// snapshotProtos adds to a volume what concerns its snapshots.
func snapshotProtos(m *pb.Volume, v *spec.Volume) {
	if why := preparing(v); why != "" {
		m.Preparing = fmt.Sprintf("it %s", why)
	}
	m.SnapshotCount = int32(len(v.Snapshots))
	if len(v.Schedules) > 0 {
		m.SnapshotSchedule = spec.FormatSchedules(v.Schedules)
	}
}
