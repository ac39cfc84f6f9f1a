package volume

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// column is one replica set: the protocol's state, and the effects that it asks for.
type column struct {
	v     *Volume
	idx   int
	size  int64
	rc    *repl.Column
	lock  repl.RangeLock
	links [repl.MaxMembers]Link
	unsub [repl.MaxMembers]func()
	ids   [repl.MaxMembers]wire.ReplicaID

	change *repl.Change // waits for, or is in, a transaction

	// unreconciled has the chunks that were being written when the last coordinator stopped, and the
	// operations that wait for each. Invariant: no operation on such a chunk is begun.
	unreconciled   map[int64]*parked
	reconcileOrder []int64
	reconciling    int
	reconciled     bool
	// stalled reads wait for a member that can be asked; unconfirmed ones were read and wait for
	// members to confirm the term.
	stalled     []*op
	unconfirmed []*op
	confirming  bool
	// reading are the reads that a member has, and asks the requests of the coordinator's own; each has its place.
	reading []*op
	asks    []*asking
	// fetches wait for a member that may have an intact copy, and can't be asked now.
	fetches []func()
	resyncs [repl.MaxMembers]*resync
	// unreadable are blocks that keep members from catching up because no disk can read them, and since when.
	unreadable map[place]time.Duration

	// dirty has a bit for every chunk that was changed since the last checkpoint.
	dirty      []uint64
	dirtyCount int
}

func newColumn(v *Volume, idx int, rec spec.Column, prev repl.Prev) *column {
	c := &column{v: v, idx: idx, size: spec.ColumnSize(v.size, v.rec.Columns), unreconciled: map[int64]*parked{}}
	c.dirty = make([]uint64, (block.Chunks(c.size)+63)/64)
	c.rc = repl.New(repl.Config{
		Term: v.term, Prev: prev, Fenced: v.rec.State.Fenced, Members: rec.Members, Replicas: v.rec.Replicas,
		Alive: v.cfg.Alive, AcceptLoss: v.cfg.AcceptLoss,
	}, c)
	return c
}

func (c *column) start() {
	c.linkMembers()
	c.rc.Start(c.v.loop.Now())
}

// linkMembers connects the members that have no link yet, and lets go of those that left.
func (c *column) linkMembers() {
	for m := range c.links {
		mb := c.rc.Member(m)
		if mb == nil {
			c.unlink(m)
			continue
		}
		if c.links[m] != nil {
			continue
		}
		id, err := strconv.ParseUint(mb.Replica, 16, 64)
		if err != nil {
			c.log(m).Error("the record names a replica that isn't 16 hex digits", "error", err)
			continue
		}
		c.ids[m] = wire.ReplicaID(id)
		l := c.v.cfg.Members(c.record(mb.Replica))
		c.links[m] = l
		c.unsub[m] = l.Subscribe(func(up bool) { c.linkChanged(m, up) })
		if l.Up() {
			c.rc.LinkUp(m, c.v.loop.Now())
		} else {
			c.rc.LinkDown(m, c.v.loop.Now())
		}
	}
}

// record returns the newest record of a member.
func (c *column) record(replica string) spec.Member {
	for _, m := range c.v.rec.State.Columns[c.idx].Members {
		if m.Replica == replica {
			return m
		}
	}
	return spec.Member{Replica: replica}
}

func (c *column) unlink(m int) {
	if c.unsub[m] != nil {
		c.unsub[m]()
	}
	c.links[m], c.unsub[m] = nil, nil
}

// abandon lets go of everything when the attachment ends.
func (c *column) abandon() {
	for m := range c.links {
		if c.unsub[m] != nil {
			c.unsub[m]()
			c.unsub[m] = nil
		}
	}
	c.failWaiting()
}

func (c *column) linkChanged(m int, up bool) {
	if c.unsub[m] == nil {
		return
	}
	if up {
		c.rc.LinkUp(m, c.v.loop.Now())
	} else {
		c.rc.LinkDown(m, c.v.loop.Now())
	}
	c.v.armTick()
}

func (c *column) log(m int) *slog.Logger {
	l := c.v.log.With("column", c.idx)
	if mb := c.rc.Member(m); mb != nil {
		l = l.With("replica", mb.Replica, "node", mb.Node)
	}
	return l
}

func (c *column) update(members []spec.Member, replicas int) {
	if c.rc.UpdateMembers(members, replicas, c.v.loop.Now()) {
		c.linkMembers()
	}
}

func (c *column) needsTick() bool {
	return c.rc.NeedsTick() || len(c.stalled)+len(c.unconfirmed)+len(c.fetches)+len(c.unreconciled) > 0
}

func (c *column) onTick() {
	c.rc.Tick(c.v.loop.Now())
	if c.v.phase == lost {
		return
	}
	c.retryStalled()
	c.retryFetches()
	if len(c.unconfirmed) > 0 {
		c.confirm()
	}
	c.reconcileMore()
}

// The effects of package repl.

// Fence implements repl.Effects.
func (c *column) Fence(m int, session uint32, known uint64) {
	r := &wire.Request{Kind: wire.KindFence, Replica: c.ids[m], Term: c.v.term, Session: session, Period: known}
	r.Done = func(*wire.Request) { c.fenced(m, session, r) }
	c.links[m].Submit(r)
	c.v.watch.arm()
	c.v.armTick()
}

