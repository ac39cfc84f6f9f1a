package volume

import (
	"math"
	"math/bits"
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/wire"
)

// scrubLevels is where the scrub is in what snapshots hold of a chunk: the newest first, as what an older one doesn't hold is found
// in newer ones.
type scrubLevels struct {
	on    bool
	below uint64 // snapshots from this period on are done
	// period is the snapshot that is being verified, at how many bytes of its chunk are done; 0: the next one has to be found.
	period uint64
	at     int64
}

// headDone goes on with what snapshots hold of the chunk.
func (s *scrubber) headDone() {
	if !s.v.snaps.any() || invariant.Mutant("scrub-of-head-only") {
		s.chunkDone()
		return
	}
	s.at, s.levels = 0, scrubLevels{on: true, below: math.MaxUint64}
}

func (s *scrubber) chunkDone() {
	s.position, s.at, s.levels = s.position+1, 0, scrubLevels{}
}

// levelStep begins the next piece of the chunk's snapshots.
func (s *scrubber) levelStep(c *column, chunk int64) {
	s.v.snaps.beginSync(func(ok bool) {
		if !ok {
			s.pause()
			return
		}
		off := chunk*block.ChunkSize + s.levels.at
		p := &levelPiece{piece: piece{s: s, c: c, off: off, n: min(scrubPiece, block.ChunkSize-s.levels.at, c.size-off), began: s.v.loop.Now()}}
		p.rng.Granted = p.locked
		if c.lock.Lock(&p.rng, p.off, p.n, true) {
			p.locked()
		}
	})
}

// levelPiece is a part of a snapshot's chunk that is being verified. A snapshot's chunk never changes, so the lock is shared with reads; it
// keeps writes from what the snapshot has in the head still, and members that come back from being given their snapshots anew.
//
//	lock -> who holds the chunk in which snapshots? -> every in-sync member verifies what it has for the snapshot
//	-> sums that are damaged are written anew -> blocks that are damaged are written in place -> verified once more
type levelPiece struct {
	piece
	period uint64
	hold   uint32 // members whose own snapshot holds the chunk, and not a newer one, or the head
	deaf   uint32 // members that couldn't verify
	sealed uint32 // members whose sums were written anew
}

func (p *levelPiece) locked() {
	if p.s.v.phase == lost || !p.c.verifiable() {
		p.s.v.loop.Post(func() { p.end(false) })
		return
	}
	p.members = p.c.rc.InSync()
	var held [repl.MaxMembers][]uint64
	p.each(p.members, wire.Request{Kind: wire.KindSnapLevels}, wire.MaxSnaps, func(m int, r *wire.Request) {
		if r.Status != wire.StatusOK {
			p.lost = true
		}
		held[m] = r.Sums
	}, func() {
		if p.lost || !p.serves() {
			p.end(false)
			return
		}
		p.choose(held[:])
	})
}

// each asks members the same thing, about where the piece begins if nothing else is said, with room for so many sums, and calls then after the
// last answer.
func (p *levelPiece) each(members uint32, q wire.Request, sums int, got func(m int, r *wire.Request), then func()) {
	left := bits.OnesCount32(members)
	for rest := members; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := q
		if r.Off = max(r.Off, p.off); r.Kind == wire.KindSnapLevels {
			r.Sums = make([]uint64, 0, sums)
		} else if r.Sums == nil {
			r.Sums = make([]uint64, sums)
		}
		p.c.askWith(m, &r, p.memory, func(*wire.Request) {
			got(m, &r)
			if left--; left == 0 {
				then()
			}
		})
	}
}

// serves reports whether those who were asked are in sync still.
func (p *levelPiece) serves() bool {
	return p.s.v.phase != lost && p.c.rc.InSync()&p.members == p.members
}

