package server

import (
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"keelson.io/keelson/internal/spec"
)

// What engine.cgroup may be.
const (
	cgroupAuto = "auto" // stay where no writer can be, otherwise move; refuse to run where neither is possible
	cgroupOwn  = "own"  // move, and warn if that isn't possible
	cgroupKeep = "keep" // stay, whatever else is there
)

// cgroups is where a machine shows its control groups and processes.
type cgroups struct {
	root string // the control groups' file systems
	proc string
}

var machine = cgroups{root: "/sys/fs/cgroup", proc: "/proc"}

// memoryGroup is a control group as far as memory is concerned.
type memoryGroup struct {
	mount string // of the hierarchy that has the memory controller
	path  string // in it; "/" is its root
	limit string // name of the file that has the limit
}

func (g memoryGroup) dir() string { return filepath.Join(g.mount, g.path) }

// own returns the group of this process; ok is false where the kernel has none.
func (m cgroups) own() (g memoryGroup, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(m.proc, "self", "cgroup"))
	if errors.Is(err, os.ErrNotExist) {
		return g, false, nil
	}
	if err != nil {
		return g, false, err
	}
	g, ok = m.parse(string(b))
	return g, ok, nil
}

// parse reads /proc/PID/cgroup. The memory controller is in version 1's hierarchy of that name, or in version 2's.
func (m cgroups) parse(text string) (g memoryGroup, ok bool) {
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case strings.Contains(","+f[1]+",", ",memory,"):
			return memoryGroup{mount: filepath.Join(m.root, "memory"), path: f[2], limit: "memory.limit_in_bytes"}, true
		case f[0] == "0":
			g, ok = memoryGroup{mount: m.root, path: f[2], limit: "memory.max"}, true
		}
	}
	return g, ok
}

// limited returns the group, this one or one above it, that has a limit, "" if none has.
func (g memoryGroup) limited() (string, error) {
	for p := filepath.Clean("/" + g.path); ; p = filepath.Dir(p) {
		b, err := os.ReadFile(filepath.Join(g.mount, p, g.limit))
		if err != nil && !errors.Is(err, os.ErrNotExist) { // the root of version 2 has none
			return "", err
		}
		if s := strings.TrimSpace(string(b)); s != "" && s != "max" {
			// Version 1 writes no limit as a number, the largest multiple of a page.
			if n, err := strconv.ParseUint(s, 10, 64); err != nil || n < 1<<62 {
				return p, nil
			}
		}
		if p == "/" {
			return "", nil
		}
	}
}

// strangers counts the processes in the group that aren't of this node.
func (g memoryGroup) strangers(own func(pid int) bool) (int, error) {
	b, err := os.ReadFile(filepath.Join(g.dir(), "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	n := 0
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", g.dir(), err)
		}
		if !own(pid) {
			n++
		}
	}
	return n, nil
}

// ErrCgroup: the engine would wait for memory that only it can set free.
var ErrCgroup = errors.New("this control group can hold writers of volumes")

// check says why the engine can't run in the group: a process that writes to a volume may be charged there too, and when that has
// used up the memory with pages to be written, the engine would wait for the end of its own work.
func (g memoryGroup) check(own func(pid int) bool) error {
	if p, err := g.limited(); err != nil || p != "" {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: memory of %s is limited in %s", ErrCgroup, g.path, filepath.Join(g.mount, p, g.limit))
	}
	if n, err := g.strangers(own); err != nil || n > 0 {
		if err != nil {
			return err
		}
		return fmt.Errorf("%w: %d other processes are in %s", ErrCgroup, n, g.dir())
	}
	return nil
}

// daemons are the words by which a node's processes are told from others, after the program's name.
var daemons = []string{"server", "prepare", "etcd", "engine", "control", "holder"}

// ofNode says whether a process runs the same program as this one, as a daemon.
func (m cgroups) ofNode(pid int) bool {
	if pid == os.Getpid() || pid == os.Getppid() {
		return true
	}
	b, err := os.ReadFile(filepath.Join(m.proc, strconv.Itoa(pid), "cmdline"))
	if err != nil {
		return errors.Is(err, os.ErrNotExist) && pid != 0
	}
	f := strings.Split(string(b), "\x00")
	if len(f) < 2 || !strings.HasPrefix(filepath.Base(f[0]), "keelson") {
		return len(b) == 0 && pid != 0 // it has ended
	}
	for _, d := range daemons {
		if f[1] == d {
			return true
		}
	}
	return false
}

// ownGroup is the group that this node makes for itself: below the root, so that no limit of others is above it.
func (g memoryGroup) ownGroup(cfg Config) memoryGroup {
	g.path = fmt.Sprintf("/keelson/%s-%08x", cfg.Node, crc32.ChecksumIEEE([]byte(cfg.DataDir)))
	return g
}

// enter moves this process, and so its children to come, to a group of its own if it has to. What it can't mend is
// refused by check.
func (m cgroups) enter(cfg Config) error {
	if cfg.Engine.Cgroup == cgroupKeep || !cfg.HasRole(spec.RoleStorage) {
		return nil
	}
	g, ok, err := m.own()
	if err != nil || !ok {
		return err
	}
	own := g.ownGroup(cfg)
	if g.path == own.path || cfg.Engine.Cgroup != cgroupOwn && g.check(m.ofNode) == nil {
		return nil
	}
	if err := os.MkdirAll(own.dir(), 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(own.dir(), "cgroup.procs"), []byte("0"), 0)
}

// leave removes a group that enter made. It goes with its last process only, so this one moves up.
func (m cgroups) leave(cfg Config) {
	g, ok, err := m.own()
	if err != nil || !ok || g.path != g.ownGroup(cfg).path {
		return
	}
	if os.WriteFile(filepath.Join(g.mount, "cgroup.procs"), []byte("0"), 0) == nil {
		_ = os.Remove(g.dir())
		_ = os.Remove(filepath.Dir(g.dir())) // if it was the last node's
	}
}

// check refuses to run the engine where a writer of a volume could make it wait for itself.
func (m cgroups) check(cfg Config) error {
	if cfg.Engine.Cgroup == cgroupKeep || !cfg.HasRole(spec.RoleStorage) {
		return nil
	}
	g, ok, err := m.own()
	if err != nil || !ok {
		return err
	}
	if err := g.check(m.ofNode); err != nil {
		if cfg.Engine.Cgroup == cgroupOwn {
			cfg.Logger("prepare").Warn("writers of volumes can make the engine wait for itself when memory is short", "err", err)
			return nil
		}
		return permanent(fmt.Errorf("%w; the engine would wait for itself when memory is short. Start keelson server in a group without other processes and without a memory limit "+
			"(the systemd unit has one), or let it make one: %s must be writable. Where nobody writes to volumes, engine.cgroup: keep runs it all the same", err, g.mount))
	}
	return nil
}
