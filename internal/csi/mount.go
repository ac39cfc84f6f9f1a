package csi

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/mount-utils"
	"k8s.io/utils/exec"
)

// host is the machine: its mounts and the programs that work on devices. What it does isn't cut short when a caller goes: a
// mkfs that has begun ends, and the next call finds its result.
type host struct {
	log     *slog.Logger
	mounter *mount.SafeFormatAndMount

	mu sync.Mutex
	// asking has the volumes of which the statistics are being asked.
	asking map[string]bool
}

func newHost(log *slog.Logger) *host {
	return &host{log: log, mounter: mount.NewSafeFormatAndMount(mount.New(""), exec.New()), asking: map[string]bool{}}
}

const mountInfo = "/proc/self/mountinfo"

// mountsAt returns the mounts at a path, the one on top last.
func mountsAt(path string) ([]mount.MountInfo, error) {
	all, err := mount.ParseMountInfo(mountInfo)
	if err != nil {
		return nil, err
	}
	path = resolve(path)
	return slices.DeleteFunc(all, func(m mount.MountInfo) bool { return m.MountPoint != path }), nil
}

// resolve returns a path as the kernel shows it. Only its directory is looked at: the path itself may hang.
func resolve(path string) string {
	path = filepath.Clean(path)
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		return filepath.Join(dir, filepath.Base(path))
	}
	return path
}

// devicePath returns the device that a link leads to, once it is a block device.
func devicePath(link string) (string, error) {
	path, err := filepath.EvalSymlinks(link)
	if err != nil {
		return "", fmt.Errorf("device: %w", err)
	}
	if _, err := deviceNumber(path); err != nil {
		return "", err
	}
	return path, nil
}

// number is a device's.
type number struct{ major, minor uint32 }

func deviceNumber(path string) (number, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return number{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return number{}, fmt.Errorf("%s is no block device", path)
	}
	return number{unix.Major(st.Rdev), unix.Minor(st.Rdev)}, nil
}

func (d number) holds(m mount.MountInfo) bool {
	return uint32(m.Major) == d.major && uint32(m.Minor) == d.minor
}

// backingVolume returns the volume that a loop device shows, by its directory in sysfs; "" if none. The file behind the
// device has the volume's name as its directory's.
func backingVolume(sysfs string) string {
	b, err := os.ReadFile(filepath.Join(sysfs, "loop", "backing_file"))
	if err != nil {
		return ""
	}
	file, _ := strings.CutSuffix(strings.TrimSpace(string(b)), " (deleted)")
	return filepath.Base(filepath.Dir(file))
}

// staleOf reports whether a mount is of a device that the volume had before: the kernel still has it as the volume's, or it has no
// file any more, or it is gone.
func staleOf(volume string, m mount.MountInfo) bool {
	sysfs := fmt.Sprintf("/sys/dev/block/%d:%d", m.Major, m.Minor)
	if v := backingVolume(sysfs); v != "" {
		return v == volume
	}
	return strings.HasPrefix(m.Source, "/dev/loop")
}

// clear unmounts everything at a path but a mount of the device on top; it reports whether that is there. A mount that isn't the
// volume's stays, and is an error.
func (h *host) clear(volume, path string, device number) (mounted bool, top mount.MountInfo, err error) {
	for {
		list, err := mountsAt(path)
		if err != nil || len(list) == 0 {
			return false, top, err
		}
		top = list[len(list)-1]
		if device.holds(top) {
			return true, top, nil
		}
		if !staleOf(volume, top) {
			return false, top, &Problem{ErrRefused, fmt.Sprintf("volume %s can't be mounted at %s: %s is mounted there; unmount it", volume, path, top.Source)}
		}
		h.log.Warn("a mount from before is taken away", "volume", volume, "path", path, "device", top.Source)
		if err := h.mounter.Unmount(path); err != nil {
			return false, top, err
		}
	}
}

// stage mounts a device at a directory.
func (h *host) stage(volume, device, path string, f fileSystem) error {
	number, err := deviceNumber(device)
	if err != nil {
		return err
	}
	mounted, _, err := h.clear(volume, path, number)
	if err != nil || mounted {
		return err
	}
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	has, err := h.signature(device)
	if err != nil {
		return fmt.Errorf("volume %s: what is on its device can't be found out: %w", volume, err)
	}
	switch {
	case has == "":
		h.log.Info("an empty volume gets a file system", "volume", volume, "device", device, "fstype", f.fstype)
		if err := h.format(device, f); err != nil {
			return fmt.Errorf("volume %s: %w", volume, err)
		}
	case has != f.fstype && f.named:
		return &Problem{ErrRefused, fmt.Sprintf("volume %s holds %s, and %s is asked for: it isn't formatted again; ask for what it holds, or empty it", volume, has, f.fstype)}
	case has != f.fstype:
		f.fstype = has
	}
	if err := h.mounter.FormatAndMount(device, path, f.fstype, f.options); err != nil {
		return fmt.Errorf("volume %s: %w", volume, err)
	}
	if f.readOnly || has == "" {
		return nil
	}
	// The volume may have grown while it wasn't mounted, and nobody is asked for its file system then.
	if err := growFileSystem(volume, device, path); err != nil {
		h.log.Warn("a file system is smaller than its volume", "volume", volume, "err", err)
	}
	return nil
}

