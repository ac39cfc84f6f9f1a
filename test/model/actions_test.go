package model_test

import (
	"fmt"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
)

// action is one step of the world. c is a node with a coordinator, m a member, x an operation, a block or a value.
type action struct {
	k       step
	c, m, x uint8
}

type step uint8

const (
	aAttach step = iota
	aFence
	aFenced
	aExec
	aAdvance
	aAnswer
	aHand
	aApply
	aOutcome
	aTick
	aPatience
	aWrite
	aResend
	aFlush
	aCkpt
	aRecBegin
	aRecCopy
	aRecTouch
	aRecFail
	aList
	aCopy
	aCut
	aNotice
	aHeal
	aKill
	aCrash
	aBoot
	aBag
	steps
)

var stepNames = [steps]string{
	"node %[1]d attaches the volume",
	"the fence of node %[1]d's coordinator reaches member %[2]s",
	"node %[1]d's coordinator hears that member %[2]s has fenced",
	"operation %[3]d of node %[1]d reaches member %[2]s",
	"member %[2]s goes on with operation %[3]d of node %[1]d",
	"node %[1]d's coordinator gets the answer of member %[2]s to operation %[3]d",
	"the answer to operation %[3]d is handed to the guest of node %[1]d",
	"the metadata takes, or refuses, the transaction of node %[1]d's coordinator",
	"node %[1]d's coordinator learns how its transaction ended",
	"node %[1]d's coordinator: a timer for member %[2]s runs out",
	"node %[1]d's coordinator has waited for fences long enough",
	"the guest of node %[1]d writes block %[3]d",
	"node %[1]d's coordinator executes write %[3]d, which the kernel resent",
	"the guest of node %[1]d flushes",
	"node %[1]d's coordinator begins a checkpoint",
	"node %[1]d's coordinator begins to reconcile chunk %[3]d",
	"node %[1]d's coordinator, reconciling chunk %[3]d, copies it to member %[2]s",
	"node %[1]d's coordinator, reconciling chunk %[3]d, touches it on member %[2]s",
	"node %[1]d's coordinator can't go on with reconciling chunk %[3]d",
	"node %[1]d's coordinator lists what may differ on member %[2]s",
	"node %[1]d's coordinator compares and copies chunk %[3]d to member %[2]s",
	"the connection of node %[1]d's coordinator to member %[2]s breaks",
	"node %[1]d's coordinator notices that its connection to member %[2]s is gone",
	"node %[1]d's coordinator reaches member %[2]s again",
	"the engine with member %[2]s is killed",
	"the machine with member %[2]s crashes; it keeps %[4]s",
	"an engine starts on the machine with member %[2]s",
	"member %[2]s goes on with request %[3]d, for which nobody waits any more",
}

func (a action) String() string {
	return fmt.Sprintf(stepNames[a.k]+"%[5]s", a.c, string("abc"[a.m]), a.x, fmt.Sprintf("block 0 = %d, block 1 = %d", a.x&15, a.x>>4), "")
}

// apply makes one step, judges the state that it leads to, and lets every timer stand still again.
func (w *world) step(a action) {
	defer func() {
		if r := recover(); r != nil {
			v, ok := r.(*invariant.Violation)
			if !ok {
				panic(r)
			}
			w.fail(v.Error())
		}
	}()
	w.do(a)
	for c := range uint8(maxCoords) {
		w.stand(c)
		w.settle(c)
		w.stand(c)
	}
	w.observe()
	w.check()
	w.forget()
}

// stand lets all timers of a coordinator stand still.
func (w *world) stand(c uint8) {
	if w.co[c].on {
		w.co[c].col.RunOut(now, 0, false)
	}
}

func (w *world) do(a action) {
	co := &w.co[a.c]
	switch a.k {
	case aAttach:
		w.attach(a.c)
	case aFence:
		w.fence(a.c, a.m)
		if w.cfg.prompt && co.fence[a.m].st == back {
			w.fenced(co, a.m)
		}
	case aFenced:
		w.fenced(co, a.m)
	case aExec:
		o := &co.ops[a.x]
		o.st[a.m], o.res[a.m] = w.mem[a.m].begin(o.request(co, a.m), w.cfg.slow)
		w.refused(o.res[a.m])
		w.prompt(co, o, a.m)
	case aAdvance:
		o := &co.ops[a.x]
		o.st[a.m] = w.mem[a.m].advance(o.request(co, a.m), o.st[a.m])
		w.quiet(a.m)
		w.prompt(co, o, a.m)
	case aAnswer:
		co.answered(&co.ops[a.x], a.m)
	case aHand:
		co.ops[a.x].used = false
		w.acked(co.ops[a.x].val, co.term)
	case aApply:
		w.apply(a.c)
	case aOutcome:
		var err error
		if co.commit == cRefused {
			err = repl.ErrLost
		}
		co.commit, co.change = cNone, nil
		co.col.Committed(err, now)
	case aTick:
		w.tick(co, a.m)
	case aPatience:
		co.col.RunOut(now, 0, true)
		co.col.Tick(now)
	default:
		w.doMore(a)
	}
}

