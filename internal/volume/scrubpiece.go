package volume

import (
	"math/bits"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// piece is a part of a chunk that is being verified.
//
//	lock, shared with reads -> every in-sync member verifies -> all well: done
//	otherwise: lock alone -> verify again -> repair block by block -> verify once more what was repaired -> done
//
// Invariant: nothing is written without the range being locked alone, and what is decided is decided on answers of that time.
type piece struct {
	s      *scrubber
	c      *column
	off, n int64
	began  time.Duration
	rng    repl.Range
	alone  bool
	// members are those that verify; ok those of them that did.
	members, ok uint32
	left        int
	lost        bool // a member could not be asked
	reqs        [repl.MaxMembers]*wire.Request

	next     int   // the block that is judged next
	repaired []int // blocks that were written
	chose    bool  // copies that differed were made the same
	found    spec.ScrubFindings
	memory   *lent
	// again: what was repaired is being verified.
	again bool
	// snapshot is the name of the one that the piece is of; "" is the head.
	snapshot string
}

// members is how many members the column has.
func (c *column) members() (n int) {
	for m := range repl.MaxMembers {
		if c.rc.Member(m) != nil {
			n++
		}
	}
	return n
}

// lock takes the range and goes on.
func (p *piece) lock(shared bool) {
	p.alone = !shared
	if p.c.lock.Lock(&p.rng, p.off, p.n, shared) {
		p.locked()
	}
}

func (p *piece) locked() {
	if p.s.v.phase == lost || !p.c.verifiable() {
		p.s.v.loop.Post(func() { p.end(false) })
		return
	}
	p.verify()
}

// verify has every in-sync member read and check its blocks.
func (p *piece) verify() {
	c := p.c
	p.members, p.ok, p.lost = c.rc.InSync(), 0, false
	p.left = bits.OnesCount32(p.members)
	for rest := p.members; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := &wire.Request{Kind: wire.KindVerify, Off: p.off, Len: p.n, Sums: make([]uint64, p.n/block.Size)}
		p.reqs[m] = r
		c.ask(m, r, func(*wire.Request) {
			switch r.Status {
			case wire.StatusOK, wire.StatusBadSum:
				p.ok |= 1 << m
			case wire.StatusIOError, wire.StatusBadRequest:
				p.s.trouble(c, m, "it can't be verified", p.off)
			default:
				p.lost = true
			}
			if p.left--; p.left == 0 {
				p.verified()
			}
		})
	}
}

// verified judges the answers.
func (p *piece) verified() {
	if p.lost || p.s.v.phase == lost || p.c.rc.InSync()&p.members != p.members {
		p.end(false)
		return
	}
	switch {
	case p.again && p.chose && p.c.rc.Everyone() != p.members:
		p.end(false) // one that came back meanwhile may have been given what was there before
	case p.again:
		p.checkRepairs()
		p.end(true)
	case p.clean():
		p.end(true)
	case !p.alone:
		p.c.lock.Unlock(&p.rng)
		p.lock(false)
	default:
		p.mend()
	}
}

// verdict is what the members say of one block.
type verdict struct {
	intact uint32 // members whose data matches their sum
	bad    uint32 // members whose data doesn't
	source int    // an intact member; -1 if there is none
	differ bool   // the intact ones aren't the same
}

func (p *piece) judge(b int) verdict {
	d := verdict{source: -1}
	for rest := p.ok; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := p.reqs[m]
		if r.Bad[b/64]&(1<<(b%64)) != 0 {
			d.bad |= 1 << m
			continue
		}
		d.intact |= 1 << m
		if d.source < 0 {
			d.source = m
		} else if r.Sums[b] != p.reqs[d.source].Sums[b] {
			d.differ = true
		}
	}
	return d
}

// clean reports whether all copies are intact and the same.
func (p *piece) clean() bool {
	for b := range int(p.n / block.Size) {
		if d := p.judge(b); d.bad != 0 || d.differ {
			return false
		}
	}
	return true
}

