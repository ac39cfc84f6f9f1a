package cluster

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
)

// usedLoops are the loop devices that have a file.
func usedLoops() []string {
	found, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var out []string
	for _, f := range found {
		out = append(out, strings.Split(f, "/")[3])
	}
	return out
}

// volumeMark is what the names begin with that Keelson gives the loop devices of volumes.
const volumeMark = "keelson:"

// removeLoops frees the devices of volumes whose node is gone: those that came since, and whose file system nobody has mounted.
// Those of pools go by themselves, with their mounts, and are waited for.
func removeLoops(dir string, before []string) error {
	mounted, files := lab.FUSEDevices(), poolFiles(dir)
	ours := func(name string) bool {
		info, err := loopInfo(name)
		if err != nil || slices.Contains(before, name) {
			return false
		}
		file := string(info.File_name[:])
		if strings.HasPrefix(file, volumeMark) {
			return !mounted[info.Device]
		}
		return files[[2]uint64{info.Device, info.Inode}]
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		left := slices.DeleteFunc(usedLoops(), func(name string) bool { return !ours(name) })
		if len(left) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("loop devices %s can't be freed: something still uses them", strings.Join(left, ", "))
		}
		for _, name := range left {
			if f, err := os.Open("/dev/" + name); err == nil {
				_ = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
				f.Close()
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func loopInfo(name string) (*unix.LoopInfo64, error) {
	f, err := os.Open("/dev/" + name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// poolFiles are the files of the nodes' pools, by device and inode: a path says little when the mount namespace is gone.
func poolFiles(dir string) map[[2]uint64]bool {
	out := map[[2]uint64]bool{}
	found, _ := filepath.Glob(filepath.Join(dir, "n*", DataDir, "*.img"))
	for _, f := range found {
		var st unix.Stat_t
		if unix.Stat(f, &st) == nil {
			out[[2]uint64{st.Dev, st.Ino}] = true
		}
	}
	return out
}

// abortFUSE ends connections: those of mine, and those behind devices of volumes that nobody has mounted any more, unless they were there before.
func abortFUSE(mine map[uint64]bool, before []string) error {
	ended := maps.Clone(mine)
	var mounted map[uint64]bool
	for _, name := range usedLoops() {
		info, err := loopInfo(name)
		if err != nil || slices.Contains(before, name) || !strings.HasPrefix(string(info.File_name[:]), volumeMark) {
			continue
		}
		if mounted == nil {
			mounted = lab.FUSEDevices()
		}
		if !mounted[info.Device] {
			ended[info.Device] = true
		}
	}
	return lab.AbortFUSE(slices.Collect(maps.Keys(ended)))
}
