package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// loop is a loop device that is in use, and the file behind it.
type loop struct {
	device string // /dev/loop3
	path   string // of the file, as the kernel tells it
	name   string // of the file, as whoever set the device up gave it
	file   fileID // zero if the file's file system is dead
}

type fileID struct {
	dev, ino uint64
}

// loops lists the machine's loop devices that are in use.
func loops() ([]loop, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var out []loop
	for _, d := range dirs {
		if lo, err := loopAt("/dev/" + filepath.Base(filepath.Dir(d))); err == nil { // else detached meanwhile
			out = append(out, lo)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].device < out[j].device })
	return out, nil
}

// loopAt returns what the device is attached to, and an error if that is nothing.
func loopAt(device string) (loop, error) {
	path, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
	if err != nil {
		return loop{}, err
	}
	lo := loop{device: device, path: strings.TrimSuffix(strings.TrimSpace(string(path)), " (deleted)")}
	if f, err := os.Open(device); err == nil {
		defer f.Close()
		if info, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil {
			lo.file = fileID{info.Device, info.Inode}
			lo.name, _, _ = strings.Cut(string(info.File_name[:]), "\x00")
		}
	}
	return lo, nil
}

// labLoops returns the loop devices over files in dir, and over files of FUSE file systems that only the given processes have mounted.
func labLoops(dir string, pids []int) ([]loop, error) {
	all, err := loops()
	if err != nil || len(all) == 0 {
		return nil, err
	}
	files, err := filesIn(dir)
	if err != nil {
		return nil, err
	}
	hosts := FUSEDevicesOf(0)
	mine := map[uint64]bool{}
	for _, pid := range pids {
		for dev := range FUSEDevicesOf(pid) {
			mine[dev] = !hosts[dev]
		}
	}
	var out []loop
	for _, lo := range all {
		if files[lo.file] || mine[lo.file.dev] || below(lo.path, dir) || below(lo.name, dir) {
			out = append(out, lo)
		}
	}
	return out, nil
}

// orphanLoops returns the devices of volumes whose FUSE file system nobody has mounted any more: of nodes that were killed by other
// hands. Nothing says of which lab they were. Other labs attach and detach meanwhile, so only what nobody has mounted before
// and after the devices were listed is an orphan.
func orphanLoops() []loop {
	before := FUSEDevices()
	all, err := loops()
	if err != nil {
		return nil
	}
	after := FUSEDevices()
	return slices.DeleteFunc(all, func(lo loop) bool {
		return !strings.HasPrefix(lo.name, frontendMark) || before[lo.file.dev] || after[lo.file.dev]
	})
}

func below(path, dir string) bool { return strings.HasPrefix(path, dir+"/") }

// filesIn returns the regular files below dir that are on dir's own file system.
func filesIn(dir string) (map[fileID]bool, error) {
	out := map[fileID]bool{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		var st unix.Stat_t
		if unix.Lstat(p, &st) == nil {
			out[fileID{st.Dev, st.Ino}] = true
		}
		return nil
	})
	return out, err
}

// frontendMark is what the names begin with that the engine gives its loop devices.
const frontendMark = "keelson:"

// FUSEDevices returns the device numbers of the FUSE file systems that any process sees mounted.
func FUSEDevices() map[uint64]bool {
	all := processes(func(int) bool { return true })
	return fuseDevices(all, func(pid int) string { return namespace(pid, "mnt") }, mounts)
}

// fuseDevices reads the mounts of one process of each namespace. A process may end before they are read: they are then read from
// the next one of its namespace.
func fuseDevices(pids []int, namespace func(pid int) string, mounts func(pid int) []mount) map[uint64]bool {
	out, seen := map[uint64]bool{}, map[string]bool{}
	for _, pid := range pids {
		ns := namespace(pid)
		if ns == "" || seen[ns] {
			continue
		}
		list := mounts(pid)
		seen[ns] = len(list) > 0
		addFuse(out, list)
	}
	return out
}

