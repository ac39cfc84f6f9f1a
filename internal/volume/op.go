package volume

import (
	"syscall"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// call is a frontend's request on its way: one piece for each column and stripe that it touches.
type call struct {
	v      *Volume
	req    *block.Request
	next   *call
	left   int   // pieces under way, and one while more are to be cut
	cursor int64 // how far the request has been cut into pieces
	err    error
	// cutting: further pieces are cut when others end.
	cutting bool
	// lent is the request's memory, if members still use it that are no longer waited for; apart are the pieces of a
	// read that came in memory of their own since.
	lent  *lent
	apart *op
	// held are pieces that have ended, and covers, whose ranges stay locked until the request is answered.
	held *op
}

// op is one piece of a request on one column, or an internal operation of the column. It's reused.
type op struct {
	repl.Op
	v    *Volume
	col  *column
	call *call // nil for internal operations
	next *op
	rng  repl.Range
	// cover: the op only holds the range of a large request, of which the ops that are covered are pieces.
	cover   *cover
	covered bool

	kind   wire.Kind
	fua    bool
	list   []uint64 // of a KindSnaps
	off    int64
	n      int64
	pos    int64 // of the piece in the request
	data   []byte
	period uint64
	err    error
	then   func(failed bool) // of internal operations
	// Of reads: when the member was asked, and whether the range was locked anew for a repair.
	asked     time.Duration
	repairing bool
	// The member that a read is at, and the read's place among those of its column; -1 if it is at none.
	at, place int
	// left are the members that have the operation still, although it was ended without them. Invariant: until they
	// have answered neither it nor memory, which is what it lent them, is used again.
	left   uint32
	unused bool // it was given back meanwhile
	memory *lent
	own    bool // of a piece of a read: data is its own

	sums [block.MaxBlocks]uint64
	reqs [repl.MaxMembers]memberReq
}

// memberReq is the question to one member that an op becomes.
type memberReq struct {
	wire.Request
	op      *op
	m       int
	session uint32
}

func (v *Volume) getCall() *call {
	c := v.calls
	if c == nil {
		return &call{v: v}
	}
	v.calls = c.next
	return c
}

func (v *Volume) getOp(col *column) *op {
	v.watch.arm()
	o := v.ops
	if o == nil {
		o = &op{v: v}
		o.Op.Ctx = o
		o.rng.Granted = func() { o.granted() }
		for m := range o.reqs {
			r := &o.reqs[m]
			r.op, r.m = o, m
			r.Done = func(*wire.Request) { r.op.answered(r) }
		}
	} else {
		v.ops = o.next
	}
	o.col, o.call, o.then, o.err, o.data, o.fua = col, nil, nil, nil, nil, false
	o.list = nil
	o.cover, o.covered = nil, false
	o.repairing, o.own, o.Slow = false, false, false
	o.at, o.place = 0, -1
	return o
}

func (v *Volume) putOp(o *op) {
	if o.unused = o.left != 0; o.unused {
		return
	}
	o.data, o.next = nil, v.ops
	v.ops = o
}

// begin cuts a request into pieces and starts them.
func (v *Volume) begin(r *block.Request) {
	c := v.getCall()
	c.req, c.left, c.cursor, c.err, c.cutting, c.held = r, 1, 0, nil, false, nil
	c.lent, c.apart = nil, nil
	v.inFlight++
	v.count(r)
	switch r.Op {
	case block.OpFlush:
		for _, col := range v.columns {
			o := v.getOp(col)
			o.kind, o.call = wire.KindFlush, c
			c.left++
			mask := col.rc.Required()
			if invariant.Mutant("flush-skips-member") && mask&(mask-1) != 0 {
				mask &= mask - 1
			}
			col.rc.Begin(&o.Op, mask, v.loop.Now())
		}
		c.cursor = r.Len
	case block.OpRead:
		for c.cursor < r.Len {
			v.piece(c)
		}
	default:
		if v.onePiece(r) {
			v.piece(c)
		} else {
			v.cover(c)
		}
	}
	v.pieceDone(c, nil)
}

func (v *Volume) count(r *block.Request) {
	switch r.Op {
	case block.OpRead:
		v.Stats.Reads++
		v.Stats.ReadBytes += uint64(r.Len)
	case block.OpWrite:
		v.Stats.Writes++
		v.Stats.WriteBytes += uint64(r.Len)
	case block.OpFlush:
		v.Stats.Flushes++
	default:
		v.Stats.Trims++
	}
}

// locate returns where byte off of the volume is, and how many bytes from there on are contiguous in that column.
func (v *Volume) locate(off int64) (col *column, colOff, n int64) {
	if len(v.columns) == 1 {
		return v.columns[0], off, v.size - off
	}
	stripe, in := off/spec.StripeUnit, off%spec.StripeUnit
	count := int64(len(v.columns))
	return v.columns[stripe%count], stripe/count*spec.StripeUnit + in, spec.StripeUnit - in
}

// piece cuts the next piece off a request and starts it.
func (v *Volume) piece(c *call) {
	r := c.req
	col, off, n := v.locate(r.Off + c.cursor)
	n = min(n, r.Len-c.cursor)
	o := v.getOp(col)
	switch r.Op {
	case block.OpRead:
		o.kind = wire.KindRead
	case block.OpWrite:
		o.kind = wire.KindWrite
	case block.OpTrim, block.OpZero:
		o.kind = wire.KindTrim
		if r.Op == block.OpZero {
			o.kind = wire.KindZero
		}
		n = min(n, block.ChunkSize-off%block.ChunkSize) // inside one chunk
	}
	o.off, o.n, o.pos, o.fua, o.call = off, n, c.cursor, r.FUA, c
	if r.Data != nil {
		o.data = r.Data[c.cursor : c.cursor+n]
	}
	o.covered = c.cutting
	c.cursor += n
	c.left++
	o.start()
}

// pieceDone is called for every piece that ends, and once when begin has cut what it may.
func (v *Volume) pieceDone(c *call, err error) {
	if err != nil && c.err == nil {
		c.err = err
	}
	for c.cutting && c.err == nil && c.cursor < c.req.Len && c.left <= trimWindow {
		v.piece(c)
	}
	if c.left--; c.left > 0 || !v.collect(c) {
		return
	}
	r, held := c.req, c.held
	c.req, c.held = nil, nil
	c.next, v.calls = v.calls, c
	v.inFlight--
	r.Err = c.err
	resent := r.Resent && r.Op.Changes()
	r.Done(r)
	v.unlockHeld(held)
	if resent {
		v.resentDone()
	}
	if v.phase == detaching {
		v.drained()
	}
}

// start takes the operation's range, once its chunks are reconciled.
func (o *op) start() {
	if o.v.phase == lost {
		o.end(syscall.EIO)
		return
	}
	if o.covered {
		o.granted()
		return
	}
	if len(o.col.unreconciled) > 0 && !invariant.Mutant("reconcile-too-late") && o.col.park(o) {
		return
	}
	if o.cover != nil {
		o.cover.ready()
		return
	}
	if o.col.lock.Lock(&o.rng, o.off, o.n, o.kind == wire.KindRead) {
		o.granted()
	}
}

// granted goes on with the range locked.
func (o *op) granted() {
	switch {
	case o.cover != nil:
		o.cover.locked()
	case o.v.phase == lost:
		o.endLocked(syscall.EIO)
	case o.repairing:
		o.fetch()
	case o.kind == wire.KindRead:
		o.read()
	default:
		o.mutate()
	}
}

// mutate sends a change of the data to everyone.
//
// Invariant: the range stays locked until every member has answered and the answer was handed to the frontend.
func (o *op) mutate() {
	v := o.v
	if v.snaps.holding {
		v.snaps.hold(o.granted)
		return
	}
	o.period = v.period
	v.mut++
	v.ckpt.dirtied(o.col, o.off, o.n)
	if o.kind == wire.KindWrite {
		block.SumAll(o.sums[:o.n/block.Size], o.data)
	}
	mask := o.col.rc.Everyone()
	switch {
	case invariant.Mutant("syncing-not-waited"):
		mask = o.plantedCopies()
	case invariant.Mutant("write-skips-member") && mask&(mask-1) != 0:
		mask &= mask - 1
	}
	o.col.rc.Begin(&o.Op, mask, v.loop.Now())
}

// send submits the operation to member m.
func (o *op) send(m int, session uint32) {
	r := &o.reqs[m]
	r.session = session
	r.Kind, r.FUA = o.kind, o.fua
	r.Replica, r.Term, r.Session = o.col.ids[m], o.v.term, session
	r.Period, r.Off, r.Len = o.period, o.off, o.n
	r.Data, r.Sums = o.data, o.list
	if o.kind == wire.KindWrite || o.kind == wire.KindRead {
		r.Sums = o.sums[:o.n/block.Size]
	}
	r.ResetAnswer()
	o.col.links[m].Submit(&r.Request)
}

// answered takes a member's answer.
func (o *op) answered(r *memberReq) {
	if o.left != 0 {
		o.late(r.m)
		return
	}
	if o.kind == wire.KindRead {
		o.readAnswered(r)
		return
	}
	c := o.col
	if r.Status != wire.StatusOK && r.Status != wire.StatusLost {
		c.log(r.m).Warn("replica refused", "kind", r.Kind, "status", r.Status, "off", r.Off)
	}
	c.rc.Done(r.m, &o.Op, r.session, result(r.Status), o.v.loop.Now())
	if r.Status != wire.StatusOK {
		o.v.armTick()
	}
}

// result translates a member's status for package repl.
func result(s wire.Status) repl.Result {
	switch s {
	case wire.StatusOK:
		return repl.OK
	case wire.StatusLost:
		return repl.Lost
	case wire.StatusFenced:
		return repl.Fenced
	case wire.StatusOldSession:
		return repl.OldSess
	case wire.StatusNoSpace:
		return repl.NoSpace
	}
	return repl.Failed
}

// complete ends an operation that every member has answered.
func (o *op) complete() {
	var err error
	if o.Failed {
		err = syscall.EIO
	}
	if m := o.Abandoned(); m != 0 {
		o.leave(m)
	}
	switch {
	case o.then != nil:
		then := o.then
		failed := o.Failed
		o.v.putOp(o)
		then(failed)
	case o.kind == wire.KindFlush:
		o.end(err)
	default:
		o.v.mutationEnded(o.period)
		o.endLocked(err)
	}
}

// end answers the piece, whose range isn't locked.
func (o *op) end(err error) {
	if o.cover != nil {
		o.cover.ready()
		return
	}
	v, c := o.v, o.call
	v.putOp(o)
	v.pieceDone(c, err)
}

// endLocked answers the piece. Its range stays locked until the answer to the whole request was handed to the frontend:
// what an engine that takes over executes again must not have been followed by another answered request. Reads
// may be executed again at any time.
func (o *op) endLocked(err error) {
	invariant.Check(o.call != nil, "an internal operation holds a range")
	v, col, c := o.v, o.col, o.call
	switch {
	case o.covered:
		v.putOp(o)
		v.pieceDone(c, err)
	case o.own:
		col.lock.Unlock(&o.rng)
		c.keepApart(o)
		v.pieceDone(c, err)
	case o.kind == wire.KindRead || invariant.Mutant("pieces-unlock"):
		v.pieceDone(c, err)
		col.lock.Unlock(&o.rng)
		v.putOp(o)
	case invariant.Mutant("unlock-before-answer"):
		length := o.n
		col.lock.Unlock(&o.rng)
		v.putOp(o)
		// Some later than those that come after them.
		v.loop.NewTimer(func() { v.pieceDone(c, err) }).Reset(time.Duration(length/block.Size%4) * 5 * time.Millisecond)
	default:
		c.hold(o)
		v.pieceDone(c, err)
	}
	if v.phase == detaching {
		v.drained()
	}
}

// mutationEnded keeps count of changes in flight by period.
func (v *Volume) mutationEnded(period uint64) {
	if period == v.period {
		v.mut--
		v.snaps.drained()
		return
	}
	v.oldMut--
	v.ckpt.advance()
}
