package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"keelson.io/keelson/internal/server/fdstore"
)

// steady is how long a child must live that became ready, for its death not to count as one of a child that can't run.
const steady = 250 * time.Millisecond

// successorSignal asks a child to end for its successor, which is started at once: SIGTERM that keeps the node's lease.
const successorSignal = syscall.SIGUSR1

// runner runs one child through all its lives. Its goroutine is run.
type runner struct {
	child    Child
	cfg      SupervisorConfig
	log      *slog.Logger
	keeper   *fdstore.Keeper
	begun    bool            // run was started
	ready    chan struct{}   // closed when it was ready for the first time, or, with Once, is done
	replacec chan chan error // asks for a new process; answered when that is ready, or has ended
	stopc    chan struct{}   // closed to stop it
	gone     chan struct{}   // closed when it is gone for good, or left

	// leaving is written before stopc is closed.
	leaving bool
	// left is the child that is to be adopted, until run takes it; and the one left, once gone is closed.
	left Left
	// trial is the answer that the present life owes. It is run's.
	trial chan error
}

func newRunner(c Child, cfg SupervisorConfig) *runner {
	return &runner{
		child: c, cfg: cfg, log: cfg.Log.With("child", c.Name), keeper: cfg.Keepers[c.Name], left: cfg.Left[c.Name],
		ready: make(chan struct{}), replacec: make(chan chan error), stopc: make(chan struct{}), gone: make(chan struct{}),
	}
}

func (r *runner) begin(failed chan<- error) {
	r.begun = true
	go r.run(failed)
}

func (r *runner) run(failed chan<- error) {
	defer close(r.gone)
	backoff := time.Duration(0)
	for {
		began := time.Now()
		replace, ready, err := r.live()
		lived := time.Since(began)
		if r.stopping() {
			return
		}
		if r.child.Once && err == nil {
			r.markReady()
			<-r.stopc
			return
		}
		onTrial := r.trial != nil && !ready
		if onTrial {
			r.trial <- fmt.Errorf("the new process ended before it was ready: %s", reason(err))
		}
		r.trial = nil
		if replace != nil {
			r.trial, backoff = replace, 0
			continue
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == ExitPermanent {
			if !onTrial {
				failed <- permanent(fmt.Errorf("%s gave up; what it said is what has to be mended", r.child.Name))
			}
			return
		}
		switch {
		case lived > r.cfg.BackoffMax || ready && lived > steady:
			backoff = 0
		case ready: // it can run: whatever ended it, devices wait for it
			backoff = min(backoff, r.cfg.BackoffMin)
		}
		r.log.Warn("child ended; starting it again", "reason", reason(err), "lived", lived.Round(time.Millisecond), "pause", backoff)
		select {
		case <-r.stopc:
			return
		case r.trial = <-r.replacec:
		case <-time.After(backoff):
		}
		backoff = min(max(2*backoff, r.cfg.BackoffMin), r.cfg.BackoffMax)
	}
}

// process starts the child, or takes the one that was left.
func (r *runner) process() (p *os.Process, conn *net.UnixConn, exited <-chan error, err error) {
	if l := r.left; l.PID != 0 {
		r.left = Left{}
		defer l.Line.Close()
		if conn, err = adoptLine(l.Line); err != nil {
			return nil, nil, nil, err
		}
		if p, err = os.FindProcess(l.PID); err != nil {
			conn.Close()
			return nil, nil, nil, err
		}
		r.log.Info("child goes on", "pid", l.PID)
		r.markReady()
		if l.exited != nil {
			return p, conn, l.exited, nil
		}
		return p, conn, wait(p), nil
	}
	conn, theirs, err := fdstore.Pair()
	if err != nil {
		return nil, nil, nil, err
	}
	defer theirs.Close()
	cmd := exec.Command(r.cfg.Binary, r.child.Args...)
	cmd.Env = append(append(os.Environ(), r.child.Env...), fdstore.EnvFD+"=3")
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	// A group of its own, so that an interrupt from the terminal doesn't reach all at once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		conn.Close()
		return nil, nil, nil, err
	}
	r.log.Info("child started", "pid", cmd.Process.Pid)
	return cmd.Process, conn, wait(cmd.Process), nil
}

// wait collects a process, and tells how it ended.
func wait(p *os.Process) <-chan error {
	exited := make(chan error, 1)
	go func() {
		st, err := p.Wait()
		if err == nil && !st.Success() {
			err = &exec.ExitError{ProcessState: st}
		}
		exited <- err
	}()
	return exited
}

// live runs one life of the child: it returns when the process is gone and everything that it
// sent was taken in, or when it is left. replace is who asked for its end.
func (r *runner) live() (replace chan error, ready bool, err error) {
	p, conn, exited, err := r.process()
	if err != nil {
		return nil, false, err
	}
	trial := r.trial
	served, isReady := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(served)
		err := r.keeper.Serve(conn, func() {
			r.markReady()
			select {
			case <-isReady:
			default:
				close(isReady)
			}
			select {
			case trial <- nil: // nobody is there if it is nil, or was told already
			default:
			}
		})
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			r.log.Warn("line to the child broke", "err", err)
		}
	}()
	select {
	case err = <-exited:
	case replace = <-r.replacec:
		err = r.end(p, successorSignal, exited)
	case <-r.stopc:
		if r.leaving && r.leave(p, conn, exited) {
			<-served
			return nil, false, nil
		}
		sig := syscall.SIGTERM
		if r.cfg.Succeeded {
			sig = successorSignal
		}
		err = r.end(p, sig, exited)
	}
	<-served
	select {
	case <-isReady:
		ready = true
	default:
	}
	return replace, ready, err
}

// leave has the line answer no more, with nothing asked left unanswered, and keeps it open for the next supervisor.
func (r *runner) leave(p *os.Process, conn *net.UnixConn, exited <-chan error) bool {
	f, err := conn.File()
	if err == nil {
		err = conn.SetReadDeadline(time.Unix(1, 0))
	}
	if err != nil {
		r.log.Error("child can't be left to the next supervisor; it is stopped", "err", err)
		return false
	}
	r.left = Left{PID: p.Pid, Line: f, exited: exited}
	return true
}

// end asks the process to end, and makes it.
func (r *runner) end(p *os.Process, sig os.Signal, exited <-chan error) error {
	_ = p.Signal(sig)
	t := time.NewTimer(r.child.StopWithin)
	defer t.Stop()
	select {
	case err := <-exited:
		r.log.Info("child stopped", "how", reason(err))
		return err
	case <-t.C:
		r.log.Warn("child didn't stop in time; killing it", "waited", r.child.StopWithin)
		_ = p.Kill()
		return <-exited
	}
}

// renewalWithin is how long a new process has to become ready, from when the old one was asked to end.
const renewalWithin = 20 * time.Second

// replace ends the child's process and returns when the next one is ready.
func (r *runner) replace(ctx context.Context) error {
	late := time.NewTimer(renewalWithin + r.child.StopWithin)
	defer late.Stop()
	done := make(chan error, 1)
	select {
	case r.replacec <- done:
	case <-r.gone:
		return errors.New("it is gone")
	case <-late.C:
		return errors.New("it can't be ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-done:
		return err
	case <-late.C:
		return fmt.Errorf("the new process isn't ready %v after the old one was asked to end", renewalWithin+r.child.StopWithin)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stop ends the child for good, or leaves it.
func (r *runner) stop(leave bool) {
	if !r.begun {
		return
	}
	r.leaving = leave
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
