package model_test

import (
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
)

// enabled appends every step that the world can make now.
func (w *world) enabled(list []action) []action {
	for c := range uint8(maxCoords) {
		list = w.attachable(list, c)
		co := &w.co[c]
		if !co.on {
			continue
		}
		list = w.messages(list, c, co)
		list = w.links(list, c, co)
		switch co.col.Phase() {
		case repl.PhaseFencing:
			for m := range w.cfg.members {
				if mb := co.col.Member(int(m)); mb.Role == repl.Fencing && mb.Up && !mb.Open && co.fence[m].st == none {
					list = append(list, action{k: aTick, c: c, m: m})
				}
			}
			list = append(list, action{k: aPatience, c: c})
		case repl.PhaseServing:
			list = w.timers(list, c, co)
			list = w.requests(list, c, co)
			list = w.chunks(list, c, co)
		}
	}
	return w.faults(list)
}

func (w *world) attachable(list []action, c uint8) []action {
	if w.left.attach > 0 && w.mem[c].alive && (!w.co[c].on || w.co[c].term < w.meta.term) {
		list = append(list, action{k: aAttach, c: c})
	}
	return list
}

// messages are requests and answers under way, and the transaction.
func (w *world) messages(list []action, c uint8, co *coord) []action {
	for m := range w.cfg.members {
		switch co.fence[m].st {
		case sent:
			list = append(list, action{k: aFence, c: c, m: m})
		case back:
			list = append(list, action{k: aFenced, c: c, m: m})
		}
	}
	for i := range uint8(maxOps) {
		o := &co.ops[i]
		if !o.used {
			continue
		}
		if o.done {
			list = append(list, action{k: aHand, c: c, x: i})
		}
		for m := range w.cfg.members {
			switch o.st[m] {
			case sent:
				list = append(list, action{k: aExec, c: c, m: m, x: i})
			case busy, half:
				list = append(list, action{k: aAdvance, c: c, m: m, x: i})
			case back:
				list = append(list, action{k: aAnswer, c: c, m: m, x: i})
			}
		}
	}
	switch co.commit {
	case cAsked:
		list = append(list, action{k: aApply, c: c})
	case cDone, cRefused:
		list = append(list, action{k: aOutcome, c: c})
	}
	return list
}

func (w *world) links(list []action, c uint8, co *coord) []action {
	for m := range w.cfg.members {
		switch {
		case co.link[m] == up && m != c && w.left.cut > 0:
			list = append(list, action{k: aCut, c: c, m: m})
		case co.link[m] == broken:
			list = append(list, action{k: aNotice, c: c, m: m})
		case co.link[m] == down && w.mem[m].alive:
			list = append(list, action{k: aHeal, c: c, m: m})
		}
	}
	return list
}

// timers are those that may run out for a member: it was away for too long, or may be asked again.
func (w *world) timers(list []action, c uint8, co *coord) []action {
	for m := range w.cfg.members {
		mb := co.col.Member(int(m))
		idle := co.fence[m].st == none
		due := false
		switch mb.Role {
		case repl.In, repl.Promoting:
			due = !mb.Up || !mb.Open && idle
		case repl.Catching:
			due = !mb.Open
		case repl.Leaving:
			due = mb.Up
		case repl.Out:
			due = mb.Up && idle && co.reconciled && w.left.rejoin > 0
		}
		if due {
			list = append(list, action{k: aTick, c: c, m: m})
		}
	}
	return list
}

// requests are what guests and the checkpoint's timer begin.
func (w *world) requests(list []action, c uint8, co *coord) []action {
	for v := uint8(1); v <= w.g.count; v++ {
		if b := w.g.block[v]; co.resend.has(v) && !co.unrec[b] && !co.locked(b) {
			list = append(list, action{k: aResend, c: c, x: v})
		}
	}
	if co.resend != 0 && !invariant.Mutant("others-before-resent") {
		return list
	}
	for b := range uint8(blocks) {
		if b > 0 && (w.cfg.oneBlock || w.g.count == 0) {
			continue // which block is written first makes no difference
		}
		if w.left.write > 0 && !co.unrec[b] && !co.locked(b) {
			list = append(list, action{k: aWrite, c: c, x: b})
		}
	}
	if w.left.flush > 0 {
		list = append(list, action{k: aFlush, c: c})
	}
	clean := co.unrec == [blocks]bool{} || invariant.Mutant("checkpoint-unreconciled")
	if w.left.ckpt > 0 && co.ckpt == ckIdle && clean {
		list = append(list, action{k: aCkpt, c: c})
	}
	return list
}

// chunks are the steps of reconciliation and resync.
func (w *world) chunks(list []action, c uint8, co *coord) []action {
	for b := range uint8(blocks) {
		r := &co.rec[b]
		switch {
		case r.active && !w.canReconcile(co, b):
			list = append(list, action{k: aRecFail, c: c, x: b})
		case r.active:
			list = w.reconcileSteps(list, c, b)
		case co.unrec[b] && !co.locked(b) && (co.col.Required() == co.col.InSync() || invariant.Mutant("reconcile-without-leaving")):
			list = append(list, action{k: aRecBegin, c: c, x: b})
		}
	}
	for m := range w.cfg.members {
		r := &co.resync[m]
		if r.active && !r.listed {
			list = append(list, action{k: aList, c: c, m: m})
		}
		for b := range uint8(blocks) {
			if r.listed && r.todo[b] && !co.locked(b) {
				list = append(list, action{k: aCopy, c: c, m: m, x: b})
			}
		}
	}
	return list
}

func (w *world) reconcileSteps(list []action, c, b uint8) []action {
	co := &w.co[c]
	r := &co.rec[b]
	equal := true
	win := w.winner(co, b)
	for m := range w.cfg.members {
		if r.members.has(m) && w.mem[m].val[b] != win {
			equal = false
			list = append(list, action{k: aRecCopy, c: c, m: m, x: b})
		}
	}
	for m := range w.cfg.members {
		if equal && r.members.has(m) && !r.touched.has(m) {
			list = append(list, action{k: aRecTouch, c: c, m: m, x: b})
		}
	}
	return list
}

// faults are crashes, new starts, and what those left behind that nobody waits for.
func (w *world) faults(list []action) []action {
	for m := range w.cfg.members {
		mem := &w.mem[m]
		for i := range mem.bags {
			list = append(list, action{k: aBag, m: m, x: i})
		}
		if !mem.alive {
			list = append(list, action{k: aBoot, m: m})
			continue
		}
		if w.left.kill > 0 {
			list = append(list, action{k: aKill, m: m})
		}
		if w.left.crash > 0 {
			list = w.crashes(list, m)
		}
	}
	return list
}

// crashes has one action for every combination of what the blocks may keep.
func (w *world) crashes(list []action, m uint8) []action {
	mem := &w.mem[m]
	may := mem.dur
	for c := range w.co {
		for i := range w.co[c].ops {
			if o := &w.co[c].ops[i]; w.co[c].on && o.used && o.kind == oWrite && o.st[m] == busy && !invariant.Mutant("no-drain") {
				may[o.block] |= bit(o.val)
			}
		}
	}
	for _, x := range mem.bag[:mem.bags] {
		if x.kind == kWrite && x.st != sent && !invariant.Mutant("no-drain") {
			may[x.block] |= bit(x.val)
		}
	}
	for v0 := range uint8(8) {
		for v1 := range uint8(8) {
			if may[0].has(v0) && may[1].has(v1) {
				list = append(list, action{k: aCrash, m: m, x: v0 | v1<<4})
			}
		}
	}
	return list
}
