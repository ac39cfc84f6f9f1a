package sim_test

import (
	"fmt"
	"slices"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/volume"
)

// guest is what uses the volume on one node: clients that submit requests, one each at a time. It survives
// the engine, as a kernel does; then its unanswered requests are given to the next engine.
type guest struct {
	c       *cluster
	v       *vol
	n       *node
	eng     *engine
	vol     *volume.Volume // nil while no engine serves it
	term    uint64         // of the last engine that had the volume
	pending []*ioreq       // unanswered, in order
	dead    bool
	stopped bool // submits nothing new
	leaving bool // the volume is being detached
	idle    func()
}

// ioreq is a request of a client, which outlives engines.
type ioreq struct {
	g        *guest
	op       block.Op
	fua      bool
	off, len int64
	val      uint64
	call     int64
	hops     []*hop
	term     uint64
	then     func()
	buf      []byte // in the engine's memory
	req      *block.Request
	tries    int
	begun    time.Duration
}

func (v *vol) newGuest(n *node) *guest {
	g := &guest{c: v.c, v: v, n: n}
	n.guests[v.i] = g
	for i := range v.clients + v.readers {
		share := v.readShare
		if i >= v.clients {
			share = 1
		}
		v.c.w.After(v.takeTime(), "client", func() { g.client(share) })
	}
	return g
}

// kill ends the guest: its machine has no power, or its volume is lost.
func (g *guest) kill() {
	if g.dead {
		return
	}
	g.dead = true
	for _, r := range g.pending {
		r.unknown()
	}
	g.pending = nil
	if g.n.guests[g.v.i] == g {
		g.n.guests[g.v.i] = nil
	}
}

// stop has the guest finish what is under way; fn is called when nothing is.
func (g *guest) stop(fn func()) {
	g.stopped = true
	g.idle = fn
	g.checkIdle()
}

func (g *guest) checkIdle() {
	if fn := g.idle; fn != nil && g.stopped && len(g.pending) == 0 {
		g.idle = nil
		fn()
	}
}

// client is one turn of a client: a request, then another turn.
func (g *guest) client(readShare float64) {
	if g.dead || g.stopped {
		return
	}
	again := func() { g.c.w.After(g.v.takeTime(), "client", func() { g.client(readShare) }) }
	if g.vol == nil || g.c.err != nil || g.v.snaps.restoring != nil {
		again()
		return
	}
	r := g.v.drawRequest(readShare)
	for try := 0; readShare == 1 && try < 8 && g.meets(r); try++ {
		r = g.v.drawRequest(readShare) // a reader goes on although writes hang
	}
	r.g, r.then = g, again
	if size := g.vol.Size(); r.off+r.len > size { // the coordinator hasn't heard yet that it has grown
		again()
		return
	}
	g.submit(r)
}

// resent returns what a new engine is asked for again: as of every frontend, what changes data first.
func (g *guest) resent() []*ioreq {
	all := slices.Clone(g.pending)
	slices.SortStableFunc(all, func(a, b *ioreq) int {
		switch {
		case a.writes() == b.writes():
			return 0
		case a.writes():
			return -1
		}
		return 1
	})
	return all
}

// meets reports whether r overlaps a request that is unanswered.
func (g *guest) meets(r *ioreq) bool {
	for _, p := range g.pending {
		if p.writes() && r.off < p.off+p.len && p.off < r.off+r.len {
			return true
		}
	}
	return false
}

// submit starts a new request.
func (g *guest) submit(r *ioreq) {
	h := g.v.hist
	r.call = h.tick()
	r.term = g.term
	first, n := int(r.off/block.Size), int(r.len/block.Size)
	switch r.op {
	case block.OpWrite:
		h.lastID++
		r.val = h.lastID
	}
	if r.writes() {
		for i := range n {
			r.hops = append(r.hops, h.begin(first+i, r.val, r.fua, r.term))
		}
	}
	r.begun = g.c.w.Now()
	g.pending = append(g.pending, r)
	r.send()
}

func (r *ioreq) writes() bool {
	return r.op == block.OpWrite || r.op == block.OpTrim || r.op == block.OpZero
}

