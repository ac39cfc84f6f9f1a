package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// own returns the snapshot that the request is about, and keeps it open until the request ends, if it reaches as far as the request's
// chunk; or fails the request.
func (r *Replica) own(o *op) *level {
	l := r.snaps.find(o.req.Period)
	if l == nil || o.chunk >= l.chunks {
		r.finish(o, wire.StatusNotFound)
		return nil
	}
	l.refs++
	o.level = l
	return l
}

// dropChunk ends that a snapshot holds a chunk itself. Its sums and data stay in the files, where they mean nothing.
func (r *Replica) dropChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	l.forget(o.chunk, func(err error) {
		if err != nil {
			r.finish(o, statusOf(err))
			return
		}
		off, n := l.span(o.chunk)
		o.io.Done = func(_ int, err error) {
			o.io.Done = o.ioDone
			r.finish(o, statusOf(err))
		}
		l.data.Punch(&o.io, off, n)
	})
}

// forget ends that the snapshot holds a chunk, before its data is replaced. What an older one that holds the chunk too finds here of it, is handed
// down to it: that stays what it is.
func (l *level) forget(chunk int64, done func(error)) {
	older := l.r.snaps.olderHolder(l, chunk)
	switch {
	case !l.holds(chunk):
		l.r.loop.Post(func() { done(nil) })
		return
	case older == nil || l.lost.has(chunk) || l.handsDown(older, chunk) == 0 || invariant.Mutant("forgotten-not-handed-down"):
		l.drop(chunk, done)(nil)
		return
	}
	l.handDown(older, chunk, func(change mapChange, err error) {
		if err != nil {
			done(err)
			return
		}
		syncFiles(&aio.Op{}, []aio.File{older.data}, func(err error) {
			if err != nil {
				done(err)
				return
			}
			older.commit([]mapChange{change}, l.drop(chunk, done))
		})
	})
}

// drop has the map say that the chunk isn't held.
func (l *level) drop(chunk int64, done func(error)) func(error) {
	return func(err error) {
		if err != nil {
			done(err)
			return
		}
		l.commit([]mapChange{{chunk: chunk}}, done)
	}
}

// olderHolder returns the next older snapshot than l that is known to hold the chunk; nil if none is.
func (s *snapshots) olderHolder(l *level, chunk int64) (older *level) {
	for _, o := range s.levels {
		if o.period < l.period && o.held.has(chunk) && !o.lost.has(chunk) {
			older = o
		}
	}
	return older
}

// openChunk answers a KindSnapOpen, with the sums of the head's chunk held: that may be what is copied.
func (r *Replica) openChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	l.forget(o.chunk, func(err error) {
		if err != nil {
			r.finish(o, statusOf(err))
			return
		}
		base, _ := r.snaps.view(l.period, o.chunk)
		o.req.Sums = o.req.Sums[:block.PerChunk]
		if base == nil {
			copy(o.req.Sums, o.ent[0].sums)
			r.baseChunk(o, l, allPieces.extents(nil, extent{file: r.files.head}, o.chunk, l.size))
			return
		}
		q := &levelRead{r: r, o: o, l: base}
		base.refs++
		q.readSums(func() {
			list, ok := r.snaps.where(base, o.chunk, allPieces, l.size)
			if !ok {
				q.end(wire.StatusIOError)
				return
			}
			for i := range list {
				list[i].share = list[i].level != nil
			}
			copy(rawSums(o.req.Sums), q.sums.b)
			r.putBuf(q.sums)
			base.release()
			r.baseChunk(o, l, list)
		})
	})
}

// baseChunk gives the snapshot's chunk the data of what the list says.
func (r *Replica) baseChunk(o *op, l *level, list []extent) {
	r.clearBehind(l.period, o.chunk, o.req.Sums)
	if block.IsZero(rawSums(o.req.Sums)) {
		list = allPieces.extents(nil, extent{zero: true}, o.chunk, l.size)
	}
	r.move(list, l.data, func(err error) { r.finish(o, statusOf(err)) })
}

// writeChunk answers a KindSnapWrite.
func (r *Replica) writeChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	if l.holds(o.chunk) || o.req.Off+o.req.Length() > l.size {
		r.finish(o, wire.StatusBadRequest)
		return
	}
	o.io.Done = func(_ int, err error) {
		o.io.Done = o.ioDone
		r.finish(o, statusOf(err))
	}
	l.data.WriteAt(&o.io, o.req.Data, o.req.Off)
}

// sealing makes a chunk that was replaced durable, and visible.
type sealing struct {
	r   *Replica
	o   *op
	l   *level
	op  aio.Op
	buf mem
	at  int // block from which to look for zeros
}

func (r *Replica) sealChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	// One that is held may be given the sums again that its map tells of; one of which the map doesn't tell any is taken.
	if l.holds(o.chunk) && !l.lost.has(o.chunk) && !l.has(o.chunk, o.req.Sums) {
		r.finish(o, wire.StatusBadRequest)
		return
	}
	s := &sealing{r: r, o: o, l: l, buf: r.getBuf(sumsSize)}
	copy(s.buf.b, rawSums(o.req.Sums))
	s.punch(0, nil)
}

// punch makes the blocks that are zeros holes, one run after the other.
func (s *sealing) punch(_ int, err error) {
	if err != nil {
		s.end(err)
		return
	}
	off, n := s.l.span(s.o.chunk)
	sums := s.o.req.Sums[:n/block.Size]
	for s.at < len(sums) && sums[s.at] != 0 {
		s.at++
	}
	first := s.at
	for s.at < len(sums) && sums[s.at] == 0 {
		s.at++
	}
	if first == s.at {
		s.op.Done = s.wrote
		s.l.sums.WriteAt(&s.op, s.buf.b, s.o.chunk*sumsSize)
		return
	}
	s.op.Done = s.punch
	s.l.data.Punch(&s.op, off+int64(first)*block.Size, int64(s.at-first)*block.Size)
}

func (s *sealing) wrote(_ int, err error) {
	if err != nil {
		s.end(err)
		return
	}
	check, pieces := checkOf(s.buf.b), allPieces
	if s.l.held.has(s.o.chunk) && !s.l.lost.has(s.o.chunk) {
		pieces = s.l.pieces(s.o.chunk)
	}
	syncFiles(&s.op, []aio.File{s.l.data, s.l.sums}, func(err error) {
		if err != nil {
			s.end(err)
			return
		}
		s.l.commit([]mapChange{{chunk: s.o.chunk, pieces: pieces, check: check}}, s.end)
	})
}

func (s *sealing) end(err error) {
	s.r.putBuf(s.buf)
	s.r.finish(s.o, statusOf(err))
}
