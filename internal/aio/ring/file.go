package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

// fileSystem is aio.FS on the operating system's.
type fileSystem struct{ l *Loop }

// OpenFile implements aio.FS.
func (f fileSystem) OpenFile(name string, flag int) (aio.File, error) {
	flag = flag&(os.O_CREATE|os.O_EXCL|os.O_TRUNC) | unix.O_RDWR | unix.O_CLOEXEC
	fd, err := open(name, flag|unix.O_DIRECT)
	if errors.Is(err, unix.EINVAL) {
		// The file system knows no direct I/O. The attempt may have made the file.
		fd, err = open(name, flag&^os.O_EXCL)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &file{l: f.l, fd: int32(fd), name: name}, nil
}

func open(name string, flag int) (int, error) {
	for {
		fd, err := unix.Open(name, flag, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// MkdirAll implements aio.FS.
func (fileSystem) MkdirAll(name string) error { return os.MkdirAll(name, 0o700) }

// RemoveAll implements aio.FS.
func (fileSystem) RemoveAll(name string) error { return os.RemoveAll(name) }

// Rename implements aio.FS.
func (fileSystem) Rename(from, to string) error { return os.Rename(from, to) }

// ReadDir implements aio.FS. The names are sorted.
func (fileSystem) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, err
}

// Exists implements aio.FS.
func (fileSystem) Exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// SyncDir implements aio.FS.
func (fileSystem) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Space implements aio.FS.
func (fileSystem) Space(name string) (size, free int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(name, &st); err != nil {
		return 0, 0, &fs.PathError{Op: "statfs", Path: name, Err: err}
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// file is an aio.File.
type file struct {
	l    *Loop
	fd   int32
	name string
}

// ReadAt implements aio.File.
func (f *file) ReadAt(op *aio.Op, p []byte, off int64) { f.move(op, kindRead, p, off, 0) }

// WriteAt implements aio.File.
func (f *file) WriteAt(op *aio.Op, p []byte, off int64) { f.move(op, kindWrite, p, off, 0) }

// WriteSync implements aio.File.
func (f *file) WriteSync(op *aio.Op, p []byte, off int64) { f.move(op, kindWrite, p, off, rwfDsync) }

func (f *file) move(op *aio.Op, k kind, p []byte, off int64, flag uint32) {
	if len(p) == 0 {
		claim(op)
		f.l.refuse(op, 0, nil)
		return
	}
	i, s := f.l.start(op, k)
	s.fd, s.p, s.addr, s.n, s.off, s.flag = f.fd, p, uintptr(unsafe.Pointer(&p[0])), len(p), off, flag
	f.l.submit(i)
}

// Sync implements aio.File.
func (f *file) Sync(op *aio.Op) {
	i, s := f.l.start(op, kindSync)
	s.fd = f.fd
	f.l.submit(i)
}

// Punch implements aio.File.
func (f *file) Punch(op *aio.Op, off, n int64) { f.fallocate(op, kindPunch, off, n) }

// Zero implements aio.File.
func (f *file) Zero(op *aio.Op, off, n int64) { f.fallocate(op, kindZero, off, n) }

func (f *file) fallocate(op *aio.Op, k kind, off, n int64) {
	if n == 0 {
		claim(op)
		f.l.refuse(op, 0, nil)
		return
	}
	i, s := f.l.start(op, k)
	s.fd, s.off, s.n = f.fd, off, int(n)
	f.l.submit(i)
}

// completeFile goes on with a file's operation, or ends it.
func (l *Loop) completeFile(i int32, s *slot, res int32) {
	if res < 0 {
		errno := unix.Errno(-res)
		switch {
		case errno == unix.EINTR || errno == unix.EAGAIN:
			l.again(i)
		case s.kind == kindZero && errno == unix.EOPNOTSUPP:
			s.kind = kindZeroPunch
			l.again(i)
		default:
			l.finish(i, s.done, errno)
		}
		return
	}
	switch s.kind {
	case kindZeroPunch:
		s.kind = kindAllocate
		l.again(i)
	case kindRead, kindWrite:
		s.done += int(res)
		// A part that doesn't end on a block is the end of the file.
		if s.done < s.n && res > 0 && s.done%4096 == 0 {
			l.again(i)
			return
		}
		if s.kind == kindWrite && s.done < s.n {
			l.finish(i, s.done, unix.EIO)
			return
		}
		l.finish(i, s.done, nil)
	default:
		l.finish(i, 0, nil)
	}
}

// Truncate implements aio.File.
func (f *file) Truncate(size int64) error {
	return f.wrap("truncate", retry(func() error { return unix.Ftruncate(int(f.fd), size) }))
}

// Size implements aio.File.
func (f *file) Size() (int64, error) {
	st, err := f.stat()
	return st.Size, err
}

// Allocated implements aio.File.
func (f *file) Allocated() (int64, error) {
	st, err := f.stat()
	return st.Blocks * 512, err
}

func (f *file) stat() (st unix.Stat_t, err error) {
	err = f.wrap("stat", retry(func() error { return unix.Fstat(int(f.fd), &st) }))
	return st, err
}

// Drain implements aio.File. Punching a hole, even where there is nothing, makes XFS
// and ext4 wait for all direct I/O that is in flight on the inode.
func (f *file) Drain() error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	off := (size + 8191) &^ 4095
	err = retry(func() error {
		return unix.Fallocate(int(f.fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 4096)
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		// Without holes there is no direct I/O to wait for but what a sync awaits.
		err = retry(func() error { return unix.Fsync(int(f.fd)) })
	}
	return f.wrap("drain", err)
}

// Close implements aio.File.
func (f *file) Close() error {
	err := unix.Close(int(f.fd))
	if err == unix.EINTR {
		err = nil // Linux has closed it
	}
	return f.wrap("close", err)
}

func (f *file) wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("ring: %w", &fs.PathError{Op: op, Path: f.name, Err: err})
}

func retry(fn func() error) error {
	for {
		if err := fn(); err != unix.EINTR {
			return err
		}
	}
}
