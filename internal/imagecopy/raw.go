package imagecopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// rawImage is a file, or a block device, that is the image byte for byte.
type rawImage struct {
	f     *os.File
	size  int64
	write bool
	block bool
}

// OpenRaw opens a file or block device for reading.
func OpenRaw(path string) (Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &rawImage{f: f}
	if err := r.measure(); err != nil {
		_ = f.Close() // it has nothing to report
		return nil, err
	}
	return r, nil
}

// CreateRaw opens a file for writing, and gives it that size. One that is there is continued; what it has stays.
func CreateRaw(path string, size int64) (Image, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	r := &rawImage{f: f, write: true}
	if err = r.measure(); err == nil && !r.block {
		err = f.Truncate(size)
		r.size = size
	}
	if err != nil {
		_ = f.Close() // the first error says it
		return nil, err
	}
	return r, nil
}

// measure finds out what the file is, and how large.
func (r *rawImage) measure() error {
	st, err := r.f.Stat()
	if err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular():
		r.size = st.Size()
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		r.block = true
		r.size, err = r.f.Seek(0, io.SeekEnd)
	default:
		err = fmt.Errorf("%s is neither a file nor a block device", r.f.Name())
	}
	return err
}

func (r *rawImage) Size() int64 { return r.size }

func (r *rawImage) ReadAt(p []byte, off int64) error { return fill(r.f, p, off) }

// Extent asks the file system where the holes are.
func (r *rawImage) Extent(off, n int64) (int64, bool, error) {
	if r.block {
		return n, false, nil
	}
	data, err := unix.Seek(int(r.f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, syscall.ENXIO):
		return n, true, nil
	case errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.EOPNOTSUPP):
		return n, false, nil
	case err != nil:
		return 0, false, err
	case data > off:
		return min(n, data-off), true, nil
	}
	hole, err := unix.Seek(int(r.f.Fd()), off, unix.SEEK_HOLE)
	if err != nil || hole <= off {
		return n, false, err
	}
	return min(n, hole-off), false, nil
}

func (r *rawImage) WriteAt(p []byte, off int64) error {
	if !r.write {
		return ErrReadOnly
	}
	_, err := r.f.WriteAt(p, off)
	return err
}

func (r *rawImage) Zero(off, n int64) error {
	if !r.write {
		return ErrReadOnly
	}
	err := unix.Fallocate(int(r.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		zeros := make([]byte, min(n, piece))
		for err = nil; n > 0 && err == nil; {
			k := min(n, piece)
			_, err = r.f.WriteAt(zeros[:k], off)
			off, n = off+k, n-k
		}
	}
	return err
}

func (r *rawImage) Flush() error { return r.f.Sync() }

func (r *rawImage) Close() error { return r.f.Close() }

// Formats of files.
const (
	FormatRaw   = "raw"
	FormatQCOW2 = "qcow2"
)

// Detect returns the format of a file: qcow2 by its magic, otherwise raw. A qcow2 image that needs other files is refused: it could name any file of
// this machine.
func Detect(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var head [104]byte
	n, err := io.ReadFull(f, head[:])
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", err
	}
	if n < 72 || string(head[:4]) != "QFI\xfb" {
		return FormatRaw, nil
	}
	return FormatQCOW2, checkQCOW2(path, head[:n])
}

// checkQCOW2 refuses images that can't be read by themselves.
func checkQCOW2(path string, head []byte) error {
	version := binary.BigEndian.Uint32(head[4:])
	switch {
	case version != 2 && version != 3:
		return fmt.Errorf("%s is a qcow2 image of version %d; versions 2 and 3 can be read", path, version)
	case binary.BigEndian.Uint64(head[8:]) != 0:
		return fmt.Errorf("%s needs a backing file; make one image of both first: qemu-img convert -O qcow2 %s NEW", path, path)
	case binary.BigEndian.Uint32(head[32:]) != 0:
		return fmt.Errorf("%s is encrypted; decrypt it first with qemu-img convert", path)
	case version == 3 && len(head) >= 80 && binary.BigEndian.Uint64(head[72:])&(1<<2) != 0:
		return fmt.Errorf("%s keeps its data in another file; make one image of both first: qemu-img convert -O qcow2 %s NEW", path, path)
	}
	return nil
}
