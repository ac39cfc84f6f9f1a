package replica

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

const (
	sumsSize = block.PerChunk * 8 // bytes of a chunk's sums
	slabEnts = 8                  // chunks' sums that are allocated together
	// overCap is how many chunks' sums may be in memory above the configured number, while
	// others are in use or on their way to the disk.
	overCap = 256
	// scanMax bounds the search for one that can go.
	scanMax = 32
)

// entState is what is going on with a chunk's sums.
type entState uint8

const (
	entReady     entState = iota
	entLoading            // being read
	entRecompute          // being recomputed, or waiting for that
)

// ent holds one chunk's sums in memory.
type ent struct {
	r     *Replica
	chunk int64
	sums  []uint64
	raw   []byte // the same memory
	state entState
	dirty bool // sums differ from the file's
	// writing: a copy of the sums is on its way to the file. Invariant: such a one isn't evicted, so a chunk
	// is never read while it is written.
	writing bool
	// unread blocks couldn't be read when the sums were recomputed: their sums say nothing about the data, which may well be what was
	// acknowledged. Invariant: a chunk with such blocks is suspect, so that whoever loads its sums next recomputes them.
	unread  blockMap
	users   int32    // requests that hold it
	busy    blockMap // blocks that are being changed
	waiters opList   // requests that wait for entReady
	op      aio.Op   // read
	wop     aio.Op   // write
	wbuf    mem
	wrote   func(*ent, error)

	prev, next *ent // in the order of use
}

// cache holds the sums of the chunks in use.
type cache struct {
	r    *Replica
	cap  int
	over int // overCap
	ents map[int64]*ent
	lru  ent // ring; next is the most recent
	free *ent
	made int // entries that exist, free ones too
	// waiting requests found no entry.
	waiting opList
	// writing is how many sums are on their way to the file.
	writing int
	// hold: a checkpoint is under way; nobody else writes sums.
	hold bool
	// unsynced: sums were written since the file was synced.
	unsynced bool
	evicted  func(*ent, error)
}

func (c *cache) init(r *Replica, cap int) {
	c.r, c.cap, c.over = r, cap, overCap
	c.ents = make(map[int64]*ent)
	c.lru.prev, c.lru.next = &c.lru, &c.lru
	c.evicted = c.evictDone
}

// acquire returns chunk's sums, ready and held for o; or nil, and o is stepped again when they are.
func (c *cache) acquire(chunk int64, o *op) *ent {
	e := c.ents[chunk]
	if e == nil {
		if e = c.take(o); e == nil {
			return nil
		}
		c.load(e, chunk)
	} else if c.lru.next != e {
		e.unlink()
		e.linkAfter(&c.lru)
	}
	if e.state == entReady && c.unknown(e) {
		if e.users > 0 {
			e.waiters.push(o)
			return nil
		}
		c.r.recompute(e)
	}
	if e.state != entReady {
		e.waiters.push(o)
		return nil
	}
	e.users++
	return e
}

// release ends a request's hold.
func (c *cache) release(e *ent) {
	e.users--
	if e.users == 0 && e.state == entReady && !e.waiters.empty() {
		if c.unknown(e) {
			c.r.recompute(e)
		} else {
			c.wake(e)
		}
	}
	if !c.waiting.empty() {
		c.retry()
	}
}

// unknown says that e's sums have to be recomputed.
func (c *cache) unknown(e *ent) bool { return c.r.suspect.has(e.chunk) && e.unread == (blockMap{}) }

