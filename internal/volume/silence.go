package volume

import (
	"slices"
	"syscall"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// watch looks, while anything is in flight, for members that have left a request unanswered for too long: a disk that
// hangs answers nothing, and its connection lives. What they have is given up once they are out of the in-sync set;
// their late answers go nowhere, and the memory that they were lent is used again only after those.
type watch struct {
	v     *Volume
	timer aio.Timer
	armed bool
	limit time.Duration
	// last is when it looked last; heldUp when it was late with that: this loop hadn't listened either, and silence
	// counts from then.
	last, heldUp time.Duration
}

func (w *watch) init(v *Volume) {
	w.v, w.limit = v, v.cfg.AnswerLimit
	if w.limit <= 0 {
		w.limit = repl.AnswerLimit
	}
	w.timer = v.loop.NewTimer(w.look)
}

func (w *watch) every() time.Duration { return min(w.limit/8, time.Second) }

// arm keeps the watch going; it ends by itself when nothing is in flight.
func (w *watch) arm() {
	if !w.armed {
		w.armed = true
		w.last = w.v.loop.Now()
		w.timer.Reset(w.every())
	}
}

func (w *watch) look() {
	v, now := w.v, w.v.loop.Now()
	w.armed = false
	if now-w.last > 2*w.every() {
		w.heldUp = now
	}
	busy := v.inFlight > 0
	for _, c := range v.columns {
		c.checkSilence(now)
		busy = busy || c.rc.Busy() > 0 || len(c.reading)+len(c.asks) > 0 || c.rc.AnyFencing()
	}
	v.collectAll()
	if busy {
		w.arm()
	}
	v.armTick()
}

// SetLimits changes what the settings say. It must be called on the loop.
func (v *Volume) SetLimits(s spec.Settings) {
	if s.RebuildBandwidth != v.cfg.RebuildBandwidth {
		v.cfg.RebuildBandwidth = s.RebuildBandwidth
		v.limiter.Set(v.loop.Now(), s.RebuildBandwidth, resyncBurst)
		for _, c := range v.columns {
			c.resyncsAnew()
		}
	}
	if v.watch.limit = s.AnswerLimit; v.watch.limit <= 0 {
		v.watch.limit = repl.AnswerLimit
	}
}

// resyncsAnew has those that wait for bandwidth go on: how long they wait was reckoned at the old rate.
func (c *column) resyncsAnew() {
	for _, r := range c.resyncs {
		if r != nil && r.waiting {
			r.timer.Reset(0)
		}
	}
}

// checkSilence takes silent members out, and then does elsewhere what they were asked.
func (c *column) checkSilence(now time.Duration) {
	w := &c.v.watch
	var oldest [repl.MaxMembers]time.Duration
	note := func(m int, asked time.Duration) {
		if oldest[m] == 0 || asked < oldest[m] {
			oldest[m] = asked
		}
	}
	for _, o := range c.reading {
		note(o.at, o.asked)
	}
	for _, a := range c.asks {
		note(a.m, a.asked)
	}
	c.rc.CheckSilence(now, w.heldUp, w.limit, &oldest)
	for _, a := range slices.Clone(c.asks) {
		if c.givenUp(a.m, a.asked, now) {
			a.giveUp()
		}
	}
	for _, o := range slices.Clone(c.reading) {
		if o.place >= 0 && c.givenUp(o.at, o.asked, now) {
			o.readElsewhere()
		}
	}
	for m := range c.links {
		if mb := c.rc.Member(m); mb == nil || mb.Role == repl.In && !mb.Silent {
			continue
		}
		if l, ok := c.links[m].(interface{ Relieve(time.Duration) }); ok {
			l.Relieve(w.limit)
		}
	}
}

// givenUp reports whether what member m was asked long ago isn't waited for any more: somebody else can do it, or
// nobody needs it.
func (c *column) givenUp(m int, asked, now time.Duration) bool {
	if now-max(asked, c.v.watch.heldUp) <= c.v.watch.limit {
		return false
	}
	mb := c.rc.Member(m)
	if mb == nil || c.v.phase == lost || c.v.phase == detached {
		return true
	}
	return mb.Role != repl.In && mb.Role != repl.Catching && mb.Role != repl.Promoting
}

// leave notes that the members in mask still have the operation, which ends without them.
func (o *op) leave(mask uint32) {
	o.left = mask
	if o.data == nil || o.call == nil {
		return
	}
	if o.memory = o.call.lent; o.memory == nil {
		o.memory = &lent{loop: o.v.loop}
		o.call.lent = o.memory
	}
	o.memory.users++
}

// late takes an answer that nobody waits for.
func (o *op) late(m int) {
	if o.left &^= 1 << m; o.left != 0 {
		return
	}
	if o.memory != nil {
		o.memory.back()
		o.memory = nil
	}
	if o.unused {
		o.v.putOp(o)
	}
}

// unlist notes that no member has the read any more.
func (c *column) unlist(o *op) {
	last := len(c.reading) - 1
	moved := c.reading[last]
	c.reading[o.place], moved.place = moved, o.place
	c.reading[last] = nil
	c.reading = c.reading[:last]
	o.place = -1
}

// readElsewhere gives up a read at a member that doesn't answer, and begins it anew in memory of its own.
func (o *op) readElsewhere() {
	v, c := o.v, o.col
	var data []byte
	if v.phase != lost {
		if data = v.loop.Buffers().Get(int(o.n)); data == nil {
			return // the watch comes again
		}
	}
	c.unlist(o)
	again := v.getOp(c)
	again.kind, again.off, again.n, again.call = o.kind, o.off, o.n, o.call
	again.pos = o.pos
	c.lock.Pass(&o.rng, &again.rng)
	if o.own {
		// Its memory isn't the request's: only it waits for that.
		o.memory = &lent{loop: v.loop, buf: o.data, released: true, users: 1}
		o.left = 1 << o.at
	} else {
		o.leave(1 << o.at)
	}
	o.call = nil
	v.putOp(o)
	if v.phase == lost {
		again.endLocked(syscall.EIO)
		return
	}
	again.data, again.own = data, true
	again.read()
}

// keepApart keeps a piece of a read that came in memory of its own until the whole request has come.
func (c *call) keepApart(o *op) { o.next, c.apart = c.apart, o }

// collect makes the request's memory what is to be answered: other memory, if members that were given up still use it.
// It is false if there is none; then the watch tries again.
func (v *Volume) collect(c *call) bool {
	r := c.req
	if c.lent != nil && c.lent.users > 0 {
		fresh := v.loop.Buffers().Get(len(r.Data))
		if fresh == nil {
			v.poor = append(v.poor, c)
			v.watch.arm()
			return false
		}
		if r.Op == block.OpRead {
			copy(fresh, r.Data)
		}
		c.lent.buf = r.Data
		r.Data = fresh
		c.lent.release()
	}
	for o := c.apart; o != nil; {
		next := o.next
		copy(r.Data[o.pos:], o.data)
		v.loop.Buffers().Put(o.data)
		v.putOp(o)
		o = next
	}
	c.apart = nil
	return true
}

// collectAll tries again for requests that found no memory.
func (v *Volume) collectAll() {
	list := v.poor
	v.poor = nil
	for _, c := range list {
		c.left++
		v.pieceDone(c, nil)
	}
}

// lent is memory that members may use although what they were asked was given up. It goes back to the loop when its
// owner has released it and the last of them has answered.
type lent struct {
	loop     aio.Loop
	buf      []byte
	users    int
	released bool
}

// borrow takes memory of the loop; nil if there is none.
func borrow(loop aio.Loop, n int) *lent {
	buf := loop.Buffers().Get(n)
	if buf == nil {
		return nil
	}
	return &lent{loop: loop, buf: buf}
}

func (l *lent) back() {
	l.users--
	l.put()
}

func (l *lent) release() {
	l.released = true
	l.put()
}

func (l *lent) put() {
	if l.released && l.users == 0 && l.buf != nil {
		l.loop.Buffers().Put(l.buf)
		l.buf = nil
	}
}

// asking is a request of the coordinator's own that a member has.
type asking struct {
	c       *column
	m       int
	session uint32
	asked   time.Duration
	period  uint64
	changes bool
	over    bool // given up
	r       *wire.Request
	memory  *lent // of r.Data; nil if it has none
	done    func(*wire.Request)
}

// answered takes the answer.
func (a *asking) answered() {
	c, v, r := a.c, a.c.v, a.r
	if a.over {
		if a.memory != nil {
			a.memory.back()
		}
		return
	}
	a.end()
	switch r.Status {
	case wire.StatusOK:
		c.rc.Confirmed(a.m, a.session, a.asked)
	case wire.StatusFenced:
		v.lose(repl.ErrLost)
	case wire.StatusLost, wire.StatusOldSession, wire.StatusNotFound:
		c.rc.SessionLost(a.m, a.session)
		v.armTick()
	}
	a.done(r)
}

// giveUp ends a request without its answer.
func (a *asking) giveUp() {
	if a.over {
		return
	}
	a.over = true
	if a.memory != nil {
		a.memory.users++
	}
	a.end()
	a.r.Status = wire.StatusLost
	a.done(a.r)
}

func (a *asking) end() {
	i := slices.Index(a.c.asks, a)
	if i < 0 {
		return
	}
	last := len(a.c.asks) - 1
	a.c.asks[i] = a.c.asks[last]
	a.c.asks[last] = nil
	a.c.asks = a.c.asks[:last]
	if a.changes {
		a.c.v.mutationEnded(a.period)
	}
}
