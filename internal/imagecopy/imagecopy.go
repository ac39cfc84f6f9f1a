// Package imagecopy copies images of disks: raw files, whatever an NBD server has, and formats that qemu-nbd reads and writes. It
// knows nothing of volumes; one that is shown over NBD is read and written as any other export.
//
// What reads as zeros isn't copied but left out, if the target is known to be empty, or made to read as zeros. A copy goes from the
// beginning to the end in steps: when a step is over, all up to there is durable on the target, and the caller is told, so that it can write
// the position down and go on from there another time.
//
// A copy owns as many goroutines as it has requests in flight, an NBD client one that reads replies, and a qemu-nbd is a child process
// that ends with its Image. All of them have ended when Copy, or Close, returns.
package imagecopy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"keelson.io/keelson/internal/block"
)

// Image is an image of a disk, open. Its methods but Close are safe for concurrent use; offsets and lengths of what is written are
// multiples of 4096, but for the end of an image that isn't one.
type Image interface {
	// Size is in bytes.
	Size() int64
	// ReadAt fills p; past the end of the image it reads zeros.
	ReadAt(p []byte, off int64) error
	// Extent returns how many bytes from off on, up to n, are alike: known to read as zeros, or not. At least 1.
	Extent(off, n int64) (length int64, zero bool, err error)
	WriteAt(p []byte, off int64) error
	// Zero makes a range read as zeros, and gives its space back if it can.
	Zero(off, n int64) error
	// Flush makes what was written durable.
	Flush() error
	Close() error
}

const (
	// piece is the largest request, and grain the smallest run of zeros within data that isn't written.
	piece = 1 << 20
	grain = 32 << 10
	// workers are requests in flight.
	workers = 8
	// A step ends at stepBytes of the image, or so many of data, or after stepTime.
	stepBytes = 64 << 30
	stepData  = 256 << 20
	stepTime  = 2 * time.Second
)

// Options say how an image is copied.
type Options struct {
	// From is where to begin: a position that Step was told.
	From int64
	// Empty says that the target reads as zeros from From on, but where an earlier copy of the same source wrote.
	Empty bool
	// Progress is told, often, how far the copy is, and how much of it was data that had to be written. It may be nil.
	Progress func(position, data int64)
	// Step is told of each step that is durable. An error ends the copy. It may be nil.
	Step func(position int64) error

	stepData int64 // how much data a step has at the most; 0 is stepData
}

// Result is what was done.
type Result struct {
	Data int64 // bytes that were written
}

// Copy copies source to target, which is at least as large.
func Copy(ctx context.Context, target, source Image, o Options) (Result, error) {
	var r Result
	size := source.Size()
	if target.Size() < size {
		return r, fmt.Errorf("the image has %d bytes and doesn't fit into %d", size, target.Size())
	}
	c := &copier{target: target, source: source, o: o}
	for pos := o.From; pos < size; {
		next, err := c.step(ctx, pos, size)
		r.Data = c.data.Load()
		if err != nil {
			return r, err
		}
		pos = next
		if err := target.Flush(); err != nil {
			return r, fmt.Errorf("making what was copied durable: %w", err)
		}
		if o.Step != nil {
			if err := o.Step(pos); err != nil {
				return r, err
			}
		}
	}
	return r, ctx.Err()
}

type copier struct {
	target, source Image
	o              Options
	data           atomic.Int64 // bytes that were written
}