func (e *ent) unlink() {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

func (e *ent) linkAfter(at *ent) {
	e.prev, e.next = at, at.next
	at.next.prev = e
	at.next = e
}

// take finds an entry for another chunk; nil if o has to wait, or was failed.
func (c *cache) take(o *op) *ent {
	if c.free == nil && c.made >= c.cap {
		c.evict()
	}
	// Who holds a chunk already never waits: so those who wait hold nothing that others wait for.
	if c.free == nil && c.made >= c.cap+c.over && o.have == 0 {
		c.waiting.push(o)
		return nil
	}
	if c.free == nil {
		c.grow()
	}
	e := c.free
	c.free, e.next = e.next, nil
	return e
}

func (c *cache) grow() {
	n := max(min(c.cap-c.made, slabEnts), 1)
	slab := aligned(n * sumsSize)
	ents := make([]ent, n)
	for i := range ents {
		e := &ents[i]
		e.r = c.r
		e.raw = slab[i*sumsSize : (i+1)*sumsSize : (i+1)*sumsSize]
		e.sums = unsafe.Slice((*uint64)(unsafe.Pointer(&e.raw[0])), block.PerChunk)
		e.op.Done = e.loaded
		e.wop.Done = e.written
		e.next = c.free
		c.free = e
	}
	c.made += n
}

// evict frees the entry that wasn't used for longest, or has it written so that it can be freed.
func (c *cache) evict() {
	scanned := 0
	for e := c.lru.prev; e != &c.lru && scanned < scanMax; e = e.prev {
		scanned++
		if e.users > 0 || e.state != entReady || e.writing || !e.waiters.empty() {
			continue
		}
		if !e.dirty {
			c.drop(e)
			return
		}
		if !c.hold {
			c.writeBack(e, c.evicted)
		}
	}
}

// drop forgets a chunk's sums.
func (c *cache) drop(e *ent) {
	delete(c.ents, e.chunk)
	e.unlink()
	e.dirty, e.busy, e.unread = false, blockMap{}, blockMap{}
	e.next = c.free
	c.free = e
}

// evictDone is called when an entry that was to be evicted is in the file.
func (c *cache) evictDone(e *ent, err error) {
	if err != nil {
		// What waits must not fail for the sake of another chunk. Memory stays bounded: only entries that are dirty
		// can't go, and the disk takes no more data for new ones.
		waiting := c.waiting
		c.waiting = opList{}
		for o := waiting.pop(); o != nil; o = waiting.pop() {
			c.grow()
			c.r.step(o)
		}
		return
	}
	if e.users == 0 && e.state == entReady && !e.dirty && e.waiters.empty() {
		c.drop(e)
	}
	c.retry()
}

// retry steps who waited for an entry.
func (c *cache) retry() {
	for !c.waiting.empty() {
		if c.free == nil {
			c.evict()
		}
		if c.free == nil {
			return
		}
		c.r.step(c.waiting.pop())
	}
}

// demote makes a chunk's sums the first to go, if nobody uses them: who looks at every chunk once must not push out those that
// are in use.
func (c *cache) demote(e *ent) {
	if e.users == 0 && e.prev != nil && c.lru.prev != e {
		e.unlink()
		e.linkAfter(c.lru.prev)
	}
}

// markDirty notes that e's sums differ from the file's.
func (c *cache) markDirty(e *ent) { e.dirty = true }

// load fills e with the sums of chunk.
func (c *cache) load(e *ent, chunk int64) {
	e.chunk = chunk
	c.ents[chunk] = e
	e.linkAfter(&c.lru)
	if c.r.checks[chunk] == 0 && !c.r.suspect.has(chunk) {
		clear(e.sums)
		e.state = entReady
		return
	}
	e.state = entLoading
	c.r.stats.SumsReads++
	c.r.background++
	c.r.files.sums.ReadAt(&e.op, e.raw, chunk*sumsSize)
}

// loaded is called when the sums have been read.
func (e *ent) loaded(n int, err error) {
	r := e.r
	r.background--
	if err != nil {
		r.log.Error("checksums can't be read", "chunk", e.chunk, "error", err)
		r.stats.IOErrors++
		r.cache.failed(e, err)
		return
	}
	clear(e.raw[n:])
	e.state = entReady
	if want := r.checks[e.chunk]; r.suspect.has(e.chunk) || want != checkUnknown && checkOf(e.raw) != want {
		r.recompute(e)
		return
	}
	r.cache.wake(e)
}

// wake steps who waits for e.
func (c *cache) wake(e *ent) {
	waiters := e.waiters
	e.waiters = opList{}
	e.users++ // so that it stays
	for o := waiters.pop(); o != nil; o = waiters.pop() {
		c.r.step(o)
	}
	c.release(e)
	if c.r.closing != nil {
		c.r.quiet()
	}
}

// failed gives up on e: its sums could not be read or recomputed.
func (c *cache) failed(e *ent, err error) {
	waiters := e.waiters
	e.waiters = opList{}
	e.state = entReady
	if !e.writing {
		c.drop(e)
	}
	for o := waiters.pop(); o != nil; o = waiters.pop() {
		c.r.finish(o, statusOf(err))
	}
	c.retry()
	if c.r.closing != nil {
		c.r.quiet()
	}
}

// writeBack writes a copy of e's sums to the file, and calls done.
func (c *cache) writeBack(e *ent, done func(*ent, error)) {
	e.wbuf = c.r.getBuf(sumsSize)
	copy(e.wbuf.b, e.raw)
	e.dirty, e.writing, e.wrote = false, true, done
	c.writing++
	c.unsynced = true
	c.r.background++
	c.r.stats.SumsWrites++
	c.r.setCheck(e.chunk, checkOf(e.wbuf.b))
	c.r.files.sums.WriteAt(&e.wop, e.wbuf.b, e.chunk*sumsSize)
}

func (r *Replica) setCheck(chunk int64, check uint64) {
	if r.checks[chunk] != check {
		r.checks[chunk] = check
		r.gensDirty.add(chunk / gensPerBlock)
	}
}

// written is called when the sums have been written.
func (e *ent) written(_ int, err error) {
	r := e.r
	r.putBuf(e.wbuf)
	e.wbuf, e.writing = mem{}, false
	r.cache.writing--
	r.background--
	if err != nil {
		e.dirty = true
		r.stats.IOErrors++
		if !errors.Is(err, syscall.ENOSPC) {
			r.log.Error("checksums can't be written", "chunk", e.chunk, "error", err)
		}
		err = fmt.Errorf("writing the checksums of chunk %d: %w", e.chunk, err)
	}
	e.wrote(e, err)
	r.cp.sumsWritten()
	if r.closing != nil {
		r.quiet()
	}
}

// shrink gives the memory of an idle replica back.
func (c *cache) shrink() {
	if c.writing > 0 || !c.waiting.empty() {
		return
	}
	for e := c.lru.next; e != &c.lru; e = e.next {
		if e.dirty || e.users > 0 || e.state != entReady || !e.waiters.empty() {
			return
		}
	}
	c.init(c.r, c.cap)
	c.free, c.made = nil, 0
}
