package csi

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// usage is how full a volume is.
type usage struct {
	block          bool
	bytes, inodes  counts
	turnedReadOnly bool
}

type counts struct{ total, used, available int64 }

func (u usage) proto() []*pb.VolumeUsage {
	one := func(unit pb.VolumeUsage_Unit, c counts) *pb.VolumeUsage {
		return &pb.VolumeUsage{Unit: unit, Total: c.total, Used: c.used, Available: c.available}
	}
	if u.block {
		return []*pb.VolumeUsage{{Unit: pb.VolumeUsage_BYTES, Total: u.bytes.total}}
	}
	return []*pb.VolumeUsage{one(pb.VolumeUsage_BYTES, u.bytes), one(pb.VolumeUsage_INODES, u.inodes)}
}

// usage asks for the statistics of a volume at a path. os.ErrNotExist: it isn't there. It returns when ctx ends, also if
// the device hangs; then no second question is asked until the first was answered.
func (h *host) usage(ctx context.Context, volume, path string) (usage, error) {
	h.mu.Lock()
	busy := h.asking[volume]
	h.asking[volume] = true
	h.mu.Unlock()
	if busy {
		return usage{}, &Problem{ErrAgain, fmt.Sprintf("volume %s: its statistics are being asked, and don't come", volume)}
	}
	type answer struct {
		usage
		err error
	}
	got := make(chan answer, 1)
	go func() {
		u, err := usageAt(path)
		h.mu.Lock()
		delete(h.asking, volume)
		h.mu.Unlock()
		got <- answer{u, err}
	}()
	select {
	case a := <-got:
		return a.usage, a.err
	case <-ctx.Done():
		return usage{}, &Problem{ErrUnavailable, fmt.Sprintf("volume %s at %s doesn't answer", volume, path)}
	}
}

func usageAt(path string) (usage, error) {
	list, err := mountsAt(path)
	if err != nil {
		return usage{}, err
	}
	if len(list) == 0 {
		return usage{}, os.ErrNotExist
	}
	if _, err := deviceNumber(path); err == nil {
		return blockUsage(path)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return usage{}, &os.PathError{Op: "statfs", Path: path, Err: err}
	}
	top := list[len(list)-1]
	return usage{
		bytes:          counts{total: int64(st.Blocks) * st.Frsize, used: int64(st.Blocks-st.Bfree) * st.Frsize, available: int64(st.Bavail) * st.Frsize},
		inodes:         counts{total: int64(st.Files), used: int64(st.Files - st.Ffree), available: int64(st.Ffree)},
		turnedReadOnly: slices.Contains(top.SuperOptions, "ro") && !slices.Contains(top.MountOptions, "ro"),
	}, nil
}

func blockUsage(path string) (usage, error) {
	f, err := os.Open(path)
	if err != nil {
		return usage{}, err
	}
	defer f.Close()
	n, err := f.Seek(0, io.SeekEnd)
	return usage{block: true, bytes: counts{total: n}}, err
}
