package engine

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
)

// AttachOptions say how a volume is attached.
type AttachOptions struct {
	// Frontend is a name in Config.Frontends, or spec.FrontendNone for an attachment that only brings
	// replicas up to date, and ends when they are.
	Frontend string
	// AcceptLoss goes on with the replicas that can be reached although acknowledged writes may be missing
	// from them. A person's decision.
	AcceptLoss bool
	key        *dataKey
}

// Attached is an attachment that serves.
type Attached struct {
	Device string // path or URI for the host; "" without a frontend
	Term   uint64
}

// attachment is one term of a volume on this node.
//
//	attaching ──serves──▶ opening the frontend ──▶ ready ──Detach──▶ (gone)
//	    └──────lost───────────┴──────────────────────┴──▶ torn down, and why is kept in Engine.lost
type attachment struct {
	e        *Engine
	s        *shard
	id       string
	name     string
	term     uint64
	frontend string
	takeover bool
	readOnly bool
	device   coordinator // set on the loop, before serves, gone or ready is closed
	key      *dataKey
	sealed   *seal.Device // the device that encrypts, as device is set; nil if the volume isn't encrypted
	leaving  atomic.Bool  // its detaching has begun

	suspended atomic.Bool // its frontend left the device to the next engine, or has none

	serves chan struct{} // closed when the coordinator serves
	gone   chan struct{} // closed when the coordinator doesn't any more
	ready  chan struct{} // closed when fe and err are final

	// Written before ready is closed.
	fe  frontend.Frontend // nil without a frontend, or if err is set
	err error
	// Written before gone is closed.
	lostErr error
}

// coordinator is what an attachment needs of a *volume.Volume, and the frontend's device.
type coordinator interface {
	frontend.Device
	Detach(done func(error))
	Stop()
	Status() volume.Status
}

// Attach attaches a volume to this node, and returns when its device can be used. If ctx ends before that, the
// attaching goes on; Attach can be called again to wait for it, and Detach ends it.
func (e *Engine) Attach(ctx context.Context, volumeID string, o AttachOptions) (Attached, error) {
	if _, ok := e.cfg.Frontends[o.Frontend]; !ok && o.Frontend != spec.FrontendNone {
		return Attached{}, fmt.Errorf("%w: %q", ErrFrontend, o.Frontend)
	}
	if err := e.waitOpen(ctx, volumeID); err != nil {
		return Attached{}, err
	}
	if err := e.keyWait(volumeID); err != nil {
		return Attached{}, err
	}
	a, err := e.startAttach(ctx, volumeID, o)
	if err != nil {
		return Attached{}, err
	}
	at, err := a.wait(ctx)
	if err != nil && a.broken() {
		if derr := e.endBroken(ctx, a); derr != nil {
			err = fmt.Errorf("%w (and %w)", err, derr)
		}
	}
	return at, err
}

// startAttach returns the attachment that fits the options, begun by this call if need be.
func (e *Engine) startAttach(ctx context.Context, volumeID string, o AttachOptions) (*attachment, error) {
	unlock, err := e.lock(ctx, volumeID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	a, err := e.reuse(ctx, e.attachment(volumeID), o)
	if a != nil || err != nil {
		return a, err
	}
	rec, err := e.cfg.Store.Volume(ctx, volumeID)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", volumeID, err)
	}
	if o.key, err = e.openKey(ctx, &rec.Value, o.Frontend); err != nil {
		return nil, err
	}
	if a, err = e.takeTerm(ctx, volumeID, o, nil); err != nil {
		o.key.forget()
	}
	return a, err
}

// endBroken detaches a volume whose frontend couldn't be opened.
func (e *Engine) endBroken(ctx context.Context, a *attachment) error {
	unlock, err := e.lock(ctx, a.id)
	if err != nil {
		return err
	}
	defer unlock()
	if e.attachment(a.id) != a {
		return nil
	}
	return e.detach(ctx, a)
}

// reuse returns a if the options ask for it, and nil if there is none or it was ended to make place.
func (e *Engine) reuse(ctx context.Context, a *attachment, o AttachOptions) (*attachment, error) {
	switch {
	case a == nil:
		return nil, nil
	case a.leaving.Load():
		return nil, e.detach(ctx, a)
	case a.frontend == spec.FrontendNone && o.Frontend != spec.FrontendNone:
		// The attachment for a rebuild gives way; the new one goes on with it.
		return nil, e.stopServing(a)
	case a.frontend != o.Frontend:
		return nil, fmt.Errorf("volume %q: %w on this node with frontend %q: detach it first", a.name, ErrAttached, a.frontend)
	case o.AcceptLoss && !closed(a.serves):
		return nil, e.stopServing(a)
	case a.broken():
		return nil, e.detach(ctx, a)
	}
	return a, nil
}

// broken reports whether the coordinator serves, but its frontend couldn't be opened.
func (a *attachment) broken() bool {
	return closed(a.ready) && a.err != nil && closed(a.serves) && !closed(a.gone)
}

