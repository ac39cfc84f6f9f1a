package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// askSnap answers a KindSnapRead, KindSnapSums or KindSnapVerify: from the snapshot in which the chunk is found, or from the head, whose sums are
// taken hold of first; then what was found before is looked at again.
func (r *Replica) askSnap(o *op) {
	l, ok := r.snaps.view(o.req.Period, o.chunk)
	switch {
	case !ok:
		r.finish(o, wire.StatusNotFound)
	case l != nil && o.req.Kind == wire.KindSnapVerify:
		(&levelRead{r: r, o: o, l: l}).verify()
	case l != nil:
		(&levelRead{r: r, o: o, l: l}).begin()
	case o.have == 0:
		r.step(o)
	case o.req.Kind == wire.KindSnapSums:
		r.answerSums(o)
	case o.req.Kind == wire.KindSnapVerify:
		r.verify(o)
	default:
		r.read(o)
	}
}

// clearBehind makes zeros of what the sums of a chunk say behind the snapshot's end. They are of no block, so nobody has seen to
// their being right: the head may be longer, or a bit may have flipped.
func (r *Replica) clearBehind(period uint64, chunk int64, sums []uint64) {
	if l := r.snaps.find(period); l != nil {
		if _, n := l.span(chunk); n < block.ChunkSize {
			clear(sums[max(0, n/block.Size):])
		}
	}
}

// levelRead reads from the chunk that a snapshot holds.
type levelRead struct {
	r    *Replica
	o    *op
	l    *level
	op   aio.Op
	sums mem
}

func (q *levelRead) begin() {
	q.l.refs++
	if q.l.lost.has(q.o.chunk) {
		q.end(wire.StatusIOError)
		return
	}
	q.readSums(q.gotSums)
}

// readSums reads the chunk's sums, and verifies them.
func (q *levelRead) readSums(next func()) {
	want := q.l.check(q.o.chunk)
	q.sums = q.r.getBuf(sumsSize)
	if want == 0 {
		clear(q.sums.b)
		q.r.loop.Post(next)
		return
	}
	q.op.Done = func(n int, err error) {
		if err != nil {
			q.failed(err)
			return
		}
		clear(q.sums.b[n:])
		if checkOf(q.sums.b) != want {
			q.r.log.Error("the checksums of a snapshot's chunk are damaged", "snapshot", snapName(q.l.period), "chunk", q.o.chunk)
			q.end(wire.StatusIOError)
			return
		}
		next()
	}
	q.l.sums.ReadAt(&q.op, q.sums.b, q.o.chunk*sumsSize)
}

func (q *levelRead) gotSums() {
	o := q.o
	req := o.req
	if req.Kind == wire.KindSnapSums {
		req.Sums = req.Sums[:block.PerChunk]
		copy(rawSums(req.Sums), q.sums.b)
		q.r.clearBehind(req.Period, o.chunk, req.Sums)
		q.end(wire.StatusOK)
		return
	}
	from, n := o.blocks(0)
	copy(rawSums(req.Sums), q.sums.b[from*8:(from+n)*8])
	if block.IsZero(rawSums(req.Sums)) {
		clear(req.Data)
		q.end(wire.StatusOK)
		return
	}
	q.op.Done = func(n int, err error) {
		if err != nil {
			q.failed(err)
			return
		}
		clear(req.Data[n:])
		status := wire.StatusOK
		for i, s := range req.Sums {
			if block.Sum(req.Data[i*block.Size:(i+1)*block.Size]) != s {
				req.Bad[i>>6] |= 1 << (i & 63)
				status = wire.StatusBadSum
				q.r.stats.BadBlocks++
			}
		}
		q.end(status)
	}
	q.l.data.ReadAt(&q.op, req.Data, req.Off)
}

func (q *levelRead) failed(err error) {
	q.r.ioFailed(q.o.req.Kind.String(), q.o, err)
	q.end(statusOf(err))
}

func (q *levelRead) end(status wire.Status) {
	if q.sums.b != nil {
		q.r.putBuf(q.sums)
	}
	q.l.release()
	q.r.finish(q.o, status)
}

// answerLevels names the snapshots that hold a chunk themselves.
func (r *Replica) answerLevels(o *op) {
	o.req.Sums = o.req.Sums[:0]
	for _, l := range r.snaps.levels {
		if o.chunk < l.chunks && l.holds(o.chunk) {
			o.req.Sums = append(o.req.Sums, l.period)
		}
	}
	r.finish(o, wire.StatusOK)
}

// answerUsage says what each snapshot occupies on disk.
func (r *Replica) answerUsage(o *op) {
	o.req.Sums = o.req.Sums[:0]
	var list []*level
	for _, l := range r.snaps.levels {
		l.refs++
		list = append(list, l)
		o.req.Sums = append(o.req.Sums, l.period, 0)
	}
	var err error
	r.loop.Work(func() {
		for i, l := range list {
			for _, f := range l.files() {
				n, e := f.Allocated()
				if e != nil {
					err = e
				}
				o.req.Sums[2*i+1] += uint64(n)
			}
		}
	}, func() {
		for _, l := range list {
			l.release()
		}
		r.finish(o, statusOf(err))
	})
}