func (w *world) doMore(a action) {
	co := &w.co[a.c]
	switch a.k {
	case aWrite:
		w.left.write--
		co.write(w, w.g.newWrite(a.x))
	case aResend:
		co.resend &^= bit(a.x)
		co.write(w, a.x)
	case aFlush:
		w.left.flush--
		o := co.newOp(oFlush)
		o.keep = w.g.found()
		co.col.Begin(&o.Op, co.col.Required(), now)
	case aCkpt:
		w.left.ckpt--
		co.upTo = co.period()
		co.seq++
		co.ckpt = ckWaitOld
	case aRecBegin:
		co.rec[a.x] = reconcile{active: true, members: set(co.col.InSync())}
	case aRecCopy, aRecTouch:
		w.reconcile(co, a)
	case aRecFail:
		co.rec[a.x] = reconcile{}
	case aList:
		w.list(co, a.m)
	case aCopy:
		w.copyChunk(co, a.m, a.x)
	case aCut:
		w.left.cut--
		w.sever(a.c, a.m)
	case aNotice:
		w.notice(co, a.m)
	case aHeal:
		co.link[a.m] = up
		co.col.LinkUp(int(a.m), now)
	case aKill:
		w.left.kill--
		w.die(a.m, true)
	case aCrash:
		w.left.crash--
		w.die(a.m, false)
		w.mem[a.m].lose([blocks]uint8{a.x & 15, a.x >> 4})
	case aBoot:
		if !w.mem[a.m].boot() {
			w.fail("a chunk outside of the journal doesn't match its checksums")
		}
	case aBag:
		w.bag(a.m, a.x)
	}
}

// prompt hands an answer to the coordinator in the same step, if the configuration says so.
func (w *world) prompt(co *coord, o *op, m uint8) {
	if w.cfg.prompt && o.st[m] == back {
		co.answered(o, m)
	}
}

func (co *coord) answered(o *op, m uint8) {
	o.st[m] = none
	co.col.Done(int(m), &o.Op, uint32(o.sess[m]), o.res[m], now)
}

// refused: a member refuses requests of an older term or session, but nothing else.
func (w *world) refused(res repl.Result) {
	if res == repl.Failed {
		w.fail("a write comes in a period that the member's checkpoint covers")
	}
}

func (co *coord) write(w *world, val uint8) {
	o := co.newOp(oWrite)
	o.block, o.val, o.period = w.g.block[val], val, co.period()
	w.began(val, co.term)
	co.col.Begin(&o.Op, co.col.Everyone(), now)
}

func (w *world) attach(c uint8) {
	w.left.attach--
	if w.co[c].on {
		w.abandon(c) // it has seen the newer term
	}
	prev := repl.PrevOther
	switch w.meta.holder {
	case -1:
		prev = repl.PrevDetached
	case int8(c):
		prev = repl.PrevOwnDead
	}
	w.meta.term++
	for o := range uint8(maxCoords) {
		if w.cfg.oldFirst && w.co[o].on {
			w.abandon(o)
		}
	}
	for m := range w.mem {
		w.mem[m].discard(w)
	}
	w.meta.holder = int8(c)
	if prev == repl.PrevOwnDead && w.meta.fenced+1 != w.meta.term {
		prev = repl.PrevOther
	}
	w.start(c, prev)
}

