package lab

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// groupRoots are where a node makes its control group: in version 1's hierarchy of memory, or in version 2's.
var groupRoots = []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"}

// groupLimit is how long ended processes may take to leave their control group.
const groupLimit = 5 * time.Second

// memoryGroups are the directories that the control group of a node can have. Their name is the one that docs/ops/config.md
// gives under engine.cgroup.
func memoryGroups(node, dataDir string) []string {
	name := fmt.Sprintf("%s-%08x", node, crc32.ChecksumIEEE([]byte(dataDir)))
	var out []string
	for _, root := range groupRoots {
		out = append(out, filepath.Join(root, "keelson", name))
	}
	return out
}

// MemoryGroup returns the directory of the control group that the node's daemons have made for themselves, "" if there is none.
func (l *Lab) MemoryGroup(name string) string {
	for _, d := range memoryGroups(name, l.dataDir(name)) {
		if exists(d) {
			return d
		}
	}
	return ""
}

// removeGroups removes the control groups of the nodes of the lab in dir: of all nodes that a lab can have, as its record may be gone.
func removeGroups(dir string) error {
	l := &Lab{state: state{Dir: dir}}
	deadline := time.Now().Add(groupLimit)
	var errs []error
	for i := range maxNodes {
		name := fmt.Sprintf("n%d", i+1)
		for _, d := range memoryGroups(name, l.dataDir(name)) {
			errs = append(errs, removeGroup(d, deadline))
		}
	}
	for _, root := range groupRoots {
		_ = os.Remove(filepath.Join(root, "keelson")) // if it was the last node's
	}
	return errors.Join(errs...)
}

func removeGroup(dir string, deadline time.Time) error {
	for {
		err := unix.Rmdir(dir)
		switch {
		case err == nil || errors.Is(err, fs.ErrNotExist):
			return nil
		case err != unix.EBUSY || time.Now().After(deadline):
			return fmt.Errorf("control group %s: %w", dir, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
