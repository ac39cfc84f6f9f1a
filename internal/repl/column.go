package repl

import (
	"math/bits"
	"time"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/spec"
)

// Prev says how the volume was held before this term.
type Prev uint8

// Who may still be answering reads in an older term.
const (
	PrevOther    Prev = iota // some other node: wait until it must have stopped
	PrevDetached             // nobody: it was given up cleanly
	PrevOwnDead              // this node's own engine, which is known to be dead
)

// Phase is how far the column has come.
type Phase uint8

// The phases, in order.
const (
	PhaseFencing Phase = iota
	PhaseRecording
	PhaseServing
	PhaseStopped
)

// Config is what a Column is made from.
type Config struct {
	Term   uint64
	Prev   Prev
	Fenced uint64 // the highest term that the metadata knows every in-sync member made durable
	// Alive reports whether a node holds its lease, as far as is known.
	Alive   func(node string) bool
	Members []spec.Member
	// Replicas is how many copies there shall be.
	Replicas int
	// AcceptLoss makes attach go on with whichever in-sync members answer, also when none of them
	// is in its recorded run. An operator's decision.
	AcceptLoss bool
}

// Column is the coordinator's side of the protocol for one column. Not safe for
// concurrent use: all of it happens on the volume's shard. Begin may be called
// from within the effects Complete and Flush; nothing else may be called from within an effect.
type Column struct {
	cfg     Config
	fx      Effects
	phase   Phase
	members [MaxMembers]Member
	// inRole has, for each role, the members in it. Invariant: it agrees with their Role.
	inRole  [len(roleNames)]uint32
	begun   bool
	started time.Duration
	// readWait: enough members have answered, but an older coordinator may still answer reads.
	readWait bool

	// ops is the ring of operations in flight, oldest first.
	ops   Op
	count int
	seq   uint64

	// Invariant: at most one Change is under way; committing says which.
	committing *Change
	// lossFlush: an internal flush is under way, before members are made Stale; lossMask are those that were asked.
	lossFlush bool
	lossMask  uint32
	nextLoss  time.Duration
	// promoting is the member whose promotion is at its flush or transaction; -1 if none.
	promoting    int
	promoteFlush bool
	rejoinReady  bool
	closing      bool
	nextFull     time.Duration
}

// New makes a column. Call LinkUp for the members that can be reached, and Start.
func New(cfg Config, fx Effects) *Column {
	c := &Column{cfg: cfg, fx: fx, promoting: -1}
	c.ops.next, c.ops.prev = &c.ops, &c.ops
	for i, m := range cfg.Members {
		c.put(i, m)
	}
	return c
}

func (c *Column) put(slot int, m spec.Member) {
	s := c.members[slot].session
	c.members[slot] = Member{Replica: m.Replica, Node: m.Node, Pool: m.Pool, Run: m.Run, Removing: m.Removing, Present: true, session: s}
	if c.phase == PhaseFencing && m.State == spec.InSync {
		c.setRole(slot, Fencing)
	}
}

// Phase returns how far the column has come.
func (c *Column) Phase() Phase { return c.phase }

// Member returns member m for reading; nil if the slot isn't in use.
func (c *Column) Member(m int) *Member {
	if !c.members[m].Present {
		return nil
	}
	return &c.members[m]
}

// Slot returns the slot of a replica, or -1.
func (c *Column) Slot(replica string) int {
	for i := range c.members {
		if c.members[i].Present && c.members[i].Replica == replica {
			return i
		}
	}
	return -1
}

// setRole moves a member to another role. All changes of Role go through it.
func (c *Column) setRole(m int, r Role) {
	bit := uint32(1) << m
	c.inRole[c.members[m].Role] &^= bit
	c.inRole[r] |= bit
	c.members[m].Role = r
}

// Required returns the members without whose answer nothing is acknowledged: those that are, or may be, in
// sync in the metadata.
func (c *Column) Required() uint32 {
	if invariant.Mutant("promoting-not-required") {
		return c.inRole[In] | c.inRole[Leaving]
	}
	return c.inRole[In] | c.inRole[Leaving] | c.inRole[Promoting]
}

// Everyone returns the members that get every change of the data.
func (c *Column) Everyone() uint32 { return c.Required() | c.inRole[Promoting] | c.inRole[Catching] }

// InSync returns the members that are in sync and in use.
func (c *Column) InSync() uint32 { return c.inRole[In] }

// Start begins fencing.
func (c *Column) Start(now time.Duration) {
	c.begun, c.started = true, now
	for i := range c.members {
		m := &c.members[i]
		if m.Present && m.Role == Fencing && m.Up {
			c.openSession(i, now)
		}
	}
	c.decide(now)
}

// LinkUp tells that member m can be reached (again).
func (c *Column) LinkUp(m int, now time.Duration) {
	mb := &c.members[m]
	if !mb.Up {
		for op := c.ops.next; op != &c.ops; op = op.next {
			if op.asked[m] != 0 {
				op.asked[m] += now - mb.downSince // that isn't the member's silence
			}
		}
	}
	mb.Up, mb.back = true, mb.Role == Leaving
	if !c.begun || c.phase == PhaseStopped || mb.Open || mb.fencing {
		return
	}
	switch mb.Role {
	case Fencing, In, Promoting:
		c.openSession(m, now)
	case Out:
		mb.nextRejoin = now
	}
}

