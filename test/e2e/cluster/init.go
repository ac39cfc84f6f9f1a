package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// boot is what a node's first process has to know.
type boot struct {
	Name     string     `json:"name"`
	Programs [][]string `json:"programs"` // the daemons, each with its arguments
	Sockets  []string   `json:"sockets"`  // each daemon's, "" if none: the next one starts when it is there
}

// own are the directories that are a node's own, on the disk.
var own = []string{"/var/lib/kubelet", "/var/lib/containerd", "/var/lib/cni", "/var/log/pods", "/var/log/containers", DataDir, "/etc/keelson"}

// Init has to be called first by a program that starts clusters: in the first process of a node it doesn't return.
func Init() {
	dir := os.Getenv(nodeMark)
	if dir == "" {
		return
	}
	if err := runNode(dir); err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(1)
	}
}

// runNode is the life of a node: its first process makes the mounts, starts the daemons, starts them again when they die, and collects orphans.
func runNode(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "boot.json"))
	if err != nil {
		return err
	}
	var cfg boot
	if err := json.Unmarshal(b, &cfg); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
		return err
	}
	if err := makeMounts(dir); err != nil {
		return err
	}
	os.Unsetenv(nodeMark)
	daemons := map[int]int{}
	for i := range cfg.Programs {
		pid, err := startDaemon(dir, cfg.Programs[i])
		if err != nil {
			return err
		}
		daemons[pid] = i
		if err := awaitSocket(cfg.Sockets[i]); err != nil {
			return err
		}
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if err != nil {
			time.Sleep(10 * time.Millisecond) // nothing runs at the moment
			continue
		}
		i, ok := daemons[pid]
		if !ok {
			continue
		}
		delete(daemons, pid)
		fmt.Fprintf(os.Stderr, "%s ended: %#x\n", cfg.Programs[i][0], uint32(status))
		time.Sleep(time.Second)
		if pid, err = startDaemon(dir, cfg.Programs[i]); err != nil {
			return err
		}
		daemons[pid] = i
	}
}

// makeMounts makes the usual paths the node's own, and shared as systemd does.
func makeMounts(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, d := range []string{"/run", "/var/lib", "/var/log", "/mnt"} {
		if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount tmpfs on %s: %w", d, err)
		}
	}
	upper, work := filepath.Join(dir, "etc"), filepath.Join(dir, "etc.work")
	if err := errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(work, 0o755), os.MkdirAll("/run/keelson", 0o755)); err != nil {
		return err
	}
	if err := unix.Mount("overlay", "/etc", "overlay", 0, "lowerdir=/etc,upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("mount an overlay on /etc: %w", err)
	}
	for _, d := range own {
		from := filepath.Join(dir, d)
		if err := errors.Join(os.MkdirAll(from, 0o755), os.MkdirAll(d, 0o755)); err != nil {
			return err
		}
		if err := unix.Mount(from, d, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", d, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make mounts shared: %w", err)
	}
	return nil
}

func startDaemon(dir string, argv []string) (int, error) {
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return 0, err
	}
	log, err := os.OpenFile(filepath.Join(dir, filepath.Base(argv[0])+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{
		Dir: "/", Env: os.Environ(), Files: []uintptr{null.Fd(), log.Fd(), log.Fd()}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return 0, fmt.Errorf("start %s: %w", path, err)
	}
	return pid, nil
}

func awaitSocket(path string) error {
	for range 600 {
		if _, err := os.Stat(path); path == "" || err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s doesn't appear", path)
}
