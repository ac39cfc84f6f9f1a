package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
)

// Detach ends a volume's attachment to this node: the device goes away, everything is made durable on all
// in-sync replicas, and any node may attach the volume. While the device is in use it answers
// with frontend.ErrBusy and changes nothing.
func (e *Engine) Detach(ctx context.Context, volumeID string) error {
	if err := e.waitOpen(ctx, volumeID); err != nil {
		return err
	}
	e.stopKeyWait(volumeID)
	unlock, err := e.lock(ctx, volumeID)
	if err != nil {
		return err
	}
	defer unlock()
	a := e.attachment(volumeID)
	if a == nil {
		return e.giveUp(ctx, volumeID)
	}
	if !closed(a.serves) {
		// It never served: there is nothing to make durable, but members may have been fenced.
		if err := e.stopServing(a); err != nil {
			return err
		}
		return e.giveUp(ctx, volumeID)
	}
	select {
	case <-a.ready:
	case <-ctx.Done():
		return fmt.Errorf("volume %q: waiting for its device: %w", a.name, ctx.Err())
	case <-e.ctx.Done():
		return ErrClosed
	}
	if a.fe != nil {
		if err := a.fe.Detach(); err != nil {
			return err
		}
	}
	return e.detach(ctx, a)
}

// detach ends an attachment that has no frontend any more, or waits for that if it has begun already.
func (e *Engine) detach(ctx context.Context, a *attachment) error {
	if !a.leaving.Swap(true) {
		a.s.loop.Post(func() {
			a.device.Detach(func(err error) {
				if err == nil {
					e.forget(a)
					a.end(errDetached)
				}
				// Otherwise it is lost, and ends so.
			})
		})
	}
	select {
	case <-a.gone:
		if !errors.Is(a.lostErr, errDetached) {
			return fmt.Errorf("volume %q: detaching: %w", a.name, a.lostErr)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %q is being detached in the background; so far: %s: %w", a.name, a.condition(), ctx.Err())
	case <-e.ctx.Done():
		return ErrClosed
	}
}

// errDetached is why a cleanly detached volume doesn't serve any more.
var errDetached = errors.New("detached")

func (e *Engine) forget(a *attachment) {
	e.mu.Lock()
	if e.attached[a.id] == a {
		delete(e.attached, a.id)
	}
	delete(e.lost, a.id)
	e.mu.Unlock()
}

// stopServing ends an attachment without making anything durable, and without changing the record.
func (e *Engine) stopServing(a *attachment) error {
	e.forget(a)
	a.s.loop.Post(func() {
		if a.device != nil {
			a.device.Stop()
		}
		a.end(errDetached)
	})
	<-a.gone
	<-a.ready
	if a.fe != nil {
		if err := a.fe.Close(); err != nil {
			return fmt.Errorf("volume %q: taking its device away: %w", a.name, err)
		}
	}
	return nil
}

// giveUp lets any node take a volume that is recorded as attached here and isn't served.
func (e *Engine) giveUp(ctx context.Context, volumeID string) error {
	e.mu.Lock()
	delete(e.lost, volumeID)
	e.mu.Unlock()
	rec, err := e.updateVolume(ctx, volumeID, func(v *spec.Volume) error {
		if v.State.Node != e.cfg.Node {
			return fmt.Errorf("volume %q: %w", v.Name, ErrNotAttached)
		}
		// Not detached: that would say that everything is durable.
		v.State.Frontend = spec.FrontendNone
		return nil
	})
	if err != nil {
		return err
	}
	e.log.Info("volume given up before it served; any node may attach it", "volume", rec.Value.Name, "term", rec.Value.State.Term)
	return nil
}

// released ends an attachment without a frontend once all members are in sync and no scrub runs. Called on the loop.
func (e *Engine) released(v spec.Volume) {
	a := e.attachment(v.ID)
	if a == nil || a.frontend != spec.FrontendNone || !closed(a.serves) || v.State.Term != a.term {
		return
	}
	if v.Scrub.Running() || v.SnapshotWork() {
		return
	}
	for _, m := range allMembers(&v) {
		if m.State != spec.InSync {
			return
		}
	}
	e.spawn(func() {
		if err := e.release(a); err != nil && !errors.Is(err, volume.ErrAttaching) && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrNotAttached) {
			e.log.Warn("volume stays attached after its rebuild", "volume", v.Name, "term", v.State.Term, "err", err)
		}
	})
}

