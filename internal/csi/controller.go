package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// ControllerGetCapabilities implements the controller service.
func (c *controller) ControllerGetCapabilities(context.Context, *pb.ControllerGetCapabilitiesRequest) (*pb.ControllerGetCapabilitiesResponse, error) {
	var out pb.ControllerGetCapabilitiesResponse
	for _, t := range []pb.ControllerServiceCapability_RPC_Type{
		pb.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		pb.ControllerServiceCapability_RPC_LIST_VOLUMES,
		pb.ControllerServiceCapability_RPC_GET_CAPACITY,
		pb.ControllerServiceCapability_RPC_GET_VOLUME,
		pb.ControllerServiceCapability_RPC_VOLUME_CONDITION,
		pb.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		pb.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		pb.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		pb.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		pb.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		pb.ControllerServiceCapability_RPC_CLONE_VOLUME,
	} {
		out.Capabilities = append(out.Capabilities, &pb.ControllerServiceCapability{
			Type: &pb.ControllerServiceCapability_Rpc{Rpc: &pb.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return &out, nil
}

// DeleteVolume implements the controller service. The replicas go in the background, and the space with them.
func (c *controller) DeleteVolume(ctx context.Context, r *pb.DeleteVolumeRequest) (*pb.DeleteVolumeResponse, error) {
	id := r.GetVolumeId()
	if err := wanting("volume id", id); err != nil {
		return nil, err
	}
	done := &pb.DeleteVolumeResponse{}
	v, err := c.volume(ctx, id)
	if status.Code(err) == codes.NotFound {
		return done, nil
	}
	if err != nil {
		return nil, err
	}
	if v.Node != "" {
		if err := c.freeFromDead(ctx, v); err != nil {
			return nil, err
		}
	}
	if err := c.cfg.Keelson.Delete(ctx, id); err != nil && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	return done, nil
}

// freeFromDead takes a volume from a node that isn't alive: attaching it here fences that one, so that nobody writes any
// more. From a living node it is taken by nobody.
func (d *driver) freeFromDead(ctx context.Context, v Volume) error {
	nodes, err := d.cfg.Keelson.Nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if n.Name == v.Node && n.Alive {
			return &Problem{ErrRefused, fmt.Sprintf("volume %s is attached to node %s, which is alive: it can be deleted once the last pod that uses it there has ended", v.Name, v.Node)}
		}
	}
	if _, err := d.cfg.Keelson.Attach(ctx, v.Name); err != nil {
		return fmt.Errorf("volume %s is attached to node %s, which is gone, and can't be taken from it: %w", v.Name, v.Node, err)
	}
	return d.cfg.Keelson.Detach(ctx, v.Name)
}

// ListVolumes implements the controller service. Volumes are in the order of their names, so that a token is good whatever
// was made or deleted since.
func (c *controller) ListVolumes(ctx context.Context, r *pb.ListVolumesRequest) (*pb.ListVolumesResponse, error) {
	begin, err := beginOf(r)
	if err != nil {
		return nil, err
	}
	list, err := c.cfg.Keelson.Volumes(ctx)
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(v Volume) bool { return v.Deleting || v.Name <= begin })
	var out pb.ListVolumesResponse
	list, out.NextToken = page(list, func(v Volume) string { return v.Name }, r.GetMaxEntries())
	for _, v := range list {
		out.Entries = append(out.Entries, &pb.ListVolumesResponse_Entry{
			Volume: &pb.Volume{VolumeId: v.Name, CapacityBytes: v.Size},
			Status: &pb.ListVolumesResponse_VolumeStatus{VolumeCondition: condition(v)},
		})
	}
	return &out, nil
}

// ControllerGetVolume implements the controller service.
func (c *controller) ControllerGetVolume(ctx context.Context, r *pb.ControllerGetVolumeRequest) (*pb.ControllerGetVolumeResponse, error) {
	if err := wanting("volume id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := c.volume(ctx, r.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &pb.ControllerGetVolumeResponse{
		Volume: &pb.Volume{VolumeId: v.Name, CapacityBytes: v.Size},
		Status: &pb.ControllerGetVolumeResponse_VolumeStatus{VolumeCondition: condition(v)},
	}, nil
}

func condition(v Volume) *pb.VolumeCondition {
	msg := v.Condition
	if msg == "" {
		msg = "healthy"
		if !v.Healthy {
			msg = "not healthy"
		}
	}
	return &pb.VolumeCondition{Abnormal: !v.Healthy, Message: msg}
}

// ValidateVolumeCapabilities implements the controller service.
func (c *controller) ValidateVolumeCapabilities(ctx context.Context, r *pb.ValidateVolumeCapabilitiesRequest) (*pb.ValidateVolumeCapabilitiesResponse, error) {
	if err := wanting("volume id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(r.GetVolumeCapabilities()) == 0 {
		return nil, checkCapabilities(nil)
	}
	if _, err := c.volume(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(r.GetVolumeCapabilities()); err != nil {
		return &pb.ValidateVolumeCapabilitiesResponse{Message: status.Convert(toStatus(err)).Message()}, nil
	}
	if _, _, err := c.dialect.Translate(r.GetParameters()); err != nil {
		return &pb.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil
	}
	return &pb.ValidateVolumeCapabilitiesResponse{Confirmed: &pb.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}
