package server

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// inPod reports whether this node's processes are in a container that ends before the node does, for another one to take its place:
// then what must outlive it, the holder, is run on the host, and being told to stop means that a successor comes.
func inPod() bool { return os.Getenv(envHolder) == holderHost }

// hostHolder is the command of a holder on the host: from a copy of the binary there, in the mount namespace of the host's first
// process. That namespace shows the data directory, and dataDir and runDir are the same paths in both.
func (c *Config) hostHolder(binary string, args []string) (*exec.Cmd, error) {
	if own, host := mountNamespace("self"), mountNamespace("1"); host == "" || own == host {
		return nil, errors.New("the host's processes can't be seen: the pod needs hostPID")
	}
	path := filepath.Join(c.DataDir, "bin", "keelson")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := copyBinary(binary, path); err != nil {
		return nil, err
	}
	log, err := os.OpenFile(filepath.Join(c.DataDir, "holder.log"), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("nsenter", append([]string{"--target", "1", "--mount", "--", path, "holder"}, args...)...)
	// Not the container's: nothing of it is to be held.
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	return cmd, nil
}

func mountNamespace(pid string) string {
	ns, err := os.Readlink("/proc/" + pid + "/ns/mnt")
	if err != nil {
		return ""
	}
	return ns
}

// escape moves this process out of its control groups, in every hierarchy, to one of its own below the root: what ends a container ends
// all that is in its groups.
func (m cgroups) escape(cfg Config) error {
	b, err := os.ReadFile(filepath.Join(m.proc, "self", "cgroup"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	group := "holder-" + filepath.Base(memoryGroup{}.ownGroup(cfg).path)
	for _, root := range m.hierarchies(string(b)) {
		dir := filepath.Join(root, "keelson", group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := inheritCPUs(root, filepath.Dir(dir), dir); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return err
		}
	}
	return nil
}

// hierarchies are the mount points of those in which a process is, by its /proc/PID/cgroup; what isn't mounted can't be used by others either.
func (m cgroups) hierarchies(text string) []string {
	var out []string
	seen := map[string]bool{}
	add := func(dir string) bool {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil || seen[real] {
			return err == nil
		}
		if _, err := os.Stat(filepath.Join(real, "cgroup.procs")); err != nil {
			return false
		}
		seen[real] = true
		out = append(out, real)
		return true
	}
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case f[0] == "0":
			if !add(m.root) {
				add(filepath.Join(m.root, "unified"))
			}
		case strings.HasPrefix(f[1], "name="):
			add(filepath.Join(m.root, strings.TrimPrefix(f[1], "name=")))
		default: // cpu,cpuacct is mounted under that name, or has links of the single ones
			if !add(filepath.Join(m.root, f[1])) {
				add(filepath.Join(m.root, strings.SplitN(f[1], ",", 2)[0]))
			}
		}
	}
	return out
}

// inheritCPUs fills in, in new groups one below the other, what version 1 of cpuset leaves empty and without which no process can enter.
func inheritCPUs(parent string, dirs ...string) error {
	for _, dir := range dirs {
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			has, err := os.ReadFile(filepath.Join(dir, f))
			if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(has)) != "" {
				continue
			}
			from, err := os.ReadFile(filepath.Join(parent, f))
			if errors.Is(err, fs.ErrNotExist) {
				continue // version 2's root: there an empty one means all
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, f), from, 0)
			}
			if err != nil {
				return fmt.Errorf("%s of %s: %w", f, dir, err)
			}
		}
		parent = dir
	}
	return nil
}