// unstage unmounts what is staged. While the volume is still shown somewhere it refuses.
func (h *host) unstage(volume, path string) error {
	for {
		list, err := mountsAt(path)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			break
		}
		top := list[len(list)-1]
		others, err := mountsOf(number{uint32(top.Major), uint32(top.Minor)}, resolve(path))
		if err != nil {
			return err
		}
		if len(list) == 1 && len(others) > 0 {
			return &Problem{ErrRefused, fmt.Sprintf("volume %s is still mounted at %s", volume, others[0].MountPoint)}
		}
		if err := h.mounter.Unmount(path); err != nil {
			return fmt.Errorf("volume %s: %w", volume, err)
		}
	}
	shown, err := shownDevices(volume, "")
	if err == nil && len(shown) > 0 {
		err = &Problem{ErrRefused, fmt.Sprintf("the device of volume %s is still at %s", volume, shown[0].MountPoint)}
	}
	return err
}

// mountsOf returns the mounts of a device but those at some paths.
func mountsOf(device number, but ...string) ([]mount.MountInfo, error) {
	all, err := mount.ParseMountInfo(mountInfo)
	return slices.DeleteFunc(all, func(m mount.MountInfo) bool {
		return !device.holds(m) || m.Root != "/" || slices.Contains(but, m.MountPoint)
	}), err
}

// publication is a volume shown at a path.
type publication struct {
	volume, target, staging string
	device                  string // of a raw block volume
	readOnly                bool
	alone                   bool // it may be shown at no other path
}

// publish shows a staged file system at the target.
func (h *host) publish(p publication) error {
	staged, err := mountsAt(p.staging)
	if err != nil {
		return err
	}
	if len(staged) == 0 {
		return &Problem{ErrRefused, fmt.Sprintf("volume %s isn't staged at %s", p.volume, p.staging)}
	}
	top := staged[len(staged)-1]
	device := number{uint32(top.Major), uint32(top.Minor)}
	if p.alone {
		others, err := mountsOf(device, resolve(p.staging), resolve(p.target))
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return &Problem{ErrRefused, fmt.Sprintf("volume %s is for one pod (ReadWriteOncePod), and one has it at %s", p.volume, others[0].MountPoint)}
		}
	}
	mounted, there, err := h.clear(p.volume, p.target, device)
	if err != nil {
		return err
	}
	if mounted {
		if !slices.Contains(top.MountOptions, "ro") && slices.Contains(there.MountOptions, "ro") != p.readOnly {
			return &Problem{ErrExists, fmt.Sprintf("volume %s is at %s already, but read-only is %t there and not %t", p.volume, p.target, !p.readOnly, p.readOnly)}
		}
		return nil
	}
	if err := os.MkdirAll(p.target, 0o750); err != nil {
		return err
	}
	return h.bind(p, p.staging)
}

// bind mounts source at the target. A read-only one is never seen writable: if it can't be made so, it goes.
func (h *host) bind(p publication, source string) error {
	options := []string{"bind"}
	if p.readOnly {
		options = append(options, "ro")
	}
	if err := h.mounter.Mount(source, p.target, "", options); err != nil {
		if list, lerr := mountsAt(p.target); lerr == nil && len(list) > 0 {
			err = errors.Join(err, h.mounter.Unmount(p.target))
		}
		return fmt.Errorf("volume %s: %w", p.volume, err)
	}
	return nil
}

// publishDevice shows a raw block device at the target, a file.
func (h *host) publishDevice(p publication) error {
	want, err := deviceNumber(p.device)
	if err != nil {
		return err
	}
	list, err := mountsAt(p.target)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		if have, err := deviceNumber(p.target); err == nil && have == want {
			return nil
		}
		h.log.Warn("a device from before is taken away", "volume", p.volume, "path", p.target)
		if err := h.mounter.Unmount(p.target); err != nil {
			return err
		}
	}
	if p.alone {
		others, err := shownDevices(p.volume, resolve(p.target))
		if err != nil {
			return err
		}
		if len(others) > 0 {
			return &Problem{ErrRefused, fmt.Sprintf("volume %s is for one pod (ReadWriteOncePod), and one has it at %s", p.volume, others[0].MountPoint)}
		}
	}
	if err := os.MkdirAll(filepath.Dir(p.target), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(p.target, os.O_CREATE|os.O_RDONLY, 0o640)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return h.bind(p, p.device)
}

// shownDevices returns the mounts of the volume's device itself, as pods with raw block volumes have them, but that at a path.
func shownDevices(volume, but string) ([]mount.MountInfo, error) {
	all, err := mount.ParseMountInfo(mountInfo)
	return slices.DeleteFunc(all, func(m mount.MountInfo) bool {
		name := filepath.Base(m.Root)
		return m.MountPoint == but || !strings.HasPrefix(name, "loop") || m.FsType != "devtmpfs" && m.FsType != "tmpfs" ||
			backingVolume("/sys/block/"+name) != volume
	}), err
}

// unpublish takes away what is at the target, and the target.
func (h *host) unpublish(target string) error {
	if err := h.unmountAll(target); err != nil {
		return err
	}
	// Never with what is in it: that would be somebody's data.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmountAll takes away whatever is mounted at a path.
func (h *host) unmountAll(path string) error {
	for {
		list, err := mountsAt(path)
		if err != nil || len(list) == 0 {
			return err
		}
		if err := h.mounter.Unmount(path); err != nil {
			return err
		}
	}
}
