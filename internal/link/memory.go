package link

import (
	"math/bits"
	"unsafe"

	"keelson.io/keelson/internal/block"
)

// memory gives a job's request n bytes of page-aligned Data: from the loop's memory, or
// if that is used up, from memory of its own. A member never waits for memory that
// coordinators hold: two engines whose coordinators wait for each other's members
// would wait for ever. The window bounds what is needed.
func (l *Links) memory(j *job, n int) {
	j.req.Data = l.cfg.Loop.Buffers().Get(n)
	if j.req.Data == nil {
		j.req.Data, j.spare = l.spare.get(n), true
	}
}

// spareBuffers is page-aligned memory in sizes of 4 KiB · 2^i. The first keepSpare bytes are
// kept for the next time.
type spareBuffers struct {
	free [9][][]byte
	kept int
}

const keepSpare = 16 << 20

func sizeClass(n int) int { return bits.Len(uint((n - 1) / block.Size)) }

func (s *spareBuffers) get(n int) []byte {
	c := sizeClass(n)
	size := block.Size << c
	if k := len(s.free[c]); k > 0 {
		b := s.free[c][k-1]
		s.free[c] = s.free[c][:k-1]
		s.kept -= size
		return b[:n]
	}
	b := make([]byte, size+block.Size)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % block.Size
	return b[skip : int(skip)+n : int(skip)+size]
}

func (s *spareBuffers) put(b []byte) {
	if s.kept+cap(b) > keepSpare {
		return
	}
	c := sizeClass(cap(b))
	s.free[c] = append(s.free[c], b)
	s.kept += cap(b)
}
