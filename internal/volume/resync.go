package volume

import (
	"errors"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// resyncWindow is how many chunks are compared and copied at once for one member.
const resyncWindow = 2

// resyncBurst is how many bytes resync may move ahead of its bandwidth limit: a chunk for each of the window.
const resyncBurst = resyncWindow * block.ChunkSize

// resync brings one syncing member up to date: it compares the chunks that may differ and copies the blocks
// that do. Everything written since it began reaches the member by the ordinary way.
type resync struct {
	c       *column
	m       int
	timer   aio.Timer
	todo    []int64
	next    int
	running int
	waiting bool
	stopped bool // the member is out; only what is under way ends
	failed  bool
	unread  bool // some blocks may be read later; the rest goes on
	done    int
	moved   int64
}

// beginResync lists what may differ: chunks whose gen at the source is above the member's own checkpoint,
// and the chunks in its own journal.
func (c *column) beginResync(m int) {
	r := &resync{c: c, m: m}
	r.timer = c.v.loop.NewTimer(func() { r.waiting = false; r.run() })
	c.resyncs[m] = r
	listed := make([]bool, block.Chunks(c.size))
	if !invariant.Mutant("resync-ignores-journal") {
		for _, e := range c.rc.Member(m).Answer.Journal {
			if e.Chunk >= 0 && e.Chunk < int64(len(listed)) {
				listed[e.Chunk] = true
			}
		}
	}
	if c.rc.Member(m).Answer.AllChunks {
		for i := range listed {
			listed[i] = true
		}
	}
	c.log(m).Info("bringing replica up to date", "checkpoint", c.rc.Member(m).Answer.Checkpoint)
	r.prepareSnaps(func() { r.list(0, listed) })
}

// list asks the source for gens from chunk first on, a batch at a time.
func (r *resync) list(first int64, listed []bool) {
	c := r.c
	if r.stopped {
		r.end()
		return
	}
	if first >= int64(len(listed)) {
		for i, l := range listed {
			if l {
				r.todo = append(r.todo, int64(i))
			}
		}
		r.run()
		return
	}
	source := c.reader()
	if source < 0 {
		r.fail()
		return
	}
	n := min(int64(len(listed))-first, block.PerChunk)
	q := &wire.Request{Kind: wire.KindGens, Off: first * block.ChunkSize, Len: n * block.ChunkSize, Sums: make([]uint64, n)}
	c.ask(source, q, func(*wire.Request) {
		if q.Status != wire.StatusOK {
			r.fail()
			return
		}
		if mb := c.rc.Member(r.m); mb != nil {
			own := mb.Answer.Checkpoint
			if invariant.Mutant("resync-since-volume-checkpoint") {
				own = max(own, c.v.ckpt.upTo)
			}
			for i, gen := range q.Sums {
				listed[first+int64(i)] = listed[first+int64(i)] || gen > own && !invariant.Mutant("resync-ignores-gens")
			}
		}
		r.list(first+n, listed)
	})
}

// run keeps the window full, within the bandwidth limit.
func (r *resync) run() {
	for !r.stopped && !r.failed && !r.waiting && r.running < resyncWindow && r.next < len(r.todo) {
		source := r.c.reader()
		if source < 0 {
			r.failed = true
			break
		}
		chunk := r.todo[r.next]
		r.next++
		r.running++
		r.c.sync(chunk, source, 1<<r.m, false, r.syncedHead)
	}
	if r.running == 0 && (r.stopped || r.failed || r.next == len(r.todo)) {
		r.end()
	}
}

// syncedHead goes on with what the snapshots have of the chunk.
func (r *resync) syncedHead(s *chunkSync, err error) {
	if err != nil || r.stopped {
		r.synced(s, err)
		return
	}
	r.syncLevels(s.chunk, s.source, func(moved int64, err error) {
		s.moved += moved
		r.synced(s, err)
	})
}

// synced takes the end of one chunk.
func (r *resync) synced(s *chunkSync, err error) {
	v := r.c.v
	s.unlock()
	r.running--
	switch {
	case errors.Is(err, errUnread):
		r.unread = true
		r.failed = r.failed || r.c.manyUnreadable()
	case err != nil:
		r.c.log(r.m).Warn("catching up failed; it is tried again", "chunk", s.chunk, "error", err)
		r.failed = true
	default:
		r.done++
		r.moved += s.moved
		v.Stats.ResyncedChunks++
		v.Stats.ResyncedBytes += uint64(s.moved)
		if wait := v.limiter.Take(v.loop.Now(), s.moved); wait > 0 && !r.waiting && r.next < len(r.todo) {
			r.waiting = true
			r.timer.Reset(wait)
		}
	}
	r.run()
}

func (r *resync) fail() {
	r.failed = true
	if r.running == 0 {
		r.end()
	}
}

// end reports the outcome, once.
func (r *resync) end() {
	r.timer.Stop()
	c := r.c
	if r.stopped || c.resyncs[r.m] != r {
		return
	}
	c.resyncs[r.m] = nil
	r.stopped = true
	now := c.v.loop.Now()
	if r.failed || r.unread && !invariant.Mutant("left-out-counts-as-synced") {
		c.rc.CatchUpFailed(r.m, now)
	} else {
		c.log(r.m).Info("replica caught up", "chunks", r.done, "bytes", r.moved)
		c.rc.CaughtUp(r.m, now)
	}
	c.v.armTick()
}
