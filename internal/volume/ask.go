package volume

import (
	"fmt"
	"math/bits"
	"syscall"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// ask sends one request of the coordinator's own to member m: for repairs, reconciliation and resync, which
// hold the range lock of what they touch. done is called later. What changes data counts as a
// change in flight of the present period. One that is silent for too long, and isn't needed any more, is given up: StatusLost.
func (c *column) ask(m int, r *wire.Request, done func(*wire.Request)) { c.askWith(m, r, nil, done) }

// askWith is ask for a request whose Data is in the given memory, which the caller may release when done was called.
func (c *column) askWith(m int, r *wire.Request, memory *lent, done func(*wire.Request)) {
	v := c.v
	if v.snaps.holding && changes(r.Kind) {
		v.snaps.hold(func() { c.askWith(m, r, memory, done) })
		return
	}
	session, open := c.rc.Session(m)
	if !open || v.phase == lost {
		r.Status = wire.StatusLost
		v.loop.Post(func() { done(r) })
		return
	}
	a := &asking{c: c, m: m, session: session, asked: v.loop.Now(), period: v.period, r: r, memory: memory, done: done}
	if changes(r.Kind) {
		a.changes = true
		v.mut++
		v.ckpt.dirtied(c, r.Off, 1)
	}
	c.asks = append(c.asks, a)
	v.watch.arm()
	r.Replica, r.Term, r.Session = c.ids[m], v.term, session
	if r.Period == 0 || a.changes { // otherwise it names a snapshot
		r.Period = a.period
	}
	r.ResetAnswer()
	r.Done = func(*wire.Request) { a.answered() }
	c.links[m].Submit(r)
}

// changes reports whether a request of the coordinator's own changes the volume's data.
func changes(k wire.Kind) bool {
	return k == wire.KindWrite || k == wire.KindTrim || k == wire.KindTouch || k == wire.KindRestore
}

// fetch fills data, from off on, with intact blocks from whichever in-sync member has them, and writes them back to those
// that don't. first, unless it is negative, is asked before the others: whose damage was met, so that it is met again here and mended,
// wherever that member is in the record. The range is locked by the caller. If no copy of some block is intact the error is errDamaged
// when every in-sync member could read its own, EIO otherwise. done is called later.
func (c *column) fetch(first int, off int64, data []byte, done func(error)) {
	if len(data) == 0 {
		c.v.loop.Post(func() { done(nil) })
		return
	}
	c.fetchBlock(first, off, data[:block.Size], 0, 0, 0, func(err error) {
		if err != nil || len(data) == block.Size {
			done(err)
			return
		}
		c.fetch(first, off+block.Size, data[block.Size:], done)
	})
}

// errDamaged says that no in-sync member has a block intact. It is an EIO.
var errDamaged = fmt.Errorf("every copy of a block is damaged: %w", syscall.EIO)

// fetchBlock tries the in-sync members that are not in tried; bad has those whose copy isn't intact, damaged those of them that could
// be read. It waits for one that can't be asked now: that comes back, or leaves.
func (c *column) fetchBlock(first int, off int64, data []byte, tried, bad, damaged uint32, done func(error)) {
	if c.v.phase == lost {
		c.v.loop.Post(func() { done(syscall.EIO) })
		return
	}
	m := c.nextCopy(first, tried)
	if m < 0 && c.rc.InSync()&^tried != 0 {
		c.fetches = append(c.fetches, func() { c.fetchBlock(first, off, data, tried, bad, damaged, done) })
		c.v.armTick()
		return
	}
	if m < 0 {
		c.v.Stats.Unreadable++
		c.v.log.Error("no intact copy of a block", "column", c.idx, "off", off)
		var err error = syscall.EIO
		if damaged != 0 && damaged == tried {
			err = errDamaged
		}
		c.v.loop.Post(func() { done(err) })
		return
	}
	memory := borrow(c.v.loop, block.Size)
	if memory == nil {
		c.fetches = append(c.fetches, func() { c.fetchBlock(first, off, data, tried, bad, damaged, done) })
		c.v.armTick()
		return
	}
	r := &wire.Request{Kind: wire.KindRead, Off: off, Len: block.Size, Data: memory.buf, Sums: make([]uint64, 1)}
	c.askWith(m, r, memory, func(*wire.Request) {
		if r.Status == wire.StatusOK && block.Sum(memory.buf) == r.Sums[0] {
			copy(data, memory.buf)
			c.writeBack(off, memory, bad, func() {
				memory.release()
				done(nil)
			})
			return
		}
		memory.release()
		switch {
		case r.Status == wire.StatusBadSum || r.Status == wire.StatusOK:
			c.fetchBlock(first, off, data, tried|1<<m, bad|1<<m, damaged|1<<m, done)
		case r.Status == wire.StatusIOError:
			c.fetchBlock(first, off, data, tried|1<<m, bad|1<<m, damaged, done)
		case r.Status == wire.StatusLost || r.Status == wire.StatusOldSession || r.Status == wire.StatusNotFound:
			c.fetchBlock(first, off, data, tried, bad, damaged, done) // its session is closed now
		default:
			c.fetchBlock(first, off, data, tried|1<<m, bad, damaged, done)
		}
	})
}

// nextCopy returns an in-sync member that can be asked and wasn't tried, first if it is such a one; -1 if there is none.
func (c *column) nextCopy(first int, tried uint32) int {
	best := -1
	for rest := c.rc.InSync() &^ tried; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		if _, open := c.rc.Session(m); open && (best < 0 || m == first) {
			best = m
		}
	}
	return best
}

// retryFetches goes on with fetches that found no member to ask.
func (c *column) retryFetches() {
	list := c.fetches
	c.fetches = nil
	for _, again := range list {
		again()
	}
}

// writeBack repairs a block on the members in bad. One that can't be repaired is found again at the next read.
func (c *column) writeBack(off int64, memory *lent, bad uint32, done func()) {
	if bad == 0 {
		done()
		return
	}
	m := bits.TrailingZeros32(bad)
	data := memory.buf
	r := &wire.Request{Kind: wire.KindWrite, Off: off, Len: block.Size, Data: data, Sums: []uint64{block.Sum(data)}}
	c.askWith(m, r, memory, func(*wire.Request) {
		if r.Status == wire.StatusOK {
			c.v.Stats.Repaired++
			c.log(m).Warn("block repaired from another copy", "off", off)
		} else {
			c.log(m).Error("block can't be repaired", "off", off, "status", r.Status)
		}
		c.writeBack(off, memory, bad&(bad-1), done)
	})
}
