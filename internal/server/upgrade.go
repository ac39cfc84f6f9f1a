package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// upgrade is one replacement of a node's processes, as it passes from one supervisor to the next.
type upgrade struct {
	// Previous is a copy of the binary before, "" if there is none to go back to.
	Previous string `json:"previous,omitempty"`
	// Failed is why the node goes back to it.
	Failed string `json:"failed,omitempty"`
}

// upgradeState is how far it has come: in the run directory, for `keelson server upgrade`.
type upgradeState struct {
	State    string `json:"state"` // one of the constants below
	Previous string `json:"previous,omitempty"`
	Error    string `json:"error,omitempty"`
	Version  string `json:"version,omitempty"` // of the supervisor that wrote it
}

const (
	upgradeAsked   = "asked"
	upgradeRunning = "running"
	upgradeDone    = "done"
	upgradeUndone  = "undone" // the node runs the binary before
	upgradeFailed  = "failed" // neither binary's processes come up
)

func (c *Config) upgradeFile() string { return filepath.Join(c.RunDir, "upgrade.json") }

func (c *Config) readUpgrade() (s upgradeState, err error) {
	b, err := os.ReadFile(c.upgradeFile())
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	return s, err
}

func (c *Config) writeUpgrade(s upgradeState) error {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return replaceFile(c.upgradeFile(), b, 0o600)
}

// askedUpgrade is what SIGHUP means now: an upgrade that was asked for, or only that the binary at the path is to be run.
func askedUpgrade(cfg Config, log *slog.Logger) *upgrade {
	s, err := cfg.readUpgrade()
	if err != nil || s.State != upgradeAsked {
		return &upgrade{}
	}
	u := &upgrade{Previous: s.Previous}
	u.tell(cfg, upgradeRunning, nil, log)
	return u
}

func (u *upgrade) tell(cfg Config, state string, err error, log *slog.Logger) {
	s := upgradeState{State: state, Previous: u.Previous}
	if err != nil {
		s.Error = err.Error()
	}
	if err := cfg.writeUpgrade(s); err != nil {
		log.Warn("the state of the upgrade can't be written", "err", err)
	}
}

// renewed notes what came of replacing the children. After an error it puts the binary before back, and returns how to
// go on with that.
func (u *upgrade) renewed(cfg Config, binary string, err error, log *slog.Logger) *upgrade {
	switch {
	case err == nil && u.Failed == "":
		log.Info("upgraded", "version", Version)
		u.tell(cfg, upgradeDone, nil, log)
	case err == nil:
		log.Warn("the upgrade was undone", "version", Version, "reason", u.Failed)
		u.tell(cfg, upgradeUndone, errors.New(u.Failed), log)
	case u.Failed != "" || u.Previous == "":
		log.Error("not all processes come up; trying on", "err", err)
		u.tell(cfg, upgradeFailed, err, log)
	default:
		log.Error("the new binary's processes don't come up; going back to the one before", "err", err)
		if rerr := os.Rename(u.Previous, binary); rerr != nil {
			u.tell(cfg, upgradeFailed, errors.Join(err, rerr), log)
			return nil
		}
		return &upgrade{Failed: err.Error()}
	}
	return nil
}

// undo puts the binary before back where nothing was replaced yet.
func (u *upgrade) undo(cfg Config, binary string, reason error, log *slog.Logger) {
	if u.Previous == "" {
		u.tell(cfg, upgradeFailed, reason, log)
		return
	}
	if err := os.Rename(u.Previous, binary); err != nil {
		u.tell(cfg, upgradeFailed, errors.Join(reason, err), log)
		return
	}
	u.tell(cfg, upgradeUndone, reason, log)
}

// upgradeLimit is how long an upgrade is waited for.
const upgradeLimit = 3 * time.Minute

// ErrUndone: an upgrade was given up, and the node runs the binary that it ran before.
var ErrUndone = errors.New("the node runs the binary that it ran before")

// Upgrade has the node that runs with this configuration on this machine go on with another binary, which is put in the place of
// the present one; "" is the one that is there already. It returns the version that runs then.
func Upgrade(ctx context.Context, cfg Config, binary string) (version string, err error) {
	pid, err := cfg.daemonPID("server")
	if err != nil {
		return "", err
	}
	exe := fmt.Sprintf("/proc/%d/exe", pid)
	target, err := os.Readlink(exe)
	if err != nil {
		return "", err
	}
	target = strings.TrimSuffix(target, " (deleted)")
	if binary == "" {
		binary = target
	}
	if err := checkBinary(ctx, binary, pid); err != nil {
		return "", err
	}
	previous := target + ".previous"
	if err := copyBinary(exe, previous); err != nil {
		return "", err
	}
	if !sameFile(binary, target) {
		if err := copyBinary(binary, target); err != nil {
			return "", err
		}
	}
	if err := cfg.writeUpgrade(upgradeState{State: upgradeAsked, Previous: previous}); err != nil {
		return "", err
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return "", fmt.Errorf("tell the supervisor, process %d: %w", pid, err)
	}
	return awaitUpgrade(ctx, cfg)
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return false
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func awaitUpgrade(ctx context.Context, cfg Config) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, upgradeLimit)
	defer cancel()
	for {
		s, err := cfg.readUpgrade()
		if err != nil {
			return "", err
		}
		switch s.State {
		case upgradeDone:
			return s.Version, nil
		case upgradeUndone:
			return s.Version, fmt.Errorf("%w (version %s): %s", ErrUndone, s.Version, s.Error)
		case upgradeFailed:
			return s.Version, fmt.Errorf("neither the new nor the old binary's processes all come up; see the log of keelson server: %s", s.Error)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the upgrade is still %s; it goes on; see the log of keelson server: %w", s.State, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// daemonPID is that of the daemon of that name that has the data directory.
func (c *Config) daemonPID(name string) (int, error) {
	path := filepath.Join(c.DataDir, name+".lock")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("no keelson %s runs on this data directory: %w", name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s doesn't say which process has it: is keelson %s running?", path, name)
	}
	cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmd), "\x00"+name+"\x00") && !strings.HasSuffix(string(cmd), "\x00"+name) {
		return 0, fmt.Errorf("keelson %s doesn't run on the data directory %s", name, c.DataDir)
	}
	return pid, nil
}

// checkBinary has a binary say its version, and read the configuration as the supervisor's successor will.
func checkBinary(ctx context.Context, path string, pid int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, path, "version").CombinedOutput(); err != nil {
		return fmt.Errorf("%s can't be run; nothing was changed: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return err
	}
	args := strings.Split(strings.TrimSuffix(string(cmd), "\x00"), "\x00")
	if out, err := exec.CommandContext(ctx, path, append(args[1:], "--check")...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s refuses this node's configuration; nothing was changed: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// copyBinary replaces the file at a path in one step.
func copyBinary(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	tmp := to + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err == nil {
		err = dst.Sync()
	}
	if err = errors.Join(err, dst.Close()); err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy %s to %s: %w", from, to, err), os.Remove(tmp))
	}
	return nil
}
