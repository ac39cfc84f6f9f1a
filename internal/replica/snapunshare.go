package replica

import (
	"errors"
	"maps"
	"slices"
	"syscall"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

const (
	// unshareAfter is how many changes a chunk must get after it was preserved until the head has its space for itself again. Until then
	// the file system gives every block of the head that is changed new space, which takes several times as long as
	// overwriting it; afterwards the snapshot needs space for the whole chunk.
	unshareAfter = 4
	unshareStep  = 1 << 20 // bytes moved at a time
	unshareLanes = 4       // chunks at a time
	unshareMax   = 1 << 14 // chunks that are counted
	unshareDepth = 4       // snapshots one behind the other of which one chunk is taken apart
)

// unsharer writes what a snapshot holds of a chunk, and shares with the head, to the same place of the snapshot again: the file
// system gives the snapshot new space for it, in large pieces, and the head keeps the old one. The content stays what it is at
// every moment, also if the machine stops meanwhile: a block that isn't shared any more is overwritten by itself. When nothing is shared any more,
// the file system is told to forget that the head ever shared anything.
type unsharer struct {
	r      *Replica
	shared map[int64]*sharing // by chunk, what the newest snapshot has shared since the replica was opened
	queue  []*sharing
	now    []*sharing // under way
	apart  int        // chunks taken apart since the head was settled
	op     aio.Op
}

// sharing is a chunk that a snapshot shares with the head.
type sharing struct {
	u       *unsharer
	l       *level
	chunk   int64
	changes int
	// older is the same chunk in the snapshot before, of which it isn't taken apart either; depth is how many of them there are.
	older *sharing
	depth int

	at  int64 // bytes of the chunk done
	buf mem
	op  aio.Op
	// ended are called when the chunk, which is under way, is done; it is to end soon then.
	ended []func()
}

// preserved notes that the snapshot shares the chunk now.
func (u *unsharer) preserved(l *level, chunk int64) {
	if u.shared == nil {
		u.shared = make(map[int64]*sharing)
	}
	old := u.shared[chunk]
	if old == nil && len(u.shared) >= unshareMax {
		return
	}
	s := &sharing{u: u, l: l, chunk: chunk}
	if old != nil && old.depth+1 < unshareDepth {
		s.older, s.depth = old, old.depth+1
	}
	u.shared[chunk] = s
}

// handedOver notes that a snapshot that is deleted has handed a chunk to an older one.
func (u *unsharer) handedOver(from, to *level, chunk int64) {
	for s := u.shared[chunk]; s != nil; s = s.older {
		if s.l == from {
			s.l = to
		}
	}
}

// emptied notes that there is no snapshot any more.
func (u *unsharer) emptied() {
	clear(u.shared)
	u.apart++
	u.next()
}

// changed notes a change of the head's chunk.
func (u *unsharer) changed(chunk int64) {
	s := u.shared[chunk]
	if s == nil {
		return
	}
	if s.changes++; s.changes >= unshareAfter {
		u.enqueue(s)
		u.next()
	}
}

func (u *unsharer) enqueue(s *sharing) {
	delete(u.shared, s.chunk)
	for ; s != nil; s = s.older {
		u.queue = append(u.queue, s)
	}
}

// cancel gives up what is planned for a chunk of a snapshot that is going to be replaced, and calls then when nothing of it is under
// way.
func (u *unsharer) cancel(l *level, chunk int64, then func()) {
	for s := u.shared[chunk]; s != nil; s = s.older {
		if s.l == l {
			delete(u.shared, chunk)
		}
	}
	u.queue = slices.DeleteFunc(u.queue, func(s *sharing) bool { return s.l == l && s.chunk == chunk })
	for _, s := range u.now {
		if s.l == l && s.chunk == chunk {
			s.ended = append(s.ended, then)
			return
		}
	}
	then()
}

// next begins with the next chunks.
func (u *unsharer) next() {
	for len(u.queue) > 0 && len(u.now) < unshareLanes && !u.r.closed {
		s := u.queue[0]
		u.queue = u.queue[1:]
		if s.l.closing || s.l.unnamed || !s.l.held.has(s.chunk) {
			continue
		}
		u.now = append(u.now, s)
		s.l.refs++
		u.r.background++
		s.buf = u.r.getBuf(unshareStep)
		s.step()
	}
	if len(u.queue)+len(u.now) == 0 && u.apart > 0 && !u.r.closed {
		u.rest()
	}
}

// rest goes on when nothing is to be taken apart: with what is shared still, if that is the smaller part, or with telling the file system.
func (u *unsharer) rest() {
	if n := len(u.shared); n > u.apart {
		return
	} else if n > 0 {
		for _, chunk := range slices.Sorted(maps.Keys(u.shared)) {
			u.enqueue(u.shared[chunk])
		}
		u.next()
		return
	}
	if u.op.Busy {
		return
	}
	u.apart = 0
	u.r.background++
	u.op.Done = func(_ int, err error) {
		r := u.r
		r.background--
		if err != nil {
			r.log.Debug("the head can't be settled", "error", err)
		} else {
			r.stats.Settled++
		}
		if r.closing != nil {
			r.quiet()
			return
		}
		u.next()
	}
	u.r.files.head.Settle(&u.op)
}

func (s *sharing) step() {
	off, n := s.l.span(s.chunk)
	if n = min(unshareStep, n-s.at); n <= 0 || s.l.closing || s.u.r.closed || len(s.ended) > 0 {
		s.end(nil)
		return
	}
	s.op.Done = func(_ int, err error) {
		if err != nil || len(s.ended) > 0 {
			s.end(err)
			return
		}
		s.op.Done = func(_ int, err error) {
			if err != nil {
				s.end(err)
				return
			}
			s.at += n
			s.step()
		}
		if b := s.buf.b[:n]; block.IsZero(b) { // a hole stays one
			s.op.Done(0, nil)
		} else {
			s.l.data.WriteAt(&s.op, b, off+s.at)
		}
	}
	s.l.data.ReadAt(&s.op, s.buf.b[:n], off+s.at)
}

func (s *sharing) end(err error) {
	u, r := s.u, s.u.r
	r.putBuf(s.buf)
	switch {
	case err == nil:
		r.stats.Unshared++
		u.apart++
	case errors.Is(err, syscall.ENOSPC):
		u.queue = nil // there is no space for it: what is shared stays so
	default:
		r.log.Warn("what a snapshot shares with the head can't be moved", "snapshot", snapName(s.l.period), "chunk", s.chunk, "error", err)
	}
	u.now = slices.DeleteFunc(u.now, func(o *sharing) bool { return o == s })
	r.background--
	s.l.release()
	for _, fn := range s.ended {
		fn()
	}
	if r.closing != nil {
		r.quiet()
		return
	}
	u.next()
}
