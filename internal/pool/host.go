package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// prepareFile makes the file, or takes one that holds nothing. It reports whether it made it.
func prepareFile(ctx context.Context, o AddOptions) (bool, error) {
	st, err := os.Stat(o.File)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, makeFile(o)
	case err != nil:
		return false, err
	case !st.Mode().IsRegular():
		return false, fmt.Errorf("%w: %s is no regular file; a block device is given as device", ErrInvalid, o.File)
	}
	if dev, err := loopOf(o.File); err != nil {
		return false, err
	} else if dev != "" {
		return false, fmt.Errorf("file %s is behind %s: %w; detach that first", o.File, dev, ErrInUse)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Blocks > 0 && !o.Wipe {
		return false, fmt.Errorf("file %s holds data: %w; if it isn't needed, add it with --wipe", o.File, ErrSigned)
	}
	if err := checkEmpty(ctx, o.File, o.Wipe); err != nil {
		return false, err
	}
	return false, os.Truncate(o.File, o.Size)
}

func makeFile(o AddOptions) error {
	var st unix.Statfs_t
	dir := filepath.Dir(o.File)
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("directory %s: %w", dir, err)
	}
	if total := int64(st.Blocks) * st.Bsize; o.Size > total {
		return fmt.Errorf("%w: the file system of %s has %d bytes in all, fewer than the pool's %d", ErrInvalid, dir, total, o.Size)
	}
	f, err := os.OpenFile(o.File, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = f.Truncate(o.Size)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(o.File)
	}
	return err
}

// prepareDevice makes sure that nobody uses the device and that it is empty.
func prepareDevice(ctx context.Context, o AddOptions) error {
	dev, err := filepath.EvalSymlinks(o.Device)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: there is no device %s on this node; `lsblk` shows them", ErrInvalid, o.Device)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", o.Device, err)
	}
	st, err := os.Stat(dev)
	if err != nil {
		return err
	}
	if st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice {
		return fmt.Errorf("%w: %s is no block device; a file is given as file, with a size", ErrInvalid, o.Device)
	}
	if err := checkUnused(dev); err != nil {
		return fmt.Errorf("device %s: %w", o.Device, err)
	}
	size, err := deviceSize(dev)
	if err != nil {
		return err
	}
	if size < MinSize {
		return fmt.Errorf("%w: device %s has %d MiB, and the smallest pool has %d MiB", ErrInvalid, o.Device, size>>20, MinSize>>20)
	}
	return checkEmpty(ctx, dev, o.Wipe)
}

// checkUnused refuses a device that is mounted, is swap, or belongs to another one, also
// when it is one of its partitions that is. No wipe overrides it.
func checkUnused(dev string) error {
	name := filepath.Base(dev)
	parts, err := filepath.Glob(filepath.Join("/sys/class/block", name, name+"*", "partition"))
	if err != nil {
		return err
	}
	devs := []string{dev}
	for _, p := range parts {
		devs = append(devs, filepath.Join(filepath.Dir(dev), filepath.Base(filepath.Dir(p))))
	}
	for _, d := range devs {
		if where, err := mountedAt(d); err != nil {
			return err
		} else if where != "" {
			return fmt.Errorf("%s is mounted at %s: %w; unmount it first", d, where, ErrInUse)
		}
		if holders, _ := os.ReadDir(filepath.Join("/sys/class/block", filepath.Base(d), "holders")); len(holders) > 0 {
			return fmt.Errorf("%s is part of %s: %w", d, holders[0].Name(), ErrInUse)
		}
		// The kernel says so of everything that has claimed a device, swap and mounts in other
		// namespaces included.
		fd, err := unix.Open(d, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s is mounted elsewhere, used as swap, or part of another device: %w", d, ErrInUse)
		}
		if err != nil {
			return fmt.Errorf("open %s: %w", d, err)
		}
		unix.Close(fd)
	}
	return nil
}

// checkEmpty refuses what carries a signature, or removes it with wipe.
func checkEmpty(ctx context.Context, path string, wipe bool) error {
	out, err := run(ctx, "wipefs", "--no-act", "--noheadings", "--output", "TYPE,OFFSET", path)
	if err != nil {
		return err
	}
	lines := strings.Fields(strings.TrimSpace(out))
	if len(lines) == 0 {
		return nil
	}
	if !wipe {
		return fmt.Errorf("%s holds a %s signature: %w; if nothing on it is needed, add it with --wipe", path, lines[0], ErrSigned)
	}
	if _, err := run(ctx, "wipefs", "--all", "--force", path); err != nil {
		return err
	}
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		// Forget the partitions; a file has none, and then this fails.
		_ = unix.IoctlSetInt(fd, unix.BLKRRPART, 0)
		unix.Close(fd)
	}
	return nil
}

// label is that of every pool's file system. The udev rule in deploy/udev knows pools by it.
const label = "keelson"

func mkfs(ctx context.Context, dev string) error {
	_, err := run(ctx, "mkfs.xfs", "-q", "-K", "-L", label, "-m", "reflink=1", "-s", "size=4096", dev)
	return err
}

func mount(dev, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := unix.Mount(dev, dir, "xfs", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "")
	if err != nil {
		os.Remove(dir)
		return fmt.Errorf("mount %s (xfs) at %s: %w", dev, dir, err)
	}
	return nil
}

// mountinfo calls fn with the device number and the mount point of each mount.
func mountinfo(fn func(dev, dir string)) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		if f := strings.Fields(string(line)); len(f) > 4 {
			fn(f[2], unescape.Replace(f[4]))
		}
	}
	return nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func isMountPoint(dir string) (bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	found := false
	err = mountinfo(func(_, d string) { found = found || d == real })
	return found, err
}

func mountedAt(dev string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dev, &st); err != nil {
		return "", fmt.Errorf("%s: %w", dev, err)
	}
	number := devNumber(st.Rdev)
	at := ""
	err := mountinfo(func(d, dir string) {
		if d == number && at == "" {
			at = dir
		}
	})
	return at, err
}

func devNumber(rdev uint64) string {
	return fmt.Sprintf("%d:%d", unix.Major(rdev), unix.Minor(rdev))
}

func deviceSize(dev string) (int64, error) {
	f, err := os.Open(dev)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}

// detectMedia finds out what is under a device, or under the file system of a file. What it can't find
// out it takes for an SSD.
func detectMedia(path string) spec.Media {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return spec.MediaSSD
	}
	dev := st.Dev
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		dev = st.Rdev
	}
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + devNumber(dev))
	if err != nil {
		return spec.MediaSSD
	}
	if strings.HasPrefix(filepath.Base(sys), "nvme") {
		return spec.MediaNVMe
	}
	for _, dir := range []string{sys, filepath.Dir(sys)} { // a partition's queue is its disk's
		if b, err := os.ReadFile(filepath.Join(dir, "queue", "rotational")); err == nil {
			if n, _ := strconv.Atoi(strings.TrimSpace(string(b))); n == 1 {
				return spec.MediaHDD
			}
			return spec.MediaSSD
		}
	}
	return spec.MediaSSD
}

// run runs a tool of the host and returns its output.
func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("%s is not installed (Debian: util-linux, xfsprogs): %w", name, err)
	}
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}