// send gives the request to the engine that serves the guest now.
func (r *ioreq) send() {
	g := r.g
	e := g.eng
	r.buf = nil
	r.tries++
	try := r.tries
	if r.op == block.OpWrite || r.op == block.OpRead {
		r.buf = e.l.Buffers().Get(int(r.len))
		if r.buf == nil {
			g.c.w.After(time.Millisecond, "client waits for memory", func() {
				if !g.dead && g.eng == e && !e.l.Dead() && r.tries == try && g.vol != nil {
					r.send()
				}
			})
			return
		}
		first := int(r.off / block.Size)
		for i := 0; r.op == block.OpWrite && i < len(r.buf); i += block.Size {
			g.v.hist.fill(r.buf[i:i+block.Size], r.val, first+i/block.Size)
		}
	}
	if g.c.w.Tracing() {
		g.c.w.Tracef("%s: guest: %v %d at %d len %d", g.n.name, r.op, r.val, r.off, r.len)
	}
	req := &block.Request{Op: r.op, FUA: r.fua, Off: r.off, Len: r.len, Data: r.buf, Resent: r.tries > 1}
	r.req = req
	req.Done = func(*block.Request) {
		if r.req != req {
			g.c.fail("a request was answered twice: %v at %d", r.op, r.off)
			return
		}
		r.req = nil
		r.buf = req.Data // it may be other memory
		r.done(e, req.Err)
	}
	vol := g.vol
	e.l.Post(func() { vol.Submit(req) })
}

// done takes the engine's answer.
func (r *ioreq) done(e *engine, err error) {
	g := r.g
	buf := r.buf
	r.buf = nil
	if !g.dead && !e.l.Dead() {
		for i, p := range g.pending {
			if p == r {
				g.pending = append(g.pending[:i], g.pending[i+1:]...)
			}
		}
		g.v.answered(r, buf, err)
	}
	if buf != nil {
		e.l.Buffers().Put(buf)
	}
	if g.dead || e.l.Dead() {
		return
	}
	r.then()
	g.checkIdle()
}

// unknown records that the request will never be answered.
func (r *ioreq) unknown() {
	for i, op := range r.hops {
		r.g.v.hist.wrote(int(r.off/block.Size)+i, op, true)
	}
	r.hops = nil
}

// answered records and judges an answer; data is what was read or written.
func (v *vol) answered(r *ioreq, data []byte, err error) {
	c, h := v.c, v.hist
	h.tick()
	if c.w.Tracing() {
		c.w.Tracef("%s: guest: %v %d at %d len %d: %v", r.g.n.name, r.op, r.val, r.off, r.len, err)
	}
	first := int(r.off / block.Size)
	if err != nil {
		h.failures++
		r.unknown()
		return
	}
	switch {
	case r.writes():
		h.writes++
		if r.op != block.OpWrite {
			h.trims++
		}
		for i, op := range r.hops {
			h.wrote(first+i, op, false)
			if op.barred > r.term && v.rec.State.Term > r.term {
				c.fail("invariant 3: write %d to block %d was acknowledged in term %d, although an in-sync replica that didn't have it had fenced at term %d",
					r.val, first+i, r.term, op.barred)
			}
		}
		v.checkWrite(r)
	case r.op == block.OpFlush:
		h.flushes++
		h.flushed = max(h.flushed, r.call)
		v.checkFlush(r)
	default:
		h.reads++
		if r.term < v.servedNow {
			c.count("read of an old term")
		}
		for i := range len(data) / block.Size {
			if v.tainted[int64(first+i)] && c.blesses {
				continue
			}
			if err := h.read(first+i, r.call, data[i*block.Size:(i+1)*block.Size]); err != nil {
				c.fail("read by %s in term %d: %v", r.g.n.name, r.term, err)
			}
		}
	}
}

// drawRequest makes up a request. Most go to a few hot places, so that they meet.
func (v *vol) drawRequest(readShare float64) *ioreq {
	rng := v.c.w.Rand()
	r := &ioreq{}
	n := int64(1 + rng.IntN(4))
	if rng.IntN(30) == 0 {
		n = int64(1 + rng.IntN(64))
	}
	blocks := v.size / block.Size
	at := v.hot[rng.IntN(len(v.hot))] + int64(rng.IntN(3)) - 1
	at = max(0, min(at, blocks-n))
	r.off, r.len = at*block.Size, n*block.Size
	if rng.Float64() < readShare || v.readOnly {
		r.op = block.OpRead
		return r
	}
	switch x := rng.Float64(); {
	case x < 0.72:
		r.op = block.OpWrite
		r.fua = rng.IntN(10) == 0
	case x < 0.86:
		r.op = block.OpFlush
		r.off, r.len = 0, 0
	case x < 0.93:
		r.op = block.OpTrim
	default:
		r.op = block.OpZero
	}
	return r
}

// takeTime is how long a client waits between two requests: bursts and pauses.
func (v *vol) takeTime() time.Duration {
	rng := v.c.w.Rand()
	if rng.IntN(4) > 0 {
		return time.Duration(rng.Int64N(int64(v.think)/4 + 1))
	}
	return time.Duration(rng.Int64N(int64(v.think)*4 + 1))
}

func (r *ioreq) String() string { return fmt.Sprintf("%v [%d, %d)", r.op, r.off, r.off+r.len) }
