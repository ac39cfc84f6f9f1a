package csitest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/spec"
)

// Grow implements csi.Keelson.
func (w *view) Grow(_ context.Context, name string, size int64) (csi.Volume, error) {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return csi.Volume{}, err
	}
	v := w.m.volumes[name]
	if v == nil {
		return csi.Volume{}, problem(csi.ErrNotFound, "there is no volume %q", name)
	}
	x := spec.Volume{Name: name, Size: v.Size, Columns: 1}
	if err := x.PlanGrowth(size); err != nil {
		return csi.Volume{}, problem(csi.ErrInvalid, "%v", err)
	}
	for _, p := range w.m.pools {
		if p.Room < size-v.Size {
			return csi.Volume{}, problem(csi.ErrNoRoom, "volume %s can't get %d bytes", name, size)
		}
	}
	if g, ok := w.m.devices.(grower); ok && v.device != "" {
		if err := g.Grow(name, v.device, size); err != nil {
			return csi.Volume{}, err
		}
	}
	v.Size = size
	return v.Volume, nil
}

// grower are devices that can grow.
type grower interface {
	Grow(name, path string, size int64) error
}

// Grow makes a device larger.
func (l Loops) Grow(name, path string, size int64) error {
	if err := os.Truncate(filepath.Join(l.Dir, name, "volume"), size); err != nil {
		return err
	}
	if out, err := exec.Command("losetup", "--set-capacity", path).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	return nil
}
