package csi

import (
	"context"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
)

const (
	// trimLook is how often the driver looks which volumes are due to be trimmed. They are trimmed one after the other.
	trimLook = 10 * time.Minute
	// trimSpread is within what time a volume that was never trimmed has its first turn.
	trimSpread = time.Hour
	// trimWindow is how much of a file system is trimmed at once; then it rests trimRest times as long as that took.
	trimWindow = 1 << 30
	trimRest   = 3
)

// trim trims volumes that are due until ctx ends.
func (s *Server) trim(ctx context.Context) {
	seen := map[string]time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.cfg.TrimLook):
		}
		if err := s.trimDue(ctx, seen); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("volumes that may be due can't be trimmed; trying again later", "err", err)
		}
	}
}

// trimDue trims the volumes with a file system that is mounted on this node that are due. seen has, of those that never were, when
// they were first seen.
func (s *Server) trimDue(ctx context.Context, seen map[string]time.Time) error {
	mounts, err := mountedVolumes()
	if err != nil || len(mounts) == 0 {
		return err
	}
	list, err := s.cfg.Keelson.Volumes(ctx)
	if err != nil {
		return err
	}
	for _, v := range list {
		m, ok := mounts[v.Name]
		if !ok || v.Node != s.cfg.Node || v.Trim.Every <= 0 || ctx.Err() != nil || time.Now().Before(trimAt(v, seen)) {
			continue
		}
		freed, err := s.trimVolume(ctx, v.Name, m)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.cfg.Log.Warn("a file system can't be trimmed", "volume", v.Name, "path", m.MountPoint, "err", err)
		}
		if err := s.cfg.Keelson.Trimmed(ctx, v.Name, freed, err); err != nil {
			return err
		}
	}
	return nil
}

// trimAt is when a volume is due.
func trimAt(v Volume, seen map[string]time.Time) time.Time {
	if !v.Trim.Last.IsZero() {
		delete(seen, v.Name)
		return v.Trim.Last.Add(v.Trim.Every)
	}
	first, ok := seen[v.Name]
	if !ok {
		first = time.Now()
		seen[v.Name] = first
	}
	h := fnv.New32a()
	h.Write([]byte(v.Name))
	return first.Add(time.Duration(h.Sum32()) * min(trimSpread, v.Trim.Every) / (1 << 32))
}

// mountedVolumes returns, by the volume, a mount of each file system that can be trimmed.
func mountedVolumes() (map[string]mount.MountInfo, error) {
	all, err := mount.ParseMountInfo(mountInfo)
	if err != nil {
		return nil, err
	}
	out := map[string]mount.MountInfo{}
	for _, m := range all {
		if m.Root != "/" || !slices.Contains([]string{"ext4", "ext3", "xfs"}, m.FsType) || slices.Contains(m.SuperOptions, "ro") {
			continue
		}
		if v := backingVolume(fmt.Sprintf("/sys/dev/block/%d:%d", m.Major, m.Minor)); v != "" {
			out[v] = m
		}
	}
	return out, nil
}

// trimVolume trims the file system of a mount, a part at a time, and returns how many bytes it gave back.
func (s *Server) trimVolume(ctx context.Context, volume string, m mount.MountInfo) (freed int64, err error) {
	for off, size := uint64(0), uint64(1); off < size; off += trimWindow {
		began := time.Now()
		if other, ok := s.locks.take(volume, "trimming"); !ok {
			return freed, fmt.Errorf("%s of it is under way", other)
		}
		var n int64
		n, size, err = trimPart(m, off)
		s.locks.release(volume)
		if err != nil {
			return freed, err
		}
		freed += n
		if off+trimWindow >= size {
			break
		}
		select {
		case <-ctx.Done():
			return freed, ctx.Err()
		case <-time.After(trimRest * time.Since(began)):
		}
	}
	return freed, nil
}

// fitrim is the ioctl FITRIM.
const fitrim = 0xc0185879

// fstrimRange is struct fstrim_range.
type fstrimRange struct{ start, length, minLength uint64 }

// trimPart trims a window of a file system, and returns how many bytes that gave back and how large the file system is.
//
// Invariant: the file system is that of the mount's device. What is below a mount that has just gone is the host's.
func trimPart(m mount.MountInfo, off uint64) (freed int64, size uint64, err error) {
	dir, err := os.Open(m.MountPoint)
	if err != nil {
		return 0, 0, err
	}
	defer dir.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstat", err)
	}
	if unix.Major(st.Dev) != uint32(m.Major) || unix.Minor(st.Dev) != uint32(m.Minor) {
		return 0, 0, fmt.Errorf("%s isn't mounted any more", m.MountPoint)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &fs); err != nil {
		return 0, 0, os.NewSyscallError("fstatfs", err)
	}
	size = fs.Blocks * uint64(fs.Bsize)
	r := fstrimRange{start: off, length: trimWindow}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), fitrim, uintptr(unsafe.Pointer(&r)))
	switch {
	case errno == unix.EOPNOTSUPP || errno == unix.ENOTTY:
		return 0, size, fmt.Errorf("its %s can't be trimmed", strings.ToUpper(m.FsType))
	case errno == unix.EINVAL && off > 0:
		return 0, size, nil // behind the end, which is earlier than the number of blocks says
	case errno != 0:
		return 0, size, os.NewSyscallError("FITRIM", errno)
	}
	return int64(r.length), size, nil
}
