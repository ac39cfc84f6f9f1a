package volume

import (
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// checkpointer moves the volume from one period to the next, so that members can forget which chunks were
// written in the old one:
//
//	idle -> waitOld: a new period begins; writes of older ones end
//	     -> flushing: every required member makes its data durable
//	     -> persisting: every in-sync member makes sums and gens durable, then the checkpoint, and drops its journal
//	     -> idle
//
// Invariant: persisting begins only when nothing of the old period is in flight and all required members have flushed.
type checkpointer struct {
	v     *Volume
	timer aio.Timer
	// every and idle are how long after the first, and after the last, change a checkpoint is due.
	every, idle time.Duration
	state       checkpointState
	left        int    // columns that have not answered
	upTo        uint64 // the period that the checkpoint covers
	started     time.Duration
	last        time.Duration // the last change of data
	dirty       bool          // something was written since the last checkpoint began
	failed      bool
	then        []func(ok bool)
}

type checkpointState uint8

const (
	ckptIdle checkpointState = iota
	ckptWaitOld
	ckptFlushing
	ckptPersisting
)

func (k *checkpointer) init(v *Volume) {
	k.v = v
	k.timer = v.loop.NewTimer(k.onTimer)
	k.every = v.cfg.CheckpointEvery
	k.idle = min(checkpointIdle, k.every)
}

// dirtied notes a change of data that begins.
func (k *checkpointer) dirtied(c *column, off, n int64) {
	k.last = k.v.loop.Now()
	if !k.dirty {
		k.dirty, k.started = true, k.last
		k.timer.Reset(k.idle)
	}
	for chunk := block.Chunk(off); chunk <= block.Chunk(off+n-1); chunk++ {
		if bit := uint64(1) << (chunk % 64); c.dirty[chunk/64]&bit == 0 {
			c.dirty[chunk/64] |= bit
			if c.dirtyCount++; c.dirtyCount >= checkpointChunks {
				k.timer.Reset(0)
			}
		}
	}
}

// onTimer begins a checkpoint when the volume has been idle, or has been written to for long.
func (k *checkpointer) onTimer() {
	if k.v.phase != serving {
		return
	}
	now := k.v.loop.Now()
	full := false
	for _, c := range k.v.columns {
		full = full || c.dirtyCount >= checkpointChunks
	}
	due := now-k.last >= k.idle || now-k.started >= k.every || full
	if k.dirty && due && k.state == ckptIdle {
		k.begin()
	}
	if k.dirty || k.state != ckptIdle {
		k.timer.Reset(k.idle)
	}
}

// begin starts a checkpoint if every column is reconciled: until then, journals must be kept whole.
func (k *checkpointer) begin() bool {
	v := k.v
	if k.state != ckptIdle || v.snaps.blocks() {
		return false
	}
	for _, c := range v.columns {
		if len(c.unreconciled) > 0 && !invariant.Mutant("checkpoint-unreconciled") {
			return false
		}
	}
	k.upTo = v.period
	v.period++
	v.oldMut, v.mut = v.mut, 0
	k.dirty, k.failed = false, false
	for _, c := range v.columns {
		clear(c.dirty)
		c.dirtyCount = 0
	}
	k.state = ckptWaitOld
	k.advance()
	return true
}

// advance goes on when the last write of older periods has ended.
func (k *checkpointer) advance() {
	if k.state != ckptWaitOld || (k.v.oldMut > 0 && !invariant.Mutant("checkpoint-early")) || k.v.phase == lost {
		return
	}
	k.state = ckptFlushing
	if invariant.Mutant("checkpoint-before-all-flushed") || invariant.Mutant("checkpoint-without-flush") {
		k.flushed()
		return
	}
	k.each(wire.KindFlush, func(c *column) uint32 { return c.rc.Required() }, k.flushed)
}

func (k *checkpointer) flushed() {
	if k.failed {
		k.end(false)
		return
	}
	k.state = ckptPersisting
	mask := func(c *column) uint32 { return c.rc.InSync() }
	if invariant.Mutant("syncing-checkpoints") {
		mask = func(c *column) uint32 { return c.rc.Everyone() }
	}
	k.each(wire.KindCheckpoint, mask, func() { k.end(!k.failed) })
}

// each sends one internal operation to the members of every column, and goes on when all have answered.
func (k *checkpointer) each(kind wire.Kind, mask func(*column) uint32, then func()) {
	k.left = len(k.v.columns)
	for _, c := range k.v.columns {
		o := k.v.getOp(c)
		o.kind, o.period, o.off, o.n = kind, k.upTo, 0, 0
		o.Slow = true
		o.then = func(failed bool) {
			k.failed = k.failed || failed
			if k.left--; k.left == 0 && k.v.phase != lost {
				then()
			}
		}
		c.rc.Begin(&o.Op, mask(c), k.v.loop.Now())
	}
}

func (k *checkpointer) end(ok bool) {
	k.state = ckptIdle
	if ok {
		k.v.Stats.Checkpoints++
	} else {
		k.dirty = true
		k.v.log.Warn("checkpoint failed; the journals are kept, it is tried again")
		if k.v.phase == serving {
			k.timer.Reset(k.idle)
		}
	}
	then := k.then
	k.then = nil
	for _, fn := range then {
		fn(ok)
	}
	if ok {
		k.v.drained()
	} else {
		k.v.armTick() // a detachment tries again with it
	}
}
