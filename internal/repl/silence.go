package repl

import (
	"fmt"
	"math/bits"
	"strings"
	"time"
)

// CheckSilence takes members out that have left a request unanswered for longer than the limit while their connection
// lives: a disk that hangs, say. The last one that could go on is waited for. Call it every now and then while
// anything is in flight. since is the moment before which silence doesn't count, as this side wasn't listening;
// oldest is when each member was asked the oldest of those requests that aren't operations, 0 if there is none.
//
// What a member that is out still has is given up: the operations complete without it, and their memory stays with it
// until it answers. It can't come back before: its fence waits for what it has.
func (c *Column) CheckSilence(now, since, limit time.Duration, oldest *[MaxMembers]time.Duration) {
	c.noteSilence(now, since, limit, *oldest)
	if c.phase == PhaseStopped {
		c.abandonLate(now, since, limit, ^uint32(0))
		return
	}
	for i := range c.members {
		m := &c.members[i]
		if !m.Present || !m.Silent {
			continue
		}
		switch m.Role {
		case In, Promoting, Catching:
			c.fail(i, now)
		}
	}
	c.abandonLate(now, since, limit, c.inRole[Out]|c.absent())
}

// noteSilence finds out who is silent.
func (c *Column) noteSilence(now, since, limit time.Duration, oldest [MaxMembers]time.Duration) {
	for op := c.ops.next; op != &c.ops; op = op.next {
		for m := range c.members {
			bit := uint32(1) << m
			if op.need&op.out&bit == 0 {
				continue
			}
			asked := op.asked[m]
			if op.Slow {
				asked += (SlowFactor - 1) * limit
			}
			if oldest[m] == 0 || asked < oldest[m] {
				oldest[m] = asked
			}
		}
	}
	for i := range c.members {
		m := &c.members[i]
		if m.Role == Leaving {
			continue // until its fate is decided
		}
		if m.fencing && (m.Role == In || m.Role == Promoting) && (oldest[i] == 0 || m.fenceSent < oldest[i]) {
			oldest[i] = m.fenceSent
		}
		m.Silent = m.Present && oldest[i] != 0 && now-max(oldest[i], since) > limit
		m.oldest = oldest[i]
	}
}

// AnyFencing reports whether a member in sync is being fenced: that counts as unanswered too.
func (c *Column) AnyFencing() bool {
	for rest := c.inRole[In] | c.inRole[Promoting]; rest != 0; rest &= rest - 1 {
		if c.members[bits.TrailingZeros32(rest)].fencing {
			return true
		}
	}
	return false
}

func (c *Column) absent() (mask uint32) {
	for i := range c.members {
		if !c.members[i].Present {
			mask |= 1 << i
		}
	}
	return mask
}

// abandonLate gives up what the members in mask, which aren't needed any more, have had for longer than the limit.
func (c *Column) abandonLate(now, since, limit time.Duration, mask uint32) {
	var done []*Op
	for op := c.ops.next; op != &c.ops; op = op.next {
		for m := range c.members {
			bit := uint32(1) << m
			if op.out&mask&bit != 0 && (op.need&bit == 0 || c.phase == PhaseStopped) && now-max(op.sentAt[m], since) > limit {
				op.gone |= bit
			}
		}
		if op.gone != 0 && op.out&^op.gone == 0 {
			done = append(done, op)
		}
	}
	for _, op := range done {
		if c.phase == PhaseStopped {
			c.finishStopped(op)
		} else {
			c.maybeComplete(op, now)
		}
	}
}

// abandon gives up everything that m has.
func (c *Column) abandon(m int) {
	for op := c.ops.next; op != &c.ops; op = op.next {
		op.gone |= op.out & (1 << m)
	}
}

// comeBack makes a member that was on its way out one in sync again: it answers, and those do not for whose sake it was
// to leave. Nothing was acknowledged without it so far.
func (c *Column) comeBack(m int, now time.Duration) {
	mb := &c.members[m]
	if !mb.back || !mb.Up || mb.failing || c.committing != nil || c.surplus(m) || c.othersServe(m) {
		return
	}
	c.lossFlush = false
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.internal && op.purpose == PurposeLoss {
			op.purpose = PurposeNone // its late end isn't that of the next one
		}
		op.asked[m] = 0
	}
	mb.Silent = false
	c.setRole(m, In)
	c.openSession(m, now)
}

// surplus reports whether a member is to be removed, and as many others as there shall be are in sync.
func (c *Column) surplus(m int) bool {
	n := 0
	for i := range c.members {
		if mb := &c.members[i]; i != m && mb.Present && mb.Role == In && !mb.Removing && !mb.Silent && !mb.failing {
			n++
		}
	}
	return c.members[m].Removing && c.cfg.Replicas > 0 && n >= c.cfg.Replicas
}

// Condition says in words what the column waits for; "" if nothing.
func (c *Column) Condition(now time.Duration) string {
	var wait []string
	for i := range c.members {
		mb := &c.members[i]
		if !mb.Present {
			continue
		}
		where := fmt.Sprintf("replica %s on node %s", mb.Replica, mb.Node)
		silent := func(since time.Duration) {
			wait = append(wait, fmt.Sprintf("%s (pool %s) hasn't answered for %v: its disk hangs, or its engine",
				where, mb.Pool, (now-since).Round(time.Second)))
		}
		switch {
		case mb.Silent:
			silent(mb.oldest)
		case mb.Role == Joining && mb.fencing && now-mb.fenceSent > FenceTimeout:
			silent(mb.fenceSent) // it was taken out, and can't come back
		case mb.Role == Fencing && !mb.answered:
			wait = append(wait, "waiting for "+where+" to answer")
		case mb.Role == Leaving && c.surplus(i):
			wait = append(wait, where+" isn't needed any more: taking it out of the in-sync set")
		case mb.Role == Leaving:
			wait = append(wait, where+" doesn't answer: taking it out of the in-sync set")
		case mb.Role == In && !mb.Open:
			wait = append(wait, "waiting for "+where+" to come back")
		case mb.Full:
			wait = append(wait, "paused: the pool of "+where+" is full; free or add space")
		}
	}
	if c.readWait {
		return "waiting until the former holder must have stopped"
	}
	return strings.Join(wait, "; ")
}
