package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process names a process for good: a PID alone is used again. The zero value names none.
type process struct {
	PID   int    `json:"pid,omitempty"`
	Start uint64 `json:"start,omitempty"` // clock ticks since boot
}

// identify returns the process that has the PID now.
func identify(pid int) (process, error) {
	f, err := statFields(pid)
	if err != nil {
		return process{}, err
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return process{PID: pid, Start: start}, nil
}

// statFields returns the fields of /proc/PID/stat from the third, the state, on.
func statFields(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	// The command's name is in brackets and may hold anything.
	_, rest, ok := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	f := strings.Fields(rest)
	if !ok || len(f) < 22 {
		return nil, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	return f, nil
}

// alive says whether the process runs; one that only waits to be collected doesn't. One whose first
// thread ended, but not all of them, does.
func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	now, err := identify(p.PID)
	if err != nil || now != p {
		return false
	}
	f, err := statFields(p.PID)
	if err != nil || f[0] != "Z" && f[0] != "X" {
		return err == nil
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", p.PID))
	return err == nil && len(threads) > 1
}

// signal sends a signal to that very process, or does nothing if it is gone.
func (p process) signal(sig unix.Signal) error {
	if p.PID == 0 {
		return nil
	}
	// The descriptor holds on to whoever has the PID now; then look who that is.
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == unix.ESRCH {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer unix.Close(fd)
	if !p.alive() {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// kill kills the process and waits until it is gone.
func (p process) kill() error {
	if err := p.signal(unix.SIGKILL); err != nil {
		return err
	}
	return p.wait(30 * time.Second)
}

func (p process) wait(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for p.alive() {
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d is still there %v after it was told to end", p.PID, limit)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil
}

// processes returns the PIDs for which keep is true.
func processes(keep func(pid int) bool) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && keep(pid) {
			out = append(out, pid)
		}
	}
	return out
}

// killAll kills processes and waits until they are gone. It returns those that aren't within limit.
func killAll(procs []process, limit time.Duration) (left []process, err error) {
	var errs []error
	for _, p := range procs {
		errs = append(errs, p.signal(unix.SIGKILL))
	}
	deadline := time.Now().Add(limit)
	for _, p := range procs {
		if p.wait(time.Until(deadline)) != nil {
			left = append(left, p)
		}
	}
	return left, errors.Join(errs...)
}

// namespace returns what identifies a namespace of a process, "" if it can't be had.
func namespace(pid int, kind string) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return ""
	}
	return s
}

func commandLine(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || len(b) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
}

// members returns the PIDs of the node's processes, the keeper first.
func (n *node) members() []int {
	if !n.Keeper.alive() {
		return nil
	}
	ns := namespace(n.Keeper.PID, "pid")
	if ns == "" || ns == namespace(os.Getpid(), "pid") {
		return nil
	}
	out := []int{n.Keeper.PID}
	for _, pid := range processes(func(pid int) bool { return namespace(pid, "pid") == ns }) {
		if pid != n.Keeper.PID {
			out = append(out, pid)
		}
	}
	return out
}

// Processes of a node, as `lab kill` names them.
var daemonNames = []string{"server", "etcd", "engine", "control", holder}

// holder is the daemon that is there to outlive the others.
const holder = "holder"

// daemons returns the PIDs of the node's daemons by name.
func (n *node) daemons() map[string]int {
	out := map[string]int{}
	for _, pid := range n.members() {
		if name := daemonName(pid); name != "" {
			out[name] = pid
		}
	}
	return out
}

func daemonName(pid int) string {
	cmd := commandLine(pid)
	if len(cmd) < 2 || !strings.HasPrefix(filepath.Base(cmd[0]), "keelson") {
		return ""
	}
	for _, name := range daemonNames {
		if cmd[1] == name {
			return name
		}
	}
	return ""
}

// strays returns the processes of the lab that its record may not know: keepers, daemons with its files, and
// whatever runs in one of its network namespaces.
func strays(lab, dir string) []process {
	spaces := map[uint64]bool{}
	entries, _ := os.ReadDir(netnsDir)
	for _, e := range entries {
		var st unix.Stat_t
		if nodeOfNetns(lab, e.Name()) != "" && unix.Stat(filepath.Join(netnsDir, e.Name()), &st) == nil {
			spaces[st.Ino] = true
		}
	}
	if self := os.Getpid(); self > 0 {
		delete(spaces, netInode(self))
	}
	pids := processes(func(pid int) bool {
		cmd := commandLine(pid)
		return spaces[netInode(pid)] || isKeeper(cmd, dir) || isDaemon(cmd, dir)
	})
	var out []process
	for _, pid := range pids {
		if p, err := identify(pid); err == nil && pid != os.Getpid() {
			out = append(out, p)
		}
	}
	return out
}

// isDaemon says whether a command line is that of a daemon of the lab in dir, also one that outlived its node: a holder of descriptors,
// which is in a session of its own.
func isDaemon(cmd []string, dir string) bool {
	if len(cmd) < 2 || !below(cmd[0], dir) {
		return false
	}
	return cmd[1] == "prepare" || slices.Contains(daemonNames, cmd[1])
}

func netInode(pid int) uint64 {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil {
		return 0
	}
	return st.Ino
}

func isKeeper(cmd []string, dir string) bool {
	return len(cmd) > 4 && cmd[1] == "lab" && cmd[2] == "keeper" && cmd[3] == "--dir" && cmd[4] == dir
}
