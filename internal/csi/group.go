package csi

import (
	"context"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// groupController is the service for snapshots of several volumes. It has no capability yet.
type groupController struct {
	pb.UnimplementedGroupControllerServer
}

var errNoGroups = status.Error(codes.Unimplemented, "Keelson takes no snapshots of several volumes at one moment yet")

// GroupControllerGetCapabilities implements the group controller service.
func (groupController) GroupControllerGetCapabilities(context.Context, *pb.GroupControllerGetCapabilitiesRequest) (*pb.GroupControllerGetCapabilitiesResponse, error) {
	return &pb.GroupControllerGetCapabilitiesResponse{}, nil
}

// CreateVolumeGroupSnapshot implements the group controller service.
func (groupController) CreateVolumeGroupSnapshot(context.Context, *pb.CreateVolumeGroupSnapshotRequest) (*pb.CreateVolumeGroupSnapshotResponse, error) {
	return nil, errNoGroups
}

// DeleteVolumeGroupSnapshot implements the group controller service.
func (groupController) DeleteVolumeGroupSnapshot(context.Context, *pb.DeleteVolumeGroupSnapshotRequest) (*pb.DeleteVolumeGroupSnapshotResponse, error) {
	return nil, errNoGroups
}

// GetVolumeGroupSnapshot implements the group controller service.
func (groupController) GetVolumeGroupSnapshot(context.Context, *pb.GetVolumeGroupSnapshotRequest) (*pb.GetVolumeGroupSnapshotResponse, error) {
	return nil, errNoGroups
}