// step copies from pos on until a step is full, and returns where the next one begins.
func (c *copier) step(ctx context.Context, pos, size int64) (int64, error) {
	g, gctx := newGroup(ctx)
	began, first, data := time.Now(), pos, int64(0)
	var failed error
	for pos < size && failed == nil && gctx.Err() == nil {
		if data >= cmp.Or(c.o.stepData, stepData) || pos-first >= stepBytes || time.Since(began) > stepTime {
			break
		}
		n, zero, err := c.source.Extent(pos, size-pos)
		if err != nil {
			failed = fmt.Errorf("looking for data at %d: %w", pos, err)
			break
		}
		off := pos
		switch {
		case zero && c.o.Empty:
		case zero:
			n = min(n, 64<<20)
			g.Go(func() error { return zeroRange(c.target, off, n) })
		default:
			n = min(n, piece-pos%piece)
			data += n
			g.Go(func() error { return c.piece(off, n) })
		}
		pos += n
		if c.o.Progress != nil {
			c.o.Progress(pos, c.data.Load())
		}
	}
	err := errors.Join(failed, g.Wait())
	if err == nil {
		err = ctx.Err()
	}
	return pos, err
}

// zeroRange zeroes in whole blocks; what is behind the end of the source in its last block is nobody's.
func zeroRange(t Image, off, n int64) error {
	n = min((n+block.Size-1)&^(block.Size-1), t.Size()-off)
	if err := t.Zero(off, n); err != nil {
		return fmt.Errorf("zeroing %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// piece copies one piece of data.
func (c *copier) piece(off, n int64) error {
	whole := (n + block.Size - 1) &^ (block.Size - 1)
	buf := make([]byte, min(whole, c.target.Size()-off))
	if err := c.source.ReadAt(buf[:n], off); err != nil {
		return fmt.Errorf("reading %d bytes at %d: %w", n, off, err)
	}
	for len(buf) > 0 {
		run, zero := runOf(buf)
		var err error
		switch {
		case !zero:
			err = c.target.WriteAt(buf[:run], off)
			c.data.Add(int64(run))
		case !c.o.Empty:
			err = c.target.Zero(off, int64(run))
		}
		if err != nil {
			return fmt.Errorf("writing %d bytes at %d: %w", run, off, err)
		}
		buf, off = buf[run:], off+int64(run)
	}
	return nil
}

// runOf returns how many bytes of b, from its beginning, are zeros, or aren't, by the grain.
func runOf(b []byte) (n int, zero bool) {
	zero = block.IsZero(b[:min(grain, len(b))])
	for n = min(grain, len(b)); n < len(b); n = min(n+grain, len(b)) {
		if block.IsZero(b[n:min(n+grain, len(b))]) != zero {
			return n, zero
		}
	}
	return n, zero
}

// DifferError says where two images differ.
type DifferError struct{ Off int64 }

// Error says where.
func (e *DifferError) Error() string {
	return fmt.Sprintf("the copy differs from the image at byte %d", e.Off)
}

// Compare reads both images, and returns a *DifferError if the target doesn't begin with what the source has.
func Compare(ctx context.Context, target, source Image, progress func(position int64)) error {
	size := source.Size()
	if target.Size() < size {
		return &DifferError{target.Size()}
	}
	g, gctx := newGroup(ctx)
	for pos := int64(0); pos < size && gctx.Err() == nil; pos += piece {
		off, n := pos, min(piece, size-pos)
		g.Go(func() error { return comparePiece(target, source, off, n) })
		if progress != nil {
			progress(pos + n)
		}
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

func comparePiece(target, source Image, off, n int64) error {
	whole := min((n+block.Size-1)&^(block.Size-1), target.Size()-off) // a volume is read in whole blocks
	a, b := make([]byte, n), make([]byte, whole)
	if err := source.ReadAt(a, off); err != nil {
		return fmt.Errorf("reading the image at %d: %w", off, err)
	}
	if err := target.ReadAt(b, off); err != nil {
		return fmt.Errorf("reading the copy at %d: %w", off, err)
	}
	for i := range a {
		if a[i] != b[i] {
			return &DifferError{off + int64(i)}
		}
	}
	return nil
}

// ErrReadOnly: the image was opened for reading.
var ErrReadOnly = errors.New("the image is open for reading only")

// fill reads until p is full; past the end come zeros.
func fill(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}
