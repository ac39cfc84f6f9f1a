package sim_test

import (
	"bytes"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// counts reports whether a replica is in the in-sync set, and in the run in which it acknowledged.
func (k *replicaCopy) counts(m spec.Member) bool { return m.State == spec.InSync && m.Run == k.n.run() }

// inSyncCopies calls fn with every copy of a block that counts.
func (v *vol) inSyncCopies(blk int, fn func(k *replicaCopy, off int64)) {
	col, off := v.locate(int64(blk) * block.Size)
	for _, m := range v.rec.State.Columns[col].Members {
		if k := v.c.copies[m.Replica]; k.counts(m) {
			fn(k, off)
		}
	}
}

// holds reports whether a copy of a block is what write val made of it.
func (k *replicaCopy) holds(off int64, blk int, val uint64, durable bool) bool {
	return k.v.hist.isOf(k.n.sn.Disk().Page(k.head, off, durable), val, blk, 0)
}

// checkWrite checks invariant 1 at the moment of an acknowledgement: the write is on every member of the
// in-sync set that the metadata has. With FUA, invariant 2 as well.
func (v *vol) checkWrite(r *ioreq) {
	if v.rec.State.Term != r.term {
		return // it was acknowledged late; the histories tell whether that mattered
	}
	first := int(r.off / block.Size)
	for i := range r.hops {
		blk := first + i
		if !v.hist.blocks[blk].sure || v.tainted[int64(blk)] {
			continue
		}
		v.inSyncCopies(blk, func(k *replicaCopy, off int64) {
			if !k.holds(off, blk, r.val, false) {
				v.c.fail("invariant 1: write %d to block %d was acknowledged in term %d, and in-sync replica %s on %s doesn't have it",
					r.val, blk, r.term, k.id, k.n.name)
			} else if r.fua && !k.holds(off, blk, r.val, true) {
				v.c.fail("invariant 2: FUA write %d to block %d was acknowledged in term %d, and isn't durable on in-sync replica %s on %s",
					r.val, blk, r.term, k.id, k.n.name)
			}
		})
	}
}

// checkFlush checks invariant 2: what was acknowledged before the flush is durable on every in-sync member.
func (v *vol) checkFlush(r *ioreq) {
	if v.rec.State.Term != r.term {
		return
	}
	h := v.hist
	kept := h.dirty[:0]
	for _, blk := range h.dirty {
		b := &h.blocks[blk]
		if b.open > 0 || b.lastRet >= r.call || !b.sure {
			if b.dirty = b.sure || b.open > 0; b.dirty {
				kept = append(kept, blk)
			}
			continue
		}
		b.dirty = false
		if v.tainted[int64(blk)] {
			continue
		}
		v.inSyncCopies(blk, func(k *replicaCopy, off int64) {
			if !k.holds(off, blk, b.last, true) {
				v.c.fail("invariant 2: write %d to block %d was flushed in term %d, and isn't durable on in-sync replica %s on %s",
					b.last, blk, r.term, k.id, k.n.name)
			}
		})
	}
	h.dirty = kept
}

// bar notes, when a member fences at a term, which writes of older terms it doesn't have: those must not be
// acknowledged any more, as the new term may have no other copy (invariant 3). Writes of terms below the fence that the
// member had before were judged then; meanwhile newer terms may have overwritten them. (Seeds 10749, 102263.)
func (v *vol) bar(k *replicaCopy, before, term uint64) {
	m := v.member(k.col, k.id)
	if m == nil || !k.counts(*m) {
		return
	}
	g := v.pendingAt()
	for _, r := range g {
		for i, op := range r.hops {
			blk := int(r.off/block.Size) + i
			col, off := v.locate(int64(blk) * block.Size)
			if col == k.col && op.term >= before && op.term < term && !v.tainted[int64(blk)] && !k.holds(off, blk, op.val, false) {
				op.barred = max(op.barred, term)
				v.c.count("writes barred by a fence")
			}
		}
	}
}

// pendingAt returns the requests that no client has an answer to.
func (v *vol) pendingAt() (all []*ioreq) {
	for _, n := range v.c.nodes {
		if g := n.guests[v.i]; g != nil {
			for _, r := range g.pending {
				if r.writes() {
					all = append(all, r)
				}
			}
		}
	}
	return all
}

// checkJoined checks, when a member enters the in-sync set or stays in it at an attachment, that it holds every acknowledged
// write, and nothing that was overwritten.
func (v *vol) checkJoined(prev, next spec.Volume) {
	for col := range min(len(prev.State.Columns), len(next.State.Columns)) {
		if v.loss[col] {
			continue
		}
		for _, m := range next.State.Columns[col].Members {
			k := v.c.copies[m.Replica]
			if !k.counts(m) {
				continue
			}
			same := next.State.Fenced == prev.State.Fenced
			for _, was := range prev.State.Columns[col].Members {
				same = same && (was.Replica != m.Replica || was.State == spec.InSync)
			}
			if !same {
				v.checkContent(k, "entered the in-sync set")
			}
		}
	}
}

// checkContent checks that every block of a copy is what it may be.
func (v *vol) checkContent(k *replicaCopy, when string) {
	d := k.n.sn.Disk()
	for _, blk := range v.hist.written {
		col, off := v.locate(int64(blk) * block.Size)
		if col != k.col || v.tainted[int64(blk)] {
			continue
		}
		if p := d.Page(k.head, off, false); !v.hist.mayHold(p, blk) {
			v.c.fail("invariant 5: replica %s on %s %s with something in block %d that it must not hold (it begins %x; allowed are writes %v): %s",
				k.id, k.n.name, when, blk, p[:8], v.hist.blocks[blk].maybe, describe(v.rec))
			return
		}
	}
}

// checkIdentical checks, if nothing is in flight, that the in-sync copies of the blocks that are used most are identical
// (invariant 5).
func (v *vol) checkIdentical() {
	a := v.attachment()
	if a == nil || len(v.pendingAt()) > 0 || v.rec.Restore != nil {
		return
	}
	if st := a.vol.Status(); !st.Serving || st.Unreconciled > 0 || v.loss[0] {
		return
	}
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			if len(v.c.copies[m.Replica].running) > 0 {
				return
			}
		}
	}
	v.c.count("copies compared while idle")
	for _, at := range v.hot {
		for blk := max(at-1, 0); blk < min(at+4, int64(len(v.hist.blocks))); blk++ {
			var first []byte
			v.inSyncCopies(int(blk), func(k *replicaCopy, off int64) {
				p := k.n.sn.Disk().Page(k.head, off, false)
				if first == nil {
					first = p
				} else if !bytes.Equal(first, p) && !v.tainted[blk] {
					v.c.fail("invariant 5: nothing is in flight, and replica %s on %s differs in block %d from another in-sync one: %s", k.id, k.n.name, blk, describe(v.rec))
				}
			})
		}
	}
}

