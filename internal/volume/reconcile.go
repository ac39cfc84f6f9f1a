package volume

import (
	"math/bits"
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/wire"
)

// reconcileWindow is how many chunks are reconciled at once in the background.
const reconcileWindow = 4

// parked is a chunk that is not reconciled, and the operations that wait for it.
type parked struct {
	ops     []*op
	running bool
}

// beginReconcile notes the chunks that any in-sync member's journal names: their copies may differ by
// writes that the former coordinator never acknowledged. A value once read must not disappear with the
// member that had it, so each is made identical before it's first read or written.
func (c *column) beginReconcile() {
	note := func(chunk int64) {
		if c.unreconciled[chunk] == nil && chunk >= 0 && chunk < block.Chunks(c.size) {
			c.unreconciled[chunk] = &parked{}
			c.reconcileOrder = append(c.reconcileOrder, chunk)
		}
	}
	for rest := c.rc.InSync(); rest != 0 && !invariant.Mutant("no-reconcile"); rest &= rest - 1 {
		a := &c.rc.Member(bits.TrailingZeros32(rest)).Answer
		for _, e := range a.Journal {
			note(e.Chunk)
		}
		if a.AllChunks {
			for chunk := int64(0); chunk < block.Chunks(c.size); chunk++ {
				note(chunk)
			}
		}
	}
	slices.Sort(c.reconcileOrder)
	if n := len(c.unreconciled); n > 0 {
		c.v.log.Info("reconciling what was being written", "column", c.idx, "chunks", n)
	}
	c.v.loop.Post(c.reconcileMore)
}

// reconcileMore keeps the background going, and tells when nothing is left.
func (c *column) reconcileMore() {
	if c.v.phase == lost || c.v.phase == detached || c.rc.Phase() != repl.PhaseServing {
		return
	}
	for c.reconciling < reconcileWindow && len(c.reconcileOrder) > 0 && c.mayReconcile() {
		chunk := c.reconcileOrder[0]
		c.reconcileOrder = c.reconcileOrder[1:]
		if p := c.unreconciled[chunk]; p != nil && !p.running {
			c.reconcileChunk(chunk, p)
		}
	}
	if len(c.unreconciled) == 0 && !c.reconciled {
		c.reconciled = true
		c.rc.Reconciled(c.v.loop.Now())
		c.v.armTick()
		c.v.drained()
	}
}

// mayReconcile reports whether every member that the metadata has as in sync can be made identical now. With one that is on
// its way out it has to be waited for how that ends: what was read after reconciling only the others would be gone
// if they failed before the metadata says that it is out. The tick tries again.
func (c *column) mayReconcile() bool {
	return c.rc.Required() == c.rc.InSync() || invariant.Mutant("reconcile-without-leaving")
}

// park makes o wait if one of its chunks isn't reconciled, and sees to that chunk first.
func (c *column) park(o *op) bool {
	for chunk := block.Chunk(o.off); chunk <= block.Chunk(o.off+o.n-1); chunk++ {
		p := c.unreconciled[chunk]
		if p == nil {
			continue
		}
		p.ops = append(p.ops, o)
		if !p.running && c.mayReconcile() {
			c.reconcileChunk(chunk, p)
		}
		return true
	}
	return false
}

// source is the in-sync member whose version of a block wins: one whose engine hasn't died since it wrote,
// if there is one, as its checksums weren't recomputed from the disk.
func (c *column) source() int {
	best, rank := -1, -1
	for rest := c.rc.InSync(); rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := 0
		if c.rc.Member(m).Answer.Exact {
			r += 2
		}
		if c.rc.Member(m).Node == c.v.cfg.Self {
			r++
		}
		if r > rank {
			best, rank = m, r
		}
	}
	return best
}

func (c *column) reconcileChunk(chunk int64, p *parked) {
	source, members := c.source(), c.rc.InSync()
	p.running = true
	c.reconciling++
	ended := func(s *chunkSync, ok bool) {
		c.reconciling--
		p.running = false
		ops := p.ops
		switch {
		case ok:
			delete(c.unreconciled, chunk)
			p.ops = nil
		default:
			c.reconcileOrder = append(c.reconcileOrder, chunk) // again with the next tick
			ops = nil
		}
		s.unlock()
		for _, o := range ops {
			o.start()
		}
		if ok {
			c.reconcileMore()
		}
		c.v.armTick()
	}
	c.sync(chunk, source, members, true, func(s *chunkSync, err error) {
		if err != nil {
			ended(s, false)
			return
		}
		c.touch(chunk, members, func(ok bool) { ended(s, ok) })
	})
}

// touch gives a chunk the present period's gen on the members, so that whoever was away compares it.
func (c *column) touch(chunk int64, members uint32, done func(ok bool)) {
	left, ok := bits.OnesCount32(members), true
	for rest := members; rest != 0; rest &= rest - 1 {
		r := &wire.Request{Kind: wire.KindTouch, Off: chunk * block.ChunkSize, Len: block.ChunkSize}
		c.ask(bits.TrailingZeros32(rest), r, func(*wire.Request) {
			ok = ok && r.Status == wire.StatusOK
			if left--; left == 0 {
				done(ok)
			}
		})
	}
}
