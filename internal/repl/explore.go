package repl

import (
	"math/bits"
	"time"
)

// What an exhaustive search needs of a Column: to copy it, to tell whether two are in the same state, and to have its
// timers run out one by one. test/model is such a search.

// CopyTo makes d a copy of c with other effects. The caller has copied the operations in flight before, as values; place
// returns the copy of the one with the given Ctx. What neither changes is shared: configuration, answers, the
// Change under way.
func (c *Column) CopyTo(d *Column, fx Effects, place func(ctx any) *Op) {
	*d = *c
	d.fx = fx
	last := &d.ops
	for op := c.ops.next; op != &c.ops; op = op.next {
		n := place(op.Ctx)
		last.next, n.prev = n, last
		last = n
	}
	last.next, d.ops.prev = &d.ops, last
}

// RunOut sets every timer to now, but lets those of the members in mask run out, and with fencing also the time for which
// attach is patient. It forgets every other moment, so that states that differ in nothing else become one: for a search in
// which time stands still and any timer may run out at any time. Reads can't be judged then.
func (c *Column) RunOut(now time.Duration, mask uint32, fencing bool) {
	c.started = now
	if fencing {
		c.started = now - FenceTimeout
	}
	c.nextLoss, c.nextFull = now, now
	for i := range c.members {
		m := &c.members[i]
		m.downSince, m.nextRejoin = now, now+RejoinBackoff
		if mask&(1<<i) != 0 {
			m.downSince, m.nextRejoin = now-MemberTimeout-1, now
		}
		m.fenceSent, m.confirmed, m.lowerEnd, m.oldest = now, now, 0, 0
	}
	for op := c.ops.next; op != &c.ops; op = op.next {
		for i := range op.sentAt {
			op.sentAt[i], op.asked[i] = now, now
		}
	}
}

// AppendState appends what the column will act upon, but for times and for what never changes. Two columns of one
// configuration, after RunOut, that append the same behave the same. id returns the name that an operation with
// the given Ctx goes by.
func (c *Column) AppendState(b []byte, id func(ctx any) byte) []byte {
	b = append(b, byte(c.phase), byte(c.cfg.Prev), byte(c.lossMask), byte(c.promoting+1),
		flags(c.begun, c.lossFlush, c.promoteFlush, c.rejoinReady, c.closing, c.committing != nil, c.readWait))
	if ch := c.committing; ch != nil {
		b = append(b, flags(ch.Attach), byte(len(ch.Members)))
		for _, mc := range ch.Members {
			b = append(b, mc.Replica...)
			b = append(b, mc.State[1]) // that letter tells the states apart
			b = append(append(b, mc.Run...), 0)
		}
	}
	for i := range c.members {
		if c.members[i].Present {
			b = c.appendMember(append(b, byte(i)), i)
		}
	}
	for op := c.ops.next; op != &c.ops; op = op.next {
		b = append(b, 0xfe, id(op.Ctx), byte(op.need), byte(op.out), byte(op.gone), byte(op.purpose), flags(op.internal, op.Failed, op.Slow))
		for rest := op.out; rest != 0; rest &= rest - 1 {
			b = append(b, byte(op.session[bits.TrailingZeros32(rest)]))
		}
	}
	return append(b, 0xff)
}

func (c *Column) appendMember(b []byte, i int) []byte {
	m := &c.members[i]
	b = append(append(b, m.Run...), byte(m.Role), byte(m.session),
		flags(m.Up, m.Open, m.Full, m.Silent, m.Removing, m.fencing, m.answered),
		flags(m.atBarrier, m.wantSyncing, m.caughtUp, m.failing, m.back, m.runLost))
	if m.atBarrier {
		older := byte(0)
		for op := c.ops.next; op != &c.ops && op.seq <= m.barrier; op = op.next {
			older++
		}
		b = append(b, older)
	}
	if m.Role == Out || m.Role == Fencing && !m.answered {
		return b // it is overwritten before it's used
	}
	a := &m.Answer
	b = append(append(b, a.Run...), flags(a.Exact, a.AllChunks))
	if m.Role == In && c.rejoinReady {
		return b // the rest was for reconciling
	}
	b = append(b, byte(a.PrevFence), byte(a.Checkpoint>>32), byte(a.Checkpoint), byte(len(a.Journal)))
	for _, t := range a.Journal {
		b = append(b, byte(t.Chunk), byte(t.Period>>32), byte(t.Period))
	}
	return b
}

func flags(list ...bool) (b byte) {
	for i, f := range list {
		if f {
			b |= 1 << i
		}
	}
	return b
}
