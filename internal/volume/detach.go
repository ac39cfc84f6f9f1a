package volume

import (
	"errors"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// ErrAttaching is returned by Detach while the volume doesn't serve yet.
var ErrAttaching = errors.New("the volume is still being attached: see its condition, and try again")

// Detach ends the attachment cleanly: no further request is taken, those in flight end, everything is made
// durable on all in-sync members, and the record says so. done is called later.
func (v *Volume) Detach(done func(error)) {
	later := func(err error) { v.loop.Post(func() { done(err) }) }
	switch v.phase {
	case attaching:
		later(ErrAttaching)
	case lost:
		later(v.lostErr)
	case detached:
		later(nil)
	case detaching:
		later(errors.New("the volume is being detached already"))
	case serving:
		v.phase = detaching
		v.detach = done
		v.limits.release()
		for _, c := range v.columns {
			c.rc.Close(v.loop.Now())
		}
		v.loop.Post(v.drained)
	}
}

// drained goes on with a detachment when nothing is under way any more.
func (v *Volume) drained() {
	if v.phase != detaching || v.detach == nil || v.inFlight > 0 || v.ckpt.state != ckptIdle || v.snaps.busy || v.releasing {
		return
	}
	for _, c := range v.columns {
		if !c.rc.Settled() || len(c.unreconciled) > 0 || !c.lock.Idle() {
			v.armTick()
			return
		}
	}
	v.releasing = true
	if invariant.Mutant("detach-without-checkpoint") {
		v.release()
		return
	}
	v.ckpt.then = append(v.ckpt.then, func(ok bool) {
		if !ok {
			v.releasing = false // the tick tries again
			v.armTick()
			return
		}
		v.release()
	})
	if !v.ckpt.begin() {
		v.releasing = false
		v.ckpt.then = nil
	}
}

// release records that nobody holds the volume, and that every in-sync member has everything on disk.
func (v *Volume) release() {
	term, self, now := v.term, v.cfg.Self, v.cfg.Wall().UTC()
	scrub := v.scrub.snapshot(false)
	v.cfg.Meta.Update(func(rec *spec.Volume) error {
		if rec.State.Term == term && rec.State.Node == "" {
			return nil // done already, by an attempt whose outcome wasn't known
		}
		if rec.State.Term != term || rec.State.Node != self {
			return repl.ErrLost
		}
		rec.State.Node, rec.State.Frontend = "", ""
		scrub(rec)
		for i := range rec.State.Columns {
			for j := range rec.State.Columns[i].Members {
				m := &rec.State.Columns[i].Members[j]
				m.Run = ""
				if m.State == spec.Syncing {
					m.State, m.Since = spec.Stale, now
				}
			}
		}
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		if v.phase != detaching {
			return
		}
		if err != nil {
			v.lose(err)
			return
		}
		v.phase, v.rec, v.rev = detached, rec, rev
		for _, c := range v.columns {
			c.rc.Stop(nil)
			c.abandon()
		}
		v.tick.Stop()
		v.ckpt.timer.Stop()
		v.scrub.timer.Stop()
		v.snaps.stop()
		v.log.Info("volume detached")
		done := v.detach
		v.detach = nil
		done(nil)
	})
}
