package csi

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// publishMemory mounts a file system in memory at a target. What is written beyond its size gets ENOSPC. It isn't swapped out, where
// the kernel can promise that (6.4).
func (h *host) publishMemory(volume, target string, size int64) error {
	list, err := mountsAt(target)
	if err != nil {
		return err
	}
	if len(list) > 0 {
		if top := list[len(list)-1]; top.FsType != "tmpfs" || top.Source != volume {
			return &Problem{ErrRefused, fmt.Sprintf("volume %s can't be mounted at %s: %s is mounted there; unmount it", volume, target, top.Source)}
		}
		return nil
	}
	if err := os.MkdirAll(target, 0o750); err != nil {
		return err
	}
	options := "mode=0777,size=" + strconv.FormatInt(size, 10)
	const flags = unix.MS_NOSUID | unix.MS_NODEV
	err = unix.Mount(volume, target, "tmpfs", flags, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount(volume, target, "tmpfs", flags, options)
	}
	if err != nil {
		return fmt.Errorf("volume %s: %w", volume, &os.PathError{Op: "mount tmpfs", Path: target, Err: err})
	}
	return nil
}

// memoryAt reports whether what is mounted at a path is a file system in memory.
func (h *host) memoryAt(path string) (bool, error) {
	list, err := mountsAt(path)
	return len(list) > 0 && list[len(list)-1].FsType == "tmpfs", err
}