// mend repairs the blocks from p.next on that can be, and notes the others.
func (p *piece) mend() {
	for ; p.next < int(p.n/block.Size); p.next++ {
		b := p.next
		d := p.judge(b)
		switch {
		case d.bad == 0 && !d.differ:
		case d.source < 0:
			p.note(b, false)
		case !d.differ:
			p.next++
			p.copy(b, d.source, d.bad, func() { p.s.found.Repaired += int64(bits.OnesCount32(d.bad)) })
			return
		default:
			source := p.preferred(d.intact)
			if source < 0 {
				p.note(b, true)
				continue
			}
			p.next++
			// The source too, so that its gen tells whoever is away that this was changed.
			p.copy(b, source, p.members, func() { p.s.found.Chosen++; p.chose = true })
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

// preferred is the intact member that a person chose; -1 if there is none.
func (p *piece) preferred(intact uint32) int {
	prefer := p.s.v.rec.Scrub.Prefer
	for rest := intact; rest != 0 && prefer != ""; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		if mb := p.c.rc.Member(m); mb != nil && mb.Node == prefer {
			return m
		}
	}
	return -1
}

// note counts a block that can't be mended.
func (p *piece) note(b int, differ bool) {
	bad := spec.ScrubBad{Snapshot: p.snapshot, Off: p.c.volumeOffset(p.off + int64(b)*block.Size), Len: block.Size, Differ: differ}
	for rest := p.members; rest != 0; rest &= rest - 1 {
		if mb := p.c.rc.Member(bits.TrailingZeros32(rest)); mb != nil {
			bad.Pools = append(bad.Pools, p.c.record(mb.Replica).Pool)
		}
	}
	f := spec.ScrubFindings{Unreadable: 1, Bad: []spec.ScrubBad{bad}}
	if differ {
		f.Unreadable, f.Differing = 0, 1
	}
	p.found = p.found.Merge(f)
}

// volumeOffset is where in the volume a byte of the column is.
func (c *column) volumeOffset(off int64) int64 {
	if n := int64(len(c.v.columns)); n > 1 {
		return (off/spec.StripeUnit*n+int64(c.idx))*spec.StripeUnit + off%spec.StripeUnit
	}
	return off
}

// copy writes member source's block b to the targets, and goes on.
func (p *piece) copy(b, source int, targets uint32, counted func()) {
	off := p.off + int64(b)*block.Size
	sum := p.reqs[source].Sums[b]
	if sum == 0 {
		p.put(b, targets, wire.Request{Kind: wire.KindTrim, Off: off, Len: block.Size}, counted)
		return
	}
	if p.memory == nil {
		if p.memory = borrow(p.s.v.loop, block.Size); p.memory == nil {
			p.end(false) // no memory is free now
			return
		}
	}
	r := &wire.Request{Kind: wire.KindRead, Off: off, Len: block.Size, Data: p.memory.buf, Sums: make([]uint64, 1)}
	p.c.askWith(source, r, p.memory, func(*wire.Request) {
		if r.Status != wire.StatusOK || block.Sum(p.memory.buf) != sum {
			p.end(false)
			return
		}
		p.put(b, targets, wire.Request{Kind: wire.KindWrite, Off: off, Len: block.Size, Data: p.memory.buf, Sums: []uint64{sum}}, counted)
	})
}

// put makes one change on the targets.
func (p *piece) put(b int, targets uint32, change wire.Request, counted func()) {
	left, lost, failed := bits.OnesCount32(targets), false, false
	for rest := targets; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		r := change
		p.c.askWith(m, &r, p.memory, func(*wire.Request) {
			switch r.Status {
			case wire.StatusOK:
				p.s.v.Stats.Repaired++
				p.c.log(m).Warn("scrub: block repaired from another copy", "off", r.Off)
			case wire.StatusIOError, wire.StatusBadSum, wire.StatusBadRequest:
				failed = true
				p.s.trouble(p.c, m, "a block can't be repaired", r.Off)
			default: // out of reach, or its pool is full: later
				lost = true
			}
			if left--; left > 0 {
				return
			}
			if lost {
				p.end(false)
				return
			}
			if !failed {
				counted()
				p.s.unsaved = true
				p.repaired = append(p.repaired, b)
			}
			p.mend()
		})
	}
}

// checkRepairs looks whether what was repaired stays so.
func (p *piece) checkRepairs() {
	for _, b := range p.repaired {
		for rest := p.judge(b).bad; rest != 0; rest &= rest - 1 {
			p.s.trouble(p.c, bits.TrailingZeros32(rest), "a block was repaired and is damaged again", p.off+int64(b)*block.Size)
		}
	}
}

// end gives the range up and reports.
func (p *piece) end(ok bool) {
	if p.memory != nil {
		p.memory.release()
		p.memory = nil
	}
	cost := int64(scrubMinCost)
	if ok {
		if bits.OnesCount32(p.ok) < p.c.members() {
			p.found.Partial = true
		}
		if p.ok != 0 {
			for _, sum := range p.reqs[bits.TrailingZeros32(p.ok)].Sums {
				if sum != 0 {
					p.found.Bytes += block.Size
				}
			}
			cost = max(cost, p.found.Bytes)
		}
	}
	p.c.lock.Unlock(&p.rng)
	p.s.pieceDone(p, ok, p.found, cost)
}
