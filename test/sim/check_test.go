package sim_test

import (
	"bytes"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// inSyncCopies calls fn with every in-sync copy of a block that is in the run in which it acknowledged.
func (c *cluster) inSyncCopies(blk int, fn func(m spec.Member, off int64)) {
	col, off := c.locate(int64(blk) * block.Size)
	for _, m := range c.s.rec.State.Columns[col].Members {
		if m.State == spec.InSync && m.Run == c.node(m.Node).run() {
			fn(m, off)
		}
	}
}

// holds reports whether a copy of a block is what write val made of it.
func (c *cluster) holds(m spec.Member, off int64, blk int, val uint64, durable bool) bool {
	var got, want [block.Size]byte
	fill(want[:], val, blk)
	name := replicaDir(m.Replica) + "/head"
	d := c.node(m.Node).sn.Disk()
	if durable {
		d.PeekDurable(name, got[:], off)
	} else {
		d.Peek(name, got[:], off)
	}
	return bytes.Equal(got[:], want[:])
}

// checkWrite checks invariant 1 at the moment of an acknowledgement: the write is on every member of the
// in-sync set that the metadata has. With FUA, invariant 2 as well.
func (c *cluster) checkWrite(r *ioreq) {
	if c.s.rec.State.Term != r.term {
		return // it was acknowledged late; the histories tell whether that mattered
	}
	first := int(r.off / block.Size)
	for i := range r.hops {
		blk := first + i
		if !c.hist.blocks[blk].sure || c.tainted[int64(blk)] {
			continue
		}
		c.inSyncCopies(blk, func(m spec.Member, off int64) {
			if !c.holds(m, off, blk, r.val, false) {
				c.fail("invariant 1: write %d to block %d was acknowledged in term %d, and in-sync replica %s on %s doesn't have it",
					r.val, blk, r.term, m.Replica, m.Node)
			} else if r.fua && !c.holds(m, off, blk, r.val, true) {
				c.fail("invariant 2: FUA write %d to block %d was acknowledged in term %d, and isn't durable on in-sync replica %s on %s",
					r.val, blk, r.term, m.Replica, m.Node)
			}
		})
	}
}

// checkFlush checks invariant 2: what was acknowledged before the flush is durable on every in-sync member.
func (c *cluster) checkFlush(r *ioreq) {
	if c.s.rec.State.Term != r.term {
		return
	}
	h := c.hist
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
		if c.tainted[int64(blk)] {
			continue
		}
		c.inSyncCopies(blk, func(m spec.Member, off int64) {
			if !c.holds(m, off, blk, b.last, true) {
				c.fail("invariant 2: write %d to block %d was flushed in term %d, and isn't durable on in-sync replica %s on %s",
					b.last, blk, r.term, m.Replica, m.Node)
			}
		})
	}
	h.dirty = kept
}

// checkRecord checks a change of the record.
func (c *cluster) checkRecord(prev, next spec.Volume) {
	if next.State.Term < prev.State.Term || next.State.Fenced < prev.State.Fenced || next.State.Fenced > next.State.Term {
		c.fail("terms go wrong: %s -> %s", describe(prev), describe(next))
	}
	for i, col := range next.State.Columns {
		n := 0
		for _, m := range col.Members {
			if m.State == spec.InSync {
				n++
			}
		}
		if n == 0 {
			c.fail("column %d has no in-sync member: %s", i, describe(next))
		}
	}
}

// checkLeaving checks that a member that holds every acknowledged write is made Stale only while the remaining ones
// hold them too: one that lost its run a moment ago must have flushed them before.
func (c *cluster) checkLeaving(prev, next spec.Volume) {
	if next.State.Fenced != prev.State.Fenced {
		return // an attachment records who answered
	}
	for i := range min(len(prev.State.Columns), len(next.State.Columns)) {
		states := map[string]spec.MemberState{}
		for _, m := range next.State.Columns[i].Members {
			states[m.Replica] = m.State
		}
		whole := false // an in-sync member was made stale although it is in its run
		kept := false  // and another, that is in its run, stays
		for _, m := range prev.State.Columns[i].Members {
			if m.State == spec.InSync && m.Run == c.node(m.Node).run() {
				whole = whole || states[m.Replica] == spec.Stale
				kept = kept || states[m.Replica] == spec.InSync
			}
		}
		if whole && !kept {
			c.count("last run left")
			c.checkHeld(i, next)
		}
	}
}

// checkHeld checks that the in-sync members of a column have every acknowledged write.
func (c *cluster) checkHeld(col int, rec spec.Volume) {
	for _, blk := range c.hist.dirty {
		b := &c.hist.blocks[blk]
		in, off := c.locate(int64(blk) * block.Size)
		if in != col || b.open > 0 || !b.sure || c.tainted[int64(blk)] {
			continue
		}
		for _, m := range rec.State.Columns[col].Members {
			if m.State == spec.InSync && !c.holds(m, off, blk, b.last, false) {
				c.fail("invariant 4: the members that had acknowledged write %d to block %d left the in-sync set, and %s on %s doesn't have it: %s",
					b.last, blk, m.Replica, m.Node, describe(rec))
			}
		}
	}
}

