package replica

import (
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// blocks returns which blocks of its i-th chunk a request touches.
func (o *op) blocks(i int) (from, n int) {
	length := o.req.Length()
	first := o.req.Off / block.Size
	last := first + length/block.Size
	start := (o.chunk + int64(i)) * block.PerChunk
	lo, hi := max(first, start), min(last, start+block.PerChunk)
	return int(lo - start), int(hi - lo)
}

// read answers from the sums if all blocks are known to be zeros, else from the disk.
func (r *Replica) read(o *op) {
	zero, at := true, 0
	for i := range o.n {
		from, n := o.blocks(i)
		at += copy(o.req.Sums[at:], o.ent[i].sums[from:from+n])
	}
	for _, s := range o.req.Sums {
		if s != 0 {
			zero = false
			break
		}
	}
	r.stats.Reads++
	if zero {
		clear(o.req.Data)
		r.finish(o, wire.StatusOK)
		return
	}
	o.issued = true
	r.files.head.ReadAt(&o.io, o.req.Data, o.req.Off)
}

func (r *Replica) readDone(o *op, n int, err error) {
	if err != nil {
		r.ioFailed("read", o, err)
		r.finish(o, statusOf(err))
		return
	}
	req := o.req
	clear(req.Data[n:])
	r.adopt(o, req.Off/block.Size, req.Data, req.Sums)
	status := wire.StatusOK
	for i, s := range req.Sums {
		if !block.Intact(req.Data[i*block.Size:(i+1)*block.Size], s) && !invariant.Mutant("sum-not-verified") {
			req.Bad[i>>6] |= 1 << (i & 63)
			status = wire.StatusBadSum
			r.stats.BadBlocks++
			r.log.Warn("block doesn't match its checksum", "offset", req.Off+int64(i)*block.Size)
		}
	}
	r.finish(o, status)
}

// change takes a write, trim, zero or touch through the journal to the disk.
func (r *Replica) change(o *op) {
	if !o.marked && o.req.Kind != wire.KindTouch && !o.claim() {
		r.log.Error("a request overlaps one in flight", "offset", o.req.Off, "term", o.req.Term)
		r.finish(o, wire.StatusBadRequest)
		return
	}
	if o.req.Kind == wire.KindRestore && !r.restorable(o) {
		return
	}
	if !r.snaps.preserved(o) {
		return
	}
	if o.req.Kind == wire.KindTouch && invariant.Mutant("touch-keeps-gen") {
		r.reconciled(o)
		return
	}
	if !r.journal.covers(o) && !invariant.Mutant("no-journal") {
		r.journal.wait(o)
		return
	}
	req := o.req
	o.issued = true
	switch req.Kind {
	case wire.KindTouch:
		r.reconciled(o)
	case wire.KindRestore:
		r.restore(o)
	case wire.KindTrim:
		r.files.head.Punch(&o.io, req.Off, req.Len)
	case wire.KindZero:
		r.files.head.Zero(&o.io, req.Off, req.Len)
	default:
		if req.FUA && !invariant.Mutant("fua-ignored") {
			r.files.head.WriteSync(&o.io, req.Data, req.Off)
		} else {
			r.files.head.WriteAt(&o.io, req.Data, req.Off)
		}
	}
}

// claim marks the request's blocks as being changed; false if some of them already are.
func (o *op) claim() bool {
	for i := range o.n {
		from, n := o.blocks(i)
		if !o.ent[i].busy.claim(from, n) {
			for k := range i {
				from, n := o.blocks(k)
				o.ent[k].busy.clear(from, n)
			}
			return false
		}
	}
	o.marked = true
	return true
}

// ioDone continues a request whose data I/O ended.
func (o *op) ioDone(n int, err error) {
	r := o.r
	if o.req.Kind.Fills() {
		r.readDone(o, n, err)
		return
	}
	if err != nil {
		r.changeFailed(o, err)
		return
	}
	req := o.req
	at := 0
	for i := range o.n {
		from, n := o.blocks(i)
		e := o.ent[i]
		if req.Kind == wire.KindWrite {
			copy(e.sums[from:from+n], req.Sums[at:at+n])
			at += n
		} else if req.Kind == wire.KindRestore {
			copy(e.sums[from:from+n], o.sums[from:from+n])
		} else if !invariant.Mutant("trim-keeps-sums") {
			clear(e.sums[from : from+n])
		}
		r.cache.markDirty(e)
		if e.unread != (blockMap{}) {
			e.unread.clear(from, n)
			r.known(e)
		}
		if len(r.bad) > 0 {
			r.clearBad(e.chunk, from, n)
		}
	}
	r.stats.Writes++
	if req.Kind == wire.KindWrite && req.FUA {
		r.finish(o, wire.StatusOK)
		return
	}
	r.flush.wrote(req.Period)
	if req.FUA {
		o.syncs = true
		r.flush.add(o)
		return
	}
	r.finish(o, wire.StatusOK)
}

func (r *Replica) clearBad(chunk int64, from, n int) {
	b := r.bad[chunk]
	if b == nil {
		return
	}
	b.clear(from, n)
	if *b == (blockMap{}) {
		delete(r.bad, chunk)
	}
}

// changeFailed handles a write that the disk refused: some of its blocks may have reached it, so
// the sums of its chunks aren't known any more.
func (r *Replica) changeFailed(o *op, err error) {
	r.ioFailed(o.req.Kind.String(), o, err)
	for i := range o.n {
		r.suspect.add(o.chunk + int64(i))
		o.ent[i].unread = blockMap{} // all are recomputed
	}
	r.flush.wrote(o.req.Period)
	r.finish(o, statusOf(err))
}

func (r *Replica) ioFailed(what string, o *op, err error) {
	r.stats.IOErrors++
	r.log.Error("disk I/O failed", "operation", what, "offset", o.req.Off, "error", err)
}

// reconciled ends a touch.
func (r *Replica) reconciled(o *op) {
	r.unrec.remove(o.chunk)
	r.crashed.remove(o.chunk)
	delete(r.bad, o.chunk)
	r.finish(o, wire.StatusOK)
}

// answerSums ends a question for a chunk's sums.
func (r *Replica) answerSums(o *op) {
	req := o.req
	req.Sums = req.Sums[:block.PerChunk]
	copy(req.Sums, o.ent[0].sums)
	if req.Kind != wire.KindSums {
		r.clearBehind(req.Period, o.chunk, req.Sums)
	}
	if b := r.bad[o.chunk]; b != nil {
		req.Bad = *b
	}
	if unread := &o.ent[0].unread; *unread != (blockMap{}) {
		for i := range block.PerChunk {
			if !unread.has(i) {
				continue
			}
			req.Bad[i>>6] |= 1 << (i & 63)
			// Nobody knows its sum. The one that is stored may be that of another copy which lacks the last write, and would be
			// taken for equal: so none is told that another copy has.
			if req.Kind == wire.KindSums && !invariant.Mutant("unread-block-told") {
				req.Sums[i] = noSum(req.Sums[i], r.desc.Replica)
			}
		}
	}
	r.finish(o, wire.StatusOK)
}

// noSum returns a sum that isn't the given one, nor of zeros, and not what another replica makes of the same.
func noSum(sum uint64, id wire.ReplicaID) uint64 {
	if other := ^sum ^ uint64(id); other != 0 && other != sum {
		return other
	}
	return sum + 1 | 2
}
