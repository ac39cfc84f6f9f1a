package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"syscall"
	"time"

	"keelson.io/keelson/internal/server/fdstore"
)

// ExitPermanent is the exit code of a child that can't succeed by being started again: the
// supervisor ends too. (It is EX_CONFIG of sysexits.h.)
const ExitPermanent = 78

// ErrPermanent is the class of errors that starting again can't mend.
var ErrPermanent = errors.New("starting again can't mend it")

// permanentError is an error of that class that says only what it is.
type permanentError struct{ error }

func (e permanentError) Unwrap() error        { return e.error }
func (e permanentError) Is(target error) bool { return target == ErrPermanent }

func permanent(err error) error { return permanentError{err} }

// Child is one process that the supervisor runs.
type Child struct {
	Name string
	Args []string
	Env  []string // added to the supervisor's own
	// Once is for a child that does its work and ends with 0 before the next one starts.
	Once bool
	// ReadyWithin is how long the next child waits for this one to say that it is
	// ready. Then it is started all the same: what is up says best what is missing.
	ReadyWithin time.Duration
	// StopWithin is how long it has to end after SIGTERM.
	StopWithin time.Duration
}

// SupervisorConfig is what a Supervisor needs.
type SupervisorConfig struct {
	Binary   string // the executable of all children
	Children []Child
	Log      *slog.Logger
	// BackoffMin and BackoffMax bound the pause before a child that died early is started
	// again. One that lived for longer than BackoffMax is started at once.
	BackoffMin, BackoffMax time.Duration
	// Keepers keep the children's descriptors, by the child's name. They are the caller's, and outlive Run.
	Keepers map[string]*fdstore.Keeper
}

// Supervisor starts children in order, restarts them, and stops them in reverse.
type Supervisor struct {
	cfg     SupervisorConfig
	runners []*runner
}

// NewSupervisor returns a supervisor; Run runs it.
func NewSupervisor(cfg SupervisorConfig) *Supervisor {
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin = 100 * time.Millisecond
	}
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = 10 * time.Second
	}
	if cfg.Keepers == nil {
		cfg.Keepers = map[string]*fdstore.Keeper{}
	}
	for _, c := range cfg.Children {
		if cfg.Keepers[c.Name] == nil {
			cfg.Keepers[c.Name] = fdstore.NewKeeper()
		}
	}
	return &Supervisor{cfg: cfg}
}

// Run blocks until ctx ends and all children are gone, or until one ends with ExitPermanent.
func (s *Supervisor) Run(ctx context.Context) error {
	failed := make(chan error, len(s.cfg.Children))
	err := s.start(ctx, failed)
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	for i := len(s.runners) - 1; i >= 0; i-- {
		s.runners[i].stop()
	}
	return err
}

func (s *Supervisor) start(ctx context.Context, failed chan error) error {
	for _, c := range s.cfg.Children {
		r := newRunner(c, s.cfg)
		s.runners = append(s.runners, r)
		go r.run(failed)
		var late <-chan time.Time
		if !c.Once {
			t := time.NewTimer(c.ReadyWithin)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-r.ready:
		case <-late:
			s.cfg.Log.Warn("child not ready yet; going on without it", "child", c.Name, "waited", c.ReadyWithin)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// runner runs one child through all its lives. Its goroutine is run.
type runner struct {
	child  Child
	cfg    SupervisorConfig
	log    *slog.Logger
	keeper *fdstore.Keeper
	ready  chan struct{} // closed when it was ready for the first time, or, with Once, is done
	stopc  chan struct{} // closed to stop it
	gone   chan struct{} // closed when it is gone for good
}

func newRunner(c Child, cfg SupervisorConfig) *runner {
	return &runner{
		child: c, cfg: cfg, log: cfg.Log.With("child", c.Name), keeper: cfg.Keepers[c.Name],
		ready: make(chan struct{}), stopc: make(chan struct{}), gone: make(chan struct{}),
	}
}

func (r *runner) run(failed chan<- error) {
	defer close(r.gone)
	backoff := time.Duration(0)
	for {
		began := time.Now()
		err := r.live()
		lived := time.Since(began)
		if r.stopping() {
			return
		}
		if r.child.Once && err == nil {
			r.markReady()
			<-r.stopc
			return
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == ExitPermanent {
			failed <- permanent(fmt.Errorf("%s gave up; what it said is what has to be mended", r.child.Name))
			return
		}
		if lived > r.cfg.BackoffMax {
			backoff = 0
		}
		r.log.Warn("child ended; starting it again", "reason", reason(err), "lived", lived.Round(time.Millisecond), "pause", backoff)
		select {
		case <-r.stopc:
			return
		case <-time.After(backoff):
		}
		backoff = min(max(2*backoff, r.cfg.BackoffMin), r.cfg.BackoffMax)
	}
}

// live runs one life of the child: it returns when the process is gone and everything that it
// sent was taken in.
func (r *runner) live() error {
	conn, theirs, err := fdstore.Pair()
	if err != nil {
		return err
	}
	cmd := exec.Command(r.cfg.Binary, r.child.Args...)
	cmd.Env = append(append(os.Environ(), r.child.Env...), fdstore.EnvFD+"=3")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// A group of its own, so that an interrupt from the terminal doesn't reach all at once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		conn.Close()
		return err
	}
	r.log.Info("child started", "pid", cmd.Process.Pid)
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := r.keeper.Serve(conn, r.markReady); err != nil {
			r.log.Warn("line to the child broke", "err", err)
		}
	}()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err = <-exited:
	case <-r.stopc:
		err = r.end(cmd, exited)
	}
	<-served
	return err
}

// end asks the process to end, and makes it.
func (r *runner) end(cmd *exec.Cmd, exited <-chan error) error {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	t := time.NewTimer(r.child.StopWithin)
	defer t.Stop()
	select {
	case err := <-exited:
		r.log.Info("child stopped", "how", reason(err))
		return err
	case <-t.C:
		r.log.Warn("child didn't stop in time; killing it", "waited", r.child.StopWithin)
		_ = cmd.Process.Kill()
		return <-exited
	}
}

func (r *runner) stop() {
	close(r.stopc)
	<-r.gone
}

func (r *runner) stopping() bool {
	select {
	case <-r.stopc:
		return true
	default:
		return false
	}
}

// markReady is called by one goroutine at a time: that of the child's present life.
func (r *runner) markReady() {
	select {
	case <-r.ready:
	default:
		close(r.ready)
		r.log.Info("child ready")
	}
}

// reason words how a process ended.
func reason(err error) string {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "it ended by itself"
	case errors.As(err, &exit):
		return exit.ProcessState.String()
	default:
		return err.Error()
	}
}