func (c *column) fenced(m int, session uint32, r *wire.Request) {
	var ans repl.FenceAnswer
	res := result(r.Status)
	if f := r.Fence; res == repl.OK && f == nil {
		res = repl.Failed
	} else if res == repl.OK {
		if f.Size < c.size { // larger ones are about to be served as large
			c.log(m).Error("the replica is smaller than its column", "size", f.Size, "want", c.size)
			res = repl.Failed
		}
		ans = repl.FenceAnswer{Run: f.Run, PrevFence: f.PrevFence, Checkpoint: f.Checkpoint,
			SinceConfirm: f.SinceConfirm, Exact: f.Exact, AllChunks: f.AllChunks}
		ans.Journal = make([]repl.Touched, len(f.Journal))
		for i, e := range f.Journal {
			ans.Journal[i] = repl.Touched(e)
		}
	}
	c.rc.FenceDone(m, session, res, ans, c.v.loop.Now())
	c.retryStalled()
	c.v.armTick()
}

// Send implements repl.Effects.
func (c *column) Send(m int, o *repl.Op, session uint32) { o.Ctx.(*op).send(m, session) }

// Complete implements repl.Effects.
func (c *column) Complete(o *repl.Op) { o.Ctx.(*op).complete() }

// Flush implements repl.Effects.
func (c *column) Flush(p repl.Purpose, mask uint32) {
	o := c.v.getOp(c)
	o.kind = wire.KindFlush
	o.then = func(bool) {}
	c.v.watch.arm()
	c.rc.BeginFlush(&o.Op, p, mask, c.v.loop.Now())
}

// Commit implements repl.Effects.
func (c *column) Commit(change repl.Change) {
	c.change = &change
	c.v.runCommits()
}

// Serve implements repl.Effects.
func (c *column) Serve() {
	c.beginReconcile()
	c.v.served()
}

// CatchUp implements repl.Effects.
func (c *column) CatchUp(m int) { c.beginResync(m) }

// Dropped implements repl.Effects.
func (c *column) Dropped(m int) {
	if r := c.resyncs[m]; r != nil {
		c.resyncs[m] = nil
		r.stopped = true
	}
	c.log(m).Warn("replica is out of the in-sync set")
}

// Stop implements repl.Effects.
func (c *column) Stop(err error) { c.v.lose(err) }

// runCommits makes one transaction of the changes that columns wait for.
func (v *Volume) runCommits() {
	if v.committing {
		return
	}
	type part struct {
		col    *column
		idx    int
		change repl.Change
	}
	var parts []part
	attach := false
	for _, c := range v.columns {
		if c.change == nil {
			if v.phase == attaching {
				return // the attach transaction is one for all columns
			}
			continue
		}
		attach = attach || c.change.Attach
		parts = append(parts, part{c, c.idx, *c.change})
	}
	if len(parts) == 0 {
		return
	}
	v.committing = true
	term, self, now := v.term, v.cfg.Self, v.cfg.Wall().UTC()
	small := make([][]repl.MemberChange, len(parts)) // left out, as the volume has grown meanwhile
	v.cfg.Meta.Update(func(rec *spec.Volume) error {
		if rec.State.Term != term || rec.State.Node != self {
			return repl.ErrLost
		}
		for i, p := range parts {
			small[i] = fits(rec, p.idx, &p.change)
			for _, mc := range p.change.Members {
				setMember(rec.State.Columns[p.idx].Members, mc, now)
			}
			if !anyInSync(rec.State.Columns[p.idx].Members) {
				return fmt.Errorf("column %d would be left without an in-sync replica", p.idx)
			}
		}
		if attach {
			rec.State.Fenced = term
		}
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		v.committing = false
		if err == nil && rev > v.rev {
			v.rec, v.rev = rec, rev
		}
		for _, p := range parts {
			p.col.change = nil
		}
		for i, p := range parts {
			for _, mc := range small[i] {
				if err == nil {
					p.col.rc.Unrecorded(mc.Replica)
				}
			}
			for _, mc := range p.change.Members {
				if err == nil && !slices.ContainsFunc(rec.State.Columns[p.idx].Members, func(m spec.Member) bool { return m.Replica == mc.Replica }) {
					p.col.rc.Unrecorded(mc.Replica)
				}
			}
			p.col.rc.Committed(err, v.loop.Now())
			for _, mc := range small[i] {
				if slot := p.col.rc.Slot(mc.Replica); slot >= 0 {
					p.col.rc.TooSmall(slot, v.loop.Now())
				}
			}
		}
		v.runCommits()
		v.membersChanged()
		v.armTick()
		v.drained()
	})
}

func anyInSync(members []spec.Member) bool {
	for _, m := range members {
		if m.State == spec.InSync {
			return true
		}
	}
	return false
}

func setMember(members []spec.Member, mc repl.MemberChange, now time.Time) {
	for i := range members {
		m := &members[i]
		if m.Replica != mc.Replica {
			continue
		}
		if m.State != mc.State {
			m.Since = now
		}
		m.State, m.Run = mc.State, mc.Run
	}
}
