package fuseloop

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrState is the class of errors about a state that Resume can't go on from.
var ErrState = errors.New("state of a FUSE session can't be used")

// stateVersion is the version of state that this program writes. It reads no other.
const stateVersion = 1

// state is what a successor must know of a session, beside its descriptor.
type state struct {
	Version  int    `json:"version"`
	Volume   string `json:"volume"`
	Dir      string `json:"dir"`
	Size     int64  `json:"size"`
	MaxWrite int    `json:"max_write"`
	Flags    uint64 `json:"flags"`
	Loop     int    `json:"loop"`
	Backing  string `json:"backing"`
}

// Handoff is what a process that survives this one keeps, so that a successor can go on.
type Handoff struct {
	Name  string   // of the volume
	FD    *os.File // a duplicate of the session's descriptor; the receiver closes it
	State []byte   // for Resume
}

// Handoff returns what is needed to go on after this process. It may be called at any time
// after Open, and stays true until Detach or Close. As long as anybody has the
// descriptor, the kernel keeps the session and lets requests wait.
func (s *Server) Handoff() (Handoff, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || s.session == nil {
		return Handoff{}, fmt.Errorf("volume %q: %w", s.cfg.Name, os.ErrClosed)
	}
	st := state{
		Version: stateVersion, Volume: s.cfg.Name, Dir: s.dir, MaxWrite: maxWrite,
		Loop: s.dev.Number, Backing: s.dev.Backing,
	}
	fd, err := -1, error(nil)
	s.onLoop(func() {
		st.Size, st.Flags = s.cfg.Device.Size(), s.session.flags
		if s.session.stopped {
			err = os.ErrClosed
			return
		}
		fd, err = unix.FcntlInt(uintptr(s.session.num), unix.F_DUPFD_CLOEXEC, 0)
	})
	if err != nil {
		return Handoff{}, fmt.Errorf("volume %q: duplicate the FUSE descriptor: %w", s.cfg.Name, err)
	}
	b, err := json.Marshal(st)
	if err != nil {
		unix.Close(fd)
		return Handoff{}, err
	}
	return Handoff{Name: s.cfg.Name, FD: os.NewFile(uintptr(fd), "/dev/fuse"), State: b}, nil
}

// Suspend ends the server and leaves the block device as it is: its requests wait for a
// successor. What was begun is answered first. The caller, or a process that it belongs to,
// must hold the Handoff; otherwise the device fails.
func (s *Server) Suspend() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	s.ended = true
	s.onLoop(s.session.suspend)
	<-s.session.over
	return nil
}

// Resume goes on with a session whose server is gone. st and fd are from its Handoff; fd
// belongs to Resume from then on, also when it fails. No other process may serve the
// session any more. What the predecessor had not answered is submitted to the device before
// anything else; it may have been executed already.
func Resume(ctx context.Context, cfg Config, st []byte, fd int) (*Server, error) {
	s := New(cfg)
	old, err := decodeState(st)
	if err == nil {
		err = s.accepts(old)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("volume %q: %w", cfg.Name, err)
	}
	s.dir = old.Dir
	s.dev = loopDevice{Number: old.Loop, Backing: old.Backing}

	s.mu.Lock()
	defer s.mu.Unlock()
	var resent error
	err = s.serve(fd, func(ses *session) {
		ses.flags = old.Flags
		resent = ses.askAgain()
	})
	if err = errors.Join(err, resent); err != nil {
		s.ended = true
		if s.session != nil {
			s.onLoop(s.session.stop)
			<-s.session.over
		}
		return nil, fmt.Errorf("volume %q: take over the FUSE session: %w", cfg.Name, err)
	}
	if !s.dev.attached() {
		if err = s.attach(ctx); err != nil {
			s.endLocked()
			return nil, fmt.Errorf("volume %q: %w", cfg.Name, err)
		}
	}
	return s, nil
}

// Discard takes away what a dead server left on the host, by the state of its Handoff: mount
// and loop device. Whoever uses the device gets I/O errors.
func Discard(st []byte) error {
	old, err := decodeState(st)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(old.Dir) {
		return fmt.Errorf("volume %q: %w: mount point %q", old.Volume, ErrState, old.Dir)
	}
	err = sweep(old.Dir)
	if rmErr := os.Remove(old.Dir); rmErr != nil && !errors.Is(rmErr, os.ErrNotExist) {
		err = errors.Join(err, rmErr)
	}
	if err != nil {
		return fmt.Errorf("volume %q: %w", old.Volume, err)
	}
	return nil
}

func decodeState(b []byte) (state, error) {
	var st state
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&st); err != nil {
		return st, fmt.Errorf("%w: %w", ErrState, err)
	}
	if st.Version != stateVersion {
		return st, fmt.Errorf("%w: it has version %d, this program knows %d", ErrState, st.Version, stateVersion)
	}
	return st, nil
}

// accepts checks that the state is one of this volume.
func (s *Server) accepts(st state) error {
	switch {
	case st.Volume != s.cfg.Name:
		return fmt.Errorf("%w: it is of volume %q", ErrState, st.Volume)
	case !filepath.IsAbs(st.Dir):
		return fmt.Errorf("%w: mount point %q", ErrState, st.Dir)
	case st.MaxWrite > maxWrite || st.MaxWrite <= 0:
		return fmt.Errorf("%w: writes of up to %d bytes were agreed on, this program takes %d", ErrState, st.MaxWrite, maxWrite)
	case st.Size > s.cfg.Device.Size():
		return fmt.Errorf("%w: the volume had %d bytes, now it has only %d", ErrState, st.Size, s.cfg.Device.Size())
	}
	return nil
}

// askAgain has the kernel resend what was not answered. Those requests come before
// all others.
func (s *session) askAgain() error {
	putOutHeader(s.short, outHeaderLen, 0, 0)
	order.PutUint32(s.short[4:], notifyResend)
	for {
		_, err := unix.Write(s.num, s.short[:outHeaderLen])
		switch err {
		case syscall.EINTR:
			continue
		case nil:
			s.resending = true
			return nil
		case syscall.EINVAL:
			return fmt.Errorf("ask the kernel to resend requests (needs Linux 6.9): %w", err)
		}
		return fmt.Errorf("ask the kernel to resend requests: %w", err)
	}
}
