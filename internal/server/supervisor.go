package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
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

// Left is a child that a supervisor leaves running for the one that replaces it in the same process.
type Left struct {
	PID  int
	Line *os.File // the supervisor's end
	// exited tells the child's end if somebody in this process waits for it already.
	exited <-chan error
}

// SupervisorConfig is what a Supervisor needs.
type SupervisorConfig struct {
	Binary   string // the executable of all children
	Children []Child
	Log      *slog.Logger
	// BackoffMin and BackoffMax bound the pause before a child that died early is started
	// again. One that lived for longer than BackoffMax, or was ready for a while, is started at once; one that was ready for a
	// moment only, BackoffMin later at most.
	BackoffMin, BackoffMax time.Duration
	// Keepers keep the children's descriptors, by the child's name. They are the caller's, and outlive Run.
	Keepers map[string]*fdstore.Keeper
	// Left are the children that run already, by name.
	Left map[string]Left
	// Succeeded says that another supervisor with the same children follows this one: they are stopped as for a successor.
	Succeeded bool
	// Renewed, if set, has every child replaced, one after another, once all run. It is told what came of that; after an
	// error the children are left as they are.
	Renewed func(error)
}

// errLeave, as the cause of the end of Run's context, has the children go on without this supervisor.
var errLeave = errors.New("the children are left to the next supervisor")

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
		cfg.BackoffMax = 2 * time.Second
	}
	if cfg.Keepers == nil {
		cfg.Keepers = map[string]*fdstore.Keeper{}
	}
	s := &Supervisor{}
	for _, c := range cfg.Children {
		if cfg.Keepers[c.Name] == nil {
			cfg.Keepers[c.Name] = fdstore.NewKeeper()
		}
		s.runners = append(s.runners, newRunner(c, cfg))
	}
	s.cfg = cfg
	return s
}

// Run blocks until ctx ends and all children are gone (or left, if errLeave is the cause), or until one ends
// with ExitPermanent.
func (s *Supervisor) Run(ctx context.Context) error {
	failed := make(chan error, len(s.runners))
	err := s.start(ctx, failed)
	if s.cfg.Renewed != nil && ctx.Err() == nil {
		if err == nil {
			err = s.renew(ctx)
		}
		s.cfg.Renewed(err)
		err = nil
	}
	if err == nil {
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	leave := err == nil && errors.Is(context.Cause(ctx), errLeave)
	for i := len(s.runners) - 1; i >= 0; i-- {
		s.runners[i].stop(leave)
	}
	return err
}

// Left returns, after Run, the children that it left, by name.
func (s *Supervisor) Left() map[string]Left {
	all := map[string]Left{}
	for _, r := range s.runners {
		if r.left.PID != 0 {
			all[r.child.Name] = r.left
		}
	}
	return all
}

// prepareWithin is how long a child that is to end by itself has, when children are replaced.
const prepareWithin = 30 * time.Second

func (s *Supervisor) start(ctx context.Context, failed chan error) error {
	for _, r := range s.runners {
		if r.left.PID != 0 { // it must have who answers it, whatever comes of the others
			r.begin(failed)
		}
	}
	for _, r := range s.runners {
		if r.begun {
			continue
		}
		r.begin(failed)
		var late <-chan time.Time
		within := r.child.ReadyWithin
		if r.child.Once && s.cfg.Renewed != nil {
			within = prepareWithin
		}
		if within > 0 {
			t := time.NewTimer(within)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-r.ready:
		case <-late:
			if r.child.Once {
				return fmt.Errorf("%s isn't done after %v", r.child.Name, within)
			}
			s.cfg.Log.Warn("child not ready yet; going on without it", "child", r.child.Name, "waited", within)
		case err := <-failed:
			return err
		case <-ctx.Done():
			return nil
		}
	}
	return nil
}

// renew replaces every child by a new process, in order, each when the one before is ready.
func (s *Supervisor) renew(ctx context.Context) error {
	for _, r := range s.runners {
		if r.child.Once {
			continue
		}
		if err := r.replace(ctx); err != nil {
			return fmt.Errorf("%s: %w", r.child.Name, err)
		}
	}
	return nil
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

// adoptLine makes the connection of a line that was left, whose file stays the caller's.
func adoptLine(f *os.File) (*net.UnixConn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("the line to a child is no unix socket")
	}
	return u, nil
}
