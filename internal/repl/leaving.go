package repl

import (
	"math/bits"
	"time"

	"keelson.io/keelson/internal/invariant"
)

// fail takes a member that isn't of use any more out, as far as its role allows.
func (c *Column) fail(m int, now time.Duration) {
	mb := &c.members[m]
	switch mb.Role {
	case Catching, Joining:
		c.drop(m, now)
	case In, Promoting:
		if !c.othersServe(m) && !(mb.runLost && c.settleFor(m, now)) {
			return // nobody would be left: wait for it
		}
		if c.promoting == m && c.promoteFlush {
			// Its transaction wasn't asked for yet: the metadata has it as Syncing.
			c.drop(m, now)
			return
		}
		c.setRole(m, Leaving)
		mb.back = mb.Open && !mb.Silent
		mb.Open = false
		if invariant.Mutant("answered-before-loss-recorded") {
			c.dropBits(m, now, func(*Op) bool { return true })
		}
		c.holdFor(m)
		c.dropInternal(m, now)
		c.step(now)
	}
}

// holdFor lets everything in flight wait for m, also what m has answered already: it is answered only when m is out of
// the in-sync set. The flush before that needn't cover it, and until then m may be the one that keeps it.
func (c *Column) holdFor(m int) {
	for op := c.ops.next; op != &c.ops && !invariant.Mutant("no-hold-at-loss"); op = op.next {
		if !op.internal {
			op.need |= 1 << m
		}
	}
}

// settleFor makes those serve that couldn't execute something when m was away, and still could have done it. m has lost its run, so it never
// will: they are the last copy, and what they fail now, they fail as a disk does. It reports whether there are any.
func (c *Column) settleFor(m int, now time.Duration) bool {
	for i := range c.members {
		if mb := &c.members[i]; i != m && mb.Present && mb.Role == In && mb.Open && mb.failing && !mb.runLost {
			mb.failing = false
			c.resend(i, now)
		}
	}
	return c.othersServe(m)
}

// othersServe reports whether another in-sync member answers.
func (c *Column) othersServe(m int) bool {
	for i := range c.members {
		mb := &c.members[i]
		if i != m && mb.Present && mb.Role == In && mb.Open && !mb.failing && !mb.Silent {
			return true
		}
	}
	return false
}

// drop ends what is done with a member that isn't in sync in the metadata, and with one that was just made
// Stale: nothing waits for it any more.
func (c *Column) drop(m int, now time.Duration) {
	mb := &c.members[m]
	if c.promoting == m {
		c.promoting, c.promoteFlush = -1, false
		c.forgetPromotion()
	}
	c.setRole(m, Out)
	if mb.Silent {
		c.abandon(m)
	}
	mb.Open, mb.fencing, mb.Silent = false, false, false
	mb.wantSyncing, mb.caughtUp, mb.failing, mb.runLost, mb.Full = false, false, false, false, false
	mb.session++ // what comes from the old one no longer counts
	mb.nextRejoin = max(mb.nextRejoin, now+RejoinBackoff)
	c.fx.Dropped(m)
	c.dropBits(m, now, func(*Op) bool { return true })
	if !mb.Up {
		mb.nextRejoin = now // it may come as soon as it is back
	}
}

// forgetPromotion makes sure that the flush of a promotion that was given up, which may be answered
// late, isn't taken for the flush of the next one.
func (c *Column) forgetPromotion() {
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.internal && op.purpose == PurposePromote {
			op.purpose = PurposeNone
		}
	}
}

// dropInternal lets the flushes of membership changes go on without m.
func (c *Column) dropInternal(m int, now time.Duration) {
	c.dropBits(m, now, func(op *Op) bool { return op.internal })
}

func (c *Column) dropBits(m int, now time.Duration, which func(*Op) bool) {
	bit := uint32(1) << m
	var done []*Op
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.need&bit != 0 && which(op) {
			op.need &^= bit
		}
		if op.need == 0 && op.out&^op.gone == 0 {
			done = append(done, op)
		}
	}
	for _, op := range done {
		c.maybeComplete(op, now)
	}
}

// failedOp handles a member that can't execute an operation.
func (c *Column) failedOp(m int, op *Op, now time.Duration) {
	bit := uint32(1) << m
	mb := &c.members[m]
	switch {
	case mb.Role == Catching || mb.Role == Joining:
		c.drop(m, now)
	case mb.Role == In && c.lastHope(m) && (c.promoting < 0 || c.promoteFlush):
		// The last copy: the guest gets the disk's error, as from a disk. What is catching up may have executed it
		// by now, and is compared anew, so that no copy that differs ever becomes one in sync.
		for rest := c.inRole[Catching] | c.inRole[Promoting]; rest != 0 && !invariant.Mutant("keep-catching"); rest &= rest - 1 {
			c.drop(bits.TrailingZeros32(rest), now)
		}
		op.need &^= bit
		op.Failed = true
	default: // also if another is about to be in sync, which may have it
		mb.failing = true
		c.fail(m, now)
	}
}

// lastHope reports whether no other member in sync could execute what m has failed.
func (c *Column) lastHope(m int) bool {
	for i := range c.members {
		if mb := &c.members[i]; i != m && mb.Present && mb.Role == In && !mb.failing {
			return false
		}
	}
	return true
}
