package volume

import (
	"errors"
	"math/bits"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/wire"
)

// chunkSync makes one chunk identical on several members. It locks the chunk, compares the checksums of
// all its blocks, and moves only those that differ.
//
//	lock -> sums of all -> copy run by run -> done (the caller unlocks by finish)
type chunkSync struct {
	c       *column
	chunk   int64
	source  int
	targets uint32
	// equals says that the targets are in sync as well: a block of the source whose sum was recomputed after a crash
	// gives way to a target's whose stored sum was right.
	equals bool
	rng    repl.Range
	sums   [repl.MaxMembers][]uint64
	bad    [repl.MaxMembers][16]uint64
	left   int
	err    error
	next   int   // block from which to look for differences
	unread bool  // a block was left out, as it may be read later
	single int   // up to here, blocks are moved one by one, as the winner has one that isn't intact
	memory *lent // for what is moved
	moved  int64
	done   func(s *chunkSync, err error)
}

var (
	errMember = errors.New("a member didn't answer")
	errSnaps  = errors.New("which snapshots there are is changing")
	errBuffer = errors.New("no memory for I/O is free")
	// errUnread: everything was done but for blocks that may be read later. What else has to be done can be.
	errUnread = errors.New("no disk can read some blocks now")
)

// sync starts; done is called later with the chunk still locked, and must call unlock.
func (c *column) sync(chunk int64, source int, targets uint32, equals bool, done func(*chunkSync, error)) {
	s := &chunkSync{c: c, chunk: chunk, source: source, targets: targets &^ (1 << source), equals: equals, done: done}
	s.rng.Granted = s.locked
	if invariant.Mutant("sync-without-lock") || c.lock.Lock(&s.rng, chunk*block.ChunkSize, block.ChunkSize, false) {
		s.locked()
	}
}

func (s *chunkSync) unlock() {
	if !invariant.Mutant("sync-without-lock") {
		s.c.lock.Unlock(&s.rng)
	}
}

func (s *chunkSync) finish(err error) {
	if s.memory != nil {
		s.memory.release()
		s.memory = nil
	}
	s.done(s, err)
}

// serve reports whether the members whose version may win are in sync still. They were chosen before the lock was waited
// for: one may have left meanwhile, and be on its way back with what it had then.
func (s *chunkSync) serve() bool {
	need := uint32(1) << s.source
	if s.equals {
		need |= s.targets
	}
	if invariant.Mutant("sync-from-left-member") {
		return true
	}
	return s.c.rc.InSync()&need == need
}

func (s *chunkSync) locked() {
	if !s.serve() {
		s.c.v.loop.Post(func() { s.finish(errMember) })
		return
	}
	if s.targets == 0 {
		s.c.v.loop.Post(func() { s.finish(nil) })
		return
	}
	all := s.targets | 1<<s.source
	s.left = bits.OnesCount32(all)
	for rest := all; rest != 0; rest &= rest - 1 {
		m := bits.TrailingZeros32(rest)
		s.sums[m] = make([]uint64, block.PerChunk)
		r := &wire.Request{Kind: wire.KindSums, Off: s.chunk * block.ChunkSize, Len: block.ChunkSize, Sums: s.sums[m]}
		s.c.ask(m, r, func(*wire.Request) {
			s.bad[m] = r.Bad
			if r.Status != wire.StatusOK {
				s.err = errMember
			}
			if s.left--; s.left == 0 {
				s.step()
			}
		})
	}
}

// winner returns the member whose version of a block is to be everyone's.
func (s *chunkSync) winner(b int) int {
	switch {
	case !s.equals && invariant.Mutant("resync-wrong-way"):
		return bits.TrailingZeros32(s.targets)
	case invariant.Mutant("recomputed-sums-win"):
		return s.source
	}
	if !s.equals || s.bad[s.source][b/64]&(1<<(b%64)) == 0 {
		return s.source
	}
	for rest := s.targets; rest != 0; rest &= rest - 1 {
		if m := bits.TrailingZeros32(rest); s.bad[m][b/64]&(1<<(b%64)) == 0 {
			return m
		}
	}
	return s.source
}

