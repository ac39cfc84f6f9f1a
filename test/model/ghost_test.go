package model_test

import "keelson.io/keelson/internal/invariant"

// ghost is what an all-seeing judge knows of the guests' writes. A write's number is the value that it writes; 0 is what
// was there before the first.
type ghost struct {
	count uint8 // writes so far
	block [8]uint8
	term  [8]uint8 // in which the write was begun last
	// val is the last value that was acknowledged, or seen; maybe are those of writes that may still become it.
	val   [blocks]uint8
	maybe [blocks]set
	// since are the values that a block may have after every in-sync member lost its memory: the one that the last
	// acknowledged flush found, and all later ones.
	since [blocks]set
	// lin are the values that were seen or acknowledged: none may come back after another. dead are writes whose absence was seen.
	lin, dead set
}

func (g *ghost) encode(b []byte) []byte {
	b = append(b, g.count, byte(g.lin), byte(g.dead))
	for k := range blocks {
		b = append(b, g.val[k], byte(g.maybe[k]), byte(g.since[k]))
	}
	for i := uint8(1); i <= g.count; i++ {
		b = append(b, g.block[i]<<5|g.term[i])
	}
	return b
}

// newWrite returns the number of a new write to a block.
func (g *ghost) newWrite(block uint8) uint8 {
	g.count++
	g.block[g.count] = block
	return g.count
}

// began notes that a coordinator begins to execute a write, be it for the second time.
func (w *world) began(val, term uint8) {
	g := &w.g
	b := g.block[val]
	g.term[val] = term
	g.dead &^= bit(val)
	if !g.lin.has(val) {
		g.maybe[b] |= bit(val)
	}
	g.since[b] |= bit(val)
	for c := range w.co {
		for i := range w.co[c].ops {
			if o := &w.co[c].ops[i]; w.co[c].on && o.used && o.kind == oFlush {
				o.keep[b] |= bit(val)
			}
		}
	}
}

// acked judges the acknowledgement of a write to its guest.
func (w *world) acked(val, term uint8) {
	g := &w.g
	b := g.block[val]
	switch {
	case invariant.Mutant("no-range-lock"): // writes that overlap: any of them may be the last
	case g.maybe[b].has(val):
		g.settle(b, val, term)
	case g.dead.has(val):
		w.fail("a write is acknowledged after a read has shown that it wasn't executed")
	}
}

// settle makes val the value of its block. Writes that were begun in the same or an older term can't become it any more; if they
// are acknowledged later, they came before.
func (g *ghost) settle(b, val, term uint8) {
	g.val[b] = val
	g.lin |= bit(val)
	g.maybe[b] &^= bit(val)
	for i := uint8(1); i <= g.count; i++ {
		if g.term[i] <= term {
			g.maybe[b] &^= bit(i)
		}
	}
}

// flushed judges the acknowledgement of a flush: keep has the values that it may have found, or that came later.
func (w *world) flushed(keep [blocks]set) { w.g.since = keep }

// found is what a flush may find when it begins.
func (g *ghost) found() (keep [blocks]set) {
	for b := range keep {
		keep[b] = bit(g.val[b]) | g.maybe[b]
	}
	return keep
}

// observe lets the coordinator of the present term read each block as soon as it could, from every member that it could ask.
func (w *world) observe() {
	for c := range w.co {
		co := &w.co[c]
		if !co.on || co.term != w.meta.term || !co.serving() || co.resend != 0 && !invariant.Mutant("others-before-resent") {
			continue
		}
		for b := range uint8(blocks) {
			if !co.unrec[b] && !co.held(b) {
				w.read(co, b)
			}
		}
	}
}

func (w *world) read(co *coord, b uint8) {
	g := &w.g
	first, v := true, uint8(0)
	for m := range w.cfg.members {
		mem := &w.mem[m]
		s, open := co.col.Session(int(m))
		if uint32(bit(m))&co.col.InSync() == 0 || !open || co.link[m] != up ||
			!mem.alive || !mem.open || mem.fence != co.term || uint32(mem.session) != s {
			continue
		}
		if !first && mem.val[b] != v {
			w.fail("two in-sync members answer a read differently")
			return
		}
		first, v = false, mem.val[b]
	}
	switch {
	case first:
	case v == g.val[b]:
		g.dead |= g.maybe[b]
		g.maybe[b] = 0
	case g.maybe[b].has(v):
		g.val[b] = v
		g.lin |= bit(v)
		g.maybe[b] = 0
	default:
		w.fail("a read returns neither the last acknowledged write nor one in flight")
	}
}

// check looks at the members that the metadata has as in sync.
func (w *world) check() {
	any := false
	for m := range w.cfg.members {
		if w.meta.state[m] != inSync {
			continue
		}
		any = true
		mem := &w.mem[m]
		same := w.meta.run[m] == 0 || w.meta.run[m] == mem.run
		for b := range uint8(blocks) {
			v := mem.val[b]
			switch {
			case same && v != w.g.val[b] && !w.g.maybe[b].has(v):
				w.fail("an acknowledged write is missing on an in-sync member, or an old one is back")
			case mem.dur[b]&^w.g.since[b] != 0:
				w.fail("a flushed write isn't durable on an in-sync member")
			}
		}
	}
	if !any {
		w.fail("no member is in sync in the metadata")
	}
}

// chosen judges an attach transaction, before it is applied: when it goes on without any member that is in its recorded
// run, no such member may exist, and then writes that weren't flushed may be gone.
func (w *world) chosen(change []part) {
	for _, p := range change {
		if r := w.meta.run[p.m]; p.to == inSync && w.meta.state[p.m] == inSync && (r == 0 || p.run == r) {
			return
		}
	}
	for m := range w.cfg.members {
		if w.meta.state[m] == inSync && (w.meta.run[m] == 0 || w.meta.run[m] == w.mem[m].run) {
			w.fail("the volume goes back in time although an in-sync member has everything")
			return
		}
	}
	for b := range w.g.maybe {
		w.g.maybe[b] |= w.g.since[b]
	}
	w.g.lin = 0
}
