package replica

import (
	"slices"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// verify answers a KindSnapVerify about a chunk that the snapshot of q holds: its sums, and the pieces that it has itself. The others are verified
// where they are.
func (q *levelRead) verify() {
	q.l.refs++
	if q.l.lost.has(q.o.chunk) {
		q.end(wire.StatusIOError)
		return
	}
	q.readSums(func() {
		if q.l.check(q.o.chunk) == 0 { // all zeros: what the file has there is nobody's
			clear(q.o.req.Sums)
			q.end(wire.StatusOK)
			return
		}
		from, n := q.o.blocks(0)
		copy(rawSums(q.o.req.Sums), q.sums.b[from*8:(from+n)*8])
		q.r.compare(q.o, q.l.data, q.l.pieces(q.o.chunk), q.end)
	})
}

// has reports whether sums are those of a chunk that the snapshot is known to hold, as its map says.
func (l *level) has(chunk int64, sums []uint64) bool {
	return l.held.has(chunk) && !l.lost.has(chunk) && checkOf(rawSums(sums)) == l.check(chunk)
}

// mendChunk answers a KindSnapMend, about pieces that the snapshot has itself.
func (r *Replica) mendChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	n := o.req.Length()
	if l.lost.has(o.chunk) || o.req.Off+n > l.size || piecesOf(o.req.Off%block.ChunkSize, n)&^l.pieces(o.chunk) != 0 {
		r.finish(o, wire.StatusBadRequest)
		return
	}
	q := &levelRead{r: r, o: o, l: l}
	l.refs++
	q.readSums(func() {
		from, n := o.blocks(0)
		have := make([]uint64, n)
		copy(rawSums(have), q.sums.b[from*8:(from+n)*8])
		if !slices.Equal(have, o.req.Sums) || !sumsMatch(o.req.Data, have) {
			q.end(wire.StatusBadRequest)
			return
		}
		q.op.Done = func(_ int, err error) {
			if err != nil {
				q.failed(err)
				return
			}
			syncFiles(&q.op, []aio.File{l.data}, func(err error) {
				if err != nil {
					q.failed(err)
					return
				}
				q.end(wire.StatusOK)
			})
		}
		l.data.WriteAt(&q.op, o.req.Data, o.req.Off)
	})
}