// LinkDown tells that the connection to member m is gone. What was sent and not answered comes
// back through Done as Lost.
func (c *Column) LinkDown(m int, now time.Duration) {
	mb := &c.members[m]
	if mb.Up || mb.downSince == 0 {
		mb.downSince = now
	}
	mb.Up, mb.Open, mb.fencing = false, false, false
	if c.phase == PhaseStopped {
		return
	}
	if mb.Role == Catching || mb.Role == Joining {
		c.drop(m, now)
	}
}

func (c *Column) openSession(m int, now time.Duration) {
	mb := &c.members[m]
	mb.session++
	mb.fencing, mb.Open = true, false
	mb.fenceSent = now
	known := uint64(0) // one that is stale may be anything
	switch mb.Role {
	case Fencing:
		known = c.cfg.Fenced
	case In, Promoting:
		known = c.cfg.Term
	}
	c.fx.Fence(m, mb.session, known)
}

// FenceDone reports member m's answer to Fence.
func (c *Column) FenceDone(m int, session uint32, res Result, ans FenceAnswer, now time.Duration) {
	mb := &c.members[m]
	if c.phase == PhaseStopped || session != mb.session || !mb.fencing {
		return
	}
	mb.fencing = false
	if res == Fenced {
		c.stop(ErrLost)
		return
	}
	if res != OK {
		mb.nextRejoin = now + RejoinBackoff/10
		switch mb.Role {
		case Joining:
			c.drop(m, now)
		case In, Promoting:
			if res == Failed {
				c.fail(m, now)
			}
		}
		return
	}
	if mb.Role == Fencing && mb.answered {
		// Its first answer made this term durable: what it had promised before is known from that one alone.
		ans.PrevFence = min(ans.PrevFence, mb.Answer.PrevFence)
	}
	mb.Answer = ans
	mb.confirmed = mb.fenceSent
	switch mb.Role {
	case Fencing:
		mb.Open, mb.answered = true, true
		if ans.SinceConfirm >= 0 {
			mb.lowerEnd = now - ans.SinceConfirm + TRead + Drift
			if invariant.Mutant("no-drift-margin") {
				mb.lowerEnd -= Drift
			}
		}
		c.decide(now)
	case In, Promoting:
		c.reopened(m, now)
	case Joining:
		mb.Open = true
		mb.wantSyncing = true
		c.step(now)
	}
}

// reopened goes on with a member whose session was opened again in this term.
func (c *Column) reopened(m int, now time.Duration) {
	mb := &c.members[m]
	otherRun := mb.Answer.Run != mb.Run && !invariant.Mutant("run-not-compared")
	if otherRun || mb.Answer.PrevFence < c.cfg.Term && !invariant.Mutant("rollback-not-noticed") {
		// The machine was restarted, or the replica was replaced by an older image of itself, which doesn't
		// know the term that it had promised: what it acknowledged may be gone.
		mb.failing, mb.runLost = true, true
		if c.everyRunLost() {
			c.stop(ErrRunLost)
			return
		}
		c.fail(m, now)
		return
	}
	mb.Open = true
	if !invariant.Mutant("no-resend") {
		c.resend(m, now)
	}
	c.step(now)
}

// everyRunLost reports whether no in-sync member is, or may come back, in the run in which it acknowledged.
func (c *Column) everyRunLost() bool {
	for i := range c.members {
		if m := &c.members[i]; m.Present && m.Role == In && !m.runLost {
			return false
		}
	}
	return true
}

// resend sends to m, in the order in which they began, all operations whose answer is missing.
func (c *Column) resend(m int, now time.Duration) {
	bit := uint32(1) << m
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.need&bit != 0 && op.out&bit == 0 {
			c.send(m, op, now)
		}
	}
}

// waits reports whether some operation waits for being sent to m again.
func (c *Column) waits(m int) bool {
	bit := uint32(1) << m
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.need&bit != 0 && op.out&bit == 0 {
			return true
		}
	}
	return false
}

func (c *Column) send(m int, op *Op, now time.Duration) {
	op.out |= 1 << m
	op.sentAt[m] = now
	if op.asked[m] == 0 {
		op.asked[m] = now
	}
	op.session[m] = c.members[m].session
	c.fx.Send(m, op, c.members[m].session)
}

// Begin sends op to the members in mask, which must contain all that are required for its kind
// (Everyone for what changes data, Required for flushes and confirmations).
func (c *Column) Begin(op *Op, mask uint32, now time.Duration) {
	invariant.Check(c.phase == PhaseServing, "operation begun in phase %d", c.phase)
	invariant.Check(!op.active && mask != 0, "operation begun twice or for nobody")
	c.seq++
	*op = Op{need: mask, seq: c.seq, active: true, internal: op.internal, purpose: op.purpose, Slow: op.Slow, Ctx: op.Ctx}
	op.prev, op.next = c.ops.prev, &c.ops
	op.prev.next, c.ops.prev = op, op
	c.count++
	for rest := mask; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		if mb := &c.members[m]; mb.Open && mb.Role != Leaving {
			c.send(m, op, now)
		}
	}
}

