// Package nbd shows a volume as an NBD export on a unix socket: fixed newstyle
// negotiation, simple and structured replies, READ, WRITE, FLUSH, TRIM, WRITE_ZEROES, FUA,
// and several connections to one volume.
//
// A connection is a state machine on the volume's loop. It receives up to 256 KiB at a
// time and parses all the commands in it; small payloads are copied into aligned
// buffers, what is still missing of a large one is received straight into its buffer; the
// replies of one turn leave in one system call.
//
// Invariants: whatever a client sends, memory is bounded (a fixed set of buffers a
// connection, at most maxCommands commands of at most block.MaxIO each) and nothing
// panics; a command is answered at most once; a buffer isn't given back while the device
// or the kernel can still touch it.
//
// The package owns one goroutine a server: it accepts connections and ends with Close.
package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/frontend"
)

const (
	// maxConns bounds the connections to one volume; more are closed at once.
	maxConns = 16
	// negotiationTime is how long a client may take until it has chosen an export.
	negotiationTime = 10 * time.Second
	// retryTime is when a connection tries again that found the loop's memory used up
	// by others.
	retryTime = time.Millisecond
)

// Config says what is exported and where.
type Config struct {
	Loop   aio.Loop        // all of the server's I/O is on it
	Device frontend.Device // the volume
	Name   string          // name of the volume, and of the export
	Socket string          // path of the unix socket
	// ReadOnly tells clients that the device refuses changes.
	ReadOnly bool
	Log      *slog.Logger
}

// Server exports one volume. It is a frontend.Frontend.
type Server struct {
	cfg      Config
	log      *slog.Logger
	listener *net.UnixListener
	accepted chan struct{} // closed when the accepting goroutine has ended

	closeOnce sync.Once
	closed    chan struct{} // closed when the last connection has ended

	// Owned by the loop.
	conns   map[*conn]struct{}
	closing bool
	starved int // connections that wait for memory
	retry   aio.Timer
}

var _ frontend.Frontend = (*Server)(nil)

// New returns a server that isn't open yet.
func New(cfg Config) *Server {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg:      cfg,
		log:      log.With("volume", cfg.Name),
		accepted: make(chan struct{}),
		closed:   make(chan struct{}),
		conns:    map[*conn]struct{}{},
	}
}

// Open listens on the socket. A socket file that nobody listens on is replaced.
func (s *Server) Open(ctx context.Context) error {
	if err := s.removeStale(ctx); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.cfg.Socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("volume %q: listen for NBD clients: %w", s.cfg.Name, err)
	}
	if err := os.Chmod(s.cfg.Socket, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("volume %q: restrict NBD socket to root: %w", s.cfg.Name, err)
	}
	s.listener = l
	go s.accept()
	return nil
}

// removeStale removes a socket that a dead process left behind.
func (s *Server) removeStale(ctx context.Context) error {
	if _, err := os.Lstat(s.cfg.Socket); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", s.cfg.Socket)
	if err == nil {
		c.Close()
		return fmt.Errorf("volume %q: another process serves NBD on %s", s.cfg.Name, s.cfg.Socket)
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("volume %q: look at NBD socket: %w", s.cfg.Name, err)
	}
	return os.Remove(s.cfg.Socket)
}

// Path is the NBD URI of the volume.
func (s *Server) Path() string {
	abs, err := filepath.Abs(s.cfg.Socket)
	if err != nil {
		abs = s.cfg.Socket
	}
	return "nbd+unix:///" + s.cfg.Name + "?socket=" + abs
}

func (s *Server) accept() {
	defer close(s.accepted)
	for {
		uc, err := s.listener.AcceptUnix()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.log.Error("NBD server accepts no more clients", "err", err)
			}
			return
		}
		fd, err := duplicate(uc)
		uc.Close()
		if err != nil {
			s.log.Warn("NBD client refused", "err", err)
			continue
		}
		s.cfg.Loop.Post(func() { s.adopt(fd) })
	}
}

// duplicate returns a descriptor for the connection that package net doesn't know of.
func duplicate(uc *net.UnixConn) (int, error) {
	raw, err := uc.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return -1, err
	}
	for _, opt := range []int{unix.SO_SNDBUF, unix.SO_RCVBUF} {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, 1<<20) // a smaller one works too
	}
	return fd, nil
}

// adopt starts a connection. On the loop.
func (s *Server) adopt(fd int) {
	if s.closing || len(s.conns) >= maxConns {
		unix.Close(fd)
		return
	}
	c, err := newConn(s, fd)
	if err != nil {
		s.log.Warn("NBD client refused", "err", err)
		return
	}
	s.conns[c] = struct{}{}
	c.start()
}

// remove forgets a connection that has ended. On the loop.
func (s *Server) remove(c *conn) {
	delete(s.conns, c)
	if s.closing && len(s.conns) == 0 {
		close(s.closed)
	}
}

// feedStarved lets the connections that wait for memory try again. On the loop.
func (s *Server) feedStarved() {
	if s.starved == 0 {
		return
	}
	for c := range s.conns {
		if c.starving {
			c.resume()
		}
	}
}

// retryLater has feedStarved called soon. On the loop.
func (s *Server) retryLater() {
	if s.retry == nil {
		s.retry = s.cfg.Loop.NewTimer(s.feedStarved)
	}
	s.retry.Reset(retryTime)
}

// onLoop runs fn on the loop and waits for it.
func (s *Server) onLoop(fn func()) {
	done := make(chan struct{})
	s.cfg.Loop.Post(func() { fn(); close(done) })
	<-done
}

func (s *Server) busy() error {
	n := len(s.conns)
	if n == 0 || s.closing {
		return nil
	}
	by := "1 NBD connection"
	if n > 1 {
		by = fmt.Sprintf("%d NBD connections", n)
	}
	return &frontend.BusyError{Volume: s.cfg.Name, Path: s.cfg.Socket, By: by}
}

// InUse returns a *frontend.BusyError if a client is connected.
func (s *Server) InUse() (err error) {
	s.onLoop(func() { err = s.busy() })
	return err
}

// Detach closes the server, unless a client is connected.
func (s *Server) Detach() (err error) {
	s.onLoop(func() {
		if err = s.busy(); err == nil {
			s.shut()
		}
	})
	if err != nil {
		return err
	}
	return s.Close()
}

// shut ends all connections and lets none begin. On the loop.
func (s *Server) shut() {
	if s.closing {
		return
	}
	s.closing = true
	if len(s.conns) == 0 {
		close(s.closed)
	}
	for c := range s.conns {
		c.shut(net.ErrClosed)
	}
}

// Close ends all connections, waits for what the device still has to answer, and
// removes the socket.
func (s *Server) Close() error {
	s.closeOnce.Do(func() {
		if s.listener != nil {
			s.listener.Close()
			<-s.accepted
		}
		s.cfg.Loop.Post(s.shut)
	})
	<-s.closed
	return nil
}
