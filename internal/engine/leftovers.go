package engine

import (
	"errors"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// removeLeftovers removes the replicas that the pool's record names as left when their volumes were deleted while this
// node was away. That no record knows a volume isn't enough to remove what it has here: the metadata may have been
// restored from before it was made.
func (e *Engine) removeLeftovers(id string, list []found) {
	p, ok := e.poolRecord(id)
	if !ok {
		return
	}
	var gone []string
	for _, replica := range p.Value.Leftovers {
		i := slices.IndexFunc(list, func(f found) bool { return f.id.String() == replica })
		if i < 0 {
			gone = append(gone, replica)
			continue
		}
		if f := list[i]; !errors.Is(f.err, errForeign) {
			s := e.shardOf(f.desc.Volume)
			s.loop.Post(func() { s.removeLeftover(f.id) })
		}
	}
	e.clearLeftovers(id, gone)
}

// poolRecord reads the record of a pool, for as long as the engine lives. It is false if there is none.
func (e *Engine) poolRecord(id string) (p meta.Versioned[spec.Pool], ok bool) {
	pause := 100 * time.Millisecond
	for {
		p, err := e.cfg.Store.Pool(e.ctx, id)
		if err == nil || errors.Is(err, meta.ErrNotFound) {
			return p, err == nil
		}
		select {
		case <-e.ctx.Done():
			return p, false
		case <-time.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// clearLeftovers takes replicas that are gone out of the pool's record. If that fails it is done when the pool is next taken
// into service.
func (e *Engine) clearLeftovers(id string, gone []string) {
	for len(gone) > 0 {
		p, ok := e.poolRecord(id)
		if !ok {
			return
		}
		n := len(p.Value.Leftovers)
		p.Value.Leftovers = slices.DeleteFunc(slices.Clone(p.Value.Leftovers), func(r string) bool { return slices.Contains(gone, r) })
		if len(p.Value.Leftovers) == n {
			return
		}
		if _, err := e.cfg.Store.PutPool(e.ctx, p.Value, p.Rev); !errors.Is(err, meta.ErrConflict) {
			return
		}
	}
}
