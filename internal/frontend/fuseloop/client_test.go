package fuseloop_test

import (
	"errors"
	"io"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/frontend/frontendtest"
)

// client uses a block device with direct I/O.
type client struct {
	f    *os.File
	fd   int
	size int64
}

var _ frontendtest.Client = (*client)(nil)

func mustDial(t *testing.T, path string) *client {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		t.Fatal(err)
	}
	return &client{f: f, fd: int(f.Fd()), size: size}
}

func (c *client) Size() int64  { return c.size }
func (c *client) Flush() error { return unix.Fsync(c.fd) }
func (c *client) Close() error { return c.f.Close() }

func (c *client) ReadAt(p []byte, off int64) error {
	return whole(p, func(p []byte, done int64) (int, error) { return unix.Pread(c.fd, p, off+done) })
}

func (c *client) WriteAt(p []byte, off int64, fua bool) error {
	flags := 0
	if fua {
		flags = unix.RWF_DSYNC
	}
	return whole(p, func(p []byte, done int64) (int, error) {
		return unix.Pwritev2(c.fd, [][]byte{p}, off+done, flags)
	})
}

// whole repeats a transfer until all of p is moved.
func whole(p []byte, move func(p []byte, done int64) (int, error)) error {
	done := 0
	for done < len(p) {
		n, err := move(p[done:], int64(done))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		done += n
	}
	return nil
}

func (c *client) Trim(off, n int64) error { return c.rangeIoctl(unix.BLKDISCARD, off, n) }
func (c *client) Zero(off, n int64) error { return c.rangeIoctl(unix.BLKZEROOUT, off, n) }

func (c *client) rangeIoctl(request uintptr, off, n int64) error {
	arg := [2]uint64{uint64(off), uint64(n)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), request, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return e
	}
	return nil
}
