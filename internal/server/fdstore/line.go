package fdstore

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

// EnvFD is the environment variable that tells a child the number of its inherited socket.
const EnvFD = "KEELSON_SUPERVISOR_FD"

// ErrGone is what a Line answers when the supervisor is gone.
var ErrGone = errors.New("the supervisor is gone")

// Line is the child's side. Safe for concurrent use; a nil *Line is that of a process without
// a supervisor: it keeps nothing, and never ends.
type Line struct {
	conn *net.UnixConn
	gone chan struct{}
	in   chan received
	// limit is how long an answer may take, 0 for ever. One that is late ends the line.
	limit time.Duration

	give  sync.Once
	given chan struct{} // closed when nobody wants an answer any more

	// ask has one question at a time on the line.
	ask sync.Mutex
}

type received struct {
	p   packet
	fds []int
}

// Inherited returns the line to the supervisor that started this process, nil if none
// did. It takes the descriptor, so that no further child inherits it.
func Inherited() (*Line, error) {
	v := os.Getenv(EnvFD)
	if v == "" {
		return nil, nil
	}
	os.Unsetenv(EnvFD)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return nil, fmt.Errorf("%s=%q is no descriptor", EnvFD, v)
	}
	return NewLine(fd)
}

// NewLine makes a line of the child's end of a Pair, which it takes.
func NewLine(fd int) (*Line, error) {
	conn, err := adopt(fd)
	if err != nil {
		return nil, err
	}
	return newLine(conn), nil
}

func newLine(conn *net.UnixConn) *Line {
	l := &Line{conn: conn, gone: make(chan struct{}), in: make(chan received), given: make(chan struct{})}
	go l.read()
	return l
}

func (l *Line) read() {
	defer close(l.gone)
	defer close(l.in)
	r := newReceiver(l.conn)
	for {
		p, fds, err := r.next()
		if err != nil {
			return
		}
		select {
		case l.in <- received{p, fds}:
		case <-l.given:
			CloseAll(fds)
			return
		}
	}
}

// abandon ends the line without waiting for anything.
func (l *Line) abandon() {
	l.give.Do(func() { close(l.given) })
	_ = l.conn.Close()
}

// Gone is closed when the supervisor is gone, or Close was called.
func (l *Line) Gone() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.gone
}

// Ready tells the supervisor that this process serves.
func (l *Line) Ready() error {
	_, err := l.call(packet{Op: opReady}, nil)
	return err
}

// Put gives the supervisor copies of descriptors to keep under a name, with a state that
// tells the successor what they are. It replaces what was there. The caller's own
// descriptors stay its own.
func (l *Line) Put(name string, state []byte, fds []int) error {
	if len(state) > MaxState || len(fds) > MaxFDs || len(name) > maxName {
		return fmt.Errorf("%q: %d descriptors, %d bytes: %w", name, len(fds), len(state), ErrTooLarge)
	}
	_, err := l.call(packet{Op: opPut, Name: name, State: state}, fds)
	return err
}

// Remove has the supervisor forget an entry and close its copies.
func (l *Line) Remove(name string) error {
	_, err := l.call(packet{Op: opRemove, Name: name}, nil)
	return err
}

// Restore returns what the predecessors stored, by name. The descriptors are the caller's.
func (l *Line) Restore() ([]Entry, error) {
	return l.call(packet{Op: opRestore}, nil)
}

// call asks, and gathers entries until the end of the answer.
func (l *Line) call(p packet, fds []int) ([]Entry, error) {
	if l == nil {
		return nil, nil
	}
	l.ask.Lock()
	defer l.ask.Unlock()
	if err := send(l.conn, p, fds); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p.Op, ErrGone, err)
	}
	var late <-chan time.Time
	if l.limit > 0 {
		t := time.NewTimer(l.limit)
		defer t.Stop()
		late = t.C
	}
	var es []Entry
	for {
		var r received
		ok := true
		select {
		case r, ok = <-l.in:
		case <-late:
			l.abandon()
			ok = false
		}
		if !ok {
			break
		}
		if r.p.Op != opEntry {
			CloseAll(r.fds) // none belong there
		}
		switch r.p.Op {
		case opEntry:
			es = append(es, Entry{Name: r.p.Name, State: r.p.State, FDs: r.fds})
		case opDone:
			return es, nil
		default:
			for _, e := range es {
				CloseAll(e.FDs)
			}
			return nil, fmt.Errorf("%s refused: %s", p.Op, r.p.Error)
		}
	}
	for _, e := range es {
		CloseAll(e.FDs)
	}
	return nil, fmt.Errorf("%s: %w", p.Op, ErrGone)
}

// Close ends the line; the supervisor takes it as this process's end.
func (l *Line) Close() error {
	if l == nil {
		return nil
	}
	l.give.Do(func() { close(l.given) })
	err := l.conn.Close()
	<-l.gone
	return err
}
