package replica

import (
	"slices"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// level is one snapshot: the chunks that it holds itself are those that were changed after it and before the next newer
// one was taken. What it doesn't hold is found in the next newer one that does, at last in the head.
//
// Invariants:
//
//   - The chunk of a snapshot that holds it itself never changes, but by KindSnapOpen and what follows it.
//   - Before the first change of a chunk in a period above a snapshot's, that snapshot or a newer one durably holds the chunk.
//   - That it holds a chunk is visible only when data, sums and map are durable.
type level struct {
	r      *Replica
	period uint64
	size   int64
	chunks int64

	data, sums, meta aio.File

	held  bitset
	lost  bitset // chunks of which a damaged map doesn't tell whether they are held
	parts map[int64]*mapPart

	next    mapRound
	mapBusy bool
	writing []mapChange // while mapBusy
	unsure  []int64     // chunks of which the file may say something else than memory, as a write of the map failed
	refs    int         // requests that read it
	idle    func()      // called once when refs has become 0
	// closing: it is being deleted. What it holds counts still, but nothing more is preserved in it.
	closing bool
	unnamed bool // its directory is gone, or on its way
}

func newLevel(r *Replica, period uint64, size int64) *level {
	l := &level{r: r, period: period, size: size, chunks: block.Chunks(size), parts: make(map[int64]*mapPart)}
	l.held.size, l.lost.size = l.chunks, l.chunks
	return l
}

func (l *level) files() []aio.File { return []aio.File{l.data, l.sums, l.meta} }

// holds reports whether the snapshot holds the chunk itself; one behind its end needs nothing of anybody.
func (l *level) holds(chunk int64) bool {
	return chunk >= l.chunks || l.held.has(chunk) || l.lost.has(chunk)
}

// check returns the checksum over the sums of a chunk that is held.
func (l *level) check(chunk int64) uint64 {
	if p := l.parts[chunk/mapPerBlock]; p != nil {
		return p.check[chunk%mapPerBlock]
	}
	return 0
}

// span returns where the chunk is, cut at the snapshot's end.
func (l *level) span(chunk int64) (off, n int64) {
	off = chunk * block.ChunkSize
	return off, min(block.ChunkSize, l.size-off)
}

func (l *level) release() {
	if l.refs--; l.refs == 0 && l.idle != nil {
		fn := l.idle
		l.idle = nil
		fn()
	}
}

// snapshots are the replica's snapshots, in the order of their periods.
type snapshots struct {
	r      *Replica
	levels []*level
	keep   preserver
	apart  unsharer
	sets   opList // KindSnaps that wait for the one under way
	set    *setting
}

func (s *snapshots) init(r *Replica) {
	s.r = r
	s.keep.r, s.apart.r = r, r
}

func (s *snapshots) find(period uint64) *level {
	for _, l := range s.levels {
		if l.period == period {
			return l
		}
	}
	return nil
}

// holder returns the snapshot in which what snapshot number i has of a chunk is found; nil is the head.
func (s *snapshots) holder(i int, chunk int64) *level {
	for _, l := range s.levels[i:] {
		if chunk < l.chunks && l.holds(chunk) {
			return l
		}
	}
	return nil
}

// view is holder for a snapshot by its period; ok is false if there is none, or it doesn't reach that far.
func (s *snapshots) view(period uint64, chunk int64) (l *level, ok bool) {
	for i, l := range s.levels {
		if l.period == period {
			return s.holder(i, chunk), chunk < l.chunks
		}
	}
	return nil, false
}

// needs returns the snapshot that must hold the chunk before it is changed in the given period; nil if none must.
func (s *snapshots) needs(chunk int64, period uint64) *level {
	for i := len(s.levels) - 1; i >= 0; i-- {
		l := s.levels[i]
		// Also if the change is of an older period than the snapshot: one that was given up may hold the chunk, and then older ones find
		// it there.
		if l.holds(chunk) && (l.period < period || !invariant.Mutant("given-up-snapshot-forgotten")) {
			return nil
		}
		if !l.closing && (l.period < period || invariant.Mutant("preserve-in-own-period")) {
			return l
		}
	}
	return nil
}

// preserved reports whether o may change its chunks; if not it is stepped again when it may, or is failed.
func (s *snapshots) preserved(o *op) bool {
	if len(s.levels) == 0 || o.req.Kind == wire.KindTouch || invariant.Mutant("nothing-preserved") {
		return true
	}
	for i := range o.n {
		chunk := o.chunk + int64(i)
		if l := s.needs(chunk, o.req.Period); l != nil {
			s.keep.add(l, chunk, o.ent[i].sums, func(err error) {
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

// preserveMax is how many chunks are preserved together.
const preserveMax = 64

// preserver copies chunks into the newest snapshot before they are changed, many at a time:
//
//	data shared and sums written -> both synced -> the map says that it holds them -> who waited goes on
type preserver struct {
	r     *Replica
	queue []*preserving
	busy  bool
	now   []*preserving
	left  int
	err   error
	op    aio.Op
}

// preserving is one chunk on its way. Invariant: whoever waits for it holds its sums, and nobody changes the chunk.
type preserving struct {
	p     *preserver
	l     *level
	chunk int64
	sums  mem
	check uint64
	op    aio.Op
	wop   aio.Op
	done  []func(error)
}

// add preserves a chunk in a snapshot, or waits for its being preserved in another one, and calls done: then the caller looks again
// whether that was all.
func (p *preserver) add(l *level, chunk int64, sums []uint64, done func(error)) {
	for _, list := range [][]*preserving{p.now, p.queue} {
		for _, w := range list {
			// Also if it is for another snapshot: who waits looks again, and nothing is changed before that.
			if w.chunk == chunk {
				w.done = append(w.done, done)
				return
			}
		}
	}
	w := &preserving{p: p, l: l, chunk: chunk, done: []func(error){done}}
	raw := rawSums(sums)
	if w.check = checkOf(raw); w.check != 0 {
		w.sums = p.r.getBuf(sumsSize)
		copy(w.sums.b, raw)
	}
	p.queue = append(p.queue, w)
	p.start()
}

func (p *preserver) start() {
	if p.busy || len(p.queue) == 0 {
		return
	}
	n := 1
	for n < min(len(p.queue), preserveMax) && p.queue[n].l == p.queue[0].l {
		n++
	}
	p.now = slices.Clone(p.queue[:n])
	p.queue = slices.Delete(p.queue, 0, n)
	p.busy, p.err, p.left = true, nil, 1
	for _, w := range p.now {
		if w.check != 0 {
			p.left += 2
			w.begin()
		}
	}
	p.r.loop.Post(p.part)
}

// begin shares the chunk's data with the snapshot, and writes its sums beside it.
func (w *preserving) begin() {
	p, l := w.p, w.l
	off, n := l.span(w.chunk)
	w.op.Done = func(_ int, err error) { p.end(err) }
	l.data.Clone(&w.op, p.r.files.head, off, n)
	w.wop.Done = func(_ int, err error) {
		p.r.putBuf(w.sums)
		p.end(err)
	}
	l.sums.WriteAt(&w.wop, w.sums.b, w.chunk*sumsSize)
}

func (p *preserver) end(err error) {
	if p.err == nil {
		p.err = err
	}
	p.part()
}

func (p *preserver) part() {
	if p.left--; p.left > 0 {
		return
	}
	l := p.now[0].l
	if p.err != nil {
		p.finish(p.err)
		return
	}
	var changes []mapChange
	some := false
	for _, w := range p.now {
		changes = append(changes, mapChange{chunk: w.chunk, held: true, check: w.check})
		some = some || w.check != 0
	}
	commit := func(err error) {
		if err != nil {
			p.finish(err)
			return
		}
		l.commit(changes, p.finish)
	}
	if !some || invariant.Mutant("preserve-not-synced") {
		commit(nil)
		return
	}
	syncFiles(&p.op, []aio.File{l.data, l.sums}, commit)
}

func (p *preserver) finish(err error) {
	now := p.now
	p.now, p.busy = nil, false
	if err != nil {
		p.r.stats.IOErrors++
		p.r.log.Error("chunks can't be preserved for a snapshot", "snapshot", snapName(now[0].l.period), "chunks", len(now), "error", err)
	} else {
		p.r.stats.Preserved += uint64(len(now))
		for _, w := range now {
			if w.check != 0 {
				p.r.snaps.apart.preserved(w.l, w.chunk)
			}
		}
	}
	p.start()
	for _, w := range now {
		for _, fn := range w.done {
			fn(err)
		}
	}
}
