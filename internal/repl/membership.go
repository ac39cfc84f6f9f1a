package repl

import (
	"slices"
	"time"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/spec"
)

// Pauses of retries.
const (
	fullRetry  = 500 * time.Millisecond
	lossRetry  = time.Second
	fenceStuck = time.Minute
)

// decide ends fencing when enough members have answered: at least one in its recorded run, otherwise all.
// It is evaluated anew after each event, until the attach transaction is asked for.
func (c *Column) decide(now time.Duration) {
	if c.phase != PhaseFencing || c.committing != nil {
		return
	}
	chosen, patient := c.choose(now)
	if chosen == 0 || patient {
		return
	}
	if c.readWait = now < c.oldReadsEnd() && !invariant.Mutant("no-read-wait"); c.readWait {
		return
	}
	change := Change{Attach: true}
	for i := range c.members {
		m := &c.members[i]
		switch {
		case !m.Present:
		case chosen&(1<<i) != 0:
			change.Members = append(change.Members, MemberChange{m.Replica, spec.InSync, m.Answer.Run})
		case !m.answered && invariant.Mutant("silent-stay-in-sync"):
		default:
			change.Members = append(change.Members, MemberChange{m.Replica, spec.Stale, ""})
		}
	}
	c.phase = PhaseRecording
	if invariant.Mutant("serve-before-record") {
		c.serveEarly(change, now)
	}
	c.commit(change)
}

// choose returns the members that will be in sync, 0 if the answers don't suffice, and whether to wait for
// further answers.
func (c *Column) choose(now time.Duration) (chosen uint32, patient bool) {
	var sameRun, otherRun uint32
	all := true
	best := -1
	for i := range c.members {
		m := &c.members[i]
		if !m.Present || m.Role != Fencing {
			continue
		}
		if !m.answered {
			all = false
			if c.cfg.Alive(m.Node) && now < c.started+FenceTimeout {
				patient = true
			}
			continue
		}
		if m.Answer.PrevFence < c.cfg.Fenced && !invariant.Mutant("rollback-not-noticed") {
			all = false // rolled back to an older state of itself, such as a restored image
			continue
		}
		if m.Run == "" || m.Answer.Run == m.Run {
			sameRun |= 1 << i
		} else {
			otherRun |= 1 << i
		}
		if best < 0 || m.Answer.Checkpoint > c.members[best].Answer.Checkpoint {
			best = i
		}
	}
	switch {
	case sameRun != 0 && invariant.Mutant("other-run-chosen"):
		return sameRun | otherRun, patient
	case sameRun != 0:
		return sameRun, patient
	case all || invariant.Mutant("any-run-suffices"):
		return otherRun, patient
	case c.cfg.AcceptLoss && best >= 0:
		return 1 << best, patient
	}
	return 0, patient
}

// oldReadsEnd is the moment by which every older coordinator must have stopped answering reads.
func (c *Column) oldReadsEnd() time.Duration {
	var end time.Duration
	if c.cfg.Prev != PrevOther {
		return 0
	}
	for i := range c.members {
		if m := &c.members[i]; m.Present && m.answered {
			end = max(end, m.lowerEnd)
		}
	}
	return end
}

func (c *Column) commit(change Change) {
	invariant.Check(c.committing == nil, "two transactions at once")
	c.committing = &change
	c.fx.Commit(change)
}

// Committed reports the outcome of the transaction that the effect Commit asked for: nil, or why
// the coordinator has to stop. The shell tries again for as long as the outcome isn't known.
func (c *Column) Committed(err error, now time.Duration) {
	change := c.committing
	c.committing = nil
	if c.phase == PhaseStopped {
		return
	}
	if err != nil {
		c.stop(err)
		return
	}
	if change.Attach && invariant.Mutant("serve-before-record") {
		c.step(now)
		return
	}
	for _, mc := range change.Members {
		if i := c.Slot(mc.Replica); i >= 0 {
			c.applied(i, mc, change.Attach, now)
		}
	}
	if change.Attach {
		c.phase = PhaseServing
		changed := c.restartedMeanwhile()
		if changed != 0 && c.everyRunLost() {
			c.stop(ErrRunLost)
			return
		}
		c.fx.Serve()
		for i := range c.members {
			if changed&(1<<i) != 0 {
				c.fail(i, now)
			}
		}
	}
	c.step(now)
}

// Unrecorded tells, before Committed, that a member of the transaction under way was dropped from the record before: for
// it nothing was recorded. UpdateMembers drops it.
func (c *Column) Unrecorded(replica string) {
	c.committing.Members = slices.DeleteFunc(c.committing.Members, func(mc MemberChange) bool { return mc.Replica == replica })
}

