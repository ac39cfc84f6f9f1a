package cluster

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// hierarchies are the roots of control groups: one of version 2, or those of version 1.
func hierarchies() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"/sys/fs/cgroup"}
	}
	var out []string
	found, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	for _, f := range found {
		out = append(out, filepath.Dir(f))
	}
	return out
}

// makeGroup makes the control group below which kubelet puts a node's pods.
func (n *Node) makeGroup() error {
	for _, root := range hierarchies() {
		dir := root
		for _, name := range []string{groupRoot, n.Name} {
			parent := dir
			dir = filepath.Join(dir, name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := inheritCPUs(parent, dir); err != nil {
				return err
			}
			if err := passControllers(parent); err != nil {
				return err
			}
		}
		if err := passControllers(dir); err != nil {
			return err
		}
	}
	return nil
}

// inheritCPUs copies what version 1 of cpuset leaves empty, and without which no process can enter. In version 2 it is empty above too, or not there.
func inheritCPUs(parent, dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, f))
		if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(b)) == "" {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// passControllers makes version 2's controllers available to the groups below.
func passControllers(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, c := range strings.Fields(string(b)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("%s: controller %s: %w", dir, c, err)
		}
	}
	return nil
}

// removeGroups removes the nodes' control groups, and those that Keelson's processes made for themselves on them.
func removeGroups() error {
	var errs []error
	for _, root := range hierarchies() {
		errs = append(errs, removeTree(filepath.Join(root, groupRoot)))
		for i := 10 * number; i < 10*number+10; i++ {
			name := fmt.Sprintf("n%d-%08x", i, crc32.ChecksumIEEE([]byte(DataDir)))
			errs = append(errs, removeTree(filepath.Join(root, "keelson", name)), removeTree(filepath.Join(root, "keelson", "holder-"+name)))
		}
		_ = os.Remove(filepath.Join(root, "keelson")) // if it was the last one's
	}
	return errors.Join(errs...)
}

// removeTree removes a control group with those below it, and waits for processes that just end.
func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	deadline := time.Now().Add(5 * time.Second)
	for i := len(dirs) - 1; i >= 0; i-- {
		for {
			err := os.Remove(dirs[i])
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				break
			}
			if time.Now().After(deadline) {
				return err
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}