// checkRecord checks a change of the record.
func (v *vol) checkRecord(prev, next spec.Volume) {
	if next.State.Term < prev.State.Term || next.State.Fenced < prev.State.Fenced || next.State.Fenced > next.State.Term {
		v.c.fail("terms go wrong: %s -> %s", describe(prev), describe(next))
	}
	for i, col := range next.State.Columns {
		n := 0
		for _, m := range col.Members {
			if m.State == spec.InSync {
				n++
			}
		}
		if n == 0 {
			v.c.fail("column %d has no in-sync member: %s", i, describe(next))
		}
	}
}

// checkLeaving checks that a member that holds every acknowledged write is made Stale only while the remaining ones
// hold them too: one that lost its run a moment ago must have flushed them before.
func (v *vol) checkLeaving(prev, next spec.Volume) {
	if next.State.Fenced != prev.State.Fenced {
		return // an attachment records who answered
	}
	for i := range min(len(prev.State.Columns), len(next.State.Columns)) {
		states := map[string]spec.MemberState{}
		for _, m := range next.State.Columns[i].Members {
			states[m.Replica] = m.State
		}
		whole := false // an in-sync member was made stale, or dropped, although it is in its run
		kept := false  // and another, that is in its run, stays
		for _, m := range prev.State.Columns[i].Members {
			if m.State == spec.InSync && m.Run == v.c.node(m.Node).run() {
				whole = whole || states[m.Replica] != spec.InSync
				kept = kept || states[m.Replica] == spec.InSync
			}
		}
		if whole && !kept {
			v.c.count("last run left")
			v.checkHeld(i, next)
		}
	}
}

// checkHeld checks that the in-sync members of a column have every acknowledged write.
func (v *vol) checkHeld(col int, rec spec.Volume) {
	for _, blk := range v.hist.dirty {
		b := &v.hist.blocks[blk]
		in, off := v.locate(int64(blk) * block.Size)
		if in != col || b.open > 0 || !b.sure || v.tainted[int64(blk)] {
			continue
		}
		for _, m := range rec.State.Columns[col].Members {
			if m.State == spec.InSync && !v.c.copies[m.Replica].holds(off, blk, b.last, false) {
				v.c.fail("invariant 4: the members that had acknowledged write %d to block %d left the in-sync set, and %s on %s doesn't have it: %s",
					b.last, blk, m.Replica, m.Node, describe(rec))
			}
		}
	}
}

