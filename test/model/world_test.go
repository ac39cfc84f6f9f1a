// Package model_test explores the replication protocol exhaustively: every state that a small cluster can get into, by every
// order of messages, crashes, cuts and decisions, within budgets of each. The rules of membership are those that run:
// package repl itself, copied at every branch. What surrounds them is modelled small: members (fence, sessions, journal, gens,
// checkpoint, data that is and isn't durable), connections, the metadata, and what package volume does between them
// (reconciliation, resync, checkpoints, range locks, takeover). In every state the invariants of the protocol are checked.
// docs/design/model.md says what the bounds are, what they leave out, and how to read a counterexample.
package model_test

import (
	"time"

	"keelson.io/keelson/internal/repl"
)

// The size of the world. Each block is in a chunk of its own.
const (
	maxMembers = 3
	maxCoords  = 2
	blocks     = 2
	maxOps     = 7
	maxBag     = 8
)

// now is the time of every event: timers run out by repl's RunOut, not by the clock.
const now = 100 * time.Second

// set is a set of small numbers: members, or values of a block.
type set uint8

func (s set) has(i uint8) bool { return s&(1<<i) != 0 }
func bit(i uint8) set          { return 1 << i }

// budget bounds how often each thing may happen in one history.
type budget struct {
	attach, write, flush, ckpt, crash, kill, cut, rejoin uint8
}

// config is one exploration.
type config struct {
	name, about string
	members     uint8
	budget      budget
	// served: histories begin with the volume served by node 0.
	served bool
	// slow: a write is accepted by a member in one step, and executed in another; a checkpoint has two steps as well.
	slow bool
	// prompt: an answer reaches the coordinator in the step in which it is given, unless its connection is gone.
	prompt bool
	// oldFirst: what a coordinator does, it has done before another node raises the term. Later it could only be refused.
	oldFirst bool
	// late: the answer to a write is handed to the guest in a step of its own.
	late bool
	// oneBlock: only block 0 is written.
	oneBlock bool
	short    bool // it is part of every test run
}

// world is one state. It is copied by value; only repl's columns have pointers into it.
type world struct {
	cfg   *config
	left  budget
	meta  metadata
	mem   [maxMembers]member
	co    [maxCoords]coord
	guest [maxCoords]guest
	g     ghost
	bad   string // the invariant that doesn't hold; "" if all do

	fx    [maxCoords]fx
	place [maxCoords]func(any) *repl.Op
}

type state uint8 // of a member in the metadata

const (
	stale state = iota
	syncing
	inSync
)

// metadata is the volume's record.
type metadata struct {
	term, fenced uint8
	holder       int8 // -1: nobody
	state        [maxMembers]state
	run          [maxMembers]uint8 // 0: any will do
}

// guest is what a node's kernel has of a dead engine: writes that were not answered.
type guest struct {
	pend set
	term uint8 // of the engine that died
}

func newWorld(cfg *config) *world {
	w := &world{cfg: cfg, left: cfg.budget}
	w.bind()
	w.meta = metadata{term: 1, fenced: 1, holder: -1}
	for m := range cfg.members {
		w.meta.state[m] = inSync
		w.mem[m] = member{alive: true, run: 1, fence: 1, saved: 1, recTerm: 1}
		for b := range blocks {
			w.mem[m].dur[b] = bit(0)
		}
	}
	for b := range blocks {
		w.g.since[b] = bit(0)
	}
	w.g.lin = bit(0)
	return w
}

// bind makes what points into w itself.
func (w *world) bind() {
	for c := range w.fx {
		w.fx[c] = fx{w, uint8(c)}
		w.place[c] = func(ctx any) *repl.Op { return &w.co[c].ops[ctx.(uint8)].Op }
	}
}

// copyFrom makes w a copy of o.
func (w *world) copyFrom(o *world) {
	w.cfg, w.left, w.meta, w.mem, w.guest, w.g, w.bad = o.cfg, o.left, o.meta, o.mem, o.guest, o.g, o.bad
	for c := range w.co {
		to, from := &w.co[c], &o.co[c]
		if to.on = from.on; !from.on {
			continue
		}
		to.around = from.around
		for i := range from.ops {
			if to.ops[i].used = from.ops[i].used; from.ops[i].used {
				to.ops[i] = from.ops[i]
			}
		}
		from.col.CopyTo(&to.col, &w.fx[c], w.place[c])
	}
}

// fail notes a violation; the first one counts.
func (w *world) fail(what string) {
	if w.bad == "" {
		w.bad = what
	}
}

// forget drops what can't matter any more, so that states that differ only in it become one.
func (w *world) forget() {
	g := &w.g
	var open set
	for c := range w.co {
		open |= w.guest[c].pend
		if w.co[c].on {
			open |= w.co[c].resend
		}
		for i := range w.co[c].ops {
			if o := &w.co[c].ops[i]; w.co[c].on && o.used && o.kind == oWrite {
				open |= bit(o.val)
			}
		}
	}
	g.dead &= open
	g.lin &= open
	var may set
	for b := range g.maybe {
		may |= g.maybe[b]
		if w.cfg.budget.crash == 0 {
			g.since[b] = 0xff
		}
	}
	for i := range g.term {
		if !may.has(uint8(i)) {
			g.term[i] = 0
		}
	}
	for m := range w.mem {
		mem := &w.mem[m]
		if w.left.crash == 0 {
			for b := range mem.dur {
				mem.dur[b] = bit(mem.val[b])
			}
		}
		served := false
		for c := range w.co {
			served = served || w.co[c].on && w.co[c].term == mem.fence
		}
		for _, x := range mem.bag[:mem.bags] {
			served = served || x.term == mem.fence
		}
		if !served && !mem.fencing {
			mem.open, mem.session = false, 0
		}
	}
}

func opID(ctx any) byte { return ctx.(uint8) }

// encode appends all that decides what may happen next, and all that the checks look at.
func (w *world) encode(b []byte) []byte {
	l := &w.left
	b = append(b, l.attach, l.write, l.flush, l.ckpt, l.crash, l.kill, l.cut, l.rejoin,
		w.meta.term, w.meta.fenced, byte(w.meta.holder+1))
	n := w.cfg.members
	for m := range n {
		b = append(b, byte(w.meta.state[m]), w.meta.run[m])
		b = w.mem[m].encode(b)
	}
	for c := range w.co {
		b = append(b, byte(w.guest[c].pend), w.guest[c].term)
		b = w.co[c].encode(b, n)
	}
	return w.g.encode(b)
}

func flags(list ...bool) (b byte) {
	for i, f := range list {
		if f {
			b |= 1 << i
		}
	}
	return b
}
