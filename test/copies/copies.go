// Package copies looks at the files of replicas as docs/format/replica.md describes them, without the code
// that wrote them: whether the copies of a column hold the same bytes, and whether the sums of a copy fit its
// data. For tests that look at a disk from outside. It starts no goroutine, and writes nothing.
package copies

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"keelson.io/keelson/internal/block"
)

// Report is what was found in one copy.
type Report struct {
	Blocks    int64 // of the head that were looked at
	Journaled int   // chunks that its journal has, so that their sums say nothing
	Wrong     []string
}

const maxWrong = 5 // that a report names

func (r *Report) wrong(format string, a ...any) {
	if len(r.Wrong) < maxWrong {
		r.Wrong = append(r.Wrong, fmt.Sprintf(format, a...))
	}
}

// Check compares every block of the copy in dir with its sum, save those of chunks in its journal.
// The replica must be at rest.
func Check(dir string) (Report, error) {
	var rep Report
	head, err := os.Open(filepath.Join(dir, "head"))
	if err != nil {
		return rep, err
	}
	defer head.Close()
	sums, err := os.Open(filepath.Join(dir, "sums"))
	if err != nil {
		return rep, err
	}
	defer sums.Close()
	journaled, all, err := Journal(dir)
	if err != nil {
		return rep, err
	}
	rep.Journaled = len(journaled)
	if all {
		rep.Journaled = -1
		return rep, nil
	}
	data, want := make([]byte, block.ChunkSize), make([]byte, block.PerChunk*8)
	for chunk := int64(0); ; chunk++ {
		n, err := head.ReadAt(data, chunk*block.ChunkSize)
		if n == 0 && errors.Is(err, io.EOF) {
			return rep, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return rep, err
		}
		if journaled[chunk] {
			continue
		}
		if _, err := sums.ReadAt(want, chunk*int64(len(want))); err != nil {
			return rep, fmt.Errorf("sums of chunk %d: %w", chunk, err)
		}
		for i := range n / block.Size {
			got, want := block.Sum(data[i*block.Size:(i+1)*block.Size]), binary.LittleEndian.Uint64(want[i*8:])
			rep.Blocks++
			if got != want {
				rep.wrong("%s: block %d of chunk %d has sum %016x, its data %016x", dir, i, chunk, want, got)
			}
		}
	}
}

// Same compares the heads of two copies at rest, and says where they differ.
func Same(a, b string) ([]string, error) {
	fa, err := os.Open(filepath.Join(a, "head"))
	if err != nil {
		return nil, err
	}
	defer fa.Close()
	fb, err := os.Open(filepath.Join(b, "head"))
	if err != nil {
		return nil, err
	}
	defer fb.Close()
	var rep Report
	da, db := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(da)) {
		na, ea := fa.ReadAt(da, off)
		nb, eb := fb.ReadAt(db, off)
		if ea != nil && !errors.Is(ea, io.EOF) || eb != nil && !errors.Is(eb, io.EOF) {
			return nil, errors.Join(ea, eb)
		}
		if na != nb {
			rep.wrong("%s and %s have different sizes", a, b)
			return rep.Wrong, nil
		}
		if na == 0 {
			return rep.Wrong, nil
		}
		if bytes.Equal(da[:na], db[:nb]) {
			continue
		}
		for i := 0; i < na; i += block.Size {
			if x, y := da[i:i+block.Size], db[i:i+block.Size]; !bytes.Equal(x, y) {
				rep.wrong("block %d differs: % x… in %s, % x… in %s", (off+int64(i))/block.Size, x[:24], a, y[:24], b)
			}
		}
	}
}