// servedTerm tells the history that a term serves; after a loss of all runs it may have gone back.
func (v *vol) servedTerm(term uint64, g *guest) {
	v.hist.tick()
	for col := range v.columns {
		if !v.loss[col] {
			continue
		}
		v.hist.losses++
		v.c.count("loss")
		delete(v.loss, col)
		for blk := range v.hist.blocks {
			if in, _ := v.locate(int64(blk) * block.Size); in == col {
				v.hist.cut(blk)
			}
		}
		if g != nil {
			g.reissue(func(blk int) bool { in, _ := v.locate(int64(blk) * block.Size); return in == col })
		}
	}
	v.hist.served(term)
	v.servedNow = max(v.servedNow, term)
}

// reissue begins the pending writes anew in the histories of the chosen blocks: they may have happened before
// the loss, and are executed again after it.
func (g *guest) reissue(chosen func(blk int) bool) {
	h := g.v.hist
	for _, r := range g.pending {
		for i, op := range r.hops {
			if blk := int(r.off/block.Size) + i; chosen(blk) {
				h.wrote(blk, op, true)
				r.hops[i] = h.begin(blk, r.val, r.fua, r.term)
			}
		}
		if r.op == block.OpFlush || r.op == block.OpRead {
			r.call = *h.clock
		}
	}
}

// checkSums reads a whole replica, which then no coordinator uses, and so checks every block against its sum, but for damage that
// may be there still; and that no chunk with data is without a gen.
func (v *vol) checkSums(m spec.Member) {
	c, k := v.c, v.c.copies[m.Replica]
	n := k.n
	c.stepUntil(settleTime, c.allReady)
	if n.eng == nil || n.eng.replicas[k.wid] == nil {
		c.fail("replica %s isn't open on %s", k.id, n.name)
		return
	}
	rep, l := n.eng.replicas[k.wid], n.eng.l
	ask := func(r *wire.Request) {
		done := false
		r.Replica, r.Term, r.Session = k.wid, v.rec.State.Term+1, 1
		r.Done = func(*wire.Request) { done = true }
		l.Post(func() { rep.Submit(r) })
		if !c.stepUntil(settleTime, func() bool { return done || l.Dead() }) {
			c.fail("replica %s on %s doesn't answer a %v", k.id, n.name, r.Kind)
		}
	}
	ask(&wire.Request{Kind: wire.KindFence})
	gens := &wire.Request{Kind: wire.KindGens, Len: v.columnSize(), Sums: make([]uint64, block.Chunks(v.columnSize()))}
	ask(gens)
	buf := l.Buffers().Get(block.MaxIO)
	defer l.Buffers().Put(buf)
	sums := make([]uint64, block.MaxBlocks)
	for off := int64(0); off < v.columnSize() && c.err == nil; off += block.MaxIO {
		r := &wire.Request{Kind: wire.KindRead, Off: off, Data: buf[:min(block.MaxIO, v.columnSize()-off)], Sums: sums}
		r.Len = int64(len(r.Data))
		ask(r)
		if l.Dead() {
			return // a late crash
		}
		if r.Status != wire.StatusOK && !k.excused(r) {
			c.fail("replica %s on %s at %d: %v after everything healed (%x)", k.id, n.name, off, r.Status, r.Bad[:4])
		}
		if chunk := off / block.ChunkSize; r.Status == wire.StatusOK && gens.Sums[chunk] == 0 && !block.IsZero(r.Data) {
			c.fail("chunk %d of replica %s on %s has data and no gen", chunk, k.id, n.name)
		}
	}
}

// checkReplicas checks, when the volume was detached, that the copies of each column are identical, and durable.
func (v *vol) checkReplicas() {
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			v.compare(v.c.copies[col.Members[0].Replica], v.c.copies[m.Replica])
		}
		for _, m := range col.Members {
			if v.c.err == nil {
				v.checkSums(m)
			}
		}
	}
}

// compare checks that two copies have the same content, and that the second is durable.
func (v *vol) compare(a, b *replicaCopy) {
	x, y := a.n.sn.Disk(), b.n.sn.Disk()
	for off := int64(0); off < v.columnSize() && v.c.err == nil; off += block.Size {
		p := y.Page(b.head, off, false)
		if blk := v.blockAt(b.col, off); v.tainted[int64(blk)] {
			continue
		} else if !bytes.Equal(x.Page(a.head, off, false), p) {
			v.c.fail("column %d: replicas %s on %s and %s on %s differ in block %d", b.col, a.id, a.n.name, b.id, b.n.name, blk)
		} else if !bytes.Equal(y.Page(b.head, off, true), p) {
			v.c.fail("invariant 2: the volume was detached, and block %d isn't durable on replica %s on %s", blk, b.id, b.n.name)
		}
	}
}
