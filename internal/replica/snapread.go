package replica

import (
	"encoding/binary"
	"errors"
	"fmt"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// askSnap answers a KindSnapRead, KindSnapSums, KindSnapCheck or KindSnapVerify: from the snapshot in which the chunk is found, or from the head, whose sums are
// taken hold of first; then what was found before is looked at again.
func (r *Replica) askSnap(o *op) {
	l, ok := r.snaps.view(o.req.Period, o.chunk)
	switch {
	case !ok:
		r.finish(o, wire.StatusNotFound)
	case l != nil && o.req.Kind == wire.KindSnapCheck && o.have == 0:
		r.step(o) // its sums may have to be compared with the head's
	case l != nil && o.req.Kind == wire.KindSnapVerify:
		(&levelRead{r: r, o: o, l: l}).verify()
	case l != nil:
		(&levelRead{r: r, o: o, l: l}).begin()
	case o.have == 0:
		r.step(o)
	case o.req.Kind == wire.KindSnapSums, o.req.Kind == wire.KindSnapCheck:
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
	rest []extent // that are still to be read
}

func (q *levelRead) begin() {
	q.l.refs++
	if q.l.lost.has(q.o.chunk) {
		q.end(wire.StatusIOError)
		return
	}
	q.readSums(q.gotSums)
}

// readSums reads the chunk's sums.
func (q *levelRead) readSums(next func()) {
	q.sums = q.r.getBuf(sumsSize)
	q.l.readSums(&q.op, q.o.chunk, q.sums.b, func(err error) {
		if err != nil {
			q.failed(err)
			return
		}
		next()
	})
}

var errSnapSums = errors.New("the checksums of a snapshot's chunk are damaged")

// readSums reads the sums of a chunk that is held to b, and verifies them.
func (l *level) readSums(op *aio.Op, chunk int64, b []byte, done func(error)) {
	want := l.check(chunk)
	if want == 0 {
		clear(b)
		l.r.loop.Post(func() { done(nil) })
		return
	}
	op.Done = func(n int, err error) {
		if err != nil {
			done(err)
			return
		}
		if clear(b[n:]); checkOf(b) != want {
			err = fmt.Errorf("%w: snapshot %s, chunk %d", errSnapSums, snapName(l.period), chunk)
		}
		done(err)
	}
	l.sums.ReadAt(op, b, chunk*sumsSize)
}

func (q *levelRead) gotSums() {
	o := q.o
	req := o.req
	if req.Kind == wire.KindSnapSums || req.Kind == wire.KindSnapCheck && q.l.check(o.chunk) == 0 {
		q.answerSums()
		return
	}
	if req.Kind == wire.KindSnapCheck {
		list, ok := q.r.snaps.where(q.l, o.chunk, allPieces, q.l.size)
		if !ok {
			q.end(wire.StatusIOError)
			return
		}
		q.keep(list)
		q.check()
		return
	}
	from, n := o.blocks(0)
	copy(rawSums(req.Sums), q.sums.b[from*8:(from+n)*8])
	if block.IsZero(rawSums(req.Sums)) {
		clear(req.Data)
		q.end(wire.StatusOK)
		return
	}
	if req.Off+req.Length() > q.l.size {
		clear(req.Data)
	}
	off := req.Off - o.chunk*block.ChunkSize
	list, ok := q.r.snaps.where(q.l, o.chunk, piecesOf(off, req.Length()), q.l.size)
	if !ok {
		q.end(wire.StatusIOError)
		return
	}
	q.keep(list)
	q.readNext()
}

func (q *levelRead) keep(list []extent) {
	for _, x := range list {
		if x.level != nil {
			x.level.refs++
		}
	}
	q.rest = list
}

// answerSums answers with the snapshot's sums.
func (q *levelRead) answerSums() {
	req := q.o.req
	req.Sums = req.Sums[:block.PerChunk]
	copy(rawSums(req.Sums), q.sums.b)
	q.r.clearBehind(req.Period, q.o.chunk, req.Sums)
	q.end(wire.StatusOK)
}

// check answers with the snapshot's sums if the chunk is what they say: the pieces that it has itself by their data, the others by the sums where they are found. They may
// not be on a replica that was catching up when it held the chunk, and lost its power then: it has to be told from one whose snapshots are right.
func (q *levelRead) check() {
	o := q.o
	if len(q.rest) == 0 || invariant.Mutant("sums-prove-snapshot") {
		q.answerSums()
		return
	}
	x := q.rest[0]
	if x.level == q.l {
		q.checkData(x.off)
		return
	}
	compare := func(sums []byte) {
		q.checked(piecesOf(x.off%block.ChunkSize, x.n)&^sameSums(sums, q.sums.b) == 0)
	}
	if x.level == nil {
		compare(rawSums(o.ent[0].sums))
		return
	}
	buf := q.r.getBuf(sumsSize)
	x.level.readSums(&q.op, o.chunk, buf.b, func(err error) {
		defer q.r.putBuf(buf)
		if err != nil {
			q.failed(err)
			return
		}
		compare(buf.b)
	})
}

// checkData compares the snapshot's own data from off on with the sums.
func (q *levelRead) checkData(off int64) {
	x := q.rest[0]
	n := min(x.off+x.n-off, moveStep)
	buf := q.r.getBuf(int(n))
	q.op.Done = func(got int, err error) {
		defer q.r.putBuf(buf)
		if err != nil {
			q.failed(err)
			return
		}
		clear(buf.b[got:n])
		sums := q.sums.b[off%block.ChunkSize/block.Size*8:]
		for i := int64(0); i < n; i += block.Size {
			if !block.Intact(buf.b[i:i+block.Size], binary.LittleEndian.Uint64(sums[i/block.Size*8:])) {
				q.checked(false)
				return
			}
		}
		if off+n < x.off+x.n {
			q.checkData(off + n)
			return
		}
		q.checked(true)
	}
	x.file.ReadAt(&q.op, buf.b[:n], off)
}

// checked goes on with the next extent.
func (q *levelRead) checked(ok bool) {
	if !ok {
		q.r.log.Warn("a snapshot's chunk isn't what its checksums say", "snapshot", snapName(q.l.period), "chunk", q.o.chunk)
		q.end(wire.StatusIOError)
		return
	}
	q.drop()
	q.check()
}

// readNext reads what the next extent has of the request.
func (q *levelRead) readNext() {
	req := q.o.req
	if len(q.rest) == 0 {
		q.compare()
		return
	}
	x := q.rest[0]
	from := max(x.off, req.Off)
	data := req.Data[from-req.Off : min(x.off+x.n, req.Off+req.Length())-req.Off]
	q.op.Done = func(n int, err error) {
		if err != nil {
			q.failed(err)
			return
		}
		clear(data[n:])
		q.drop()
		q.readNext()
	}
	x.file.ReadAt(&q.op, data, from)
}

func (q *levelRead) drop() {
	if l := q.rest[0].level; l != nil {
		l.release()
	}
	q.rest = q.rest[1:]
}

// compare ends a read whose data is there.
func (q *levelRead) compare() {
	req := q.o.req
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

func (q *levelRead) failed(err error) {
	q.r.ioFailed(q.o.req.Kind.String(), q.o, err)
	q.end(statusOf(err))
}

func (q *levelRead) end(status wire.Status) {
	for len(q.rest) > 0 {
		q.drop()
	}
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
