package csi

import (
	"context"
	"errors"
	"slices"
	"strings"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"keelson.io/keelson/internal/spec"
)

// groupController is the service for snapshots of several volumes at one moment. A group's id is its name, which its snapshots have too.
type groupController struct {
	pb.UnimplementedGroupControllerServer
	*driver
}

// GroupControllerGetCapabilities implements the group controller service.
func (*groupController) GroupControllerGetCapabilities(context.Context, *pb.GroupControllerGetCapabilitiesRequest) (*pb.GroupControllerGetCapabilitiesResponse, error) {
	return &pb.GroupControllerGetCapabilitiesResponse{Capabilities: []*pb.GroupControllerServiceCapability{{
		Type: &pb.GroupControllerServiceCapability_Rpc{Rpc: &pb.GroupControllerServiceCapability_RPC{
			Type: pb.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

// CreateVolumeGroupSnapshot implements the group controller service. It answers when all the snapshots can be used.
func (g *groupController) CreateVolumeGroupSnapshot(ctx context.Context, r *pb.CreateVolumeGroupSnapshotRequest) (*pb.CreateVolumeGroupSnapshotResponse, error) {
	if err := wanting("name", r.GetName()); err != nil {
		return nil, err
	}
	volumes := slices.Compact(slices.Sorted(slices.Values(r.GetSourceVolumeIds())))
	if len(volumes) == 0 {
		return nil, status.Error(codes.InvalidArgument, "the source volume ids are missing in the request")
	}
	for p := range r.GetParameters() {
		if strings.HasPrefix(p, "csi.storage.k8s.io/") {
			continue // what the sidecar adds about the objects
		}
		return nil, &spec.InvalidError{Field: "parameter of the group snapshot class", Value: p, Legal: "absent: it has none"}
	}
	for _, id := range volumes {
		if _, err := g.volume(ctx, id); err != nil {
			return nil, err
		}
	}
	list, err := g.cfg.Keelson.CreateGroup(ctx, volumeName(r.GetName()), volumes)
	if err != nil {
		return nil, err
	}
	return &pb.CreateVolumeGroupSnapshotResponse{GroupSnapshot: groupMessage(list)}, nil
}

// DeleteVolumeGroupSnapshot implements the group controller service.
func (g *groupController) DeleteVolumeGroupSnapshot(ctx context.Context, r *pb.DeleteVolumeGroupSnapshotRequest) (*pb.DeleteVolumeGroupSnapshotResponse, error) {
	done := &pb.DeleteVolumeGroupSnapshotResponse{}
	_, err := g.group(ctx, r.GetGroupSnapshotId(), r.GetSnapshotIds())
	if status.Code(err) == codes.NotFound {
		return done, nil
	}
	if err != nil {
		return nil, err
	}
	if err := g.cfg.Keelson.DeleteGroup(ctx, r.GetGroupSnapshotId()); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return done, nil
}

// GetVolumeGroupSnapshot implements the group controller service.
func (g *groupController) GetVolumeGroupSnapshot(ctx context.Context, r *pb.GetVolumeGroupSnapshotRequest) (*pb.GetVolumeGroupSnapshotResponse, error) {
	list, err := g.group(ctx, r.GetGroupSnapshotId(), r.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &pb.GetVolumeGroupSnapshotResponse{GroupSnapshot: groupMessage(list)}, nil
}

// group returns the snapshots of a group, which must be those that the caller takes it to have, if it says so.
func (d *driver) group(ctx context.Context, id string, want []string) ([]Snapshot, error) {
	if err := wanting("group snapshot id", id); err != nil {
		return nil, err
	}
	all, err := d.cfg.Keelson.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	list := slices.DeleteFunc(slices.Clone(all), func(s Snapshot) bool { return s.Group != id })
	if len(list) == 0 {
		return nil, status.Errorf(codes.NotFound, "there is no group snapshot %q", id)
	}
	have := map[string]bool{}
	for _, s := range list {
		have[s.id()] = true
	}
	for _, s := range want {
		if !have[s] {
			return nil, status.Errorf(codes.InvalidArgument, "snapshot %q is none of group snapshot %q", s, id)
		}
		delete(have, s)
	}
	if len(want) > 0 && len(have) > 0 {
		return nil, status.Errorf(codes.InvalidArgument, "group snapshot %q has %d snapshots that the request doesn't name", id, len(have))
	}
	return list, nil
}

func groupMessage(list []Snapshot) *pb.VolumeGroupSnapshot {
	m := &pb.VolumeGroupSnapshot{GroupSnapshotId: list[0].Group, CreationTime: timestamppb.New(list[0].Taken), ReadyToUse: true}
	for _, s := range list {
		m.Snapshots = append(m.Snapshots, s.message())
		m.ReadyToUse = m.ReadyToUse && s.Ready
	}
	return m
}
