package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// loop is a loop device. It goes by itself when it is neither held nor mounted.
type loop struct {
	path string
	fd   int
}

func (l loop) release() { unix.Close(l.fd) }

// openLoop returns the loop device of a file: the one that is there, if nobody has it, or a
// new one with direct I/O and 4096-byte sectors.
func openLoop(file string) (loop, error) {
	dev, err := loopOf(file)
	if err != nil {
		return loop{}, err
	}
	if dev != "" {
		fd, err := unix.Open(dev, unix.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err != nil {
			return loop{}, fmt.Errorf("file %s is behind %s, which is taken: %w: %w", file, dev, ErrInUse, err)
		}
		// Exclusive only to find out: mounting claims it for itself.
		unix.Close(fd)
		fd, err = unix.Open(dev, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return loop{}, fmt.Errorf("%s: %w", dev, err)
		}
		return loop{dev, fd}, nil
	}
	back, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return loop{}, err
	}
	defer back.Close()
	control, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return loop{}, fmt.Errorf("/dev/loop-control: %w; is the kernel's loop module there?", err)
	}
	defer unix.Close(control)
	// Another process may take the number that we were given.
	for range 100 {
		l, err := configureFree(control, back)
		if !errors.Is(err, unix.EBUSY) {
			return l, err
		}
	}
	return loop{}, fmt.Errorf("file %s: no loop device could be had: %w", file, ErrInUse)
}

func configureFree(control int, back *os.File) (loop, error) {
	n, err := unix.IoctlRetInt(control, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return loop{}, fmt.Errorf("no free loop device: %w", err)
	}
	path := "/dev/loop" + strconv.Itoa(n)
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return loop{}, fmt.Errorf("%s: %w", path, err)
	}
	cfg := unix.LoopConfig{Fd: uint32(back.Fd()), Size: 4096}
	cfg.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], back.Name())
	if err := unix.IoctlLoopConfigure(fd, &cfg); err != nil {
		unix.Close(fd)
		return loop{}, fmt.Errorf("set up %s over %s: %w", path, back.Name(), err)
	}
	return loop{path, fd}, nil
}

// loopOf returns the loop device whose backing file this is, "" if there is none. It compares
// inodes: a path says little in a mount namespace.
func loopOf(file string) (string, error) {
	var want unix.Stat_t
	if err := unix.Stat(file, &want); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return "", err
	}
	for _, d := range dirs {
		dev := "/dev/" + strings.Split(d, "/")[3]
		fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(fd)
		unix.Close(fd)
		if err == nil && info.Inode == want.Ino && info.Device == want.Dev {
			return dev, nil
		}
	}
	return "", nil
}
