// Package frontend holds what the ways to show a volume to a host have in common:
// the Device that they submit requests to, the Frontend that they are, and the rules
// for requests that make no sense.
//
// frontend/fuseloop is a FUSE file with a loop device over it, frontend/nbd an NBD
// server on a unix socket, and frontend/frontendtest the suite that both must pass.
//
// This package does no I/O and owns no goroutine.
package frontend

import (
	"errors"
	"fmt"
	"syscall"

	"keelson.io/keelson/internal/block"
)

// Device is a volume as a frontend uses it. Its methods are called on the loop that the
// frontend was made with.
type Device interface {
	// Size is the size in bytes, a multiple of block.Size.
	Size() int64
	// Submit starts the request. Its Done is called exactly once, later, on the same
	// loop, also when the volume can't be served any more.
	Submit(*block.Request)
}

// Sated is a Device that holds requests back, and can have enough of them: while Full reports true, a frontend that can takes
// no further request in, as the memory of those that wait is needed by the other volumes of the loop. It looks again soon.
type Sated interface {
	Full() bool
}

// Full reports whether a device has enough requests for now.
func Full(d Device) bool {
	s, ok := d.(Sated)
	return ok && s.Full()
}

// Frontend is a way to show one volume to a host. Its methods block and are called on any
// goroutine but the loop's, while the loop runs.
type Frontend interface {
	// Path is what a client of the volume opens: a block device, or an NBD URI. Valid
	// after Open.
	Path() string
	// InUse returns nil if nobody uses the volume through this frontend, otherwise a
	// *BusyError that says who does.
	InUse() error
	// Detach ends the frontend if it isn't in use; otherwise it changes nothing and returns
	// a *BusyError. Requests in flight are answered first.
	Detach() error
	// Close ends the frontend whoever uses it: requests of clients fail from then on. It
	// waits until the device has answered what was submitted to it. Close after Close or
	// Detach does nothing.
	Close() error
}

// ErrBusy is the class of every *BusyError.
var ErrBusy = errors.New("volume is in use")

// BusyError says that a frontend can't be detached because somebody uses it.
type BusyError struct {
	Volume string
	Path   string // the device or socket
	By     string // who uses it, in words: "mounted on /mnt/a", "2 NBD connections"
}

// Error says what keeps the volume busy and what to do.
func (e *BusyError) Error() string {
	return fmt.Sprintf("volume %q is in use: %s: %s; stop using it before detaching", e.Volume, e.Path, e.By)
}

// Is makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// Check returns 0 if a device of size bytes can be asked for op on [off, off+n), otherwise
// the errno of the answer: EINVAL for what isn't in whole blocks, ENOSPC for what
// would write past the end, EINVAL for anything else that lies outside.
func Check(op block.Op, off, n, size int64) syscall.Errno {
	if op == block.OpFlush {
		return 0
	}
	if off < 0 || n < 0 || off%block.Size != 0 || n%block.Size != 0 {
		return syscall.EINVAL
	}
	if off > size || n > size-off {
		if op == block.OpWrite || op == block.OpZero {
			return syscall.ENOSPC
		}
		return syscall.EINVAL
	}
	return 0
}

// Errno returns the errno for an answer: what the error is or wraps, or EIO.
func Errno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	if errors.As(err, &e) && e != 0 {
		return e
	}
	return syscall.EIO
}
