package volume

import (
	"math/bits"
	"slices"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// prepareSnaps gives a member that begins to catch up the snapshots that the others have, empty where it had none, and takes away the
// others. then is called when every change that the member was sent before has ended: what those changed at the source has a gen by
// then that tells, so it is compared; and what comes later, the member preserves itself.
func (r *resync) prepareSnaps(then func()) {
	c, s := r.c, &r.c.v.snaps
	s.beginSync(func(ok bool) {
		if r.stopped || c.v.phase == lost {
			if ok {
				s.endSync()
			}
			r.end()
			return
		}
		if !ok {
			c.v.loop.NewTimer(func() { r.prepareSnaps(then) }).Reset(4 * snapWait)
			return
		}
		q := &wire.Request{Kind: wire.KindSnaps}
		if s.any() {
			q.Sums = slices.Clone(s.told)
		}
		c.ask(r.m, q, func(*wire.Request) {
			s.endSync()
			switch {
			case r.stopped:
				r.end()
			case q.Status != wire.StatusOK:
				c.log(r.m).Error("the replica can't have the volume's snapshots", "status", q.Status)
				r.fail()
			case !s.any() || invariant.Mutant("resync-lists-too-early"):
				then()
			default:
				r.afterChanges(then)
			}
		})
	})
}

// afterChanges calls then when all changes that were begun up to now have ended, of which a checkpoint is proof.
func (r *resync) afterChanges(then func()) {
	v := r.c.v
	if r.stopped || v.phase == lost {
		r.end()
		return
	}
	again := func() { v.loop.NewTimer(func() { r.afterChanges(then) }).Reset(4 * snapWait) }
	if v.snaps.blocks() || v.ckpt.state != ckptIdle {
		again()
		return
	}
	v.ckpt.then = append(v.ckpt.then, func(ok bool) {
		if ok {
			then()
		} else {
			again()
		}
	})
	if !v.ckpt.begin() {
		v.ckpt.then = nil
		again()
	}
}

// levelSync makes what the snapshots hold of one chunk the same on a member as on the source: which of them hold it, and the
// content. The chunk is locked, and its head is equal already.
//
//	levels of both -> those that only the member has are dropped -> from the newest on: compare sums -> replace what differs
//
// What the source's disk can't read is asked of the other in-sync members. What none of them can read for unreadableFor is lost: blocks stay
// damaged, as their sums say what they were, and a chunk of which nobody knows the sums is given those of lost blocks. As in the head, that
// must not keep the member from becoming in sync.
//
// It is of one resync: nothing of it is sent any more when that was stopped. The member may be in its next session by then, where the
// next resync decides which snapshots it has.
type levelSync struct {
	r      *resync
	c      *column
	chunk  int64
	source int
	m      int
	want   []uint64 // levels of the source, newest first
	have   []uint64
	drop   []uint64
	sums   []uint64 // of the level at the source
	base   []uint64 // of what it is replaced on
	next   int      // block from which to look for differences
	most   int      // blocks that are read at a time
	left   bool     // a block of the level was left out, as it may be read later
	unread bool     // so was one of any level
	gone   bool     // nobody can read the level's sums: they are those of lost blocks
	memory *lent
	moved  int64
	done   func(moved int64, err error)
}

// syncLevels does that after the head of the chunk was made equal. done is called later.
func (r *resync) syncLevels(chunk int64, source int, done func(moved int64, err error)) {
	s := &r.c.v.snaps
	if !s.any() || invariant.Mutant("resync-ignores-snapshots") {
		done(0, nil)
		return
	}
	s.beginSync(func(ok bool) {
		if !ok {
			done(0, errSnaps)
			return
		}
		l := &levelSync{r: r, c: r.c, chunk: chunk, source: source, m: r.m}
		l.done = func(moved int64, err error) {
			s.endSync()
			done(moved, err)
		}
		l.begin()
	})
}

// ask calls then with the answer, later; or ends the whole.
func (l *levelSync) ask(m int, r *wire.Request, then func(r *wire.Request)) {
	if l.r.stopped && !invariant.Mutant("levels-after-resync") {
		l.finish(errMember)
		return
	}
	r.Off = l.off() + r.Off
	l.c.askWith(m, r, l.memory, func(*wire.Request) { then(r) })
}

func (l *levelSync) off() int64 { return l.chunk * block.ChunkSize }

func (l *levelSync) finish(err error) {
	if l.memory != nil {
		l.memory.release()
		l.memory = nil
	}
	l.done(l.moved, err)
}

// must calls then with the answer if it is good; otherwise the whole ends.
func (l *levelSync) must(m int, r *wire.Request, then func()) {
	l.ask(m, r, func(*wire.Request) {
		if r.Status != wire.StatusOK || !l.serves() {
			l.finish(errMember)
			return
		}
		then()
	})
}

// serves reports whether the source is in sync still.
func (l *levelSync) serves() bool { return l.c.rc.InSync()&(1<<l.source) != 0 }

func (l *levelSync) begin() {
	from := &wire.Request{Kind: wire.KindSnapLevels, Sums: make([]uint64, 0, wire.MaxSnaps)}
	l.must(l.source, from, func() {
		to := &wire.Request{Kind: wire.KindSnapLevels, Sums: make([]uint64, 0, wire.MaxSnaps)}
		l.must(l.m, to, func() {
			l.want = slices.Clone(from.Sums)
			slices.Reverse(l.want)
			if invariant.Mutant("levels-by-record") {
				l.want = slices.DeleteFunc(l.want, func(p uint64) bool { return !l.c.v.snaps.has(p) })
			}
			for _, p := range to.Sums {
				if !slices.Contains(l.want, p) {
					l.drop = append(l.drop, p)
				}
			}
			l.have = to.Sums
			l.dropNext()
		})
	})
}

func (l *levelSync) dropNext() {
	if len(l.drop) == 0 {
		l.levelNext()
		return
	}
	p := l.drop[0]
	l.drop = l.drop[1:]
	l.must(l.m, &wire.Request{Kind: wire.KindSnapDrop, Period: p}, l.dropNext)
}

func (l *levelSync) levelNext() {
	if len(l.want) == 0 && l.unread {
		l.finish(errUnread)
		return
	}
	if len(l.want) == 0 {
		l.finish(nil)
		return
	}
	p := l.want[0]
	q := &wire.Request{Kind: wire.KindSnapSums, Period: p, Sums: make([]uint64, block.PerChunk)}
	l.inTurn(q, l.source, func(ok, _, unread bool) {
		l.sums, l.gone = q.Sums, !ok
		switch at := (place{p, l.off()}); {
		case ok:
			l.c.readAgain(at, block.Size)
		case !unread || l.c.v.snaps.ends(p) <= at.off:
			l.finish(errMember)
			return
		case l.c.unreadableTooLong(at):
			l.giveUp(p)
		default:
			l.levelLater()
			return
		}
		if l.gone || !slices.Contains(l.have, p) {
			l.replace(p)
			return
		}
		to := &wire.Request{Kind: wire.KindSnapCheck, Period: p, Sums: make([]uint64, block.PerChunk)}
		l.ask(l.m, to, func(*wire.Request) {
			if to.Status == wire.StatusOK && slices.Equal(to.Sums, l.sums) {
				l.levelDone()
				return
			}
			l.replace(p) // also if they can't be read
		})
	})
}

func (l *levelSync) levelDone() {
	l.want = l.want[1:]
	l.levelNext()
}

// levelLater leaves the level as it is on the member, and goes on with the next: it may be read later.
func (l *levelSync) levelLater() {
	l.unread = true
	l.levelDone()
}

// giveUp has every block of the chunk be lost in the snapshot.
func (l *levelSync) giveUp(p uint64) {
	l.c.v.log.Error("a chunk of a snapshot is lost: no in-sync copy can read its checksums. Reads of it fail; delete the snapshot if it isn't needed",
		"column", l.c.idx, "off", l.off(), "snapshot", l.c.v.snaps.name(p))
	l.gone = true
	l.sums = make([]uint64, block.PerChunk)
	for b := range min(block.PerChunk, (l.c.v.snaps.ends(p)-l.off())/block.Size) {
		l.sums[b] = block.LostSum
	}
}

// replace makes the member's chunk of the level anew, from what it has in the next newer one.
func (l *levelSync) replace(p uint64) {
	q := &wire.Request{Kind: wire.KindSnapOpen, Period: p, Sums: make([]uint64, block.PerChunk)}
	l.must(l.m, q, func() {
		l.base, l.next, l.most, l.left = q.Sums, 0, block.MaxBlocks, false
		l.copyNext(p)
	})
}

// copyNext moves the next run of blocks that differ. Blocks of zeros need no moving: sealing makes holes of them.
func (l *levelSync) copyNext(p uint64) {
	first, n := l.run()
	if n == 0 && l.left {
		l.levelLater()
		return
	}
	if n == 0 {
		l.must(l.m, &wire.Request{Kind: wire.KindSnapSeal, Period: p, Sums: l.sums}, l.levelDone)
		return
	}
	l.next = first + n
	if l.memory == nil {
		if l.memory = borrow(l.c.v.loop, block.MaxIO); l.memory == nil {
			l.finish(errBuffer)
			return
		}
	}
	data := l.memory.buf[:n*block.Size]
	off := int64(first) * block.Size
	write := func(sums []uint64) {
		l.moved += int64(len(data))
		l.must(l.m, &wire.Request{Kind: wire.KindSnapWrite, Period: p, Off: off, Len: int64(len(data)), Data: data, Sums: sums}, func() { l.copyNext(p) })
	}
	if l.gone {
		block.PutLost(data)
		write(l.sums[first : first+n])
		return
	}
	q := &wire.Request{Kind: wire.KindSnapRead, Period: p, Off: off, Len: int64(len(data)), Data: data, Sums: make([]uint64, n)}
	l.inTurn(q, l.source, func(ok, bad, unread bool) {
		at := place{p, l.off() + off}
		switch {
		case ok:
			l.c.readAgain(at, int64(n)*block.Size)
			write(q.Sums)
		case !unread && !bad:
			l.finish(errMember)
		case n > 1:
			l.next, l.most = first, 1 // one has this block, another that one
			l.copyNext(p)
		case !unread:
			l.damaged(at)
			block.SumAll(q.Sums, data)
			write(q.Sums)
		case l.c.unreadableTooLong(at):
			l.damaged(at)
			block.PutLost(data)
			write([]uint64{block.LostSum})
		case l.c.manyUnreadable():
			l.finish(errUnread)
		default:
			l.left = true
			l.copyNext(p)
		}
	})
}

// damaged tells that no copy of a block of a snapshot is intact. It stays so on the member: its sum says what it was.
func (l *levelSync) damaged(at place) {
	l.c.v.log.Error("no intact copy of a block of a snapshot", "column", l.c.idx, "off", at.off, "snapshot", l.c.v.snaps.name(at.period))
}

// run returns the next blocks that differ from the base and aren't zeros.
func (l *levelSync) run() (first, n int) {
	differs := func(b int) bool { return l.sums[b] != 0 && (l.gone || l.sums[b] != l.base[b]) }
	for first = l.next; first < block.PerChunk && !differs(first); first++ {
	}
	for first+n < block.PerChunk && n < l.most && differs(first+n) {
		n++
	}
	return first, n
}

// inTurn asks the in-sync members the same, m first, until one has it intact: ok. Otherwise bad says that one has damaged data, which is in q, and
// unread that a disk didn't read; neither is set if one can't be asked.
func (l *levelSync) inTurn(q *wire.Request, m int, then func(ok, bad, unread bool)) {
	var tried uint32
	var bad, unread bool
	off := q.Off
	var next func(m int)
	next = func(m int) {
		q.Off, q.Bad = off, [16]uint64{}
		l.ask(m, q, func(*wire.Request) {
			tried |= 1 << m
			switch {
			case l.c.rc.InSync()&(1<<m) == 0:
				then(false, false, false)
				return
			case q.Status == wire.StatusOK:
				then(true, false, false)
				return
			case q.Status == wire.StatusBadSum:
				bad = true
			case q.Status == wire.StatusIOError:
				unread = true
			default:
				then(false, false, false)
				return
			}
			if rest := l.c.rc.InSync() &^ tried; rest != 0 {
				next(bits.TrailingZeros32(rest))
				return
			}
			then(false, bad, unread)
		})
	}
	next(m)
}