// takeover is the attempt to go on where a dead engine of this node stopped.
type takeover struct {
	// term is the one that was asked for by a transaction whose outcome isn't known; 0 if there is none. What the
	// kernel resends may be executed in the term after the dead engine's only, so it must not be skipped.
	term uint64
}

// takeTerm raises the volume's term for this node, and starts to serve it. again is nil unless a dead engine is
// followed.
func (e *Engine) takeTerm(ctx context.Context, volumeID string, o AttachOptions, again *takeover) (*attachment, error) {
	for {
		rec, err := e.cfg.Store.Volume(ctx, volumeID)
		if err != nil {
			return nil, fmt.Errorf("volume %s: %w", volumeID, err)
		}
		v := rec.Value
		if v.Unproven != nil {
			return nil, fmt.Errorf("volume %q: %w", v.Name, ErrUnproven)
		}
		if v.Deleting {
			return nil, fmt.Errorf("volume %q: %w", v.Name, ErrDeleting)
		}
		if err := attachable(&v, o.Frontend); err != nil && again == nil {
			return nil, err
		}
		prev, cond := repl.PrevOther, meta.Cond{}
		holder := v.State.Node
		switch {
		case again != nil && holder == e.cfg.Node && v.State.Term == again.term:
			return e.serve(v, rec.Rev, repl.PrevOwnDead, o, true) // nobody but this engine writes that
		case holder == e.cfg.Node:
			// This engine doesn't serve it, and there is only one engine: whichever served it is dead.
			prev = repl.PrevOwnDead
		case again != nil:
			return nil, fmt.Errorf("volume %q: %w: node %q has it", v.Name, ErrLost, holder)
		case holder == "":
			prev = repl.PrevDetached
		case v.State.Frontend != spec.FrontendNone:
			cond.NodeGone = holder
		}
		if open := e.cfg.Frontends[o.Frontend]; again != nil && open != nil {
			if _, err := open(ctx, FrontendParams{Prepare: true, Name: v.Name, Volume: v.ID, Term: v.State.Term, Log: e.log}); err != nil {
				return nil, err
			}
		}
		v.State.Term++
		v.State.Node, v.State.Frontend = e.cfg.Node, o.Frontend
		rev, err := e.cfg.Store.PutVolume(ctx, v, rec.Rev, cond)
		switch {
		case err == nil:
			return e.serve(v, rev, prev, o, again != nil)
		case !errors.Is(err, meta.ErrConflict):
			if again != nil {
				again.term = v.State.Term
			}
			return nil, fmt.Errorf("volume %q: %w", v.Name, err)
		case cond.NodeGone != "":
			now, rerr := e.cfg.Store.Volume(ctx, volumeID)
			if rerr == nil && now.Rev == rec.Rev {
				return nil, fmt.Errorf("volume %q: %w on node %q: detach it there, or wait until that node is gone", v.Name, ErrAttached, holder)
			}
		}
	}
}

// serve starts the coordinator of a term that was taken.
func (e *Engine) serve(v spec.Volume, rev meta.Rev, prev repl.Prev, o AttachOptions, again bool) (*attachment, error) {
	a := &attachment{
		e: e, s: e.shardOf(v.ID), id: v.ID, name: v.Name, term: v.State.Term, frontend: o.Frontend, takeover: again, readOnly: v.ReadOnly != nil, key: o.key,
		serves: make(chan struct{}), gone: make(chan struct{}), ready: make(chan struct{}),
	}
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		return nil, ErrClosed
	}
	e.attached[v.ID] = a
	delete(e.lost, v.ID)
	e.work.Add(1)
	e.mu.Unlock()
	a.s.loop.Post(func() { a.start(v, rev, prev, o) })
	go func() {
		defer e.end()
		a.show()
	}()
	return a, nil
}

// start makes the coordinator, on the loop.
func (a *attachment) start(v spec.Volume, rev meta.Rev, prev repl.Prev, o AttachOptions) {
	s := a.s
	if s.stopped {
		a.end(ErrClosed)
		return
	}
	settings := a.e.view.settings()
	vol := volume.Attach(volume.Config{
		Loop: s.loop, Log: s.log, Volume: v, Rev: rev, Self: a.e.cfg.Node, Prev: prev, AcceptLoss: o.AcceptLoss,
		Meta:             &record{e: a.e, s: s, id: v.ID},
		Members:          func(m spec.Member) volume.Link { return s.link(v.ID, m) },
		Alive:            func(node string) bool { return node == a.e.cfg.Node || a.e.view.isAlive(node) },
		RebuildBandwidth: settings.RebuildBandwidth,
		AnswerLimit:      settings.AnswerLimit,
		ScrubTake:        func(n int64) time.Duration { return a.e.scrubs.take(a.e.view.settings().ScrubBandwidth, n) },
		Event:            a.e.event,
		Resized:          a.resized,
		Ready: func() {
			close(a.serves)
			if rec, ok := s.records[v.ID]; ok {
				a.e.released(rec.Value)
			}
		},
		Lost: a.end,
	})
	a.device = vol
	if a.key != nil {
		a.sealed = a.key.seal(vol, s.loop.Post)
	}
	s.volumes[v.ID] = vol
	vol.SetGroups(a.e.view.groups())
	if rec, ok := s.records[v.ID]; ok {
		vol.Update(rec.Value, rec.Rev)
	}
}

