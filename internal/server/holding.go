package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"keelson.io/keelson/internal/server/fdstore"
)

// holderSocket is where the holder of a node listens.
func (c *Config) holderSocket() string { return filepath.Join(c.RunDir, "holder.sock") }

// RunHolder is the process that keeps the descriptors of attached volumes' devices a second time, so that the death of the
// supervisor doesn't detach them. It ends with ctx, or when the supervisor is stopped in order.
func RunHolder(ctx context.Context, cfg Config) error {
	if inPod() {
		if err := machine.escape(cfg); err != nil {
			return fmt.Errorf("leave the pod's control groups: %w", err)
		}
	}
	unlock, err := lockProcess(ctx, cfg, "holder")
	if err != nil {
		return err
	}
	defer unlock()
	if err := os.MkdirAll(cfg.RunDir, 0o700); err != nil {
		return err
	}
	log := cfg.Logger("holder")
	defer settleLater(log)()
	return fdstore.Hold(ctx, cfg.holderSocket(), func() { log.Info("holding the descriptors of devices", "socket", cfg.holderSocket()) })
}

// envHolder says who runs the holder: the supervisor, as a process like others, if it isn't set; the supervisor, out of its own container, if it
// is holderHost; and otherwise somebody else: systemd, as a unit of its own, because it kills all processes of a unit together.
const (
	envHolder  = "KEELSON_HOLDER"
	holderHost = "host"
)

// How the supervisor looks for a holder: what it does besides never waits for that.
const (
	holderRetry   = 20 * time.Millisecond
	holderRestart = 2 * time.Second // before one is started that doesn't come up
	holderLook    = 5 * time.Second // how often it is seen whether it still answers
	holderFirst   = 8 * time.Second // how long the first one is waited for; more than one that has to be killed takes
	holderSilent  = 3               // so many questions without an answer, each for some time, and it is killed
)

// holding is the supervisor's side of the holder: it has one run, and connected, as long as the supervisor lives. Its
// goroutine is watch.
type holding struct {
	cfg    Config
	binary string
	args   []string
	log    *slog.Logger
	stopc  chan struct{}
	stop   sync.Once // closes stopc
	done   chan struct{}
	// starting is set while a holder that this process started runs.
	starting atomic.Bool

	mu   sync.Mutex
	line *fdstore.Line // nil while there is none
}

func newHolding(cfg Config, binary string, args []string, log *slog.Logger) *holding {
	return &holding{cfg: cfg, binary: binary, args: args, log: log, stopc: make(chan struct{}), done: make(chan struct{})}
}

// open returns the children's keepers: those handed over, or those that the holder has of a supervisor that died.
func (h *holding) open(ctx context.Context, keepers map[string]*fdstore.Keeper) map[string]*fdstore.Keeper {
	fresh := len(keepers) == 0
	for _, c := range h.cfg.children(nil) {
		if !c.Once && keepers[c.Name] == nil {
			keepers[c.Name] = fdstore.NewKeeper()
		}
	}
	first := make(chan struct{})
	go h.watch(keepers, first, fresh)
	select {
	case <-first:
	case <-ctx.Done():
	case <-time.After(holderFirst):
		h.log.Warn("no holder of descriptors comes up: if this process dies, devices of attached volumes fail")
	}
	return keepers
}

func (h *holding) watch(keepers map[string]*fdstore.Keeper, first chan struct{}, fresh bool) {
	defer close(h.done)
	for silent := 0; ; {
		line := h.connect()
		if line == nil {
			return
		}
		if err := h.restore(line, keepers, first != nil && fresh); err != nil {
			_ = line.Close()
			silent++
			h.unanswered(silent, err)
			continue
		}
		silent = 0
		for name, k := range keepers {
			k.Mirror(line, name+"/")
		}
		h.mu.Lock()
		h.line = line
		h.mu.Unlock()
		h.log.Info("the holder has the descriptors", "devices", len(keepers["engine"].Entries()))
		if first != nil {
			close(first)
			first = nil
		}
		if !h.attend(line) {
			return
		}
		h.mu.Lock()
		h.line = nil
		h.mu.Unlock()
	}
}

