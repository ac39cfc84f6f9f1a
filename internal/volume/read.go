package volume

import (
	"math/bits"
	"syscall"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/wire"
)

// reader picks the in-sync member to read from: the one on this node, else any that answers. One that is silent is the last
// choice. -1 if there is none.
func (c *column) reader() int {
	best, rank := -1, -1
	members := c.rc.InSync()
	if invariant.Mutant("read-from-syncing") {
		members = c.rc.Everyone()
	}
	for rest := members; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		if _, open := c.rc.Session(m); !open {
			continue
		}
		r := 0
		if !c.rc.Member(m).Silent {
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

// read asks a member, with the range locked.
func (o *op) read() {
	c := o.col
	m := c.reader()
	if m < 0 {
		c.stalled = append(c.stalled, o)
		o.v.armTick()
		return
	}
	session, _ := c.rc.Session(m)
	o.asked = o.v.loop.Now()
	o.at, o.place = m, len(c.reading)
	c.reading = append(c.reading, o)
	c.v.watch.arm()
	o.send(m, session)
}

// retryStalled asks again for reads that found no member to ask.
func (c *column) retryStalled() {
	if len(c.stalled) == 0 || (c.reader() < 0 && c.v.phase != lost) {
		return
	}
	list := c.stalled
	c.stalled = nil
	for _, o := range list {
		if o.v.phase == lost {
			o.endLocked(syscall.EIO)
		} else {
			o.read()
		}
	}
}

// readAnswered takes the answer to a read.
func (o *op) readAnswered(r *memberReq) {
	c := o.col
	c.unlist(o)
	if o.v.phase == lost {
		o.endLocked(syscall.EIO)
		return
	}
	switch r.Status {
	case wire.StatusOK:
		c.rc.Confirmed(r.m, r.session, o.asked)
		mb := c.rc.Member(r.m)
		if mb == nil { // dropped from the record meanwhile: ask another
			c.stalled = append(c.stalled, o)
			o.v.armTick()
			return
		}
		if mb.Node != o.v.cfg.Self && !sumsMatch(o.sums[:o.n/block.Size], o.data) && !invariant.Mutant("sum-not-verified") {
			c.log(r.m).Error("data was damaged between the replica and this node", "off", o.off)
			o.repair(r.m)
			return
		}
		c.readDone(o)
	case wire.StatusFenced:
		c.stalled = append(c.stalled, o)
		o.v.lose(repl.ErrLost)
	case wire.StatusBadSum, wire.StatusIOError:
		o.repair(r.m)
	default: // lost, old session, no such replica: as soon as somebody can be asked
		c.rc.SessionLost(r.m, r.session)
		c.stalled = append(c.stalled, o)
		o.v.armTick()
	}
}

func sumsMatch(sums []uint64, data []byte) bool {
	for i, s := range sums {
		if block.Sum(data[i*block.Size:(i+1)*block.Size]) != s {
			return false
		}
	}
	return true
}

// readDone answers a read if the term was confirmed recently enough, else as soon as it is.
//
// Invariant: no read is answered later than TRead after the sending of what every required member confirmed last.
func (c *column) readDone(o *op) {
	if c.v.phase == lost { // while a repair was under way
		o.endLocked(syscall.EIO)
		return
	}
	now := c.v.loop.Now()
	until := c.rc.ReadableUntil()
	if now < until || invariant.Mutant("no-read-confirm") {
		if until-now < repl.TRead/2 {
			c.confirm()
		}
		o.endLocked(nil)
		return
	}
	c.unconfirmed = append(c.unconfirmed, o)
	c.confirm()
}

// confirm has every required member confirm the term.
func (c *column) confirm() {
	if c.confirming || c.rc.Phase() != repl.PhaseServing {
		return
	}
	c.confirming = true
	o := c.v.getOp(c)
	o.kind = wire.KindConfirm
	o.then = func(failed bool) {
		c.confirming = false
		if failed && c.v.phase != lost {
			c.v.armTick() // which asks again
			return
		}
		list := c.unconfirmed
		c.unconfirmed = nil
		for _, r := range list {
			if c.v.phase == lost {
				r.endLocked(syscall.EIO)
			} else {
				c.readDone(r)
			}
		}
	}
	c.rc.Begin(&o.Op, c.rc.Required(), c.v.loop.Now())
}

// failWaiting fails everything that waits in the column, when the volume was lost.
func (c *column) failWaiting() {
	stalled, unconfirmed, waiting := c.stalled, c.unconfirmed, c.unreconciled
	c.stalled, c.unconfirmed, c.unreconciled = nil, nil, nil
	c.retryFetches()
	for _, o := range stalled {
		o.endLocked(syscall.EIO)
	}
	for _, o := range unconfirmed {
		o.endLocked(syscall.EIO)
	}
	for _, p := range waiting {
		for _, o := range p.ops {
			o.end(syscall.EIO)
		}
		p.ops = nil
	}
}

// repair answers a read some of whose blocks member m doesn't have intact: they are taken from another
// copy, and written back. Readers share the range, so it is locked anew, alone.
func (o *op) repair(m int) {
	o.col.log(m).Warn("blocks don't match their checksums: reading another copy", "off", o.off, "bytes", o.n)
	if invariant.Mutant("repair-without-lock") {
		o.plantedRepair()
		return
	}
	o.repairing = true
	o.col.lock.Unlock(&o.rng)
	if o.col.lock.Lock(&o.rng, o.off, o.n, false) {
		o.granted()
	}
}

// fetch is the second half of repair, with the range locked alone. The member that was read is asked first.
func (o *op) fetch() {
	o.repairing = false
	o.col.fetch(o.at, o.off, o.data, func(err error) {
		if err != nil {
			o.endLocked(syscall.EIO)
			return
		}
		o.col.readDone(o)
	})
}