// differs returns the members whose block b isn't the winner's.
func (s *chunkSync) differs(b, winner int) (mask uint32) {
	want := s.sums[winner][b]
	for rest := s.targets | 1<<s.source; rest != 0; rest &= rest - 1 {
		if m := bits.TrailingZeros32(rest); s.sums[m][b] != want {
			mask |= 1 << m
		}
	}
	return mask
}

// blocks is how many blocks the chunk has: the last one may be cut short by the column's end. Sums behind that, which only damage
// can have made other than 0, are nobody's.
func (s *chunkSync) blocks() int {
	return int(min(block.ChunkSize, s.c.size-s.chunk*block.ChunkSize) / block.Size)
}

// step moves the next run of blocks that have one winner and differ on the same members.
func (s *chunkSync) step() {
	if s.err == nil && !s.serve() {
		s.err = errMember
	}
	if s.err != nil {
		s.finish(s.err)
		return
	}
	first := s.next
	var win int
	var mask uint32
	end := s.blocks()
	for ; first < end; first++ {
		win = s.winner(first)
		if mask = s.differs(first, win); mask != 0 {
			break
		}
	}
	if first == end && s.unread {
		s.finish(errUnread)
		return
	}
	if first == end {
		s.finish(nil)
		return
	}
	zero := s.sums[win][first] == 0
	n, most := 1, block.MaxBlocks
	if first < s.single {
		most = 1
	}
	for b := first + 1; b < end && n < most; b, n = b+1, n+1 {
		if w := s.winner(b); w != win || s.differs(b, w) != mask || (s.sums[w][b] == 0) != zero {
			break
		}
	}
	s.next = first + n
	off := s.chunk*block.ChunkSize + int64(first)*block.Size
	if zero {
		s.put(mask, wire.Request{Kind: wire.KindTrim, Off: off, Len: int64(n) * block.Size})
		return
	}
	s.copyRun(win, mask, off, n)
}

// copyRun reads a run from the winner and writes it to the members in mask.
func (s *chunkSync) copyRun(win int, mask uint32, off int64, n int) {
	if s.memory == nil {
		if s.memory = borrow(s.c.v.loop, block.MaxIO); s.memory == nil {
			s.finish(errBuffer)
			return
		}
	}
	data := s.memory.buf[:n*block.Size]
	sums := make([]uint64, n)
	r := &wire.Request{Kind: wire.KindRead, Off: off, Len: int64(len(data)), Data: data, Sums: sums}
	s.c.askWith(win, r, s.memory, func(*wire.Request) {
		switch {
		case r.Status == wire.StatusOK:
			s.c.readAgain(place{off: off}, int64(len(data)))
			s.write(mask, off, data, sums)
		case r.Status != wire.StatusBadSum && r.Status != wire.StatusIOError:
			s.finish(errMember)
		case n > 1: // again, block by block
			s.next -= n
			s.single = s.next + n
			s.step()
		default:
			s.replace(win, mask, off)
		}
	})
}

// write gives members the blocks of s.memory from off on.
func (s *chunkSync) write(to uint32, off int64, data []byte, sums []uint64) {
	s.moved += int64(len(data))
	s.put(to, wire.Request{Kind: wire.KindWrite, Off: off, Len: int64(len(data)), Data: data, Sums: sums})
}

// put sends one change to the members in mask, and goes on when all have it.
func (s *chunkSync) put(mask uint32, change wire.Request) {
	s.left = bits.OnesCount32(mask)
	for rest := mask; rest != 0; rest &= rest - 1 {
		r := change
		s.c.askWith(bits.TrailingZeros32(rest), &r, s.memory, func(*wire.Request) {
			if r.Status != wire.StatusOK {
				s.err = errMember
			}
			if s.left--; s.left == 0 {
				s.step()
			}
		})
	}
}
