package csi

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/mount-utils"
	"k8s.io/utils/exec"

	"keelson.io/keelson/internal/spec"
)

// grownWait is how long a device that shows the old size is waited for: it follows the volume within moments. grownPause is how
// often it is looked at.
const (
	grownWait  = 10 * time.Second
	grownPause = 50 * time.Millisecond
)

// ControllerExpandVolume implements the controller service. It answers when the volume has the size; the file system is the
// node's.
func (c *controller) ControllerExpandVolume(ctx context.Context, r *pb.ControllerExpandVolumeRequest) (*pb.ControllerExpandVolumeResponse, error) {
	id := r.GetVolumeId()
	if err := wanting("volume id", id); err != nil {
		return nil, err
	}
	if r.GetVolumeCapability() != nil {
		if err := checkCapability(r.GetVolumeCapability()); err != nil {
			return nil, err
		}
	}
	size, err := expandedSize(r.GetCapacityRange())
	if err != nil {
		return nil, err
	}
	v, err := c.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	if limit := r.GetCapacityRange().GetLimitBytes(); limit > 0 && v.Size > limit {
		return nil, status.Errorf(codes.OutOfRange, "volume %s has %s already, and at most %s are asked for: a volume can't be made smaller",
			id, spec.FormatSize(v.Size), spec.FormatSize(limit))
	}
	if v.Size < size {
		if v, err = c.cfg.Keelson.Grow(ctx, id, size); err != nil {
			return nil, err
		}
	}
	return &pb.ControllerExpandVolumeResponse{CapacityBytes: v.Size, NodeExpansionRequired: r.GetVolumeCapability().GetBlock() == nil}, nil
}

// expandedSize returns the size that is asked for, a multiple of 4096 bytes.
func expandedSize(r *pb.CapacityRange) (int64, error) {
	required, limit := r.GetRequiredBytes(), r.GetLimitBytes()
	switch {
	case required < 0 || limit < 0 || required == 0 && limit == 0 || limit > 0 && required > limit:
		return 0, status.Errorf(codes.InvalidArgument, "capacity range: %d to %d is no range", required, limit)
	case required > spec.MaxVolumeSize:
		return 0, status.Errorf(codes.OutOfRange, "%s are asked for; a volume has at most %s", spec.FormatSize(required), spec.FormatSize(spec.MaxVolumeSize))
	}
	size := (required + 4095) &^ 4095
	if limit > 0 && size > limit {
		return 0, status.Errorf(codes.OutOfRange, "no multiple of 4096 bytes lies between %d and %d", required, limit)
	}
	return size, nil
}

// NodeExpandVolume implements the node service: makes the mounted file system as large as the volume.
func (n *node) NodeExpandVolume(ctx context.Context, r *pb.NodeExpandVolumeRequest) (*pb.NodeExpandVolumeResponse, error) {
	id, path := r.GetVolumeId(), r.GetVolumePath()
	if err := wanting("volume id", id, "volume path", path); err != nil {
		return nil, err
	}
	v, err := n.volume(ctx, id)
	if err != nil {
		return nil, err
	}
	size := r.GetCapacityRange().GetRequiredBytes()
	if size > v.Size {
		return nil, status.Errorf(codes.OutOfRange, "volume %s has %s, and %s are asked for", id, spec.FormatSize(v.Size), spec.FormatSize(size))
	}
	if _, err := os.Lstat(path); err != nil {
		return nil, status.Errorf(codes.NotFound, "volume %s isn't at %s", id, path)
	}
	if v.Node != n.cfg.Node {
		return nil, &Problem{ErrRefused, fmt.Sprintf("volume %s isn't staged on node %s", id, n.cfg.Node)}
	}
	device, err := n.attachOnce(ctx, id) // it is attached here already: this only asks where
	if err != nil {
		return nil, err
	}
	if err := waitSize(ctx, id, device, v.Size); err != nil {
		return nil, err
	}
	done := &pb.NodeExpandVolumeResponse{CapacityBytes: v.Size}
	if r.GetVolumeCapability().GetBlock() != nil {
		return done, nil
	}
	number, err := deviceNumber(device)
	if err != nil {
		return nil, err
	}
	list, err := mountsAt(path)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(list, number.holds) {
		if r.GetVolumeCapability() == nil {
			return done, nil // a block volume: nothing is mounted at its path
		}
		return nil, status.Errorf(codes.NotFound, "volume %s isn't mounted at %s", id, path)
	}
	return done, growFileSystem(id, device, path)
}

// waitSize waits until a device is as large as its volume.
func waitSize(ctx context.Context, volume, device string, size int64) error {
	for end := time.Now().Add(grownWait); ; {
		have, err := deviceSize(device)
		if err != nil || have >= size {
			return err
		}
		if time.Now().After(end) {
			return &Problem{ErrAgain, fmt.Sprintf("the device of volume %s has %s, and should have %s; ask again", volume, spec.FormatSize(have), spec.FormatSize(size))}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(grownPause):
		}
	}
}

func deviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}

// growFileSystem makes a mounted file system as large as its device, if it isn't.
func growFileSystem(volume, device, path string) error {
	fs := mount.NewResizeFs(exec.New())
	need, err := fs.NeedResize(device, path)
	if err == nil && need {
		_, err = fs.Resize(device, path)
	}
	if err != nil {
		return fmt.Errorf("volume %s: its file system can't be made larger: %w", volume, err)
	}
	return nil
}
