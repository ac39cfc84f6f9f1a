package replica

import (
	"fmt"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

const (
	cpWrites  = 16 // sums that a checkpoint writes at a time
	gensBatch = 16 // blocks of gens in one write
)

// checkpointer makes checkpoints, one at a time, in these steps:
//
//	head synced if the coordinator has not  ->  sums written  ->  gens written  ->  both synced
//	->  entries that must stay are in the journal under the next period
//	->  meta has the checkpoint  ->  older entries are dropped
//
// Each step begins when the one before is durable. A crash between two of them leaves the old
// checkpoint, and a journal that has every chunk written since.
type checkpointer struct {
	r      *Replica
	queue  opList
	o      *op
	period uint64 // of the one under way; 0 if there is none
	list   []*ent // whose sums are still to be written
	phase  cpPhase
	err    error
	op     aio.Op
	next   int64 // block of gens to go on with
	// late are the chunks whose sums were recomputed while the checkpoint was under way: they may have missed it.
	late bitset
}

// cpPhase is what a checkpoint waits for.
type cpPhase uint8

const (
	cpNone   cpPhase = iota
	cpDrain          // sums that others are writing
	cpSums           // sums that the checkpoint writes
	cpBeyond         // the rest, which is a chain of callbacks
)

// add queues a checkpoint.
func (c *checkpointer) add(o *op) {
	c.queue.push(o)
	c.start()
}

func (c *checkpointer) start() {
	if c.o != nil {
		return
	}
	r := c.r
	for {
		if c.o = c.queue.pop(); c.o == nil {
			return
		}
		if c.o.req.Period > r.m.checkpoint {
			break
		}
		r.finish(c.o, wire.StatusOK)
	}
	c.period, c.err = c.o.req.Period, nil
	r.cache.hold = true
	c.phase = cpDrain
	if invariant.Mutant("checkpoint-before-sums") {
		r.plantedCheckpoint(c.period)
	}
	if (r.flush.oldest <= c.period || r.flush.busy && r.flush.was <= c.period) && !invariant.Mutant("checkpoint-without-flush") {
		c.phase = cpBeyond
		r.flush.call(func(err error) {
			if err != nil {
				c.end(err)
				return
			}
			c.phase = cpDrain
			c.sumsWritten()
		})
		return
	}
	c.sumsWritten()
}

// sumsWritten is called when some chunk's sums have been written.
func (c *checkpointer) sumsWritten() {
	r := c.r
	if c.phase == cpDrain && r.cache.writing == 0 {
		c.phase = cpSums
		c.list = c.list[:0]
		for e := r.cache.lru.next; e != &r.cache.lru; e = e.next {
			if e.dirty {
				c.list = append(c.list, e)
			}
		}
	}
	if c.phase != cpSums {
		return
	}
	for len(c.list) > 0 && r.cache.writing < cpWrites && c.err == nil {
		e := c.list[len(c.list)-1]
		c.list = c.list[:len(c.list)-1]
		if e.dirty {
			r.cache.writeBack(e, c.wrote)
		}
	}
	if r.cache.writing > 0 {
		return
	}
	c.phase = cpBeyond
	if c.err != nil {
		c.end(c.err)
		return
	}
	c.next = 0
	c.writeGens()
}

func (c *checkpointer) wrote(_ *ent, err error) {
	if err != nil && c.err == nil {
		c.err = err
	}
}

// writeGens writes the blocks of gens that have changed.
func (c *checkpointer) writeGens() {
	r := c.r
	first := r.gensDirty.next(c.next)
	if first < 0 {
		c.syncSums()
		return
	}
	n := int64(1)
	for n < gensBatch && r.gensDirty.has(first+n) {
		n++
	}
	if invariant.Mutant("gens-write-lost") {
		r.gensDirty.remove(first)
		c.writeGens()
		return
	}
	buf := r.getBuf(int(n) * block.Size)
	for i := range n {
		r.encodeGensBlock(buf.b[i*block.Size:(i+1)*block.Size], first+i)
		r.gensDirty.remove(first + i)
	}
	c.op.Done = func(_ int, err error) {
		r.putBuf(buf)
		if err != nil {
			for i := range n {
				r.gensDirty.add(first + i)
			}
			c.end(fmt.Errorf("writing gens: %w", err))
			return
		}
		c.next = first + n
		c.writeGens()
	}
	r.files.gens.WriteAt(&c.op, buf.b, first*block.Size)
}

func (r *Replica) encodeGensBlock(b []byte, index int64) {
	lo := index * gensPerBlock
	hi := min(lo+gensPerBlock, r.chunks)
	encodeGens(b, index, r.gens[lo:hi], r.checks[lo:hi])
}

func (c *checkpointer) syncSums() {
	r := c.r
	r.cache.hold = false
	if !r.cache.unsynced || invariant.Mutant("sums-not-synced") {
		c.syncGens()
		return
	}
	r.cache.unsynced = false
	c.op.Done = func(_ int, err error) {
		if err != nil {
			r.cache.unsynced = true
			c.end(fmt.Errorf("syncing sums: %w", err))
			return
		}
		c.syncGens()
	}
	r.files.sums.Sync(&c.op)
}

func (c *checkpointer) syncGens() {
	c.op.Done = func(_ int, err error) {
		if err != nil {
			c.r.gensDirty.addAll()
			c.end(fmt.Errorf("syncing gens: %w", err))
			return
		}
		c.keepEntries()
	}
	if invariant.Mutant("gens-not-synced") {
		c.keepEntries()
		return
	}
	c.r.files.gens.Sync(&c.op)
}

// keepEntries journals anew, under the next period, what must outlive the checkpoint: chunks whose sums are still
// to be recomputed or were too late for this checkpoint, and those that aren't reconciled.
func (c *checkpointer) keepEntries() {
	r := c.r
	period := c.period + 1
	var keep []entry
	for _, s := range []*bitset{&r.suspect, &r.unrec, &c.late} {
		if s == &r.unrec && invariant.Mutant("checkpoint-unreconciled") || s == &c.late && invariant.Mutant("late-sums-forgotten") {
			continue
		}
		for i := s.next(0); i >= 0; i = s.next(i + 1) {
			keep = append(keep, entry{i, period, true})
			if len(keep) > r.journal.limit/2 {
				r.m.all = max(r.m.all, period)
				r.m.allKept = true
				c.saveCheckpoint()
				return
			}
		}
	}
	if len(keep) == 0 {
		c.saveCheckpoint()
		return
	}
	r.journal.add(keep, func(err error) {
		if err != nil {
			c.end(fmt.Errorf("keeping journal entries: %w", err))
			return
		}
		c.saveCheckpoint()
	})
}

func (c *checkpointer) saveCheckpoint() {
	r := c.r
	was := r.m.checkpoint
	r.m.checkpoint = c.period
	r.saveMeta(func(err error) {
		if err != nil {
			r.m.checkpoint = was
			c.end(err)
			return
		}
		r.journal.forget(c.period)
		r.settled()
		c.end(nil)
	})
}

// settled forgets what a crash did to chunks that have just left the journal.
func (r *Replica) settled() {
	for i := r.crashed.next(0); i >= 0; i = r.crashed.next(i + 1) {
		if !r.suspect.has(i) && !r.unrec.has(i) {
			r.crashed.remove(i)
		}
	}
	for chunk := range r.bad {
		if !r.crashed.has(chunk) {
			delete(r.bad, chunk)
		}
	}
}

func (c *checkpointer) end(err error) {
	r, o := c.r, c.o
	r.cache.hold = false
	c.o, c.period, c.phase = nil, 0, cpNone
	c.list, c.late = nil, bitset{size: r.chunks}
	if err != nil {
		r.log.Error("checkpoint failed", "period", o.req.Period, "error", err)
	} else {
		r.stats.Checkpoints++
	}
	r.finish(o, statusOf(err))
	if !r.cache.waiting.empty() {
		r.cache.retry()
	}
	c.start()
}
