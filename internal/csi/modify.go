package csi

import (
	"context"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
)

// ControllerModifyVolume implements the controller service. Parameters that aren't given leave what they are about as it is. It can be
// called while the volume is in use.
func (c *controller) ControllerModifyVolume(ctx context.Context, r *pb.ControllerModifyVolumeRequest) (*pb.ControllerModifyVolumeResponse, error) {
	if err := wanting("volume id", r.GetVolumeId()); err != nil {
		return nil, err
	}
	change, err := c.dialect.ParseChange(r.GetMutableParameters())
	if err != nil {
		return nil, err
	}
	if _, err := c.volume(ctx, r.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := c.cfg.Keelson.Modify(ctx, r.GetVolumeId(), change); err != nil {
		return nil, err
	}
	return &pb.ControllerModifyVolumeResponse{}, nil
}
