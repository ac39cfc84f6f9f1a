package mem

import (
	"context"
	"maps"
	"slices"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// watcher is one call of Watch: what it hasn't handed on yet.
type watcher struct {
	queue []meta.Event  // guarded by Store.mu
	more  chan struct{} // of capacity 1
}

func (s *Store) sendLocked(ev meta.Event) {
	for w := range s.watchers {
		w.queue = append(w.queue, ev)
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

// notifyLocked tells each watcher of a noun as it is stored now, each with a copy of its own.
func (s *Store) notifyLocked(kind, key string, ev meta.Event) {
	e := s.nouns[kind][key]
	ev.Rev = e.rev
	for w := range s.watchers {
		mine := ev
		if s.fill(kind, key, e, &mine) != nil {
			continue
		}
		w.queue = append(w.queue, mine)
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

// fill decodes a stored noun into its field of an event.
func (s *Store) fill(kind, key string, e entry, ev *meta.Event) error {
	var into any
	switch kind {
	case kindCluster:
		into = &ev.Cluster
	case kindNode:
		into = &ev.Node
	case kindPool:
		into = &ev.Pool
	default:
		into = &ev.Volume
	}
	return meta.Decode(kind+" "+key, e.data, into)
}

// Watch implements meta.Store. It never sends a Resync.
func (s *Store) Watch(ctx context.Context, fn func(meta.Event) error) error {
	w := &watcher{more: make(chan struct{}, 1)}
	s.mu.Lock()
	if err := s.usableLocked(ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	if err := s.wholeLocked(w); err != nil {
		s.mu.Unlock()
		return err
	}
	s.watchers[w] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.watchers, w)
	}()
	for {
		s.mu.Lock()
		batch := w.queue
		w.queue = nil
		s.mu.Unlock()
		for _, ev := range batch {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := fn(ev); err != nil {
				return err
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.more:
		}
	}
}

// wholeLocked queues the whole state.
func (s *Store) wholeLocked(w *watcher) error {
	for _, k := range []struct {
		kind string
		put  meta.EventKind
	}{{kindCluster, meta.ClusterPut}, {kindNode, meta.NodePut}, {kindPool, meta.PoolPut}, {kindVolume, meta.VolumePut}} {
		for _, key := range slices.Sorted(maps.Keys(s.nouns[k.kind])) {
			e := s.nouns[k.kind][key]
			ev := meta.Event{Kind: k.put, Rev: e.rev}
			if err := s.fill(k.kind, key, e, &ev); err != nil {
				return err
			}
			w.queue = append(w.queue, ev)
		}
		if k.kind == kindNode {
			for _, n := range slices.Sorted(maps.Keys(s.leases)) {
				w.queue = append(w.queue, meta.Event{Kind: meta.LeaseHeld, Rev: s.rev, Node: spec.Node{Name: n}})
			}
		}
	}
	w.queue = append(w.queue, meta.Event{Kind: meta.Synced, Rev: s.rev})
	return nil
}
