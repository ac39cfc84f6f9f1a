package volume

import (
	"math/bits"
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// Mistakes that the simulation plants on purpose; see invariant.Mutant.

// plantedCopies sends a change to syncing members beside the operation, which then doesn't wait for
// them, and returns the others.
func (o *op) plantedCopies() uint32 {
	c := o.col
	required := c.rc.Required()
	for rest := c.rc.Everyone() &^ required; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := &wire.Request{Kind: o.kind, FUA: o.fua, Off: o.off, Len: o.n}
		if o.kind == wire.KindWrite {
			buf := c.v.loop.Buffers().Get(len(o.data))
			if buf == nil {
				required |= 1 << m
				continue
			}
			copy(buf, o.data)
			r.Data, r.Sums = buf, slices.Clone(o.sums[:o.n/block.Size])
		}
		c.ask(m, r, func(*wire.Request) {
			if r.Data != nil {
				c.v.loop.Buffers().Put(r.Data)
			}
			if r.Status != wire.StatusOK {
				c.rc.CatchUpFailed(m, c.v.loop.Now())
			}
		})
	}
	return required
}

// plantedRepair repairs what a read found without its range locked, and then reads again.
func (o *op) plantedRepair() {
	o.col.lock.Unlock(&o.rng)
	o.col.fetch(o.at, o.off, o.data, func(error) {
		if o.col.lock.Lock(&o.rng, o.off, o.n, true) {
			o.granted()
		}
	})
}
