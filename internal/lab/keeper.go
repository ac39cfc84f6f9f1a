package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// readyFD is where the keeper says that its namespaces are set up.
const readyFD = 3

// How long the keeper waits before it starts a daemon again that died: not at all, but longer and longer, between these two,
// for one that didn't live for steady.
const (
	steady   = time.Second
	pauseMin = 50 * time.Millisecond
	pauseMax = time.Second
)

// nextPause is the pause after a life of that length; before is the one before that life.
func nextPause(before, lived time.Duration) time.Duration {
	if lived >= steady {
		return 0
	}
	return min(max(2*before, pauseMin), pauseMax)
}

// startKeeper starts the node's keeper in new namespaces, records it, and returns when the
// namespaces can be entered.
func (l *Lab) startKeeper(n *node) error {
	dir := l.NodeDir(n.Name)
	log, err := os.OpenFile(dir+"/keeper.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	argv := n.inNetns(l.state.Binary, "lab", "keeper", "--dir", l.state.Dir, n.Name)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir, cmd.Env = "/", withoutKeelson(os.Environ())
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
	}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		return fmt.Errorf("start the keeper of %s: %w", n.Name, err)
	}
	pid := cmd.Process.Pid
	if n.Keeper, err = identify(pid); err != nil {
		_ = cmd.Process.Kill()
		return err
	}
	go func() { _ = cmd.Wait() }() // collects it if it ends before this process does
	if err := l.save(); err != nil {
		return err
	}
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return fmt.Errorf("the keeper of %s ended at once; %s/keeper.log says why", n.Name, dir)
	}
	return nil
}

// RunKeeper is the life of a node: the first process in its PID namespace. It starts the daemon, starts
// it again when it died, collects orphans, and on SIGTERM stops the daemon and ends.
func RunKeeper(dir, name string) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("the keeper is started by `keelson lab up`, not by hand")
	}
	l, err := Load(dir)
	if err != nil {
		return err
	}
	if _, err := l.node(name); err != nil {
		return err
	}
	if err := prepareNode(dir, name); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	k := &keeper{lab: l, node: name}
	if err := k.start(); err != nil {
		return err
	}
	if _, err := os.NewFile(readyFD, "ready").Write([]byte{1}); err != nil {
		return err
	}
	exits := make(chan int)
	go k.reap(exits)
	return k.run(stop, exits)
}

// run starts the daemon whenever it died, until it is told to stop.
func (k *keeper) run(stop <-chan os.Signal, exits <-chan int) error {
	began, pause := time.Now(), time.Duration(0)
	var again <-chan time.Time
	for {
		select {
		case <-stop:
			if again == nil {
				k.stop(exits)
			}
			return nil
		case pid := <-exits:
			if pid != k.server || again != nil {
				continue
			}
			k.endOrphans()
			// The first death is no reason to wait: whatever uses a volume waits too.
			pause = nextPause(pause, time.Since(began))
			again = time.After(pause)
		case <-again:
			again, began = nil, time.Now()
			if err := k.start(); err != nil {
				return err
			}
		}
	}
}

// prepareNode makes the namespaces the node's own.
func prepareNode(dir, name string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := dropForeignMounts(dir); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	unix.CloseOnExec(readyFD)
	return nil
}

// dropForeignMounts unmounts, in this namespace, the block devices and FUSE file systems that the host has
// mounted: whoever unmounts them there must not find them still in use here.
func dropForeignMounts(dir string) error {
	all := mountsHere()
	for i := len(all) - 1; i >= 0; i-- {
		m := all[i]
		if !strings.HasPrefix(m.fsType, "fuse.") && !strings.HasPrefix(m.source, "/dev/loop") || m.point == "/" || below(dir, m.point) {
			continue
		}
		if err := unix.Unmount(m.point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmount the host's %s: %w", m.point, err)
		}
	}
	return nil
}

type keeper struct {
	lab    *Lab
	node   string
	server int // PID of the daemon
}

// start starts the daemon. It is collected by reap, so not by os/exec.
func (k *keeper) start() error {
	log, err := os.OpenFile(k.lab.NodeDir(k.node)+"/server.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	binary := k.lab.state.Binary
	pid, err := syscall.ForkExec(binary, []string{binary, "server", "--config", k.lab.configFile(k.node)}, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return fmt.Errorf("start %s server: %w", binary, err)
	}
	k.server = pid
	return nil
}

// reap collects every process of the node that ended, and tells its PID.
func (k *keeper) reap(exits chan<- int) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err == unix.ECHILD: // nothing runs at the moment
			time.Sleep(10 * time.Millisecond)
		case err == nil && pid > 0:
			if pid == k.server {
				fmt.Fprintf(os.Stderr, "%s server %d ended: %s\n", time.Now().UTC().Format(time.RFC3339), pid, describe(status))
			}
			exits <- pid
		}
	}
}

func describe(s unix.WaitStatus) string {
	if s.Signaled() {
		return s.Signal().String()
	}
	return fmt.Sprintf("exit code %d", s.ExitStatus())
}

// endOrphans kills the daemons that outlived their supervisor, as systemd ends the rest of a service. The holder is a service of its own there.
func (k *keeper) endOrphans() {
	for _, pid := range processes(func(pid int) bool { name := daemonName(pid); return name != "" && name != holder }) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// stop ends the daemon in order.
func (k *keeper) stop(exits <-chan int) {
	_ = unix.Kill(k.server, unix.SIGTERM)
	late := time.After(30 * time.Second)
	for {
		select {
		case pid := <-exits:
			if pid == k.server {
				return
			}
		case <-late:
			return
		}
	}
}
