package model_test

import (
	"slices"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
)

// period is term<<3 | seq.
type period uint8

func periodOf(term, seq uint8) period { return period(term<<3 | seq) }
func (p period) term() uint8          { return uint8(p) >> 3 }

// kind is what a request asks of a member.
type kind uint8

const (
	kWrite kind = iota
	kTouch
	kFlush
	kCheckpoint
)

// request is an operation as a member gets it.
type request struct {
	term, session uint8
	kind          kind
	block, val    uint8
	period        period
}

// stage is how far a message, or what it asked for, has come.
type stage uint8

const (
	none stage = iota
	sent       // on its way
	busy       // accepted: its I/O is under way
	half       // a checkpoint whose sums and gens are durable, but not the checkpoint
	back       // the answer is on its way
	lost       // nothing will come
)

// bagged is a request whose coordinator doesn't wait for it any more: its connection is gone, or it is itself.
type bagged struct {
	request
	st stage
}

// member is a replica, and the engine that runs it. What isn't durable goes with the engine (sums, gens, the session)
// or with the machine (data that wasn't synced).
type member struct {
	alive   bool
	run     uint8
	fence   uint8 // in memory
	saved   uint8 // durable
	session uint8
	open    bool
	fencing bool // a fence waits until nothing older is under way
	fenceBy uint8

	val   [blocks]uint8 // what reads see
	dur   [blocks]set   // what may be on the disk after a crash: one of these
	dsum  [blocks]uint8 // of which value the durable checksum is
	gens  [blocks]period
	dgens [blocks]period
	jour  [blocks]period // durable; live above the checkpoint
	ckpt  period

	recTerm uint8 // the last term that unrec takes into account
	unrec   [blocks]bool
	crashed [blocks]bool // sums were recomputed
	badSum  [blocks]bool // and then were another

	bag  [maxBag]bagged
	bags uint8
}

func (m *member) encode(b []byte) []byte {
	b = append(b, flags(m.alive, m.open, m.fencing), m.run, m.fence, m.saved, m.session, m.fenceBy, byte(m.ckpt), m.recTerm)
	for k := range blocks {
		b = append(b, m.val[k], byte(m.dur[k]), m.dsum[k], byte(m.gens[k]), byte(m.dgens[k]), byte(m.jour[k]),
			flags(m.unrec[k], m.crashed[k], m.badSum[k]))
	}
	b = append(b, m.bags)
	for _, x := range m.bag[:m.bags] {
		b = append(b, x.term, x.session, byte(x.kind), x.block, x.val, byte(x.period), byte(x.st))
	}
	return b
}

func (m *member) live(b uint8) bool { return m.jour[b] > m.ckpt }

// admit decides whether a request is of the present term and session.
func (m *member) admit(r request) repl.Result {
	switch {
	case r.term < m.fence && !invariant.Mutant("old-term-writes"):
		return repl.Fenced
	case r.term > m.fence, r.term == m.fence && (!m.open || r.session != m.session && !invariant.Mutant("old-session-accepted")):
		return repl.OldSess
	case r.kind <= kTouch && r.period <= m.ckpt && r.term >= m.fence:
		return repl.Failed
	}
	return repl.OK
}

// begin takes a request up. It returns busy if the request has a second step, else back with the result.
func (m *member) begin(r request, slow bool) (stage, repl.Result) {
	if res := m.admit(r); res != repl.OK {
		return back, res
	}
	if slow && (r.kind == kWrite || r.kind == kCheckpoint && r.period > m.ckpt) {
		return busy, repl.OK
	}
	for st := busy; st != back; {
		st = m.advance(r, st)
	}
	return back, repl.OK
}

// advance takes the next step of a request that was accepted.
func (m *member) advance(r request, st stage) stage {
	switch r.kind {
	case kWrite:
		m.journal(r)
		m.val[r.block] = r.val
		m.dur[r.block] |= bit(r.val)
		m.badSum[r.block] = false
	case kTouch:
		was := m.gens
		m.journal(r)
		if invariant.Mutant("touch-keeps-gen") {
			m.gens = was
		}
		m.unrec[r.block], m.crashed[r.block], m.badSum[r.block] = false, false, false
	case kFlush:
		m.sync()
	case kCheckpoint:
		return m.checkpoint(r, st)
	}
	return back
}

func (m *member) journal(r request) {
	keyed := m.jour[r.block] < r.period
	if invariant.Mutant("journal-keyed-by-chunk") {
		keyed = !m.live(r.block)
	}
	if keyed && !invariant.Mutant("no-journal") {
		m.jour[r.block] = r.period
	}
	m.gens[r.block] = max(m.gens[r.block], r.period)
}

func (m *member) sync() {
	if invariant.Mutant("flush-without-sync") {
		return
	}
	for b := range m.val {
		m.dur[b] = bit(m.val[b])
	}
}

