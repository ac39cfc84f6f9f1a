package server

import (
	"context"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/spec"
)

// CreateSnapshot implements csi.Keelson.
func (k *csiKeelson) CreateSnapshot(ctx context.Context, volume, name string) (csi.Snapshot, error) {
	s, err := k.api.Snaps.CreateSnapshot(ctx, &pb.CreateSnapshotRequest{Volume: volume, Name: name})
	return csiSnapshot(s), csiError(err)
}

// CreateGroup implements csi.Keelson.
func (k *csiKeelson) CreateGroup(ctx context.Context, name string, volumes []string) ([]csi.Snapshot, error) {
	g, err := k.api.Snaps.CreateGroup(ctx, &pb.CreateGroupRequest{Name: name, Volumes: volumes})
	var out []csi.Snapshot
	for _, s := range g.GetSnapshots() {
		out = append(out, csiSnapshot(s))
	}
	return out, csiError(err)
}

// DeleteGroup implements csi.Keelson.
func (k *csiKeelson) DeleteGroup(ctx context.Context, name string) error {
	_, err := k.api.Snaps.DeleteGroup(ctx, &pb.DeleteGroupRequest{Name: name})
	return csiError(err)
}

// DeleteSnapshot implements csi.Keelson.
func (k *csiKeelson) DeleteSnapshot(ctx context.Context, volume, name string) error {
	_, err := k.api.Snaps.DeleteSnapshot(ctx, &pb.DeleteSnapshotRequest{Volume: volume, Name: name})
	return csiError(err)
}

// Snapshots implements csi.Keelson.
func (k *csiKeelson) Snapshots(ctx context.Context, volume string) ([]csi.Snapshot, error) {
	r, err := k.api.Snaps.ListSnapshots(ctx, &pb.ListSnapshotsRequest{Volume: volume})
	if err != nil {
		return nil, csiError(err)
	}
	var out []csi.Snapshot
	for _, s := range r.Snapshots {
		if s.State == string(spec.SnapshotReady) {
			out = append(out, csiSnapshot(s))
		}
	}
	return out, nil
}

// Clone implements csi.Keelson.
func (k *csiKeelson) Clone(ctx context.Context, r csi.Request, volume, snapshot string) (csi.Volume, error) {
	var asked pb.CreateVolumeRequest
	askPolicy(&asked, r)
	req := &pb.CloneVolumeRequest{
		Name: r.Name, FromVolume: volume, FromSnapshot: snapshot, Size: r.Size, Replicas: int32(r.Replicas),
		Where:  &pb.Where{ZoneSpread: r.ZoneSpread, NodeSelector: r.NodeSelector, Media: r.Media, Topology: terms(r.Topology)},
		Limits: asked.Limits, Placement: asked.Placement, TrimEvery: asked.TrimEvery,
	}
	v, err := k.api.Snaps.CloneVolume(ctx, req)
	return csiVolume(v), csiError(err)
}

func terms(list []map[string]string) (out []*pb.TopologyTerm) {
	for _, t := range list {
		out = append(out, &pb.TopologyTerm{Segments: t})
	}
	return out
}

// SetSchedule implements csi.Keelson.
func (k *csiKeelson) SetSchedule(ctx context.Context, volume, schedule string) error {
	_, err := k.api.Snaps.SetSchedule(ctx, &pb.SetScheduleRequest{Volume: volume, Schedule: schedule})
	return csiError(err)
}

func csiSnapshot(s *pb.Snapshot) csi.Snapshot {
	if s == nil {
		return csi.Snapshot{}
	}
	return csi.Snapshot{Name: s.Name, Volume: s.Volume, Size: s.Size, Taken: s.Taken.AsTime(), Ready: s.State == string(spec.SnapshotReady), Group: s.Group}
}
