package engine

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// record is a volume's access to its own record; it implements volume.Metadata. Updates
// run one after the other, on a goroutine that lives while there are any.
type record struct {
	e  *Engine
	s  *shard
	id string

	mu      sync.Mutex
	queue   []update
	running bool
}

type update struct {
	mutate func(*spec.Volume) error
	done   func(v spec.Volume, rev meta.Rev, err error)
}

// Update implements volume.Metadata. mutate is called on a goroutine of the engine.
func (r *record) Update(mutate func(*spec.Volume) error, done func(v spec.Volume, rev meta.Rev, err error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue = append(r.queue, update{mutate, done})
	if !r.running && r.e.begin() {
		r.running = true
		go r.run()
	}
}

func (r *record) run() {
	defer r.e.end()
	for {
		r.mu.Lock()
		if len(r.queue) == 0 {
			r.running = false
			r.mu.Unlock()
			return
		}
		u := r.queue[0]
		r.queue = r.queue[1:]
		r.mu.Unlock()
		v, err := r.e.updateVolume(r.e.ctx, r.id, u.mutate)
		if err != nil && r.e.ctx.Err() != nil {
			// The engine ends, which is no answer: a coordinator that took it for one would fail the requests that are for
			// the next engine to answer.
			continue
		}
		r.s.loop.Post(func() { u.done(v.Value, v.Rev, err) })
	}
}

// updateVolume reads a volume's record, has mutate change it, and writes it if nobody else did
// meanwhile; otherwise it begins again. While the store can't be reached it tries
// again until ctx ends. mutate must bear to find its change made already, as the outcome of a
// write may have been unknown. An error of mutate ends it.
func (e *Engine) updateVolume(ctx context.Context, id string, mutate func(*spec.Volume) error) (meta.Versioned[spec.Volume], error) {
	pause := 20 * time.Millisecond
	for {
		rec, err := e.cfg.Store.Volume(ctx, id)
		switch {
		case err == nil && rec.Value.Unproven != nil:
			err = fmt.Errorf("volume %q: %w", rec.Value.Name, ErrUnproven)
		case errors.Is(err, meta.ErrNotFound) && e.awaitsProof(ctx):
			err = fmt.Errorf("volume %s: %w", id, ErrUnproven)
		}
		if err == nil {
			if err := mutate(&rec.Value); err != nil {
				return rec, err
			}
			rec.Rev, err = e.cfg.Store.PutVolume(ctx, rec.Value, rec.Rev, meta.Cond{})
			if err == nil {
				return rec, nil
			}
			if errors.Is(err, meta.ErrConflict) {
				continue
			}
		}
		if ctx.Err() != nil || errors.Is(err, meta.ErrNotFound) {
			return rec, err
		}
		if pause > time.Second {
			e.log.Warn("the record of a volume can't be changed; trying again", "volume", id, "err", err)
		}
		select {
		case <-ctx.Done():
			return rec, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}
