package replica

import (
	"encoding/json"
	"errors"
	"path/filepath"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// snapSums is how many words of Sums an asker must give room for.
func snapSums(k wire.Kind) int {
	switch k {
	case wire.KindSums, wire.KindSnapSums, wire.KindSnapCheck, wire.KindSnapOpen, wire.KindSnapSeal:
		return block.PerChunk
	case wire.KindSnapLevels:
		return wire.MaxSnaps
	case wire.KindSnapUsage:
		return 2 * wire.MaxSnaps
	}
	return 0
}

// acceptSnap begins the requests about snapshots that need no hold on the head's sums; it is false for others.
func (r *Replica) acceptSnap(o *op) bool {
	if o.n > 1 && o.req.Kind != wire.KindRead && o.req.Kind != wire.KindWrite {
		r.finish(o, wire.StatusBadRequest)
		return true
	}
	switch o.req.Kind {
	case wire.KindSnaps:
		if len(o.req.Sums) > 2*wire.MaxSnaps || len(o.req.Sums)%2 != 0 {
			r.finish(o, wire.StatusBadRequest)
			return true
		}
		r.setSnaps(o)
	case wire.KindSnapRead, wire.KindSnapSums, wire.KindSnapCheck, wire.KindSnapVerify:
		r.askSnap(o)
	case wire.KindSnapLevels:
		r.answerLevels(o)
	case wire.KindSnapUsage:
		r.answerUsage(o)
	case wire.KindSnapWrite:
		r.writeChunk(o)
	case wire.KindSnapMend:
		r.mendChunk(o)
	case wire.KindSnapSeal:
		r.sealChunk(o)
	case wire.KindSnapDrop:
		r.dropChunk(o)
	case wire.KindClone:
		r.cloneTo(o)
	default:
		return false
	}
	return true
}

// restorable reports whether there is something to restore; otherwise the request is finished: what the snapshot has of the chunk is
// what the head has.
func (r *Replica) restorable(o *op) bool {
	l, ok := r.snaps.view(o.req.Sums[0], o.chunk)
	switch {
	case !ok:
		r.finish(o, wire.StatusNotFound)
	case l == nil:
		r.finish(o, wire.StatusOK)
	case l.lost.has(o.chunk):
		r.finish(o, wire.StatusIOError)
	default:
		return true
	}
	return false
}

// restores returns the pieces that a restore changes: what the head has still is left alone.
func (s *snapshots) restores(o *op) (changed pieceSet) {
	l, _ := s.view(o.req.Sums[0], o.chunk)
	list, _ := s.where(l, o.chunk, allPieces, o.req.Off+o.req.Len)
	for _, x := range list {
		if x.level != nil {
			changed |= piecesOf(x.off%block.ChunkSize, x.n)
		}
	}
	return changed
}

// restore makes the head's chunk what a snapshot holds. The head's was preserved, and the change journaled, before. What the head has still
// is left alone.
func (r *Replica) restore(o *op) {
	l, _ := r.snaps.view(o.req.Sums[0], o.chunk)
	q := &levelRead{r: r, o: o, l: l}
	l.refs++
	q.readSums(func() {
		list, ok := r.snaps.where(l, o.chunk, allPieces, o.req.Off+o.req.Len)
		if !ok {
			q.end(wire.StatusIOError)
			return
		}
		o.sums = make([]uint64, block.PerChunk)
		copy(rawSums(o.sums), q.sums.b)
		r.putBuf(q.sums)
		l.release()
		m := r.move(restored(list, o), r.files.head, func(err error) { o.ioDone(0, err) })
		m.each = func() { r.flush.wrote(o.req.Period) }
	})
}

// restored is what of the list concerns the request, and isn't in the head; pieces of zeros become holes.
func restored(list []extent, o *op) (out []extent) {
	zero := zeroPieces(o.sums)
	for _, x := range list {
		if x.level == nil {
			continue
		}
		in := piecesOf(x.off%block.ChunkSize, x.n)
		hole := x
		hole.zero = true
		out = (in & zero).extents(out, hole, o.chunk, x.off+x.n)
		out = (in &^ zero).extents(out, x, o.chunk, x.off+x.n)
	}
	return out
}

// cloning makes a new replica from a snapshot, chunk by chunk. What the snapshot has in the head is preserved first, so
// that nothing that is cloned changes meanwhile. It appears whole or not at all.
type cloning struct {
	r       *Replica
	o       *op
	l       *level
	desc    Desc
	dir     string
	tmp     string
	files   files
	chunk   int64
	checks  []uint64
	op      aio.Op
	present bool
}

// clonePeriod is the period in which all chunks of a clone were written: no term has it.
const clonePeriod = 1

var errLostChunk = errors.New("what the snapshot has of a chunk is lost here")

func (r *Replica) cloneTo(o *op) {
	c := &cloning{r: r, o: o, l: r.snaps.find(o.req.Period)}
	if c.l == nil {
		r.finish(o, wire.StatusNotFound)
		return
	}
	err := json.Unmarshal(o.req.Text, &c.desc)
	if err == nil {
		err = c.desc.validate()
	}
	if err != nil || c.desc.Size != c.l.size || len(o.req.Text) > maxDesc {
		r.log.Error("a clone of impossible description was asked for", "error", err)
		r.finish(o, wire.StatusBadRequest)
		return
	}
	o.clone = c
	c.l.refs++
	c.checks = make([]uint64, c.l.chunks)
	c.dir = filepath.Join(filepath.Dir(r.cfg.Dir), c.desc.Replica.String())
	c.tmp = filepath.Join(filepath.Dir(c.dir), CreatingPrefix+filepath.Base(c.dir))
	r.loop.Work(func() {
		if c.present = r.loop.FS().Exists(filepath.Join(c.dir, metaName)); !c.present {
			c.files, err = makeFiles(r.loop.FS(), c.dir, c.tmp, c.desc)
		}
	}, func() {
		if err != nil || c.present {
			c.end(err)
			return
		}
		c.next()
	})
}

// next goes on with the next chunk that has anything in it.
func (c *cloning) next() {
	for ; c.chunk < c.l.chunks; c.chunk++ {
		l, _ := c.r.snaps.view(c.l.period, c.chunk)
		switch {
		case l == nil && c.r.gens[c.chunk] == 0 && !c.r.suspect.has(c.chunk):
			continue
		case l != nil && l.lost.has(c.chunk):
			c.end(errLostChunk)
			return
		case l != nil && l.check(c.chunk) == 0:
			continue
		case l == nil || c.inHead() != 0:
			c.o.chunk, c.o.n = c.chunk, 1
			c.r.step(c.o)
			return
		}
		c.share(l)
		return
	}
	c.write()
}

// held preserves the chunk, whose sums are held now, and goes on with it.
func (c *cloning) held() {
	o, r := c.o, c.r
	release := func() {
		e := o.ent[0]
		o.have, o.n, o.ent[0] = 0, 0, nil
		r.cache.release(e)
	}
	newest := r.snaps.newest()
	want := c.inHead()
	if want == 0 || newest == nil {
		release()
		c.next()
		return
	}
	r.snaps.keep.add(&preserving{l: newest, chunk: c.chunk, want: want, share: true}, o.ent[0].sums, func(err error) {
		release()
		if err != nil {
			c.end(err)
			return
		}
		c.next()
	})
}

// inHead returns the pieces of the chunk that the snapshot has in the head.
func (c *cloning) inHead() (want pieceSet) {
	list, _ := c.r.snaps.where(c.l, c.chunk, allPieces, c.l.size)
	for _, x := range list {
		if x.level == nil {
			want |= piecesOf(x.off%block.ChunkSize, x.n)
		}
	}
	return want
}

// newest returns the newest snapshot that stays.
func (s *snapshots) newest() *level {
	for i := len(s.levels) - 1; i >= 0; i-- {
		if !s.levels[i].closing {
			return s.levels[i]
		}
	}
	return nil
}

// share gives the clone one chunk, of which the snapshot l says what it is; all of it is in snapshots, where nothing changes.
func (c *cloning) share(l *level) {
	list, ok := c.r.snaps.where(l, c.chunk, allPieces, c.l.size)
	if !ok {
		c.end(errLostChunk)
		return
	}
	for i := range list {
		list[i].share = true
	}
	c.checks[c.chunk] = l.check(c.chunk)
	l.refs++
	c.r.move(list, c.files.head, func(err error) {
		if err != nil {
			l.release()
			c.end(err)
			return
		}
		l.copySums(c.files.sums, c.chunk, func(err error) {
			l.release()
			if err != nil {
				c.end(err)
				return
			}
			c.chunk++
			c.next()
		})
	})
}

// write completes the clone's other files, and gives it its name.
func (c *cloning) write() {
	r := c.r
	writeFirst(r.loop, c.files, c.o.req.Text, c.l.chunks, func(err error) {
		if err != nil {
			c.end(err)
			return
		}
		c.writeGens(0)
	})
}

func (c *cloning) writeGens(index int64) {
	r := c.r
	if index == gensBlocks(c.l.chunks) {
		c.writeMeta()
		return
	}
	lo := index * gensPerBlock
	hi := min(lo+gensPerBlock, c.l.chunks)
	var gens [gensPerBlock]uint64
	for i := range hi - lo {
		if c.checks[lo+i] != 0 {
			gens[i] = clonePeriod
		}
	}
	buf := r.getBuf(block.Size)
	encodeGens(buf.b, index, gens[:hi-lo], c.checks[lo:hi])
	c.op.Done = func(_ int, err error) {
		r.putBuf(buf)
		if err != nil {
			c.end(err)
			return
		}
		c.writeGens(index + 1)
	}
	c.files.gens.WriteSync(&c.op, buf.b, index*block.Size)
}

func (c *cloning) writeMeta() {
	r := c.r
	buf := r.getBuf(metaSize)
	m := metaState{checkpoint: clonePeriod}
	encodeMeta(buf.b[:metaSlotSize], 1, m, c.o.req.Text)
	encodeMeta(buf.b[metaSlotSize:metaSize], 2, m, c.o.req.Text)
	c.op.Done = func(_ int, err error) {
		r.putBuf(buf)
		c.end(err)
	}
	c.files.meta.WriteSync(&c.op, buf.b[:metaSize], 0)
}

// end gives the clone its name, or takes away what there is of it.
func (c *cloning) end(err error) {
	r := c.r
	c.l.release()
	if c.present {
		r.finish(c.o, wire.StatusOK)
		return
	}
	r.loop.Work(func() {
		closeFiles(c.files.all())
		if err == nil {
			err = publish(r.loop.FS(), c.tmp, c.dir)
		}
		if err != nil {
			_ = r.loop.FS().RemoveAll(c.tmp)
		}
	}, func() {
		if err != nil {
			r.stats.IOErrors++
			r.log.Error("a clone can't be made", "snapshot", snapName(c.l.period), "clone", c.desc.Replica.String(), "error", err)
		}
		r.finish(c.o, statusOf(err))
	})
}