// servedTerm tells the history that a term serves; after a loss of all runs it may have gone back.
func (c *cluster) servedTerm(term uint64, g *guest) {
	c.hist.tick()
	for col := range c.p.columns {
		if !c.s.loss[col] {
			continue
		}
		c.hist.losses++
		c.count("loss")
		delete(c.s.loss, col)
		for blk := range c.hist.blocks {
			if in, _ := c.locate(int64(blk) * block.Size); in == col {
				c.hist.cut(blk)
			}
		}
		if g != nil {
			g.reissue(func(blk int) bool { in, _ := c.locate(int64(blk) * block.Size); return in == col })
		}
	}
	c.hist.served(term)
	c.servedNow = max(c.servedNow, term)
}

// reissue begins the pending writes anew in the histories of the chosen blocks: they may have happened before
// the loss, and are executed again after it.
func (g *guest) reissue(chosen func(blk int) bool) {
	h := g.c.hist
	for _, r := range g.pending {
		for i, op := range r.hops {
			if blk := int(r.off/block.Size) + i; chosen(blk) {
				h.wrote(blk, op, true)
				r.hops[i] = h.begin(blk, r.val, r.fua, r.term)
			}
		}
		if r.op == block.OpFlush || r.op == block.OpRead {
			r.call = h.clock
		}
	}
}

// checkSums reads a whole replica, which then no coordinator uses, and so checks every block against its sum.
func (c *cluster) checkSums(m spec.Member) {
	n := c.node(m.Node)
	c.stepUntil(settleTime, c.allReady)
	if n.eng == nil || n.eng.replicas[replicaID(m.Replica)] == nil {
		c.fail("replica %s isn't open on %s", m.Replica, m.Node)
		return
	}
	rep, l := n.eng.replicas[replicaID(m.Replica)], n.eng.l
	ask := func(r *wire.Request) {
		done := false
		r.Replica, r.Term, r.Session = replicaID(m.Replica), c.s.rec.State.Term+1, 1
		r.Done = func(*wire.Request) { done = true }
		l.Post(func() { rep.Submit(r) })
		if !c.stepUntil(settleTime, func() bool { return done || l.Dead() }) {
			c.fail("replica %s on %s doesn't answer a %v", m.Replica, m.Node, r.Kind)
		}
	}
	ask(&wire.Request{Kind: wire.KindFence})
	buf := l.Buffers().Get(block.MaxIO)
	defer l.Buffers().Put(buf)
	for off := int64(0); off < c.p.size/int64(c.p.columns) && c.err == nil; off += block.MaxIO {
		r := &wire.Request{Kind: wire.KindRead, Off: off, Len: block.MaxIO, Data: buf, Sums: make([]uint64, block.MaxBlocks)}
		ask(r)
		if l.Dead() {
			return // a late crash
		}
		if r.Status != wire.StatusOK && !c.taintedIn(off, block.MaxIO) && c.err == nil {
			c.fail("replica %s on %s at %d: %v after everything healed (%x)", m.Replica, m.Node, off, r.Status, r.Bad[:4])
		}
	}
}

func (c *cluster) taintedIn(colOff, n int64) bool {
	for at := range c.tainted {
		if _, off := c.locate(at * block.Size); off >= colOff && off < colOff+n {
			return true
		}
	}
	return false
}

// checkReplicas checks, when the volume was detached, that the copies of each column are identical.
func (c *cluster) checkReplicas() {
	for i, col := range c.s.rec.State.Columns {
		size := c.p.size / int64(c.p.columns)
		first := -1
		for j, m := range col.Members {
			if first < 0 {
				first = j
				continue
			}
			c.compare(i, size, col.Members[first], m)
		}
		for _, m := range col.Members {
			if c.err == nil {
				c.checkSums(m)
			}
		}
	}
}

func (c *cluster) compare(col int, size int64, a, b spec.Member) {
	const step = 64 << 10
	x, y := make([]byte, step), make([]byte, step)
	read := func(m spec.Member, p []byte, off int64) {
		clear(p)
		c.node(m.Node).sn.Disk().Peek(replicaDir(m.Replica)+"/head", p, off)
	}
	for off := int64(0); off < size; off += step {
		read(a, x, off)
		read(b, y, off)
		if bytes.Equal(x, y) {
			continue
		}
		for at := int64(0); at < step; at += block.Size {
			if !bytes.Equal(x[at:at+block.Size], y[at:at+block.Size]) && !c.taintedAt(col, off+at) {
				c.fail("column %d: replicas %s on %s and %s on %s differ at %d", col, a.Replica, a.Node, b.Replica, b.Node, off+at)
				return
			}
		}
	}
}

func (c *cluster) taintedAt(col int, colOff int64) bool {
	for at := range c.tainted {
		if i, off := c.locate(at * block.Size); i == col && off == colOff {
			return true
		}
	}
	return false
}