// release detaches what has no frontend, unless another attachment has taken its place meanwhile: that is somebody's.
func (e *Engine) release(a *attachment) error {
	unlock, err := e.lock(e.ctx, a.id)
	if err != nil {
		return err
	}
	defer unlock()
	if e.attachment(a.id) != a {
		return nil
	}
	return e.detach(e.ctx, a)
}

// abandon stops serving a volume that is being deleted. Called on the loop.
func (e *Engine) abandon(volumeID string) {
	e.spawn(func() {
		unlock, err := e.lock(e.ctx, volumeID)
		if err != nil {
			return
		}
		defer unlock()
		if a := e.attachment(volumeID); a != nil {
			if err := e.stopServing(a); err != nil {
				e.log.Error("volume that is being deleted can't be stopped", "volume", a.name, "err", err)
			}
			a.s.loop.Post(func() { a.s.reviewRecord(volumeID) })
		}
	})
}

// attachAgain takes over the volumes that the metadata says are attached to this node: a dead engine of it
// served them, or none.
func (e *Engine) attachAgain() {
	e.view.mu.RLock()
	var list []spec.Volume
	for _, v := range e.view.volumes {
		if v.Value.State.Node == e.cfg.Node && !v.Value.Deleting {
			list = append(list, v.Value)
		}
	}
	e.view.mu.RUnlock()
	here := make(map[string]bool)
	for _, v := range list {
		here[v.ID] = true
	}
	for name, open := range e.cfg.Frontends {
		if e.awaitsProof(e.ctx) {
			break // what is attached isn't known for sure
		}
		// Another node may have taken a volume since it was decided what to keep for this engine.
		if _, err := open(e.ctx, FrontendParams{Discard: true, Spare: here, Log: e.log}); err != nil {
			e.log.Error("devices of volumes that aren't attached here any more can't be taken away", "frontend", name, "err", err)
		}
	}
	for _, v := range list {
		unlock, err := e.lock(e.ctx, v.ID)
		if err != nil {
			return
		}
		e.spawn(func() {
			defer unlock()
			e.takeOver(v)
		})
	}
}

func (e *Engine) takeOver(v spec.Volume) {
	name := v.State.Frontend
	if _, ok := e.cfg.Frontends[name]; !ok && name != spec.FrontendNone {
		e.log.Error("volume was attached with a frontend that this engine doesn't have", "volume", v.Name, "term", v.State.Term, "frontend", name)
		return
	}
	key, err := e.awaitKey(e.ctx, &v, name)
	if err == nil {
		err = e.followTerm(v, AttachOptions{Frontend: name, key: key})
	}
	if err != nil && e.ctx.Err() == nil {
		e.log.Error("volume that was attached to this node can't be attached again", "volume", v.Name, "term", v.State.Term, "err", err)
		e.mu.Lock()
		e.lost[v.ID] = err.Error()
		e.mu.Unlock()
		err = nil
		if open := e.cfg.Frontends[name]; open != nil {
			_, err = open(e.ctx, FrontendParams{Name: v.Name, Volume: v.ID, Discard: true, Log: e.log})
		}
		if err != nil {
			e.log.Error("the device of the engine before can't be taken away", "volume", v.Name, "err", err)
		}
	}
}

// followTerm takes the term after that of a dead engine, as soon as the metadata can be had. It gives the key up if it can't.
func (e *Engine) followTerm(v spec.Volume, o AttachOptions) error {
	pause := 50 * time.Millisecond
	var again takeover
	for {
		_, err := e.takeTerm(e.ctx, v.ID, o, &again)
		if err == nil {
			return nil
		}
		if !errors.Is(err, meta.ErrUnavailable) {
			o.key.forget()
			return err
		}
		e.log.Warn("volume that was attached to this node waits for the metadata", "volume", v.Name, "err", err)
		select {
		case <-e.ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// suspend ends an attachment because the engine ends: the next one takes it over.
func (a *attachment) suspend() {
	defer a.suspended.Store(true)
	<-a.ready
	if a.fe != nil {
		var err error
		if h, ok := a.fe.(suspender); ok {
			err = h.Suspend()
		} else {
			err = a.fe.Close()
		}
		if err != nil {
			a.e.log.Error("device wasn't suspended cleanly", "volume", a.name, "term", a.term, "err", err)
		}
	}
}

// suspender is a frontend whose device outlives the engine: Suspend stops serving it, answers nothing that is in
// flight any more, and leaves the device to the next engine.
type suspender interface{ Suspend() error }

// outlives says whether the device of an attachment that is ready outlives the engine.
func (a *attachment) outlives() bool {
	_, ok := a.fe.(suspender)
	return ok
}
