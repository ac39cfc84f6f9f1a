package pool

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// Expand makes the file system of a mounted pool as large as what is under it, while it is in use. size, if not 0, is what the
// pool's file is to have first; of a device it must be 0. It returns the pool with its new capacity and reserve. Each step can be
// repeated, and repeating all of it does nothing.
func (h Host) Expand(ctx context.Context, p spec.Pool, size int64) (spec.Pool, error) {
	dir := h.MountPoint(p.ID)
	if mounted, err := isMountPoint(dir); err != nil || !mounted {
		return p, errors.Join(fmt.Errorf("pool %s isn't mounted on this node: %w; see `keelson pool show %s`", p.ID, ErrForeign, p.ID), err)
	}
	if err := h.check(p.ID, dir); err != nil {
		return p, err
	}
	if p.File != "" {
		if err := growFile(p, size); err != nil {
			return p, err
		}
	} else if size != 0 {
		return p, fmt.Errorf("%w: a size is only for the pool of a file; that of a device takes what the device has", ErrInvalid)
	}
	if _, err := run(ctx, "xfs_growfs", "-d", dir); err != nil {
		return p, fmt.Errorf("pool %s: %w", p.ID, err)
	}
	u, err := Measure(dir)
	if err != nil {
		return p, err
	}
	p.Capacity = u.Capacity
	p.Reserve = reserve(u.Capacity)
	return p, nil
}

// reserve is what of a pool is never given to volumes.
func reserve(capacity int64) int64 { return max(capacity/20, 64<<20) }

// growFile makes a pool's file larger, and then its loop device as large as the file.
func growFile(p spec.Pool, size int64) error {
	st, err := os.Stat(p.File)
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.ID, err)
	}
	most, err := largestFile(p.File)
	if err != nil {
		return fmt.Errorf("pool %s: %w", p.ID, err)
	}
	switch {
	case size != 0 && (size < st.Size() || size > most):
		return fmt.Errorf("%w: size %d isn't between what the file %s has, %d, and what the file system under it has, %d: a pool can't be made smaller",
			ErrInvalid, size, p.File, st.Size(), most)
	case size&^4095 > st.Size():
		if err := os.Truncate(p.File, size&^4095); err != nil {
			return fmt.Errorf("pool %s: %w", p.ID, err)
		}
	}
	dev, err := loopOf(p.File)
	if err != nil || dev == "" {
		return errors.Join(fmt.Errorf("pool %s: no loop device has the file %s: %w", p.ID, p.File, ErrForeign), err)
	}
	fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("pool %s: %s: %w", p.ID, dev, err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlSetInt(fd, unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("pool %s: make %s larger: %w", p.ID, dev, err)
	}
	return nil
}

// largestFile is how large the file system of a file is, in bytes: sparse files can't usefully be larger.
func largestFile(file string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(file, &st); err != nil {
		return 0, fmt.Errorf("statfs %s: %w", file, err)
	}
	return int64(st.Blocks) * st.Bsize, nil
}

// Abandon takes the mount of a pool away whose device doesn't answer: what still uses it gets errors.
func (h Host) Abandon(id string) error {
	dir := h.MountPoint(id)
	mounted, err := isMountPoint(dir)
	if err != nil || !mounted {
		return err
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("pool %s: unmount %s: %w", id, dir, err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	return nil
}
