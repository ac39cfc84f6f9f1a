package fuseloop

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/frontend"
)

const (
	// detachTime is how long a loop device may take to end after nobody should use it.
	detachTime = 2 * time.Second
	// settleTime is how long a detach waits for programs that look into the device, as
	// udev does after an unmount.
	settleTime = 500 * time.Millisecond
	pollTime   = 5 * time.Millisecond
)

// loopDevice is an attached loop device.
type loopDevice struct {
	Number int
	// Backing is what the kernel says the device's file is. Loop numbers are used by all
	// of the machine: with another backing file the device isn't ours any more.
	Backing string
}

func (d loopDevice) path() string { return "/dev/loop" + strconv.Itoa(d.Number) }

func (d loopDevice) sysfs(name string) string {
	return filepath.Join("/sys/block", "loop"+strconv.Itoa(d.Number), name)
}

// backing returns the backing file of loop device n, "" if it has none.
func backing(n int) string {
	b, err := os.ReadFile(loopDevice{Number: n}.sysfs("loop/backing_file"))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(b), "\n")
}

// attached reports whether the device is still ours.
func (d loopDevice) attached() bool { return d.Backing != "" && backing(d.Number) == d.Backing }

// open opens the device if it is ours, else fd is -1. While it is open it can't become another one: the kernel ends a device when the
// last one closes it.
func (d loopDevice) open() (fd int, err error) {
	if !d.attached() {
		return -1, nil // not even opened: somebody else would seem to be using it
	}
	if fd, err = unix.Open(d.path(), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, err
	}
	if !d.attached() {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// user says in words who uses the device, "" if nobody does. Whoever has it open only, and
// neither mounted nor for itself alone, may be gone in a moment: brief.
func (d loopDevice) user() (by string, brief bool) {
	dev, err := os.ReadFile(d.sysfs("dev"))
	if err != nil {
		return "", false
	}
	if m := mountsOf(strings.TrimSpace(string(dev))); len(m) > 0 {
		return "mounted on " + strings.Join(m, ", "), false
	}
	if h, _ := os.ReadDir(d.sysfs("holders")); len(h) > 0 {
		return "held by " + h[0].Name(), false
	}
	fd, err := unix.Open(d.path(), unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return "opened exclusively (mounted in another namespace, or swap)", false
	}
	if err == nil {
		unix.Close(fd)
	}
	if o := openersOf(d.path()); len(o) > 0 {
		return "open in " + strings.Join(o, ", "), true
	}
	return "", false
}

// detach ends the device if nobody has it open. Programs such as udev look into devices for
// a moment: they are waited for. Somebody who stays makes it a *frontend.BusyError, and
// the device stays as it was.
func (d loopDevice) detach(volume string) error {
	fd, err := d.open()
	if err != nil {
		return fmt.Errorf("open %s: %w", d.path(), err)
	}
	if fd < 0 {
		return nil
	}
	_, err = unix.IoctlRetInt(fd, unix.LOOP_CLR_FD)
	unix.Close(fd)
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("detach %s: %w", d.path(), err)
	}
	if d.waitGone(detachTime) {
		return nil
	}
	by, _ := d.user()
	if by == "" {
		by = "open somewhere"
	}
	d.keep()
	return &frontend.BusyError{Volume: volume, Path: d.path(), By: by}
}

// waitGone waits until the device isn't attached any more.
func (d loopDevice) waitGone(limit time.Duration) bool {
	for end := time.Now().Add(limit); d.attached(); time.Sleep(pollTime) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// keep takes a LOOP_CLR_FD back that waits for the last user.
func (d loopDevice) keep() {
	fd, err := d.open()
	if err != nil || fd < 0 {
		return
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	_ = unix.IoctlLoopSetStatus64(fd, info)
}

// drop ends the device whoever uses it: with its last user at the latest.
func (d loopDevice) drop() {
	fd, err := d.open()
	if err != nil || fd < 0 {
		return
	}
	_, _ = unix.IoctlRetInt(fd, unix.LOOP_CLR_FD)
	unix.Close(fd)
}

// loopsBelow returns the loop devices whose backing file lies in dir.
func loopsBelow(dir string) []loopDevice {
	names, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var found []loopDevice
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimPrefix(strings.Split(name, "/")[3], "loop"))
		if err != nil {
			continue
		}
		if b := backing(n); strings.HasPrefix(b, dir+"/") {
			found = append(found, loopDevice{Number: n, Backing: b})
		}
	}
	return found
}
