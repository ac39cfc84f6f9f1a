package replica

import (
	"math/bits"
	"slices"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

const (
	preserveRounds = 3       // at a time, so that some copy while others wait for their syncs
	preserveMax    = 16      // chunks of a round
	preserveBytes  = 4 << 20 // of data, after which no further chunk is in it
)

// needs returns the snapshot that must have pieces of the chunk before they are changed in the given period, and which of them it lacks; nil if
// there is none.
func (s *snapshots) needs(chunk int64, want pieceSet, period uint64) (*level, pieceSet) {
	for i := len(s.levels) - 1; i >= 0; i-- {
		l := s.levels[i]
		if chunk >= l.chunks || l.lost.has(chunk) {
			return nil, 0
		}
		// Also if the change is of an older period than the snapshot: one that was given up may have the piece, and then older ones find
		// it there.
		if l.period < period || !invariant.Mutant("given-up-snapshot-forgotten") {
			want &^= l.pieces(chunk)
		}
		if want == 0 || invariant.Mutant("chunk-preserved-once") && l.holds(chunk) {
			return nil, 0
		}
		if !l.closing && (l.period < period || invariant.Mutant("preserve-in-own-period")) {
			return l, want
		}
	}
	return nil, 0
}

// preserved reports whether o may change its chunks; if not it is stepped again when it may, or is failed.
func (s *snapshots) preserved(o *op) bool {
	if len(s.levels) == 0 || o.req.Kind == wire.KindTouch || invariant.Mutant("nothing-preserved") {
		return true
	}
	for i := range o.n {
		chunk := o.chunk + int64(i)
		from, n := o.blocks(i)
		want := piecesOf(int64(from)*block.Size, int64(n)*block.Size)
		if o.req.Kind == wire.KindRestore {
			want &= s.restores(o)
		}
		if l, want := s.needs(chunk, want, o.req.Period); l != nil {
			s.keep.add(&preserving{l: l, chunk: chunk, want: s.more(l, chunk, want)}, o.ent[i].sums, func(err error) {
				if err != nil {
					s.r.finish(o, statusOf(err))
					return
				}
				s.r.step(o)
			})
			return false
		}
	}
	return true
}

// more adds as many pieces to those that a snapshot is about to get as it has of the chunk: where much is changed, few changes have to wait, and where little is,
// little is copied. Like the others, they have to be in the head, where nobody changes them before a snapshot has them.
func (s *snapshots) more(l *level, chunk int64, want pieceSet) pieceSet {
	free := allPieces &^ want
	for _, o := range s.levels {
		if o.period >= l.period {
			free &^= o.pieces(chunk)
		}
	}
	off, _ := want.run()
	first := int(off / pieceSize)
	for n := bits.OnesCount64(uint64(l.pieces(chunk))); n > 0 && free != 0; n-- {
		next := bits.TrailingZeros64(bits.RotateLeft64(uint64(free), -first)) + first
		want |= 1 << (next & 63)
		free &^= 1 << (next & 63)
	}
	return want
}

// preserver copies pieces into the newest snapshot before they are changed, in rounds:
//
//	data and sums written -> both synced -> the map says that it has them -> who waited goes on
//
// The head keeps its space: sharing that would be quicker once, and then every change of a block would need new space for it.
type preserver struct {
	r      *Replica
	queue  []*preserving
	rounds []*preserveRound
}

// preserveRound is pieces of one snapshot that are made durable together.
type preserveRound struct {
	p    *preserver
	l    *level
	list []*preserving
	left int // what is under way
	err  error
	// The syncs.
	data, sums aio.Op
}

// preserving is pieces of one chunk on their way. Invariant: they are in no snapshot, so the head has them, and nobody changes them.
type preserving struct {
	l     *level
	chunk int64
	want  pieceSet
	share bool // the head's space
	zero  pieceSet
	// sums are the head's for the whole chunk, as they were when the first came who waits. If the snapshot doesn't hold the chunk yet, it gets those, as
	// nothing was changed of a chunk that no snapshot holds; or those that a newer snapshot has which does hold it.
	sums  mem
	check uint64
	first bool
	op    aio.Op
	done  []func(error)
}

// add preserves pieces, or waits for what is under way with the chunk, and calls done: then the caller looks again whether that was
// all. sums are the head's.
func (p *preserver) add(w *preserving, sums []uint64, done func(error)) {
	w.zero = zeroPieces(sums)
	for _, r := range p.rounds {
		for _, x := range r.list {
			// Its sums come first, too.
			if x.chunk == w.chunk && (x.l != w.l || x.first || x.want&w.want != 0) {
				x.done = append(x.done, done)
				return
			}
		}
	}
	for _, x := range p.queue {
		if x.chunk != w.chunk {
			continue
		}
		if x.l == w.l && x.share == w.share {
			x.want, x.zero = x.want|w.want, x.zero&^w.want|w.zero&w.want
		}
		x.done = append(x.done, done)
		return
	}
	w.done = []func(error){done}
	w.sums = p.r.getBuf(sumsSize)
	copy(w.sums.b, rawSums(sums))
	p.queue = append(p.queue, w)
	p.start()
}

// start begins the next rounds.
func (p *preserver) start() {
	for len(p.rounds) < preserveRounds && len(p.queue) > 0 {
		n, bytes := 0, int64(0)
		for n < min(len(p.queue), preserveMax) && p.queue[n].l == p.queue[0].l && bytes < preserveBytes {
			bytes += p.queue[n].bytes()
			n++
		}
		q := &preserveRound{p: p, l: p.queue[0].l, list: slices.Clone(p.queue[:n]), left: 1}
		p.queue = slices.Delete(p.queue, 0, n)
		p.rounds = append(p.rounds, q)
		for _, w := range q.list {
			w.begin(q)
		}
		p.r.loop.Post(func() { q.part(nil) })
	}
}

// begin brings a chunk's pieces, and its sums if the snapshot doesn't have them yet, into the snapshot's files.
func (w *preserving) begin(q *preserveRound) {
	if w.first = !w.l.holds(w.chunk); !w.first {
		w.check = w.l.check(w.chunk)
		w.moveData(q)
		return
	}
	from := q.p.r.snaps.newer(w.l, w.chunk)
	if from == nil || invariant.Mutant("sums-of-later-content") {
		w.writeSums(q)
		return
	}
	q.left++
	from.refs++
	from.readSums(&w.op, w.chunk, w.sums.b, func(err error) {
		from.release()
		if err == nil {
			w.writeSums(q)
		}
		q.part(err)
	})
}

// newer returns the next newer snapshot than l that holds the chunk; nil if none does.
func (s *snapshots) newer(l *level, chunk int64) *level {
	for _, o := range s.levels {
		if o.period > l.period && chunk < o.chunks && o.holds(chunk) {
			return o
		}
	}
	return nil
}

// writeSums writes the sums, of a chunk that isn't all zeros.
func (w *preserving) writeSums(q *preserveRound) {
	if w.check = checkOf(w.sums.b); w.check == 0 {
		w.want = allPieces
		return
	}
	q.left++
	w.op.Done = func(_ int, err error) { q.part(err) }
	w.l.sums.WriteAt(&w.op, w.sums.b, w.chunk*sumsSize)
	w.moveData(q)
}

// bytes is how much is to be copied.
func (w *preserving) bytes() (n int64) {
	for _, x := range (w.want &^ w.zero).extents(nil, extent{}, 0, block.ChunkSize) {
		n += x.n
	}
	return n
}

func (w *preserving) moveData(q *preserveRound) {
	if w.check == 0 {
		return
	}
	list := (w.want & w.zero).extents(nil, extent{zero: true}, w.chunk, w.l.size)
	list = (w.want &^ w.zero).extents(list, extent{file: q.p.r.files.head, share: w.share}, w.chunk, w.l.size)
	q.left++
	q.p.r.move(list, w.l.data, q.part)
}

func (q *preserveRound) part(err error) {
	if q.err == nil {
		q.err = err
	}
	if q.left--; q.left == 0 {
		q.sync()
	}
}

// sync makes durable what was written, and then has the map say it.
func (q *preserveRound) sync() {
	if q.err != nil {
		q.finish(q.err)
		return
	}
	var changes []mapChange
	data, sums := false, false
	for _, w := range q.list {
		if q.l.lost.has(w.chunk) {
			continue
		}
		changes = append(changes, mapChange{chunk: w.chunk, pieces: w.want, check: w.check})
		data = data || w.check != 0
		sums = sums || w.check != 0 && w.first
	}
	q.left = 1
	synced := func(_ int, err error) {
		if q.err == nil {
			q.err = err
		}
		if q.left--; q.left > 0 {
			return
		}
		if q.err != nil {
			q.finish(q.err)
			return
		}
		q.l.commit(changes, q.finish)
	}
	sync := func(f aio.File, op *aio.Op, some bool) {
		if some && !invariant.Mutant("preserve-not-synced") {
			q.left++
			op.Done = synced
			f.Sync(op)
		}
	}
	sync(q.l.data, &q.data, data)
	sync(q.l.sums, &q.sums, sums)
	synced(0, nil)
}

func (q *preserveRound) finish(err error) {
	p := q.p
	p.rounds = slices.DeleteFunc(p.rounds, func(o *preserveRound) bool { return o == q })
	if err != nil {
		p.r.stats.IOErrors++
		p.r.log.Error("chunks can't be preserved for a snapshot", "snapshot", snapName(q.l.period), "chunks", len(q.list), "error", err)
	}
	for _, w := range q.list {
		if err == nil {
			p.r.stats.Preserved += uint64(bits.OnesCount64(uint64(w.want)))
		}
		p.r.putBuf(w.sums)
	}
	p.start()
	for _, w := range q.list {
		for _, fn := range w.done {
			fn(err)
		}
	}
}

// uses reports whether something is on its way into a snapshot.
func (p *preserver) uses(l *level) bool {
	return slices.ContainsFunc(p.rounds, func(q *preserveRound) bool { return q.l == l }) ||
		slices.ContainsFunc(p.queue, func(w *preserving) bool { return w.l == l })
}