// restartedMeanwhile returns the members that fenced again, in another run, while the attach transaction was under way
// that recorded them as in sync in the run of their first answer. What they hold is not what was relied on.
func (c *Column) restartedMeanwhile() (mask uint32) {
	for i := range c.members {
		m := &c.members[i]
		if m.Present && m.Role == In && m.Answer.Run != m.Run && !invariant.Mutant("restart-not-noticed") {
			m.failing, m.runLost, m.Open = true, true, false
			mask |= 1 << i
		}
	}
	return mask
}

// applied moves member i as its part of a transaction says.
func (c *Column) applied(i int, mc MemberChange, attach bool, now time.Duration) {
	m := &c.members[i]
	switch {
	case attach && mc.State == spec.InSync:
		c.setRole(i, In)
		m.Run = mc.Run
	case attach:
		c.setRole(i, Out)
		m.Open, m.fencing = false, false
		m.session++
		m.nextRejoin = now
	case mc.State == spec.Stale && m.Role == Leaving:
		c.drop(i, now)
	case mc.State == spec.Syncing && m.Role == Joining && m.Open:
		c.setRole(i, Catching)
		m.Run = m.Answer.Run
		m.barrier = c.seq
		m.atBarrier = true
		c.checkBarriers()
	case mc.State == spec.InSync && m.Role == Promoting:
		c.setRole(i, In)
		m.Run = mc.Run
		m.caughtUp = false
		c.promoting = -1
	case mc.State == spec.InSync && m.Role == Leaving:
		c.promoting = -1
	}
}

// waitingBarrier reports whether a member waits for older operations to end.
func (c *Column) waitingBarrier() bool {
	for i := range c.members {
		if c.members[i].atBarrier {
			return true
		}
	}
	return false
}

// checkBarriers begins the comparison for members to which everything in flight is sent.
func (c *Column) checkBarriers() {
	for i := range c.members {
		m := &c.members[i]
		if !m.atBarrier || m.Role != Catching {
			m.atBarrier = false
			continue
		}
		if c.count == 0 || c.ops.next.seq > m.barrier || invariant.Mutant("no-barrier") {
			m.atBarrier = false
			c.fx.CatchUp(i)
		}
	}
}

// CaughtUp tells that all that may differ on m was compared and copied.
func (c *Column) CaughtUp(m int, now time.Duration) {
	if mb := &c.members[m]; mb.Present && mb.Role == Catching {
		mb.caughtUp = true
		c.step(now)
	}
}

// CatchUpFailed tells that m couldn't be brought up to date; it is tried again later.
func (c *Column) CatchUpFailed(m int, now time.Duration) {
	if mb := &c.members[m]; mb.Present && mb.Role == Catching {
		c.drop(m, now)
	}
}

// Reconciled tells that all members in sync are identical, so that others may be brought back.
func (c *Column) Reconciled(now time.Duration) {
	c.rejoinReady = true
	c.Tick(now)
}

// Close begins the end of the attachment: no further member is brought back, and those on their way are given up.
func (c *Column) Close(now time.Duration) {
	c.closing = true
	for i := range c.members {
		if m := &c.members[i]; m.Present && (m.Role == Joining || m.Role == Catching) {
			c.drop(i, now)
		}
	}
}

// Settled reports whether nothing is under way: no operation, no change of members.
func (c *Column) Settled() bool {
	return c.count == 0 && c.committing == nil && c.inRole[Leaving]|c.inRole[Promoting] == 0
}

// step begins the next change of members, if one is due and none is under way.
func (c *Column) step(now time.Duration) {
	if c.phase != PhaseServing || c.committing != nil {
		return
	}
	if leaving := c.inRole[Leaving]; leaving != 0 && !c.lossFlush && now >= c.nextLoss {
		if remaining := c.inRole[In]; remaining != 0 {
			c.lossFlush, c.lossMask = true, remaining
			if invariant.Mutant("no-loss-flush") {
				c.flushed(PurposeLoss, false, now)
				return
			}
			c.fx.Flush(PurposeLoss, remaining)
		}
	}
	for i := range c.members {
		m := &c.members[i]
		if m.Role == Joining && m.wantSyncing {
			m.wantSyncing = false
			c.commit(Change{Members: []MemberChange{{m.Replica, spec.Syncing, ""}}})
			return
		}
		if m.Role == Catching && m.caughtUp && c.promoting < 0 && !c.closing {
			c.setRole(i, Promoting)
			c.promoting, c.promoteFlush = i, true
			if invariant.Mutant("no-promote-flush") {
				c.flushed(PurposePromote, false, now)
				return
			}
			c.fx.Flush(PurposePromote, 1<<i)
			return
		}
	}
}

