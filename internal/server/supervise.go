package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// Supervise runs the node: the children, in order, with the arguments that this process was given, until ctx
// ends. SIGHUP has the children stopped and this process replaced by the binary that is at its path now;
// devices wait meanwhile.
func Supervise(ctx context.Context, cfg Config, args []string) error {
	log := cfg.Logger("server")
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	keepers, err := keptBefore()
	if err != nil {
		log.Error("devices of attached volumes are lost", "err", err)
		keepers = map[string]*fdstore.Keeper{}
	}
	defer func() {
		for _, k := range keepers {
			k.Close()
		}
	}()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	var reload atomic.Bool
	go func() {
		select {
		case <-hup:
			log.Info("replacing this process by the binary at its path", "binary", binary)
			reload.Store(true)
			cancel()
		case <-run.Done():
		}
	}()
	err = NewSupervisor(SupervisorConfig{Binary: binary, Children: cfg.children(args), Log: log, Keepers: keepers}).Run(run)
	if err != nil || !reload.Load() || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("start %s: %w", binary, replaceSelf(binary, keepers))
}

// children are the processes of the node. Memory is bounded by collecting garbage earlier as it fills; a limit
// that is passed costs CPU, nothing else.
func (c *Config) children(args []string) []Child {
	child := func(name string, ready, stop time.Duration, env ...string) Child {
		return Child{Name: name, Args: append([]string{name}, args...), ReadyWithin: ready, StopWithin: stop, Env: env}
	}
	prepare := child("prepare", 0, 5*time.Second)
	prepare.Once = true
	cs := []Child{prepare}
	if c.OwnEtcd() {
		cs = append(cs, child("etcd", 15*time.Second, 10*time.Second, "GOMEMLIMIT=96MiB", "GOGC=50"))
	}
	if c.HasRole(spec.RoleStorage) {
		cs = append(cs, child("engine", 10*time.Second, 30*time.Second, "GOMEMLIMIT=256MiB"))
	}
	return append(cs, child("control", 10*time.Second, 10*time.Second, "GOMEMLIMIT=64MiB", "GOGC=50", "GOMAXPROCS=2"))
}

// RunChild runs one of the Run functions as the child of that name: with its line to the supervisor, if there is one,
// and until ctx ends or the supervisor is gone. Only one process of a name runs on a data directory at a time: after a
// supervisor's death the children of the next one wait until the old ones have ended.
func RunChild(ctx context.Context, cfg Config, name string, run func(context.Context, Config, *fdstore.Line) error) error {
	line, err := fdstore.Inherited()
	if err != nil {
		return err
	}
	defer line.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-line.Gone():
			cancel()
		case <-ctx.Done():
		}
	}()
	unlock, err := lockProcess(ctx, cfg, name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := run(ctx, cfg, line); err != nil && ctx.Err() == nil {
		return fmt.Errorf("node %s: %w", cfg.Node, err)
	}
	return nil
}

// lockRetry is how often it is looked whether the process before has ended.
const lockRetry = 20 * time.Millisecond

// lockProcess waits until no other process of that name runs on the data directory.
func lockProcess(ctx context.Context, cfg Config, name string) (unlock func(), err error) {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(cfg.DataDir, name+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	said := false
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !said {
			cfg.Logger(name).Info("another process of this name runs on the data directory; waiting for its end", "lock", f.Name())
			said = true
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(lockRetry):
		}
	}
}

// RunPrepare is the one-shot child prepare.
func RunPrepare(ctx context.Context, cfg Config, _ *fdstore.Line) error { return Prepare(ctx, cfg) }