// checkpoint makes sums and gens durable, and then the checkpoint, which ends the journal's entries.
func (m *member) checkpoint(r request, st stage) stage {
	first := st == busy
	if invariant.Mutant("checkpoint-before-sums") {
		first = !first
	}
	if r.period <= m.ckpt && st == busy {
		return back
	}
	if first {
		if !invariant.Mutant("checkpoint-without-flush") {
			m.sync() // what the coordinator hasn't had flushed
		}
		m.dsum = m.val
		if !invariant.Mutant("gens-not-synced") {
			m.dgens = m.gens
		}
		for b := range m.unrec {
			if m.unrec[b] && !invariant.Mutant("checkpoint-unreconciled") {
				m.jour[b] = max(m.jour[b], r.period+1)
			}
		}
	} else {
		m.ckpt = r.period
		for b := range m.jour {
			if !m.live(uint8(b)) {
				m.jour[b] = 0
				m.crashed[b], m.badSum[b] = m.crashed[b] && m.unrec[b], m.badSum[b] && m.unrec[b]
			}
		}
	}
	if st == busy {
		return half
	}
	return back
}

// markUnreconciled: a new term must make every chunk of the journal identical everywhere.
func (m *member) markUnreconciled(term uint8) {
	if m.recTerm >= term {
		return
	}
	m.recTerm = term
	for b := range m.unrec {
		m.unrec[b] = m.unrec[b] || m.live(uint8(b))
	}
}

// touched lists the chunks that may have been written since the checkpoint.
func (m *member) touched() (list [blocks]period) {
	for b := range list {
		if m.live(uint8(b)) || m.unrec[b] {
			list[b] = max(m.gens[b], m.jour[b])
		}
	}
	return list
}

func (m *member) exact() bool { return m.crashed == [blocks]bool{} }

// die ends the engine. What its kernel has begun is written all the same.
func (m *member) die() {
	m.alive, m.open, m.fencing = false, false, false
	keep := m.bag[:0]
	for _, x := range m.bag[:m.bags] {
		if x.st != sent && x.kind == kWrite {
			x.st = half
			keep = append(keep, x)
		}
	}
	m.bags = uint8(len(keep))
	clear(m.bag[m.bags:])
	if !invariant.Mutant("no-drain") {
		for _, x := range m.bag[:m.bags] {
			m.advance(x.request, busy)
		}
		m.bags = 0
		clear(m.bag[:])
	}
}

// lose is the machine's crash: each block keeps one of the values that it may have on the disk.
func (m *member) lose(choice [blocks]uint8) {
	m.run++
	m.bags = 0
	clear(m.bag[:])
	for b, v := range choice {
		m.val[b], m.dur[b] = v, bit(v)
	}
}

// boot starts an engine, which recovers from the journal. It reports whether every chunk outside of the journal has the sums
// of its data.
func (m *member) boot() bool {
	ok := true
	m.alive, m.fence, m.session, m.recTerm = true, m.saved, 0, m.saved
	for b := range m.val {
		live := m.live(uint8(b))
		m.gens[b] = m.dgens[b]
		m.crashed[b], m.badSum[b] = live, live && m.dsum[b] != m.val[b]
		if live {
			m.gens[b] = max(m.gens[b], m.jour[b])
			m.unrec[b] = m.unrec[b] || m.jour[b].term() < m.fence
		} else {
			m.unrec[b] = false
			ok = ok && m.dsum[b] == m.val[b]
		}
	}
	return ok
}

// put adds a request that nobody waits for any more.
func (m *member) put(x bagged) {
	if !m.alive || x.kind == kFlush || x.kind == kTouch || x.st == sent && m.hopeless(x.request) {
		return
	}
	if int(m.bags) == maxBag {
		panic("the model's bag is too small")
	}
	m.bag[m.bags] = x
	m.bags++
	m.tidy()
}

// hopeless: it will be refused, whatever happens.
func (m *member) hopeless(r request) bool {
	return r.term < m.fence && !invariant.Mutant("old-term-writes") ||
		r.term == m.fence && r.session < m.session && !invariant.Mutant("old-session-accepted")
}

// discard drops requests of older terms that haven't arrived, in a configuration in which they would have arrived before.
func (m *member) discard(w *world) {
	for i := uint8(0); i < m.bags && w.cfg.oldFirst; {
		if x := &m.bag[i]; x.st == sent && x.term < w.meta.term {
			m.take(i)
			continue
		}
		i++
	}
}

func (m *member) take(i uint8) bagged {
	x := m.bag[i]
	copy(m.bag[i:], m.bag[i+1:m.bags])
	m.bags--
	m.bag[m.bags] = bagged{}
	return x
}

// tidy brings the bag into an order that doesn't depend on how it was filled.
func (m *member) tidy() {
	for i := uint8(0); i < m.bags; {
		if m.bag[i].st == sent && m.hopeless(m.bag[i].request) {
			m.take(i)
			continue
		}
		i++
	}
	slices.SortFunc(m.bag[:m.bags], func(a, b bagged) int {
		for _, d := range []int{int(a.term) - int(b.term), int(a.session) - int(b.session), int(a.kind) - int(b.kind),
			int(a.block) - int(b.block), int(a.val) - int(b.val), int(a.period) - int(b.period)} {
			if d != 0 {
				return d
			}
		}
		return int(a.st) - int(b.st)
	})
}