// fence has member m promise to take nothing older any more.
func (w *world) fence(c, m uint8) {
	f, mem, term := &w.co[c].fence[m], &w.mem[m], w.co[c].term
	switch {
	case term < mem.fence:
		f.st, f.res = back, repl.Fenced
		return
	case term == mem.fence && f.session < mem.session:
		f.st, f.res = back, repl.OldSess
		return
	}
	f.st, f.prev = busy, mem.saved
	mem.saved = term
	if invariant.Mutant("fence-not-durable") {
		f.prev, mem.saved = mem.fence, mem.fence // it will be, some time later
	}
	mem.fence, mem.session, mem.open, mem.fencing = term, f.session, false, true
	mem.tidy()
	if f.prev < term && invariant.Mutant("fence-without-drain") || f.prev == term && invariant.Mutant("session-without-drain") {
		w.answerFences(m)
		return
	}
	w.quiet(m)
}

// quiet answers fences when what was accepted before them has ended.
func (w *world) quiet(m uint8) {
	mem := &w.mem[m]
	if !mem.fencing {
		return
	}
	for c := range w.co {
		for i := range w.co[c].ops {
			if o := &w.co[c].ops[i]; w.co[c].on && o.used && (o.st[m] == busy || o.st[m] == half) {
				return
			}
		}
	}
	for _, x := range mem.bag[:mem.bags] {
		if x.st == busy || x.st == half && x.kind == kCheckpoint {
			return
		}
	}
	w.answerFences(m)
}

func (w *world) answerFences(m uint8) {
	mem := &w.mem[m]
	mem.fencing, mem.open = false, true
	mem.markUnreconciled(mem.fence)
	for c := range w.co {
		f := &w.co[c].fence[m]
		if !w.co[c].on || f.st != busy {
			continue
		}
		f.st = back
		switch {
		case w.co[c].term < mem.fence:
			f.res = repl.Fenced
		case f.session != mem.session:
			f.res = repl.OldSess
		default:
			f.res, f.run, f.ckpt, f.exact, f.touched = repl.OK, mem.run, mem.ckpt, mem.exact(), mem.touched()
		}
	}
}

// fenced brings the answer to the coordinator.
func (w *world) fenced(co *coord, m uint8) {
	f := co.fence[m]
	co.fence[m] = fenceMsg{}
	ans := repl.FenceAnswer{Run: runName[f.run], PrevFence: uint64(f.prev), Checkpoint: uint64(f.ckpt), SinceConfirm: -1, Exact: f.exact}
	for b, p := range f.touched {
		if p > 0 {
			ans.Journal = append(ans.Journal, repl.Touched{Chunk: int64(b), Period: uint64(p)})
		}
	}
	co.col.FenceDone(int(m), uint32(f.session), f.res, ans, now)
}

func (w *world) tick(co *coord, m uint8) {
	was := co.col.Member(int(m)).Role
	co.col.RunOut(now, 1<<m, false)
	co.col.Tick(now)
	if was == repl.Out && co.col.Member(int(m)).Role == repl.Joining {
		w.left.rejoin--
	}
}

// notice tells a coordinator that a connection is gone, with all that was under way on it.
func (w *world) notice(co *coord, m uint8) {
	co.link[m] = down
	co.fence[m] = fenceMsg{}
	co.col.LinkDown(int(m), now)
	for i := range co.ops {
		if o := &co.ops[i]; o.used && o.st[m] == lost {
			o.st[m] = none
			co.col.Done(int(m), &o.Op, uint32(o.sess[m]), repl.Lost, now)
		}
	}
}

// die ends the engine of a node. If only that is killed, the kernel keeps what its guest waits for.
func (w *world) die(n uint8, kernelLives bool) {
	if n < maxCoords {
		co, g := &w.co[n], &w.guest[n]
		if co.on {
			*g = guest{pend: co.resend, term: co.term}
			for i := range co.ops {
				if o := &co.ops[i]; o.used && o.kind == oWrite {
					g.pend |= bit(o.val)
				}
			}
			w.abandon(n)
		}
		if !kernelLives || g.pend == 0 {
			*g = guest{}
		}
	}
	for c := range uint8(maxCoords) {
		if w.co[c].on {
			w.sever(c, n)
		}
	}
	w.mem[n].die()
}

// bag goes on with a request that nobody waits for.
func (w *world) bag(m, i uint8) {
	mem := &w.mem[m]
	x := mem.take(i)
	switch {
	case x.st == sent:
		var res repl.Result
		x.st, res = mem.begin(x.request, w.cfg.slow)
		w.refused(res)
	case x.st == half && x.kind == kWrite:
		x.st = mem.advance(x.request, busy)
	default:
		x.st = mem.advance(x.request, x.st)
	}
	if x.st != back {
		mem.put(x)
	}
	mem.tidy()
	if mem.alive {
		w.quiet(m)
	}
}
