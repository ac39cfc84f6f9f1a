package ring

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

// cloneStep is how much is copied at a time where the file system can't share.
const cloneStep = 1 << 20

// Clone implements aio.File, on a worker: io_uring has no operation for it.
func (f *file) Clone(op *aio.Op, src aio.File, off, n int64) {
	claim(op)
	from, ok := src.(*file)
	if !ok || n == 0 {
		var err error
		if !ok {
			err = unix.EXDEV
		}
		f.l.refuse(op, 0, err)
		return
	}
	var err error
	f.l.Work(func() { err = cloneRange(int(f.fd), int(from.fd), off, n) }, func() {
		op.Busy = false
		op.Done(0, err)
	})
}

// Settle implements aio.File, on a worker. XFS looks for shared extents whenever it is told to unshare some, and drops the
// mark of the file when it finds none.
func (f *file) Settle(op *aio.Op) {
	claim(op)
	var err error
	f.l.Work(func() {
		err = retry(func() error {
			return unix.Fallocate(int(f.fd), unix.FALLOC_FL_UNSHARE_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096)
		})
		if errors.Is(err, unix.EOPNOTSUPP) {
			err = nil // nothing is ever shared here
		}
	}, func() {
		op.Busy = false
		op.Done(0, err)
	})
}

// cloneRange shares the range, or copies it where that isn't possible. The error is nil or a unix.Errno.
func cloneRange(dst, src int, off, n int64) error {
	err := retry(func() error {
		return unix.IoctlFileCloneRange(dst, &unix.FileCloneRange{
			Src_fd: int64(src), Src_offset: uint64(off), Src_length: uint64(n), Dest_offset: uint64(off),
		})
	})
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
		return err
	}
	return copyRange(dst, src, off, n)
}

// copyRange copies the range, holes as holes.
func copyRange(dst, src int, off, n int64) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstat(src, &st) }); err != nil {
		return err
	}
	if off+n > st.Size {
		return unix.EINVAL // as if it were shared
	}
	if err := retry(func() error {
		return unix.Fallocate(dst, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	}); err != nil {
		return err
	}
	mem := make([]byte, cloneStep+4096)
	skip := -int(uintptr(unsafe.Pointer(&mem[0]))) & 4095
	for end := off + n; off < end; {
		data, err := unix.Seek(src, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return nil
		} else if err != nil {
			return err
		}
		off = max(off, data&^4095)
		buf := mem[skip:][:min(cloneStep, end-off)]
		if err := whole(func(at int) (int, error) { return unix.Pread(src, buf[at:], off+int64(at)) }, len(buf)); err != nil {
			return err
		}
		if err := whole(func(at int) (int, error) { return unix.Pwrite(dst, buf[at:], off+int64(at)) }, len(buf)); err != nil {
			return err
		}
		off += int64(len(buf))
	}
	return nil
}

// whole repeats a read or write until n bytes were moved.
func whole(move func(at int) (int, error), n int) error {
	for at := 0; at < n; {
		k, err := move(at)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case k == 0:
			return unix.EIO // the file ends early
		default:
			at += k
		}
	}
	return nil
}
