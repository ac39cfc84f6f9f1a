package model_test

import (
	"math/bits"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// link is the connection of a coordinator to a member.
type link uint8

const (
	down   link = iota // and the coordinator knows
	broken             // it doesn't know yet
	up
)

// opKind is what an operation of a coordinator is for.
type opKind uint8

const (
	oWrite     opKind = iota
	oFlush            // a guest's
	oInternal         // a flush that repl asked for
	oCkptFlush        // the flush of a checkpoint
	oCkpt
)

var kindOf = [...]kind{kWrite, kFlush, kFlush, kFlush, kCheckpoint}

// op is an operation in flight. The model's own part says where its messages are.
type op struct {
	repl.Op
	used bool
	kind opKind
	// done: a write that every member has answered, and whose answer hasn't been handed to the guest.
	done   bool
	block  uint8
	val    uint8
	period period
	keep   [blocks]set // of a flush: what it may have found
	st     [maxMembers]stage
	res    [maxMembers]repl.Result
	sess   [maxMembers]uint8
}

// fenceMsg is a question to fence, and its answer.
type fenceMsg struct {
	st      stage
	session uint8
	res     repl.Result
	run     uint8
	prev    uint8
	ckpt    period
	exact   bool
	touched [blocks]period
}

// commitState is how far a transaction has come.
type commitState uint8

const (
	cNone commitState = iota
	cAsked
	cDone    // it is in the metadata; the coordinator doesn't know
	cRefused // another term was there; it doesn't know either
)

// part is a member's part of a transaction.
type part struct {
	m   uint8
	to  state
	run uint8
}

type ckptState uint8

const (
	ckIdle ckptState = iota
	ckWaitOld
	ckFlushing
	ckPersisting
)

// reconcile is the making identical of one chunk.
type reconcile struct {
	active  bool
	members set
	touched set
}

// resync is the bringing up to date of one member.
type resync struct {
	active, listed bool
	todo           [blocks]bool
}

// coord is the coordinator of a node, what it has sent, and what package volume does around repl.
type coord struct {
	around
	col repl.Column
	ops [maxOps]op
}

// around is all of a coordinator that has no pointers into it.
type around struct {
	on         bool
	term, seq  uint8
	link       [maxMembers]link
	fence      [maxMembers]fenceMsg
	commit     commitState
	change     *repl.Change
	unrec      [blocks]bool
	rec        [blocks]reconcile
	reconciled bool
	resync     [maxMembers]resync
	ckpt       ckptState
	upTo       period
	resend     set // writes that the kernel resends, and that come before all others
}

func (co *coord) encode(b []byte, n uint8) []byte {
	if !co.on {
		return append(b, 0)
	}
	b = append(b, 1, co.term, co.seq, byte(co.commit), byte(co.ckpt), byte(co.upTo), byte(co.resend), flags(co.reconciled))
	for k := range blocks {
		r := &co.rec[k]
		b = append(b, flags(co.unrec[k], r.active), byte(r.members), byte(r.touched))
	}
	for m := range n {
		f, r := &co.fence[m], &co.resync[m]
		b = append(b, byte(co.link[m]), byte(f.st), flags(r.active, r.listed, r.todo[0], r.todo[1]))
		switch f.st {
		case sent, busy:
			b = append(b, f.session)
		case back:
			b = append(b, f.session, byte(f.res), f.run, f.prev, byte(f.ckpt), flags(f.exact), byte(f.touched[0]), byte(f.touched[1]))
		}
	}
	for i := range co.ops {
		o := &co.ops[i]
		if !o.used {
			continue
		}
		b = append(b, byte(i), byte(o.kind), flags(o.done), o.block, o.val, byte(o.period), byte(o.keep[0]), byte(o.keep[1]))
		for m := range n {
			b = append(b, byte(o.st[m]))
			if o.st[m] != none {
				b = append(b, byte(o.res[m]), o.sess[m])
			}
		}
	}
	return co.col.AppendState(b, opID)
}

func (co *coord) serving() bool  { return co.col.Phase() == repl.PhaseServing }
func (co *coord) period() period { return periodOf(co.term, co.seq) }

// locked reports whether a block's range can't be had.
func (co *coord) locked(b uint8) bool {
	return co.held(b) && !invariant.Mutant("no-range-lock") || co.rec[b].active
}

// held reports whether a block's range is held.
func (co *coord) held(b uint8) bool {
	if co.rec[b].active {
		return true
	}
	for i := range co.ops {
		if o := &co.ops[i]; o.used && o.kind == oWrite && o.block == b && !(o.done && invariant.Mutant("unlock-before-answer")) {
			return true
		}
	}
	return false
}

func (co *coord) newOp(k opKind) *op {
	for i := range co.ops {
		if o := &co.ops[i]; !o.used {
			*o = op{used: true, kind: k, Op: repl.Op{Ctx: uint8(i)}}
			return o
		}
	}
	panic("the model has too few operations")
}

func (o *op) request(co *coord, m uint8) request {
	return request{co.term, o.sess[m], kindOf[o.kind], o.block, o.val, o.period}
}

// fx are the effects of one coordinator's column.
type fx struct {
	w *world
	c uint8
}

func (f *fx) co() *coord { return &f.w.co[f.c] }

func (f *fx) Fence(m int, session uint32, _ uint64) {
	msg := &f.co().fence[m]
	*msg = fenceMsg{st: sent, session: uint8(session)}
	if f.co().link[m] != up {
		msg.st = lost
	}
}

func (f *fx) Send(m int, ro *repl.Op, session uint32) {
	o := &f.co().ops[ro.Ctx.(uint8)]
	o.st[m], o.sess[m], o.res[m] = sent, uint8(session), repl.OK
	if f.co().link[m] != up {
		o.st[m] = lost
	}
}

func (f *fx) Complete(ro *repl.Op) {
	co := f.co()
	o := &co.ops[ro.Ctx.(uint8)]
	failed := o.Failed
	was := *o
	if o.kind == oWrite && !failed && f.w.cfg.late {
		o.done = true
		return
	}
	o.used = false
	if co.col.Phase() == repl.PhaseStopped {
		return
	}
	switch was.kind {
	case oWrite:
		f.w.acked(was.val, co.term)
	case oFlush:
		f.w.flushed(was.keep)
	case oCkptFlush:
		co.persist()
	case oCkpt:
		co.ckpt = ckIdle
	}
}

func (f *fx) Flush(p repl.Purpose, mask uint32) {
	o := f.co().newOp(oInternal)
	f.co().col.BeginFlush(&o.Op, p, mask, now)
}

func (f *fx) Commit(ch repl.Change) {
	f.co().commit = cAsked
	f.co().change = &ch
}

func (f *fx) Serve() {
	co := f.co()
	for rest := co.col.InSync(); rest != 0 && !invariant.Mutant("no-reconcile"); rest &= rest - 1 {
		for _, t := range co.col.Member(bits.TrailingZeros32(rest)).Answer.Journal {
			co.unrec[t.Chunk] = true
		}
	}
}

func (f *fx) CatchUp(m int) { f.co().resync[m] = resync{active: true} }
func (f *fx) Dropped(m int) { f.co().resync[m] = resync{} }
func (f *fx) Stop(_ error)  {}

// start makes the coordinator of a new term at node c.
func (w *world) start(c uint8, prev repl.Prev) {
	co := &w.co[c]
	*co = coord{around: around{on: true, term: w.meta.term, seq: 1}}
	cfg := repl.Config{Term: uint64(co.term), Prev: prev, Fenced: uint64(w.meta.fenced), Alive: func(string) bool { return true }}
	for m := range w.cfg.members {
		cfg.Members = append(cfg.Members, spec.Member{Replica: replicaName[m], Node: nodeName[m],
			State: specState[w.meta.state[m]], Run: runName[w.meta.run[m]]})
	}
	repl.New(cfg, &w.fx[c]).CopyTo(&co.col, &w.fx[c], w.place[c])
	for m := range w.cfg.members {
		if w.mem[m].alive {
			co.link[m] = up
			co.col.LinkUp(int(m), now)
		} else {
			co.col.LinkDown(int(m), now)
		}
	}
	g := &w.guest[c]
	if g.pend != 0 && (co.term == g.term+1 || invariant.Mutant("resent-in-any-term")) {
		co.resend = g.pend
	}
	*g = guest{}
	co.col.Start(now)
}

var (
	replicaName = [maxMembers]string{"a", "b", "c"}
	nodeName    = [maxMembers]string{"n0", "n1", "n2"}
	specState   = [...]spec.MemberState{spec.Stale, spec.Syncing, spec.InSync}
	runName     = [...]string{"", "1", "2", "3", "4", "5", "6"}
)

func runOf(s string) uint8 {
	if s == "" {
		return 0
	}
	return s[0] - '0'
}

func (w *world) parts(ch *repl.Change) (list []part) {
	for _, mc := range ch.Members {
		p := part{m: mc.Replica[0] - 'a', run: runOf(mc.Run)}
		for i, s := range specState {
			if s == mc.State {
				p.to = state(i)
			}
		}
		list = append(list, p)
	}
	return list
}

// apply makes the transaction of a coordinator, if its term is the present one.
func (w *world) apply(c uint8) {
	co := &w.co[c]
	if w.meta.term != co.term {
		co.commit = cRefused
		return
	}
	co.commit = cDone
	list := w.parts(co.change)
	if co.change.Attach {
		w.chosen(list)
		w.meta.fenced = co.term
	}
	for _, p := range list {
		if !co.change.Attach && p.to == stale && w.meta.state[p.m] == inSync {
			w.flushed(w.g.found()) // what only that one may have must be durable on the others
		}
		w.meta.state[p.m], w.meta.run[p.m] = p.to, p.run
	}
}

// settle does what a coordinator does at once, without asking anybody.
func (w *world) settle(c uint8) {
	co := &w.co[c]
	if !co.on {
		return
	}
	if co.col.Phase() == repl.PhaseStopped {
		w.abandon(c)
		return
	}
	if co.serving() && !co.reconciled && co.unrec == [blocks]bool{} {
		co.reconciled = true
		co.col.Reconciled(now)
	}
	if co.ckpt == ckWaitOld && !co.oldWrites() {
		co.ckpt = ckFlushing
		if invariant.Mutant("checkpoint-without-flush") || invariant.Mutant("checkpoint-before-all-flushed") {
			co.persist()
		} else {
			o := co.newOp(oCkptFlush)
			co.col.Begin(&o.Op, co.col.Required(), now)
		}
	}
	for m := range w.cfg.members {
		if r := &co.resync[m]; r.active && r.listed && r.todo == [blocks]bool{} {
			*r = resync{}
			co.col.CaughtUp(int(m), now)
		}
	}
}

// persist has the members make a checkpoint, after all of them have flushed.
func (co *coord) persist() {
	co.ckpt = ckPersisting
	n := co.newOp(oCkpt)
	n.period = co.upTo
	mask := co.col.InSync()
	if invariant.Mutant("syncing-checkpoints") {
		mask = co.col.Everyone()
	}
	co.col.Begin(&n.Op, mask, now)
}

// oldWrites reports whether writes of the period that the checkpoint covers are in flight.
func (co *coord) oldWrites() bool {
	for i := range co.ops {
		if o := &co.ops[i]; o.used && o.kind == oWrite && !o.done && o.period <= co.upTo && !invariant.Mutant("checkpoint-early") {
			return true
		}
	}
	return false
}

// abandon ends a coordinator. What it has sent may still arrive.
func (w *world) abandon(c uint8) {
	co := &w.co[c]
	for m := range w.cfg.members {
		w.sever(c, m)
	}
	co.on = false
}

// sever breaks a connection: requests on their way may still arrive, answers don't.
func (w *world) sever(c, m uint8) {
	co := &w.co[c]
	if co.link[m] == up {
		co.link[m] = broken
	}
	if co.fence[m].st != none {
		co.fence[m].st = lost
	}
	for i := range co.ops {
		o := &co.ops[i]
		if !o.used {
			continue
		}
		switch o.st[m] {
		case sent, busy, half:
			w.mem[m].put(bagged{o.request(co, m), o.st[m]})
			o.st[m] = lost
		case back:
			o.st[m] = lost
		}
	}
}