// BeginFlush begins the internal flush that the effect Flush asked for.
func (c *Column) BeginFlush(op *Op, p Purpose, mask uint32, now time.Duration) {
	op.internal, op.purpose = true, p
	c.Begin(op, mask, now)
}

// Done reports how member m answered op, which was sent in the given session.
func (c *Column) Done(m int, op *Op, session uint32, res Result, now time.Duration) {
	mb := &c.members[m]
	bit := uint32(1) << m
	invariant.Check(op.out&bit != 0, "answer of a member that wasn't asked")
	op.out &^= bit
	op.gone &^= bit
	current := mb.Present && mb.Open && session == mb.session
	switch {
	case c.phase == PhaseStopped:
		c.finishStopped(op)
		return
	case res == Fenced && mb.Present:
		c.stop(ErrLost)
		c.finishStopped(op)
		return
	case op.need&bit == 0:
		// It was dropped meanwhile; only its memory was waited for.
	case res == OK && (current || invariant.Mutant("old-session-counts")):
		op.need &^= bit
		mb.Full = mb.Full && c.waits(m)
		mb.confirmed = max(mb.confirmed, op.sentAt[m])
		if invariant.Mutant("confirmed-at-answer") {
			mb.confirmed = now
		}
	case res == NoSpace && current:
		op.asked[m] = 0
		mb.Full = true // Tick sends it again
	case res == Failed && current:
		c.failedOp(m, op, now)
	case current: // Lost or OldSess: this session is over
		mb.Open = false
	default:
		mb.back = mb.back || mb.Role == Leaving && res == OK && session == mb.session
		if mb.Open && mb.Role != Leaving {
			c.send(m, op, now)
		}
	}
	c.maybeComplete(op, now)
}

// finishStopped gives op back when a coordinator that has stopped has all its memory back.
func (c *Column) finishStopped(op *Op) {
	if op.active && op.out&^op.gone == 0 {
		c.unlink(op)
		op.Failed = true
		c.fx.Complete(op)
	}
}

func (c *Column) unlink(op *Op) {
	op.prev.next, op.next.prev = op.next, op.prev
	op.next, op.prev, op.active = nil, nil, false
	c.count--
}

func (c *Column) maybeComplete(op *Op, now time.Duration) {
	if !op.active || op.need != 0 || op.out&^op.gone != 0 {
		return
	}
	c.complete(op, now)
}

func (c *Column) complete(op *Op, now time.Duration) {
	c.unlink(op)
	internal, purpose, failed := op.internal, op.purpose, op.Failed
	op.internal, op.purpose = false, PurposeNone
	c.fx.Complete(op)
	if c.phase == PhaseStopped {
		return
	}
	if internal {
		c.flushed(purpose, failed, now)
	}
	if c.waitingBarrier() {
		c.checkBarriers()
	}
}

func (c *Column) stop(err error) {
	if c.phase == PhaseStopped {
		return
	}
	c.phase = PhaseStopped
	c.fx.Stop(err)
	var done []*Op
	for op := c.ops.next; op != &c.ops; op = op.next {
		if op.out&^op.gone == 0 {
			done = append(done, op)
		}
	}
	for _, op := range done {
		c.finishStopped(op)
	}
}

// Stop ends the column from outside: another term was seen in the metadata, or the engine ends.
func (c *Column) Stop(err error) { c.stop(err) }

// Busy returns the number of operations in flight.
func (c *Column) Busy() int { return c.count }

// ReadableUntil is the moment up to which reads may be answered: every member that is, or may be,
// in sync has confirmed the term recently enough. Compare with the time at which the answer is given.
func (c *Column) ReadableUntil() time.Duration {
	if c.phase != PhaseServing {
		return 0
	}
	until := time.Duration(1<<63 - 1)
	for rest := c.Required(); rest != 0; rest &= rest - 1 {
		until = min(until, c.members[bits.TrailingZeros32(rest)].confirmed+TRead)
	}
	return until
}

// Confirmed tells that m answered a request of this term, sent at the given moment, that wasn't an operation.
func (c *Column) Confirmed(m int, session uint32, sent time.Duration) {
	if mb := &c.members[m]; mb.Open && mb.session == session {
		mb.confirmed = max(mb.confirmed, sent)
	}
}

// SessionLost tells that m refused, or didn't get, a request that wasn't an operation, as one of a session that
// it doesn't have: a new one is opened.
func (c *Column) SessionLost(m int, session uint32) {
	if mb := &c.members[m]; mb.Open && mb.session == session {
		mb.Open = false
	}
}

// Session returns the session that is open with m, and whether one is.
func (c *Column) Session(m int) (uint32, bool) {
	mb := &c.members[m]
	return mb.session, mb.Present && mb.Open
}