// end notes, on the loop, that the coordinator doesn't serve any more.
func (a *attachment) end(reason error) {
	if closed(a.gone) {
		return
	}
	a.lostErr = reason
	if a.device != nil {
		a.e.retire(a.device.Status().Stats)
		if a.s.volumes[a.id] == a.device {
			delete(a.s.volumes, a.id)
		}
	}
	if a.sealed != nil {
		a.sealed.Close()
	}
	close(a.gone)
}

// show opens the frontend when the coordinator serves, and takes it down by force if it is lost.
func (a *attachment) show() {
	if a.takeover {
		// What the kernel resends waits in the coordinator until it serves.
		a.err = a.s.do(a.e.ctx, func() {})
		if a.err == nil && closed(a.gone) {
			a.err = a.lostErr
		}
	} else {
		select {
		case <-a.serves:
		case <-a.gone:
			a.err = fmt.Errorf("volume %q: %w", a.name, a.lostErr)
		case <-a.e.ctx.Done():
			a.err = ErrClosed
		}
	}
	if a.err == nil && a.frontend != spec.FrontendNone {
		a.fe, a.err = a.e.cfg.Frontends[a.frontend](a.e.ctx, FrontendParams{
			Loop: a.s.loop, Device: a.shown(), Name: a.name, Volume: a.id, ReadOnly: a.readOnly, Term: a.term, Takeover: a.takeover, Log: a.e.log,
		})
	}
	close(a.ready)
	if a.takeover {
		a.resized() // the engine before may have died between the volume's growth and the device's
	}
	if a.err != nil && !closed(a.gone) {
		a.e.log.Error("volume can't be shown to this node", "volume", a.name, "term", a.term, "frontend", a.frontend, "err", a.err)
	}
	select {
	case <-a.gone:
		a.tearDown()
		a.key.drop()
	case <-a.e.ctx.Done():
	}
}

// shown is the device for the frontend, once device is set.
func (a *attachment) shown() frontend.Device {
	if a.sealed != nil {
		return a.sealed
	}
	return a.device
}

// tearDown takes away what a lost volume left, so that nothing on this node hangs on it.
func (a *attachment) tearDown() {
	e := a.e
	e.mu.Lock()
	mine := e.attached[a.id] == a
	if mine {
		delete(e.attached, a.id)
		if a.frontend != spec.FrontendNone {
			e.lost[a.id] = a.lostErr.Error()
		}
	}
	e.mu.Unlock()
	if !mine {
		return // detached, or stopped by this engine
	}
	e.log.Warn("volume lost; its device is taken away", "volume", a.name, "term", a.term, "err", a.lostErr)
	if a.fe != nil {
		if err := a.fe.Close(); err != nil {
			e.log.Error("the device of a lost volume can't be taken away", "volume", a.name, "term", a.term, "err", err)
		}
	}
}

// wait returns when the attachment's device can be used, or can't be made.
func (a *attachment) wait(ctx context.Context) (Attached, error) {
	select {
	case <-a.ready:
	case <-ctx.Done():
		return Attached{}, fmt.Errorf("volume %q is being attached in the background; so far: %s: %w", a.name, a.condition(), ctx.Err())
	case <-a.e.ctx.Done():
		return Attached{}, ErrClosed
	}
	if a.err != nil {
		return Attached{}, a.err
	}
	if a.takeover || a.frontend == spec.FrontendNone {
		select {
		case <-a.serves:
		case <-a.gone:
			return Attached{}, fmt.Errorf("volume %q: %w", a.name, a.lostErr)
		case <-ctx.Done():
			return Attached{}, fmt.Errorf("volume %q is being attached in the background; so far: %s: %w", a.name, a.condition(), ctx.Err())
		}
	}
	return Attached{Device: a.path(), Term: a.term}, nil
}

// path is the device, once ready.
func (a *attachment) path() string {
	if !closed(a.ready) || a.fe == nil || a.leaving.Load() {
		return ""
	}
	return a.fe.Path()
}

// condition says what the attachment waits for.
func (a *attachment) condition() string {
	if st, ok := a.status(); ok && st.Condition != "" {
		return st.Condition
	}
	if closed(a.serves) {
		return "its replicas serve, and its device is being made"
	}
	return "waiting for its replicas"
}

// status asks the coordinator, unless the engine is closing.
func (a *attachment) status() (st volume.Status, ok bool) {
	err := a.s.do(a.e.ctx, func() {
		if a.device != nil {
			st, ok = a.device.Status(), true
		}
	})
	return st, ok && err == nil
}

func (e *Engine) attachment(volumeID string) *attachment {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attached[volumeID]
}

func closed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
