package mem

import (
	"context"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Cut makes a node lose its lease, and its leadership, until Heal.
func (s *Store) Cut(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut[node] = true
	s.broadcastLocked()
}

// Heal ends what Cut began.
func (s *Store) Heal(node string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.cut, node)
	s.broadcastLocked()
}

// SetUnavailable makes every call fail with ErrUnavailable, or ends that. Leases, leadership and watches
// stay as they are.
func (s *Store) SetUnavailable(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
	s.broadcastLocked()
}

// HoldLease implements meta.Store. The lease is lost while the node is cut, at once.
func (s *Store) HoldLease(ctx context.Context, node string, held, lost func()) error {
	holding := false
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if holding {
			s.addLeaseLocked(node, -1)
		}
	}()
	for {
		s.mu.Lock()
		want := !s.cut[node] && !s.closed && (holding || !s.down)
		changed := s.changed
		was := holding
		if want != was && ctx.Err() == nil {
			holding = want
			if want {
				s.addLeaseLocked(node, 1)
			} else {
				s.addLeaseLocked(node, -1)
			}
		}
		s.mu.Unlock()
		if holding != was {
			if holding {
				held()
			} else {
				lost()
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

func (s *Store) addLeaseLocked(node string, n int) {
	was := s.leases[node]
	s.leases[node] += n
	if s.leases[node] == 0 {
		delete(s.leases, node)
	}
	switch {
	case was == 0:
		s.rev++
		s.sendLocked(meta.Event{Kind: meta.LeaseHeld, Rev: s.rev, Node: spec.Node{Name: node}})
	case was+n == 0:
		s.rev++
		s.sendLocked(meta.Event{Kind: meta.LeaseGone, Rev: s.rev, Node: spec.Node{Name: node}})
	}
}

// Alive implements meta.Store.
func (s *Store) Alive(ctx context.Context) (map[string]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return nil, err
	}
	alive := make(map[string]bool, len(s.leases))
	for n := range s.leases {
		alive[n] = true
	}
	return alive, nil
}

// Lead implements meta.Store.
func (s *Store) Lead(ctx context.Context, node string, fn func(ctx context.Context)) error {
	for {
		s.mu.Lock()
		won := s.leader == "" && !s.cut[node] && !s.down && !s.closed && ctx.Err() == nil
		if won {
			s.leader = node
		}
		changed := s.changed
		s.mu.Unlock()
		if won {
			s.serve(ctx, node, fn)
		}
		if ctx.Err() == nil && !won {
			select {
			case <-ctx.Done():
			case <-changed:
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// serve runs fn until it returns, with a context that ends when the node is cut, and gives
// the leadership up.
func (s *Store) serve(ctx context.Context, node string, fn func(ctx context.Context)) {
	lctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			s.mu.Lock()
			over := s.cut[node] || s.closed
			changed := s.changed
			s.mu.Unlock()
			if over {
				cancel()
				return
			}
			select {
			case <-lctx.Done():
				return
			case <-changed:
			}
		}
	}()
	fn(lctx)
	cancel()
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leader = ""
	s.broadcastLocked()
}

// Leader implements meta.Store.
func (s *Store) Leader(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return "", err
	}
	return s.leader, nil
}
