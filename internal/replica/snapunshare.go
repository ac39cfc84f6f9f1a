package replica

import (
	"errors"
	"slices"
	"syscall"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

const (
	// unshareAfter is how many changes a chunk must get after it was preserved until the head has its space for itself again. Until then
	// the file system gives every block of the head that is changed new space, which takes several times as long as
	// overwriting it; afterwards the snapshot needs space for the whole chunk.
	unshareAfter = 8
	unshareStep  = 1 << 20 // bytes moved at a time
	unshareMax   = 1 << 14 // chunks that are counted
)

// unsharer writes what a snapshot holds of a chunk, and shares with the head, to the same place of the snapshot again: the file
// system gives the snapshot new space for it, in large pieces, and the head keeps the old one. The content stays what it is at
// every moment, also if the machine stops meanwhile: a block that isn't shared any more is overwritten by itself.
type unsharer struct {
	r      *Replica
	shared map[int64]*sharing // by chunk, what the newest snapshot has shared since the replica was opened
	queue  []*sharing
	busy   bool
	now    *sharing
	at     int64 // bytes of the chunk done
	buf    mem
	op     aio.Op
	// ended is called when the chunk under way is done; it is to end soon then.
	ended func()
}

// sharing is a chunk that a snapshot shares with the head.
type sharing struct {
	l       *level
	chunk   int64
	changes int
}

// preserved notes that the snapshot shares the chunk now.
func (u *unsharer) preserved(l *level, chunk int64) {
	if u.shared == nil {
		u.shared = make(map[int64]*sharing)
	}
	if len(u.shared) < unshareMax {
		u.shared[chunk] = &sharing{l: l, chunk: chunk}
	}
}

// changed notes a change of the head's chunk.
func (u *unsharer) changed(chunk int64) {
	s := u.shared[chunk]
	if s == nil {
		return
	}
	if s.changes++; s.changes >= unshareAfter {
		delete(u.shared, chunk)
		u.queue = append(u.queue, s)
		u.next()
	}
}

// cancel gives up what is planned for a chunk of a snapshot that is going to be replaced, and calls then when nothing of it is under
// way.
func (u *unsharer) cancel(l *level, chunk int64, then func()) {
	if s := u.shared[chunk]; s != nil && s.l == l {
		delete(u.shared, chunk)
	}
	u.queue = slices.DeleteFunc(u.queue, func(s *sharing) bool { return s.l == l && s.chunk == chunk })
	if !u.busy || u.now.l != l || u.now.chunk != chunk {
		then()
		return
	}
	if was := u.ended; was != nil {
		u.ended = func() { was(); then() }
		return
	}
	u.ended = then
}

// next begins with the next chunk.
func (u *unsharer) next() {
	if u.busy || u.r.closed {
		return
	}
	for len(u.queue) > 0 {
		s := u.queue[0]
		u.queue = u.queue[1:]
		if s.l.closing || s.l.unnamed || !s.l.held.has(s.chunk) {
			continue
		}
		u.busy, u.now, u.at = true, s, 0
		s.l.refs++
		u.r.background++
		u.buf = u.r.getBuf(unshareStep)
		u.step()
		return
	}
}

func (u *unsharer) step() {
	off, n := u.now.l.span(u.now.chunk)
	if n = min(unshareStep, n-u.at); n <= 0 || u.now.l.closing || u.r.closed || u.ended != nil {
		u.end(nil)
		return
	}
	u.op.Done = func(_ int, err error) {
		if err != nil {
			u.end(err)
			return
		}
		if u.ended != nil {
			u.end(nil)
			return
		}
		u.op.Done = func(_ int, err error) {
			if err != nil {
				u.end(err)
				return
			}
			u.at += n
			u.step()
		}
		if b := u.buf.b[:n]; block.IsZero(b) { // a hole stays one
			u.op.Done(0, nil)
		} else {
			u.now.l.data.WriteAt(&u.op, b, off+u.at)
		}
	}
	u.now.l.data.ReadAt(&u.op, u.buf.b[:n], off+u.at)
}

func (u *unsharer) end(err error) {
	r, l := u.r, u.now.l
	r.putBuf(u.buf)
	switch {
	case err == nil:
		r.stats.Unshared++
	case errors.Is(err, syscall.ENOSPC):
		u.queue = nil // there is no space for it: what is shared stays so
	default:
		r.log.Warn("what a snapshot shares with the head can't be moved", "snapshot", snapName(l.period), "chunk", u.now.chunk, "error", err)
	}
	u.busy, u.now = false, nil
	r.background--
	l.release()
	if fn := u.ended; fn != nil {
		u.ended = nil
		fn()
	}
	if r.closing != nil {
		r.quiet()
		return
	}
	u.next()
}
