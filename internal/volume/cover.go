package volume

import (
	"syscall"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/spec"
)

// cover locks all that a change of several pieces touches before the first of them begins, and until the answer was handed
// to the frontend: a request that a new engine executes again must not have been followed, on any part of it, by
// another one that was answered. One range a column is held for all the pieces in it.
//
//	every column: wait until its chunks are reconciled -> every column: lock -> cut pieces, a few at a time
//
// Invariant: whoever holds a range waits for none that it asked for later. A cover asks for all of its ranges in one step,
// and holds none before; a change of one piece, and every piece of a read, holds one and asks for no other. So no
// two requests wait for each other.
type cover struct {
	call *call
	ops  []*op // one a column, which only hold its range
	left int   // columns that the present step waits for
}

// onePiece reports whether a change is one piece: in one stripe, and a trim or zero also in one chunk.
func (v *Volume) onePiece(r *block.Request) bool {
	_, colOff, n := v.locate(r.Off)
	if r.Op != block.OpWrite {
		n = min(n, block.ChunkSize-colOff%block.ChunkSize)
	}
	return r.Len <= n
}

// cover starts a request of many pieces.
func (v *Volume) cover(c *call) {
	if invariant.Mutant("pieces-unlock") {
		for c.cursor < c.req.Len {
			v.piece(c)
		}
		return
	}
	k := &cover{call: c}
	c.left++
	for i, col := range v.columns {
		start, end := v.columnRange(i, c.req.Off, c.req.Off+c.req.Len)
		if start == end {
			continue
		}
		o := v.getOp(col)
		o.call, o.cover, o.off, o.n = c, k, start, end-start
		k.ops = append(k.ops, o)
	}
	k.left = len(k.ops)
	for _, o := range k.ops {
		o.start()
	}
}

// columnRange returns the part of a column that bytes [off, end) of the volume touch, rounded out to whole stripes.
func (v *Volume) columnRange(i int, off, end int64) (colOff, colEnd int64) {
	n := int64(len(v.columns))
	if n == 1 {
		return off, end
	}
	first, last := off/spec.StripeUnit, (end-1)/spec.StripeUnit
	first += (int64(i) - first%n + n) % n // the first stripe of this column at or after it
	last -= (last%n - int64(i) + n) % n   // the last one at or before it
	if first > last {
		return 0, 0
	}
	return first / n * spec.StripeUnit, (last/n + 1) * spec.StripeUnit
}

// ready is called for every column whose chunks are reconciled, or when the volume was lost meanwhile.
func (k *cover) ready() {
	if k.left--; k.left > 0 {
		return
	}
	v := k.call.v
	if v.phase == lost {
		for _, o := range k.ops {
			v.putOp(o)
		}
		v.pieceDone(k.call, syscall.EIO)
		return
	}
	k.left = len(k.ops)
	for _, o := range k.ops {
		if o.col.lock.Lock(&o.rng, o.off, o.n, false) {
			k.locked()
		}
	}
}

// locked is called for every column whose range is held.
func (k *cover) locked() {
	if k.left--; k.left > 0 {
		return
	}
	c := k.call
	v := c.v
	for _, o := range k.ops {
		c.hold(o)
	}
	var err error
	if v.phase == lost {
		err = syscall.EIO
	} else {
		c.cutting = true
	}
	v.pieceDone(c, err)
}

// hold keeps a piece's range locked until the whole request is answered.
func (c *call) hold(o *op) { o.next, c.held = c.held, o }

// unlockHeld unlocks what an answered request held.
func (v *Volume) unlockHeld(held *op) {
	for o := held; o != nil; {
		next := o.next
		o.col.lock.Unlock(&o.rng)
		v.putOp(o)
		o = next
	}
}