// FUSEDevicesOf returns the device numbers of the FUSE file systems that the process sees mounted; 0 is the calling one.
func FUSEDevicesOf(pid int) map[uint64]bool {
	out := map[uint64]bool{}
	if pid == 0 {
		addFuse(out, mountsHere())
	} else {
		addFuse(out, mounts(pid))
	}
	return out
}

func addFuse(to map[uint64]bool, list []mount) {
	for _, m := range list {
		if strings.HasPrefix(m.fsType, "fuse") {
			to[m.dev] = true
		}
	}
}

type mount struct {
	dev                   uint64
	point, fsType, source string
}

// mountsHere returns what this process sees mounted, in the order in which it was mounted.
func mountsHere() []mount { return mountsOf("self") }

// mounts is the same for another process. Its number counts as in the mounted /proc: after a new PID namespace was entered, that isn't
// the number that os.Getpid says.
func mounts(pid int) []mount { return mountsOf(strconv.Itoa(pid)) }

func mountsOf(process string) []mount {
	b, err := os.ReadFile("/proc/" + process + "/mountinfo")
	if err != nil {
		return nil
	}
	var out []mount
	for _, line := range strings.Split(string(b), "\n") {
		left, right, ok := strings.Cut(line, " - ")
		l, r := strings.Fields(left), strings.Fields(right)
		if !ok || len(l) < 5 || len(r) < 2 {
			continue
		}
		major, minor, _ := strings.Cut(l[2], ":")
		ma, err1 := strconv.ParseUint(major, 10, 32)
		mi, err2 := strconv.ParseUint(minor, 10, 32)
		if err1 != nil || err2 != nil {
			continue
		}
		out = append(out, mount{dev: unix.Mkdev(uint32(ma), uint32(mi)), point: l[4], fsType: r[0], source: r[1]})
	}
	return out
}

// abortFUSE ends the connections behind frontends whose engine is gone for good.
func abortFUSE(list []loop) error {
	var devices []uint64
	for _, lo := range list {
		if strings.HasPrefix(lo.name, frontendMark) {
			devices = append(devices, lo.file.dev)
		}
	}
	return AbortFUSE(devices)
}

// AbortFUSE ends the connections of FUSE file systems, by their device numbers, so that whoever waits for an answer that nobody gives
// any more gets an error. A file system that is unmounted by the death of its server itself would wait for ever. One without a
// connection is passed over.
func AbortFUSE(devices []uint64) error {
	if len(devices) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "keelson-fusectl-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("fusectl", dir, "fusectl", 0, ""); err != nil {
		return fmt.Errorf("mount fusectl: %w", err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	var errs []error
	for _, dev := range devices {
		abort := filepath.Join(dir, strconv.FormatUint(uint64(unix.Minor(dev)), 10), "abort")
		if err := os.WriteFile(abort, []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// detach ends the loop devices. One that a file system still holds goes when that does; so
// each is waited for.
func detach(list []loop) error {
	var errs []error
	for _, lo := range list {
		errs = append(errs, clearLoop(lo))
	}
	deadline := time.Now().Add(10 * time.Second)
	for _, lo := range list {
		for lo.inUse() {
			if time.Now().After(deadline) {
				errs = append(errs, fmt.Errorf("%s (%s) can't be detached: something still uses it", lo.device, lo.path))
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return errors.Join(errs...)
}

// clearLoop ends the loop device, unless its number has come to stand for another file meanwhile.
func clearLoop(lo loop) error {
	f, err := os.Open(lo.device)
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil && lo.file != (fileID{}) && lo.file != (fileID{info.Device, info.Inode}) {
		return nil
	}
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s (%s): %w", lo.device, lo.path, err)
	}
	return nil
}

// inUse says whether the device is still attached to the same file.
func (lo loop) inUse() bool {
	now, err := loopAt(lo.device)
	return err == nil && now.path == lo.path && (now.file == lo.file || now.file == fileID{})
}
