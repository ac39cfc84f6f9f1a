package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// Supervise runs the node: the children, in order, with the arguments that this process was given, until ctx
// ends. SIGHUP has this process replaced by the binary that is at its path now, and then its children by new ones, one
// after another; devices wait for a moment.
func Supervise(ctx context.Context, cfg Config, args []string) error {
	log := cfg.Logger("server")
	if st, err := ReadState(cfg.DataDir); err == nil {
		cfg.called(st)
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	h, err := takeHandover()
	if err != nil {
		log.Error("what the supervisor before this one left is lost; its children end, and the holder has their descriptors", "err", err)
		h = handover{keepers: map[string]*fdstore.Keeper{}}
	}
	unlock, err := lockProcess(ctx, cfg, "server")
	if err != nil {
		return err
	}
	defer unlock()
	if err := machine.enter(cfg); err != nil {
		log.Warn("this process stays in its control group", "err", err)
	}
	defer machine.leave(cfg)
	defer settleLater(log)()
	hold := newHolding(cfg, binary, args, log)
	defer hold.close()
	keepers := hold.open(ctx, h.keepers)
	for {
		upgrade, err := superviseOnce(ctx, cfg, SupervisorConfig{
			Binary: binary, Children: cfg.children(args), Log: log, Keepers: keepers, Left: h.left, Succeeded: inPod(),
		}, h.upgrade, hup, &h.left)
		if upgrade == nil {
			// Whoever stops a node wants its devices gone, and not to wait for ever. A node that a person has to mend keeps
			// those that it has, and so does one whose pod is replaced.
			if err == nil && !inPod() || keepsNothing(keepers) {
				hold.end()
			}
			for _, k := range keepers {
				k.Close()
			}
			return err
		}
		log.Info("replacing this process by the binary at its path", "binary", binary)
		err = replaceSelf(binary, handover{keepers: keepers, left: h.left, upgrade: upgrade})
		log.Error("the binary at this process's path can't be started; going on as before", "binary", binary, "err", err)
		upgrade.undo(cfg, binary, fmt.Errorf("start %s: %w", binary, err), log)
		h.upgrade = nil
	}
}

func keepsNothing(keepers map[string]*fdstore.Keeper) bool {
	for _, k := range keepers {
		if k.Len() > 0 {
			return false
		}
	}
	return true
}

// superviseOnce runs the children until ctx ends, or until this process is to be replaced: then they are in left, and upgrade
// says how to go on.
func superviseOnce(ctx context.Context, cfg Config, sc SupervisorConfig, begun *upgrade, hup <-chan os.Signal, left *map[string]Left) (*upgrade, error) {
	run, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := make(chan *upgrade, 1)
	leave := func(u *upgrade) {
		select {
		case next <- u:
			cancel(errLeave)
		default:
		}
	}
	if begun != nil {
		sc.Renewed = func(err error) {
			if u := begun.renewed(cfg, sc.Binary, err, sc.Log); u != nil {
				leave(u)
			}
		}
	}
	go func() {
		select {
		case <-hup:
			leave(askedUpgrade(cfg, sc.Log))
		case <-run.Done():
		}
	}()
	s := NewSupervisor(sc)
	err := s.Run(run)
	if err == nil && ctx.Err() == nil && errors.Is(context.Cause(run), errLeave) {
		*left = s.Left()
		return <-next, nil
	}
	return nil, err
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
		// A shard keeps its processor, in Go's sense, while it does I/O: everything else needs others.
		procs := fmt.Sprintf("GOMAXPROCS=%d", runtime.NumCPU()+c.Engine.Shards)
		cs = append(cs, child("engine", 10*time.Second, 30*time.Second, "GOMEMLIMIT=256MiB", "GOGC=50", procs))
	}
	return append(cs, child("control", 10*time.Second, 10*time.Second, "GOMEMLIMIT=64MiB", "GOGC=50", "GOMAXPROCS=2"))
}

// errSuccessor and errOrphaned, as the cause of the end of a child's context, say that a successor of it is started at once, and
// that its supervisor died, and another one will start a successor.
var (
	errSuccessor = errors.New("a successor is started")
	errOrphaned  = errors.New("the supervisor is gone")
)

// RunChild runs one of the Run functions as the child of that name: with its line to the supervisor, if there is one,
// and until ctx ends or the supervisor is gone. Only one process of a name runs on a data directory at a time: after a
// supervisor's death the children of the next one wait until the old ones have ended.
func RunChild(ctx context.Context, cfg Config, name string, run func(context.Context, Config, *fdstore.Line) error) error {
	line, err := fdstore.Inherited()
	if err != nil {
		return err
	}
	defer line.Close()
	succeed := make(chan os.Signal, 1)
	signal.Notify(succeed, successorSignal)
	defer signal.Stop(succeed)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-line.Gone():
			cancel(errOrphaned)
		case <-succeed:
			cancel(errSuccessor)
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

// sayReady tells the supervisor that this process serves. A supervisor that is gone is no failure of this process: nil is returned
// once ctx has ended for that reason, so that whoever cleans up knows it.
func sayReady(ctx context.Context, line *fdstore.Line) error {
	err := line.Ready()
	if errors.Is(err, fdstore.ErrGone) {
		<-ctx.Done()
		return nil
	}
	return err
}

// lockRetry is how often it is looked whether the process before has ended.
const lockRetry = 20 * time.Millisecond

// lockProcess waits until no other process of that name runs on the data directory; not for a process of another node.
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
			// Whose it is, for people and for `keelson server upgrade`.
			_ = f.Truncate(0)
			_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		if !said {
			if st, err := ReadState(cfg.DataDir); err == nil {
				if err := cfg.checkState(st); err != nil {
					f.Close()
					return nil, err
				}
			}
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
func RunPrepare(ctx context.Context, cfg Config, _ *fdstore.Line) error {
	if err := machine.check(cfg); err != nil {
		return err
	}
	return Prepare(ctx, cfg)
}
