package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command returns a command that will run on the node: in its namespaces, with an environment in
// which `keelson` is the lab's own and finds the node's configuration. When ctx ends, it is killed
// with its children.
func (l *Lab) Command(ctx context.Context, name string, argv ...string) (*exec.Cmd, error) {
	full, env, err := l.enter(name, argv)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, full[0], full[1:]...)
	cmd.Env = env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	return cmd, nil
}

// Exec replaces this process by the command on the node.
func (l *Lab) Exec(name string, argv ...string) error {
	full, env, err := l.enter(name, argv)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(full[0])
	if err != nil {
		return err
	}
	return unix.Exec(path, full, env)
}

// enter wraps a command so that it runs on the node.
func (l *Lab) enter(name string, argv []string) (full, env []string, err error) {
	n, err := l.node(name)
	if err != nil {
		return nil, nil, err
	}
	if len(argv) == 0 {
		return nil, nil, errors.New("no command given")
	}
	if !n.Keeper.alive() {
		return nil, nil, fmt.Errorf("%s: %w; start it with `keelson lab start %s`", name, ErrNotUp, name)
	}
	// Not `ip netns exec`: it mounts a /sys over the node's that has no cgroups.
	full = []string{"nsenter", "--target", strconv.Itoa(n.Keeper.PID), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}
	env = slices.DeleteFunc(withoutKeelson(os.Environ()), func(kv string) bool { return strings.HasPrefix(kv, "PATH=") })
	return append(full, argv...), append(env, l.Env(name)...), nil
}

// withoutKeelson drops the settings of the caller's own node from an environment.
func withoutKeelson(env []string) []string {
	return slices.DeleteFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "KEELSON_") })
}

// Env returns the environment that commands on the node get on top of the caller's own.
func (l *Lab) Env(name string) []string {
	path := os.Getenv("PATH")
	if path == "" {
		path = "/usr/sbin:/usr/bin:/sbin:/bin"
	}
	return []string{
		"PATH=" + filepath.Dir(l.state.Binary) + ":" + path,
		"KEELSON_CONFIG=" + l.configFile(name),
		"KEELSON_DATA_DIR=" + l.dataDir(name),
		"KEELSON_RUN_DIR=" + l.runDir(name),
	}
}

// Kill is the crash of the node: all its processes end at once, its mounts are gone, and so are its
// loop devices. Its files stay as the last write left them.
func (l *Lab) Kill(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	return l.crash(n)
}

func (l *Lab) crash(n *node) error {
	held, err := labLoops(l.NodeDir(n.Name), n.members())
	if err != nil {
		return err
	}
	if err := end(n.Keeper, held); err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	n.Keeper = process{}
	return errors.Join(l.save(), detach(held))
}

// end kills a keeper and all that runs in its namespaces; held are the loop devices of the node.
//
// The keeper goes last. The one that leaves the mount namespace last unmounts what is mounted there; would
// that be the engine, it would wait in its own death for the answers of its own FUSE
// file system. The keeper is stopped before, so that it starts nothing anew.
func end(keeper process, held []loop) error {
	if err := keeper.signal(unix.SIGSTOP); err != nil {
		return err
	}
	var others []process
	for _, pid := range (&node{Keeper: keeper}).members() {
		if p, err := identify(pid); err == nil && p != keeper {
			others = append(others, p)
		}
	}
	_, err := killAll(others, 5*time.Second)
	if err := errors.Join(err, abortFUSE(held)); err != nil {
		return err
	}
	left, err := killAll(append(others, keeper), 20*time.Second)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("processes %v are still there 20 s after they were killed", left)
	}
	return err
}

// KillProcess kills one daemon of the node: server, etcd, engine, control or holder.
func (l *Lab) KillProcess(name, daemon string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	if !slices.Contains(daemonNames, daemon) {
		return fmt.Errorf("%w: %q is no process of a node: name one of %s", ErrInvalid, daemon, strings.Join(daemonNames, ", "))
	}
	if !n.Keeper.alive() {
		return fmt.Errorf("%s: %w", name, ErrNotUp)
	}
	pid, ok := n.daemons()[daemon]
	if !ok {
		return fmt.Errorf("%s runs no %s at the moment", name, daemon)
	}
	p, err := identify(pid)
	if err != nil {
		return nil // it ended by itself
	}
	return p.kill()
}

// Start starts a node that was killed, on what its disk holds. On a node that runs it does nothing.
func (l *Lab) Start(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	if n.Keeper.alive() {
		return nil
	}
	// What a crash by other hands left.
	left, err := labLoops(l.NodeDir(name), nil)
	if err != nil {
		return err
	}
	if err := detach(left); err != nil {
		return err
	}
	return l.startKeeper(n)
}

// NodeStatus is how a node of the lab is.
type NodeStatus struct {
	Name    string         `json:"name"`
	Address string         `json:"address"`
	Zone    string         `json:"zone"`
	Roles   []string       `json:"roles"`
	Up      bool           `json:"up"`
	Cut     bool           `json:"cut"`
	PIDs    map[string]int `json:"pids,omitempty"` // of the daemons, as the host sees them
	Dir     string         `json:"dir"`
}

// Status looks at every node.
func (l *Lab) Status() []NodeStatus {
	var out []NodeStatus
	for _, n := range l.state.Nodes {
		out = append(out, NodeStatus{
			Name: n.Name, Address: n.Address, Zone: n.Zone, Roles: n.Roles, Up: n.Keeper.alive(),
			Cut: l.IsCut(n.Name), PIDs: n.daemons(), Dir: l.NodeDir(n.Name),
		})
	}
	return out
}

// Usage is what the daemons of a node use together.
type Usage struct {
	CPU      time.Duration // user and system time since they started
	Resident int64         // bytes of memory, pages that they share counted once each process
}

// Usage sums up the node's daemons. only limits it to some of them.
func (l *Lab) Usage(name string, only ...string) (Usage, error) {
	n, err := l.node(name)
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	for daemon, pid := range n.daemons() {
		if len(only) > 0 && !slices.Contains(only, daemon) {
			continue
		}
		f, err := statFields(pid)
		if err != nil {
			continue
		}
		user, err1 := strconv.ParseInt(f[11], 10, 64)
		sys, err2 := strconv.ParseInt(f[12], 10, 64)
		pages, err3 := strconv.ParseInt(f[21], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return Usage{}, err
		}
		const tick = time.Second / 100 // USER_HZ, the same on every Linux
		u.CPU += time.Duration(user+sys) * tick
		u.Resident += pages * int64(os.Getpagesize())
	}
	return u, nil
}
