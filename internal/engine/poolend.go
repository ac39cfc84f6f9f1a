package engine

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrPoolInUse: replicas are in a pool that is to be taken out of service.
var ErrPoolInUse = errors.New("the pool still has replicas")

// poolPoll is how often it is looked whether the replicas of a pool are gone: their removal takes a while after their volumes
// don't name them any more.
const poolPoll = 100 * time.Millisecond

// RemovePool takes a pool out of service. It must have no replicas, and is waited for until ctx ends, as removals may be under
// way; with lost, those that it has are closed and forgotten, as its device is gone. A pool that isn't in service is no error.
func (e *Engine) RemovePool(ctx context.Context, id string, lost bool) error {
	e.mu.Lock()
	p := e.pools[id]
	e.mu.Unlock()
	if p == nil {
		return nil
	}
	for {
		left := 0
		for _, s := range e.shards {
			var n int
			if err := s.do(ctx, func() { n = s.replicasIn(p) }); err != nil {
				return fmt.Errorf("pool %s: %w", id, err)
			}
			left += n
		}
		if left == 0 || lost {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pool %s: %w: %d; drain it first: keelson pool drain %s", id, ErrPoolInUse, left, id)
		case <-time.After(poolPoll):
		}
	}
	for _, s := range e.shards {
		closed := make(chan struct{})
		if err := s.do(ctx, func() { s.poolRemoved(p, func() { close(closed) }) }); err != nil {
			return fmt.Errorf("pool %s: %w", id, err)
		}
		select {
		case <-closed:
		case <-ctx.Done():
			if !lost {
				return fmt.Errorf("pool %s: its replicas are being closed: %w", id, ctx.Err())
			}
			// The device doesn't answer; it is taken away underneath.
		}
	}
	e.mu.Lock()
	delete(e.pools, id)
	e.mu.Unlock()
	e.log.Info("pool out of service", "pool", id, "lost", lost)
	return nil
}

// replicasIn is how many replicas have, or may have, a directory in a pool.
func (s *shard) replicasIn(p *pool) (n int) {
	for _, r := range s.replicas {
		if r.pool == p && (r.onDisk || r.state != absent) {
			n++
		}
	}
	return n
}

// poolRemoved closes the replicas of a pool and forgets the pool; then is called, maybe inside this call.
func (s *shard) poolRemoved(p *pool, then func()) {
	delete(s.pools, p.id)
	left := 1
	done := func() {
		if left--; left == 0 {
			then()
		}
	}
	for _, r := range s.replicas {
		if r.pool != p {
			continue
		}
		left++
		r.close(func() {
			r.pool, r.onDisk, r.state, r.err = nil, false, absent, nil
			if len(r.subs) == 0 {
				delete(s.replicas, r.id)
			}
			done()
		})
	}
	done()
}
