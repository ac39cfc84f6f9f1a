package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"keelson.io/keelson/internal/spec"
)

// Wipe makes an end to a pool that isn't mounted: its file is removed, or all signatures on its device are. It refuses a
// device that is in use. A file, or a device, that isn't there any more is no error.
func Wipe(ctx context.Context, p spec.Pool) error {
	if p.File != "" {
		if dev, err := loopOf(p.File); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("pool %s: %w", p.ID, err)
		} else if dev != "" {
			return fmt.Errorf("pool %s: file %s is behind %s: %w; detach that first", p.ID, p.File, dev, ErrInUse)
		}
		return os.Remove(p.File)
	}
	dev, err := filepath.EvalSymlinks(p.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.ID, err)
	}
	if err := checkUnused(dev); err != nil {
		return fmt.Errorf("pool %s: device %s: %w", p.ID, p.Device, err)
	}
	return checkEmpty(ctx, dev, true)
}
