package fuseloop

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// fsType is the type that the mounts show.
const fsType = "fuse.keelson"

// mountFUSE mounts a new connection on dir and returns its descriptor.
func mountFUSE(volume, dir string) (int, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open /dev/fuse: %w (is the fuse module loaded?)", err)
	}
	opts := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions,max_read=%d", fd, maxWrite)
	err = unix.Mount("keelson-"+volume, dir, fsType, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME, opts)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("mount on %s: %w", dir, err)
	}
	return fd, nil
}

// abortConnection ends the FUSE connection that is mounted on dir at once: every request
// that waits in it fails, and so does every later one. The mount may go with it, or stay
// while a loop device holds its file. No mount is no error.
func abortConnection(dir string) error {
	// MNT_FORCE aborts the connection also when the mount itself is busy.
	err := unix.Unmount(dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) || notMounted(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("abort the FUSE connection of %s: %w", dir, err)
	}
	return nil
}

// detachMount takes the mount on dir away, whoever uses it. No mount is no error.
func detachMount(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !notMounted(err) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func notMounted(err error) bool { return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) }

// mountsOf returns where device (major:minor) is mounted, in any mount namespace that
// this process can see.
func mountsOf(device string) []string {
	files, _ := filepath.Glob("/proc/[0-9]*/mountinfo")
	files = append([]string{"/proc/self/mountinfo"}, files...)
	seen := map[string]bool{}
	namespaces := map[string]bool{}
	var mounts []string
	for _, name := range files {
		ns, err := os.Readlink(filepath.Join(filepath.Dir(name), "ns/mnt"))
		if err != nil || namespaces[ns] {
			continue
		}
		namespaces[ns] = true
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		for sc := bufio.NewScanner(f); sc.Scan(); {
			field := strings.Fields(sc.Text())
			if len(field) > 4 && field[2] == device && !seen[field[4]] {
				seen[field[4]] = true
				mounts = append(mounts, field[4])
			}
		}
		f.Close()
	}
	return mounts
}

// openersOf returns "name (pid N)" of processes that have the file open.
func openersOf(path string) []string {
	links, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	var openers []string
	last := ""
	for _, l := range links {
		pid := strings.Split(l, "/")[2]
		if pid == last {
			continue
		}
		if to, err := os.Readlink(l); err != nil || to != path {
			continue
		}
		last = pid
		comm, _ := os.ReadFile("/proc/" + pid + "/comm")
		openers = append(openers, fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), pid))
	}
	return openers
}
