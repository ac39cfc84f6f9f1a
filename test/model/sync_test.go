package model_test

import (
	"math/bits"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
)

// What the coordinator itself asks of members: to compare, to copy, to touch a chunk. A question and its answer are one
// step, but each member's is a step of its own.

// reach reports whether the coordinator believes that it can ask m, and can.
func (w *world) reach(co *coord, m uint8) bool {
	_, open := co.col.Session(int(m))
	return open && co.link[m] == up && w.mem[m].alive
}

// ask has member m execute a request at once, and reports whether it did.
// A flush only asks whether the member would answer.
func (w *world) ask(co *coord, m uint8, r request) bool {
	s, _ := co.col.Session(int(m))
	r.term, r.session = co.term, uint8(s)
	if r.kind <= kTouch {
		r.period = co.period()
	}
	mem := &w.mem[m]
	res := mem.admit(r)
	w.refused(res)
	switch res {
	case repl.OK:
		if r.kind <= kTouch {
			mem.advance(r, busy)
		}
		return true
	case repl.Fenced:
		co.col.Stop(repl.ErrLost)
	default:
		co.col.SessionLost(int(m), s)
	}
	return false
}

// source is the member whose version wins: one whose sums weren't recomputed, rather the local one.
func (w *world) source(co *coord) uint8 {
	best, rank := uint8(0), -1
	for rest := co.col.InSync(); rest != 0; rest &= rest - 1 {
		m := uint8(bits.TrailingZeros32(rest))
		r := 0
		if co.col.Member(int(m)).Answer.Exact {
			r += 2
		}
		if m < maxCoords && co == &w.co[m] {
			r++
		}
		if r > rank {
			best, rank = m, r
		}
	}
	return best
}

// winner returns the value that a chunk is to have on all members that are being reconciled.
func (w *world) winner(co *coord, b uint8) uint8 {
	s := w.source(co)
	if w.mem[s].badSum[b] && !invariant.Mutant("recomputed-sums-win") {
		for m := range w.cfg.members {
			if co.rec[b].members.has(m) && !w.mem[m].badSum[b] {
				return w.mem[m].val[b]
			}
		}
	}
	return w.mem[s].val[b]
}

// canReconcile reports whether all members that are being made identical are in sync still, and can be asked.
func (w *world) canReconcile(co *coord, b uint8) bool {
	r := &co.rec[b]
	if uint32(r.members)&^co.col.InSync() != 0 {
		return false
	}
	for m := range w.cfg.members {
		if r.members.has(m) && !w.reach(co, m) {
			return false
		}
	}
	return true
}

func (w *world) reconcile(co *coord, a action) {
	r, ok := &co.rec[a.x], false
	if a.k == aRecCopy {
		ok = w.ask(co, a.m, request{kind: kWrite, block: a.x, val: w.winner(co, a.x)})
	} else {
		ok = w.ask(co, a.m, request{kind: kTouch, block: a.x})
		r.touched |= bit(a.m)
	}
	switch {
	case !ok:
		*r = reconcile{}
	case r.touched == r.members:
		*r = reconcile{}
		co.unrec[a.x] = false
	}
}

// reader is the in-sync member that a resync copies from; false if none can be asked.
func (w *world) reader(co *coord) (uint8, bool) {
	self := uint8(0)
	if co == &w.co[1] {
		self = 1
	}
	list := [maxMembers]uint8{self}
	n := 1
	for m := range w.cfg.members {
		if m != self {
			list[n] = m
			n++
		}
	}
	for _, m := range list[:n] {
		if _, open := co.col.Session(int(m)); open && co.col.InSync()&(1<<m) != 0 {
			return m, true
		}
	}
	return 0, false
}

// list notes which chunks may differ on a member that catches up.
func (w *world) list(co *coord, m uint8) {
	src, ok := w.reader(co)
	if !ok || !w.reach(co, src) || !w.ask(co, src, request{kind: kFlush}) {
		co.col.CatchUpFailed(int(m), now)
		return
	}
	r := &co.resync[m]
	r.listed = true
	ans := &co.col.Member(int(m)).Answer
	if !invariant.Mutant("resync-ignores-journal") {
		for _, t := range ans.Journal {
			r.todo[t.Chunk] = true
		}
	}
	ckpt := period(ans.Checkpoint)
	if invariant.Mutant("resync-since-volume-checkpoint") {
		ckpt = max(ckpt, co.upTo)
	}
	for b := range r.todo {
		r.todo[b] = r.todo[b] || w.mem[src].gens[b] > ckpt && !invariant.Mutant("resync-ignores-gens")
	}
}

// copyChunk makes one chunk on a member that catches up what it is at the source.
func (w *world) copyChunk(co *coord, m, b uint8) {
	src, ok := w.reader(co)
	ok = ok && w.reach(co, src) && w.ask(co, src, request{kind: kFlush}) && w.reach(co, m)
	if ok && w.mem[src].val[b] != w.mem[m].val[b] {
		ok = w.ask(co, m, request{kind: kWrite, block: b, val: w.mem[src].val[b]})
	}
	if ok {
		co.resync[m].todo[b] = false
	} else if co.col.Phase() != repl.PhaseStopped {
		co.col.CatchUpFailed(int(m), now)
	}
}
