// Package fuseloop shows a volume as a block device: a FUSE file system with one file,
// the volume, and a loop device over that file (direct I/O, sectors of 4096 bytes). It works
// on every kernel that has FUSE and loop.
//
// Requests are read from plain /dev/fuse on the volume's loop. A second descriptor
// of the same connection, kept by a process that survives, lets a successor go on when
// this process dies (Handoff, Resume): the kernel resends what was unanswered, and the
// device's users notice a pause only.
//
// Invariants: one server lives at a time for a connection; what is resent is submitted
// before anything newer; a request is answered at most once; the loop never waits for the
// file system that it serves, so everything that goes through the kernel to it
// (mounting, attaching, detaching) runs on the caller's goroutine.
//
// The package owns no goroutine but one that waits for a resizer. The loop device is attached, and made larger, by a process of its
// own, which is this program again: see attachLoop.
package fuseloop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/frontend"
)

// Config says what is shown and where.
type Config struct {
	Loop     aio.Loop        // all of the volume's I/O is on it
	Device   frontend.Device // the volume
	Name     string          // name of the volume
	MountDir string          // absolute; the volume's file is MountDir/Name/volume
	// ReadOnly makes the block device one that can't be written to. The Device refuses changes besides.
	ReadOnly bool
	Log      *slog.Logger
}

// Server shows one volume as a block device. It is a frontend.Frontend.
type Server struct {
	cfg Config
	dir string // where the file system is mounted

	mu      sync.Mutex // held while the frontend opens or ends
	session *session
	dev     loopDevice
	ended   bool
}

var _ frontend.Frontend = (*Server)(nil)

// New returns a server that isn't open yet.
func New(cfg Config) *Server {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	cfg.Log = cfg.Log.With("volume", cfg.Name)
	return &Server{cfg: cfg, dir: filepath.Join(cfg.MountDir, cfg.Name)}
}

// Open mounts the file system and attaches the loop device. What a dead process of the
// same volume left behind is taken away first.
func (s *Server) Open(ctx context.Context) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() {
		if err != nil {
			err = fmt.Errorf("volume %q: %w", s.cfg.Name, err)
			s.endLocked()
		}
	}()
	if err := sweep(s.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	fd, err := mountFUSE(s.cfg.Name, s.dir)
	if err != nil {
		return err
	}
	if err := s.serve(fd, func(*session) {}); err != nil {
		return err
	}
	select {
	case <-s.session.inited:
	case <-s.session.over:
		return errors.New("the kernel ended the FUSE connection")
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.attach(ctx)
}

// attach makes the loop device.
//
// The kernel flushes the file meanwhile, and holds the device that it makes, which is the next free one for
// everybody on this machine, until it is answered. The volume may have to wait long for a replica. So a flush at
// that time is answered at once: nothing was written yet that it could stand for.
func (s *Server) attach(ctx context.Context) (err error) {
	s.onLoop(func() { s.session.attaching = true })
	s.dev, err = attachLoop(ctx, s.cfg.Name, s.File(), s.cfg.ReadOnly)
	s.onLoop(func() { s.session.attaching = false })
	return err
}

// serve starts a session on the descriptor, which belongs to it from then on. first is
// called on the loop before the first read.
func (s *Server) serve(fd int, first func(*session)) (err error) {
	s.onLoop(func() {
		var ses *session
		if ses, err = newSession(s.cfg, fd); err != nil {
			return
		}
		s.session = ses
		first(ses)
		ses.arm()
	})
	if err != nil {
		unix.Close(fd)
	}
	return err
}

// onLoop runs fn on the loop and waits for it.
func (s *Server) onLoop(fn func()) {
	done := make(chan struct{})
	s.cfg.Loop.Post(func() { fn(); close(done) })
	<-done
}

// Path is the block device.
func (s *Server) Path() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dev.Backing == "" {
		return ""
	}
	return s.dev.path()
}

// InUse returns a *frontend.BusyError if the block device is mounted, held by another
// device, or open in a process.
func (s *Server) InUse() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, err := s.inUseLocked()
	return err
}

func (s *Server) inUseLocked() (brief bool, err error) {
	if s.ended || !s.dev.attached() {
		return false, nil
	}
	by, brief := s.dev.user()
	if by == "" {
		return false, nil
	}
	return brief, &frontend.BusyError{Volume: s.cfg.Name, Path: s.dev.path(), By: by}
}

// Detach ends the block device, the file system and the server, in this order, unless
// somebody uses the device.
func (s *Server) Detach() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	for end := time.Now().Add(settleTime); ; time.Sleep(pollTime) {
		brief, err := s.inUseLocked()
		if err == nil {
			break
		}
		if !brief || time.Now().After(end) {
			return err
		}
	}
	if err := s.dev.detach(s.cfg.Name); err != nil {
		return err
	}
	return s.endLocked()
}

// Close ends the block device whoever uses it. Its users get I/O errors, at once.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	return s.endLocked()
}

// endLocked takes everything away. The connection is aborted first, so that nothing that
// follows waits for an answer.
func (s *Server) endLocked() error {
	s.ended = true
	err := abortConnection(s.dir)
	s.dev.drop() // before the mount goes: its backing file has a name until then
	err = errors.Join(err, detachMount(s.dir))
	if s.session != nil {
		s.onLoop(s.session.stop)
		<-s.session.over
	}
	if rmErr := os.Remove(s.dir); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	return err
}

// sweep takes away what a dead process left of one volume: nobody serves it any more.
func sweep(dir string) error {
	err := abortConnection(dir)
	for _, d := range loopsBelow(dir) {
		d.drop()
	}
	return errors.Join(err, detachMount(dir))
}

// File is the volume as a file: what the loop device reads and writes.
func (s *Server) File() string { return filepath.Join(s.dir, fileName) }
