package volume

import (
	"errors"
	"math/bits"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// replace moves a block that the winner doesn't have intact: another in-sync copy takes its place, for the winner too, as it needn't be the
// winner's version.
//
// If every in-sync member has it damaged, it is lost: reads of it fail, and will fail on the members in mask too. That must not keep
// them from becoming in sync, or one bad block of the last copy would leave the rest of the volume without a second one for ever. A
// block that a disk fails to read isn't lost at once: it may be read later. It is left out, and the next round tries it again, so that all such blocks
// are waited for at the same time. Only when that went on for unreadableFor the members in mask get a lost one in its place; should the disk read
// it again after all, reads and scrubs repair them from there.
//
// If the winner has been given a lost block, a version whose checksum was recomputed after a crash doesn't take its place: it may be the
// very damage for which the block was given up, and nothing would show that any more.
func (s *chunkSync) replace(win int, mask uint32, off int64) {
	data := s.memory.buf[:block.Size]
	first := -1
	if b := blockOf(off); s.equals && s.sums[win][b] == block.LostSum && !invariant.Mutant("recomputed-over-lost") {
		if first = s.stored(mask, b); first < 0 {
			s.lose(mask, off)
			return
		}
	}
	s.c.fetch(first, off, data, func(err error) {
		switch {
		case err == nil:
			s.c.readAgain(place{off: off}, block.Size)
			s.write(mask|1<<win, off, data, []uint64{block.Sum(data)})
		case s.c.v.phase == lost || invariant.Mutant("lost-block-stops-sync"):
			s.finish(err)
		case errors.Is(err, errDamaged):
			s.current(mask, off)
		case s.equals:
			s.finish(err)
		case s.c.unreadableTooLong(place{off: off}):
			s.lose(mask, off)
		case s.c.manyUnreadable():
			s.finish(errUnread)
		default:
			s.unread = true
			s.step()
		}
	})
}

const (
	// unreadableFor is how long a disk may fail to read a block that a member needs to be in sync.
	unreadableFor = 10 * time.Minute
	// unreadableMax is how many blocks are waited for together. A disk that fails to read more is asked for nothing else meanwhile: it may take
	// seconds for each.
	unreadableMax = 64
)

// place is where a block is: in the head, or in the snapshot of a period.
type place struct {
	period uint64 // 0 is the head
	off    int64
}

// unreadableTooLong notes that no disk could read the block, and reports whether that has gone on for long enough.
func (c *column) unreadableTooLong(at place) bool {
	now := c.v.loop.Now()
	since, known := c.unreadable[at]
	if !known {
		if c.unreadable == nil {
			c.unreadable = map[place]time.Duration{}
		}
		c.unreadable[at] = now
		c.v.log.Error("a block can't be read, and no other copy has it: its disk fails. A replica that catches up waits for it",
			"column", c.idx, "off", at.off, "snapshot", c.v.snaps.name(at.period), "given_up_after", unreadableFor)
		return false
	}
	return now-since >= unreadableFor
}

// manyUnreadable reports whether as many blocks are waited for as may be.
func (c *column) manyUnreadable() bool {
	n := 0
	for _, since := range c.unreadable {
		if c.v.loop.Now()-since < unreadableFor {
			n++
		}
	}
	return n >= unreadableMax
}

// readAgain notes that blocks were read.
func (c *column) readAgain(at place, length int64) {
	for b := range c.unreadable {
		if b.period == at.period && b.off >= at.off && b.off < at.off+length {
			delete(c.unreadable, b)
		}
	}
}

// blockOf is the number of a block in its chunk.
func blockOf(off int64) int { return int(off % block.ChunkSize / block.Size) }

// stored returns a member in mask that has stored the checksum of its block b, instead of having computed it from the disk; -1 if there is
// none.
func (s *chunkSync) stored(mask uint32, b int) int {
	for rest := mask; rest != 0; rest &= rest - 1 {
		if m := bits.TrailingZeros32(rest); s.bad[m][b/64]&(1<<(b%64)) == 0 {
			return m
		}
	}
	return -1
}

// lose gives the members in mask a lost block.
func (s *chunkSync) lose(mask uint32, off int64) {
	s.c.v.log.Error("a block is lost: no in-sync copy of it is intact. Reads of it fail until it is written anew; restore what it belongs to",
		"column", s.c.idx, "off", off)
	data := s.memory.buf[:block.Size]
	block.PutLost(data)
	s.write(mask, off, data, []uint64{block.LostSum})
}

// current looks whether a member in mask has the very block that is lost to those in sync: that its checksum is the one
// that one of them stored. The winner's isn't, but it may have been given a lost block itself.
func (s *chunkSync) current(mask uint32, off int64) {
	b := blockOf(off)
	asked := s.c.rc.InSync() &^ (s.targets | 1<<s.source)
	left := bits.OnesCount32(asked)
	if left == 0 {
		s.restore(mask, off, b)
		return
	}
	for rest := asked; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		s.sums[m] = make([]uint64, block.PerChunk)
		r := &wire.Request{Kind: wire.KindSums, Off: s.chunk * block.ChunkSize, Len: block.ChunkSize, Sums: s.sums[m]}
		s.c.ask(m, r, func(*wire.Request) {
			if r.Status != wire.StatusOK {
				s.err = errMember
			}
			if left--; left > 0 {
				return
			}
			if s.err != nil {
				s.finish(s.err)
				return
			}
			s.restore(mask, off, b)
		})
	}
}

// restore moves the block from a member in mask that has it, or else gives them a lost one.
func (s *chunkSync) restore(mask uint32, off int64, b int) {
	data, sums := s.memory.buf[:block.Size], make([]uint64, 1)
	has := s.holder(mask, b)
	if has < 0 {
		s.lose(mask, off)
		return
	}
	r := &wire.Request{Kind: wire.KindRead, Off: off, Len: block.Size, Data: data, Sums: sums}
	s.c.askWith(has, r, s.memory, func(*wire.Request) {
		switch r.Status {
		case wire.StatusOK:
			s.write(s.c.rc.InSync()|mask&^(1<<has), off, data, sums)
		case wire.StatusBadSum:
			s.lose(mask, off)
		default:
			s.finish(errMember)
		}
	})
}

// holder returns the member in mask whose stored checksum of block b is that of an in-sync member, or -1.
func (s *chunkSync) holder(mask uint32, b int) int {
	for in := s.c.rc.InSync(); in != 0; in &= in - 1 {
		sums := s.sums[bits.TrailingZeros32(in)]
		for rest := mask; rest != 0 && sums != nil; rest &= rest - 1 {
			if m := bits.TrailingZeros32(rest); in&^(in-1) != 1<<m && s.sums[m][b] == sums[b] {
				return m
			}
		}
	}
	return -1
}