// attend returns when the holder is gone, or doesn't answer; false when this ends.
func (h *holding) attend(line *fdstore.Line) bool {
	look := time.NewTicker(holderLook)
	defer look.Stop()
	for {
		select {
		case <-line.Gone():
			h.log.Warn("the line to the holder of descriptors is gone; looking for a holder")
			return true
		case <-h.stopc:
			return false
		case <-look.C:
			_ = line.Ready() // without an answer the line ends
		}
	}
}

// restore takes from the holder what no keeper has: with fresh, that is what a supervisor had that died; otherwise it was
// removed while the holder didn't listen.
func (h *holding) restore(line *fdstore.Line, keepers map[string]*fdstore.Keeper, fresh bool) error {
	entries, err := line.Restore()
	if err != nil {
		return err
	}
	for _, e := range entries {
		child, name, _ := strings.Cut(e.Name, "/")
		k := keepers[child]
		if k == nil || k.Has(name) || !fresh {
			fdstore.CloseAll(e.FDs)
			if err := line.Remove(e.Name); err != nil {
				h.log.Error("what the holder keeps can't be removed", "err", err)
			}
			continue
		}
		k.Keep(fdstore.Entry{Name: name, State: e.State, FDs: e.FDs})
		h.log.Info("device of an attached volume is back from the holder", "entry", name)
	}
	return nil
}

// unanswered is told how often in a row the holder didn't answer. A process that is stopped, or hangs, keeps nothing safe: it is
// killed, for another one to take its place. What only it has is lost then; but nobody could be given that either.
func (h *holding) unanswered(silent int, err error) {
	switch {
	case silent == 1:
		h.log.Warn("the holder of descriptors doesn't answer", "err", err)
	case silent%holderSilent == 0:
		pid, err := h.cfg.daemonPID("holder")
		if err == nil {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		if silent == holderSilent { // later ones would say the same each time
			h.log.Error("the holder of descriptors doesn't answer and is killed; devices survive that as long as this process lives", "pid", pid, "err", err)
		}
	}
	select {
	case <-h.stopc:
	case <-time.After(holderRetry):
	}
}

// connect returns a line to the holder, which it starts if none answers; nil when this ends.
func (h *holding) connect() *fdstore.Line {
	var tried time.Time
	for {
		line, err := fdstore.DialHolder(h.cfg.holderSocket())
		if err == nil {
			return line
		}
		if who := os.Getenv(envHolder); (who == "" || who == holderHost) && !h.starting.Load() && time.Since(tried) > holderRestart {
			tried = time.Now()
			if err := h.start(); err != nil {
				h.log.Error("the holder of descriptors can't be started", "err", err)
			}
		}
		select {
		case <-h.stopc:
			return nil
		case <-time.After(holderRetry):
		}
	}
}

// start starts a holder that outlives this process.
func (h *holding) start() error {
	cmd := exec.Command(h.binary, append([]string{"holder"}, h.args...)...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if inPod() {
		var err error
		if cmd, err = h.cfg.hostHolder(h.binary, h.args); err != nil {
			return err
		}
	}
	cmd.Env = append(os.Environ(), "GOMEMLIMIT=16MiB", "GOMAXPROCS=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	h.starting.Store(true)
	go func() {
		_ = cmd.Wait()
		h.starting.Store(false)
	}()
	return nil
}

// halt ends watch.
func (h *holding) halt() {
	h.stop.Do(func() { close(h.stopc) })
	<-h.done
}

// end has the holder end, with what it keeps. Nobody watches any more by then: the next thing that watch would do is to start another one.
func (h *holding) end() {
	h.halt()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.line == nil { // it was looked for at this moment
		h.line, _ = fdstore.DialHolder(h.cfg.holderSocket())
	}
	if h.line != nil {
		if err := h.line.End(); err != nil && !errors.Is(err, fdstore.ErrGone) {
			h.log.Warn("the holder of descriptors doesn't end", "err", err)
		}
	}
}

func (h *holding) close() {
	h.halt()
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.line != nil {
		_ = h.line.Close()
	}
}