// flushed goes on when the flush of a membership change was answered by everyone.
func (c *Column) flushed(p Purpose, failed bool, now time.Duration) {
	switch p {
	case PurposeLoss:
		c.lossFlush = false
		if failed || c.committing != nil || c.inRole[In]&^c.lossMask != 0 {
			// Flush again: the transaction must follow a flush of all who stay, with nothing in between that could matter.
			c.nextLoss = now
			if failed {
				c.nextLoss = now + lossRetry
			}
			return
		}
		// All who leave by now, also one that was to flush: nothing was acknowledged since the flush began, and who stays
		// in the record must have flushed.
		var change Change
		for i := range c.members {
			if c.members[i].Role == Leaving {
				change.Members = append(change.Members, MemberChange{c.members[i].Replica, spec.Stale, ""})
			}
		}
		if len(change.Members) > 0 {
			c.commit(change)
		}
	case PurposePromote:
		m := c.promoting
		if m < 0 || c.members[m].Role != Promoting {
			return
		}
		switch {
		case failed:
			c.drop(m, now)
		case c.committing != nil:
			// Another transaction is under way: be ready again after it.
			c.setRole(m, Catching)
			c.promoting, c.promoteFlush = -1, false
		default:
			c.promoteFlush = false
			c.commit(Change{Members: []MemberChange{{c.members[m].Replica, spec.InSync, c.members[m].Run}}})
		}
	}
}

// Tick does what is due by time. Call it every 100 ms or so while NeedsTick, and any time.
func (c *Column) Tick(now time.Duration) {
	switch c.phase {
	case PhaseFencing:
		for i := range c.members {
			m := &c.members[i]
			if m.Present && m.Role == Fencing && m.Up && !m.Open && !m.fencing && !m.answered && now >= m.nextRejoin {
				c.openSession(i, now)
			}
		}
		c.decide(now)
	case PhaseServing:
		for i := range c.members {
			if c.members[i].Present {
				c.tickMember(i, now)
			}
		}
		if now >= c.nextFull {
			c.nextFull = now + fullRetry
			for i := range c.members {
				if m := &c.members[i]; m.Present && m.Full && m.Open {
					c.resend(i, now)
				}
			}
		}
		c.step(now)
	}
}

func (c *Column) tickMember(i int, now time.Duration) {
	m := &c.members[i]
	switch m.Role {
	case In, Promoting:
		switch {
		case m.failing, m.Role == In && c.surplus(i):
			c.fail(i, now)
		case !m.Up && now-m.downSince > MemberTimeout:
			c.fail(i, now)
		case m.Up && !m.Open && !m.fencing && now >= m.nextRejoin:
			c.openSession(i, now)
		}
	case Leaving:
		c.comeBack(i, now)
	case Catching:
		if !m.Open {
			c.drop(i, now)
		}
	case Joining:
		if m.fencing && now-m.fenceSent > fenceStuck {
			c.drop(i, now)
		}
	case Out:
		if m.Up && c.rejoinReady && !c.closing && !m.fencing && now >= m.nextRejoin && !c.surplus(i) {
			c.setRole(i, Joining)
			c.openSession(i, now)
		}
	}
}

// NeedsTick reports whether anything may become due by time.
func (c *Column) NeedsTick() bool {
	if c.phase == PhaseStopped {
		return false
	}
	if c.phase != PhaseServing || c.committing != nil {
		return true
	}
	for i := range c.members {
		m := &c.members[i]
		switch {
		case !m.Present:
		case m.Role == In && m.Open && !m.Full && !m.failing && !c.surplus(i):
		case m.Role == Out && (!m.Up || c.closing || c.surplus(i)):
		default:
			return true
		}
	}
	return false
}

// UpdateMembers takes over what another writer changed in the column's record: members that were added, to
// be brought up to date, and members that were dropped from it. The record must not be older than the
// last transaction of this column; while one is under way nothing is done, and false is returned.
//
// replicas is how many there shall be: as many that are to stay must be in sync before one that is to be removed is
// taken out of the in-sync set.
func (c *Column) UpdateMembers(list []spec.Member, replicas int, now time.Duration) bool {
	if (c.phase != PhaseServing && c.phase != PhaseFencing) || c.committing != nil {
		return false
	}
	c.cfg.Replicas = replicas
	known := map[string]bool{}
	for _, m := range list {
		known[m.Replica] = true
		if slot := c.Slot(m.Replica); slot >= 0 {
			c.members[slot].Removing = m.Removing
			continue
		}
		if slot := c.freeSlot(); slot >= 0 {
			c.put(slot, m)
			c.members[slot].nextRejoin = now
		}
	}
	for i := range c.members {
		m := &c.members[i]
		if !m.Present || known[m.Replica] || (c.inRole[In]|c.inRole[Fencing])&^(1<<i) == 0 {
			continue // also kept: the last one that has everything
		}
		c.drop(i, now)
		m.Present = false
	}
	c.decide(now) // while fencing: one that isn't in the record any more isn't waited for
	return true
}

// freeSlot returns a slot that nothing in flight refers to, or -1.
func (c *Column) freeSlot() int {
	for i := range c.members {
		if c.members[i].Present {
			continue
		}
		used := false
		for op := c.ops.next; op != &c.ops; op = op.next {
			used = used || op.out&(1<<i) != 0
		}
		if !used {
			return i
		}
	}
	return -1
}
