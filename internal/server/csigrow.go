package server

import (
	"context"
	"fmt"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/spec"
)

// How long a growth is waited for before the caller is told to ask again, and how often it is looked at.
const (
	growWait = 8 * time.Second
	growPoll = 100 * time.Millisecond
)

// Grow implements csi.Keelson.
func (k *csiKeelson) Grow(ctx context.Context, name string, size int64) (csi.Volume, error) {
	v, err := k.api.Upkeep.ResizeVolume(ctx, &pb.ResizeVolumeRequest{Name: name, Size: size})
	for end := time.Now().Add(growWait); ; {
		if err != nil {
			return csi.Volume{}, csiError(err)
		}
		if v.Size >= size {
			return csiVolume(v), nil
		}
		if time.Now().After(end) {
			return csi.Volume{}, &csi.Problem{Kind: csi.ErrAgain, Text: fmt.Sprintf("volume %s is on its way from %s to %s; `keelson volume show %s` shows what it waits for",
				name, spec.FormatSize(v.Size), spec.FormatSize(v.GrowingTo), name)}
		}
		select {
		case <-ctx.Done():
			return csi.Volume{}, ctx.Err()
		case <-time.After(growPoll):
		}
		v, err = k.api.Volumes.GetVolume(ctx, &pb.GetVolumeRequest{Name: name})
	}
}