// choose finds the snapshot that is verified next; if there is none the chunk is done.
func (p *levelPiece) choose(held [][]uint64) {
	at, told := &p.s.levels, p.s.v.snaps.told
	if at.period == 0 {
		for i := 0; i+1 < len(told); i += 2 {
			if x := told[i]; x < at.below && int64(told[i+1]) > p.off && slices.ContainsFunc(held, func(l []uint64) bool { return slices.Contains(l, x) }) {
				at.period = max(at.period, x)
			}
		}
		if at.period == 0 {
			p.s.chunkDone()
			p.end(true)
			return
		}
	}
	p.period = at.period
	p.n = min(p.n, p.s.v.snaps.ends(p.period)-p.off)
	for m, l := range held {
		if slices.Contains(l, p.period) {
			p.hold |= 1 << m
		}
	}
	if p.hold == 0 || p.n <= 0 { // it was deleted meanwhile
		*at = scrubLevels{on: true, below: p.period}
		p.end(true)
		return
	}
	p.snapshot = p.s.v.snaps.name(p.period)
	p.verify()
}

func (p *levelPiece) verify() {
	p.ok, p.deaf, p.lost = 0, 0, false
	q := wire.Request{Kind: wire.KindSnapVerify, Period: p.period, Len: p.n}
	p.each(p.members, q, int(p.n/block.Size), func(m int, r *wire.Request) {
		p.reqs[m] = r
		switch r.Status {
		case wire.StatusOK, wire.StatusBadSum:
			p.ok |= 1 << m
		case wire.StatusIOError, wire.StatusBadRequest:
			p.deaf |= 1 << m
		default:
			p.lost = true
		}
	}, func() {
		switch fresh := p.deaf & p.hold &^ p.sealed; {
		case p.lost || !p.serves():
			p.end(false)
		case p.ok != 0 && fresh != 0:
			p.seal(bits.TrailingZeros32(fresh))
		case p.again:
			p.checkRepairs()
			p.end(true)
		default:
			for rest := p.deaf; rest != 0; rest &= rest - 1 {
				p.s.trouble(p.c, bits.TrailingZeros32(rest), "snapshot "+p.snapshot+" can't be verified", p.off)
			}
			p.mend()
		}
	})
}

// seal writes a snapshot's sums anew on a member that can't read them, or doesn't know whether it holds the chunk, and verifies again: then its data is
// compared with them. The member looks whether they are those that it had. If none of the members that could verify holds the chunk, it needn't
// either: what is found in newer snapshots, and in the head, is the same on all of them.
func (p *levelPiece) seal(m int) {
	p.sealed |= 1 << m
	if p.ok&p.hold == 0 {
		p.each(1<<m, wire.Request{Kind: wire.KindSnapDrop, Period: p.period}, 0, func(_ int, r *wire.Request) {
			if r.Status == wire.StatusOK {
				p.hold &^= 1 << m
				p.repairedOn(m)
			}
			p.verify()
		}, func() {})
		return
	}
	source := bits.TrailingZeros32(p.ok & p.hold)
	p.each(1<<source, wire.Request{Kind: wire.KindSnapSums, Period: p.period}, block.PerChunk, func(_ int, sums *wire.Request) {
		if sums.Status != wire.StatusOK {
			p.end(false)
			return
		}
		if allLost(sums.Sums) {
			p.verify() // the source was given them as nobody could read those of m; they may be read again
			return
		}
		p.each(1<<m, wire.Request{Kind: wire.KindSnapSeal, Period: p.period, Sums: sums.Sums}, 0, func(_ int, r *wire.Request) {
			if r.Status == wire.StatusOK {
				p.repairedOn(m)
			}
			p.verify()
		}, func() {})
	}, func() {})
}

// allLost reports whether all of a chunk's blocks but zeros are lost.
func allLost(sums []uint64) bool {
	return slices.Contains(sums, block.LostSum) && !slices.ContainsFunc(sums, func(s uint64) bool { return s != 0 && s != block.LostSum })
}

