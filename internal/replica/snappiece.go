package replica

import (
	"bytes"
	"math/bits"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

const (
	// pieceSize is how much of a chunk is preserved at a time. Small ones cost little when little is changed, large ones cost little for each byte; 64 of them
	// are a chunk, so that a word says which a snapshot has.
	pieceSize = block.ChunkSize / 64
	moveStep  = 1 << 20 // bytes that are copied at a time
)

// pieceSet is a set of the 64 pieces of a chunk.
type pieceSet uint64

const allPieces = ^pieceSet(0)

// piecesOf returns the pieces that the bytes [off, off+n) of a chunk touch; n > 0.
func piecesOf(off, n int64) pieceSet {
	first, last := off/pieceSize, (off+n-1)/pieceSize
	return allPieces >> (63 - (last - first)) << first
}

// run returns the first run of pieces that are all in the set or, for an empty set, 0 bytes.
func (s pieceSet) run() (off, n int64) {
	if s == 0 {
		return 0, 0
	}
	first := bits.TrailingZeros64(uint64(s))
	return int64(first) * pieceSize, int64(bits.TrailingZeros64(^(uint64(s) >> first))) * pieceSize
}

// zeroPieces returns the pieces of which all sums are those of zeros.
func zeroPieces(sums []uint64) (zero pieceSet) {
	const per = block.PerChunk / 64
	for p := range 64 {
		if block.IsZero(rawSums(sums[p*per : (p+1)*per])) {
			zero |= 1 << p
		}
	}
	return zero
}

// sameSums returns the pieces of which the sums of two chunks, as they are in files, are the same.
func sameSums(a, b []byte) (same pieceSet) {
	const per = sumsSize / 64
	for p := range 64 {
		if bytes.Equal(a[p*per:(p+1)*per], b[p*per:(p+1)*per]) {
			same |= 1 << p
		}
	}
	return same
}

// extent is a part of a file that one snapshot, or the head, has; or zeros.
type extent struct {
	off, n int64
	file   aio.File
	level  *level // whose file it is; nil for the head
	zero   bool
	share  bool // its space may be shared: nobody overwrites either for long
}

// extents cuts what a chunk's pieces are into extents of file, none behind end.
func (set pieceSet) extents(list []extent, like extent, chunk, end int64) []extent {
	for set != 0 {
		off, n := set.run()
		set &^= piecesOf(off, n)
		x := like
		x.off = chunk*block.ChunkSize + off
		if x.n = min(n, end-x.off); x.n > 0 {
			list = append(list, x)
		}
	}
	return list
}

// where returns where the snapshot's content of some pieces of a chunk is, up to end: in its own file, in those of newer ones, in the head. It is false if a
// damaged map doesn't tell.
func (s *snapshots) where(l *level, chunk int64, want pieceSet, end int64) (list []extent, ok bool) {
	take := func(l *level) bool {
		got := want & l.pieces(chunk)
		list = got.extents(list, extent{file: l.data, level: l}, chunk, end)
		want &^= got
		return !l.lost.has(chunk)
	}
	if !take(l) {
		return nil, false
	}
	for _, o := range s.levels {
		if o.period > l.period && want != 0 && !take(o) {
			return nil, false
		}
	}
	return want.extents(list, extent{file: s.r.files.head}, chunk, end), true
}

// moving brings parts of a chunk to another file, one after the other. Nothing is synced.
type moving struct {
	r    *Replica
	to   aio.File
	rest []extent
	at   int64 // bytes of the first that are done
	n    int64 // bytes under way
	buf  mem
	op   aio.Op
	each func() // called when a step was written; may be nil
	done func(error)
}

// move calls done, later, when the extents are in to, at their offsets.
func (r *Replica) move(list []extent, to aio.File, done func(error)) *moving {
	for _, x := range list {
		if x.level != nil {
			x.level.refs++
		}
	}
	m := &moving{r: r, to: to, rest: list, done: done}
	if len(list) == 0 {
		r.loop.Post(func() { m.end(nil) })
		return m
	}
	m.step()
	return m
}

func (m *moving) step() {
	if len(m.rest) == 0 {
		m.end(nil)
		return
	}
	x := m.rest[0]
	m.op.Done = m.moved
	switch m.n = x.n; {
	case x.zero:
		m.to.Punch(&m.op, x.off, x.n)
	case x.share:
		m.to.Clone(&m.op, x.file, x.off, x.n)
	default:
		if m.n = min(x.n-m.at, moveStep); int64(len(m.buf.b)) < m.n {
			m.r.putBuf(m.buf)
			m.buf = m.r.getBuf(int(m.n))
		}
		m.op.Done = m.read
		x.file.ReadAt(&m.op, m.buf.b[:m.n], x.off+m.at)
	}
}

// read writes what was read. What can't be read is shared: it stays unreadable, and nothing else is lost by it.
func (m *moving) read(n int, err error) {
	x := m.rest[0]
	m.op.Done = m.moved
	if err != nil {
		m.to.Clone(&m.op, x.file, x.off+m.at, m.n)
		return
	}
	clear(m.buf.b[n:m.n])
	m.to.WriteAt(&m.op, m.buf.b[:m.n], x.off+m.at)
}

func (m *moving) moved(_ int, err error) {
	if err != nil {
		m.end(err)
		return
	}
	if m.each != nil {
		m.each()
	}
	if m.at += m.n; m.at == m.rest[0].n {
		m.drop()
	}
	m.step()
}

// drop takes the first extent off the list.
func (m *moving) drop() {
	if l := m.rest[0].level; l != nil {
		l.release()
	}
	m.rest, m.at = m.rest[1:], 0
}

func (m *moving) end(err error) {
	for len(m.rest) > 0 {
		m.drop()
	}
	m.r.putBuf(m.buf)
	m.done(err)
}