// repairedOn counts what was written anew on a member.
func (p *levelPiece) repairedOn(m int) {
	p.s.v.Stats.Repaired++
	p.s.found.Repaired++
	p.s.unsaved = true
	p.c.log(m).Warn("scrub: a snapshot was repaired from another copy", "snapshot", p.snapshot, "off", p.off)
}

// mend repairs the blocks from p.next on that can be, and notes the others.
func (p *levelPiece) mend() {
	for ; p.next < int(p.n/block.Size); p.next++ {
		b := p.next
		d := p.judge(b)
		switch {
		case d.bad == 0 && !d.differ:
		case d.source < 0 || d.differ:
			p.note(b, d.differ)
		case d.bad&p.hold != 0:
			p.next++
			p.copy(b, d.source, d.bad&p.hold)
			return
		}
	}
	if len(p.repaired) == 0 {
		p.end(true)
		return
	}
	p.again = true
	p.verify()
}

// copy writes member source's block b to the targets, in place, and goes on.
func (p *levelPiece) copy(b, source int, targets uint32) {
	if p.memory == nil {
		if p.memory = borrow(p.s.v.loop, block.Size); p.memory == nil {
			p.end(false) // no memory is free now
			return
		}
	}
	sum, off := p.reqs[source].Sums[b], p.off+int64(b)*block.Size
	read := wire.Request{Kind: wire.KindSnapRead, Period: p.period, Off: off, Len: block.Size, Data: p.memory.buf}
	p.each(1<<source, read, 1, func(_ int, r *wire.Request) {
		if r.Status == wire.StatusBadSum {
			// It verified what the snapshot has itself there. What it finds in newer ones, or in the head, isn't what its checksums say.
			p.reqs[source].Bad[b/64] |= 1 << (b % 64)
			p.next = b
			p.mend()
			return
		}
		if r.Status != wire.StatusOK || block.Sum(p.memory.buf) != sum || !p.serves() {
			p.end(false)
			return
		}
		mend := wire.Request{Kind: wire.KindSnapMend, Period: p.period, Off: off, Len: block.Size, Data: p.memory.buf, Sums: []uint64{sum}}
		p.each(targets, mend, 0, func(m int, r *wire.Request) {
			switch r.Status {
			case wire.StatusOK:
				p.repairedOn(m)
			case wire.StatusIOError, wire.StatusBadSum, wire.StatusBadRequest:
				p.s.trouble(p.c, m, "a block of snapshot "+p.snapshot+" can't be repaired", off)
			default: // out of reach, or its pool is full: later
				p.lost = true
			}
		}, func() {
			if p.lost {
				p.end(false)
				return
			}
			p.repaired = append(p.repaired, b)
			p.mend()
		})
	}, func() {})
}

// end gives the range up and reports.
func (p *levelPiece) end(ok bool) {
	s := p.s
	if p.memory != nil {
		p.memory.release()
		p.memory = nil
	}
	p.c.lock.Unlock(&p.rng)
	s.v.snaps.endSync()
	if !ok || s.number != s.v.rec.Scrub.Number {
		s.pause()
		return
	}
	var cost int64 // nothing, if there was nothing to verify
	if p.ok|p.deaf != 0 {
		cost = scrubMinCost
	}
	if p.ok != 0 {
		if bits.OnesCount32(p.ok) < p.c.members() {
			p.found.Partial = true
		}
		data := int64(0)
		for _, sum := range p.reqs[bits.TrailingZeros32(p.ok)].Sums {
			if sum != 0 {
				data += block.Size
			}
		}
		cost = max(cost, data)
		s.count(p.found, data)
		if s.levels.at += p.n; s.levels.at >= block.ChunkSize || p.off+p.n >= s.v.snaps.ends(p.period) {
			s.levels = scrubLevels{on: true, below: p.period}
		}
	} else if p.deaf != 0 {
		p.found.Partial = true
		s.count(p.found, 0)
		s.levels = scrubLevels{on: true, below: p.period}
	}
	s.restAfter(&p.piece, cost)
}
