package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"keelson.io/keelson/internal/meta"
)

// poolsLater gets the engine's service once that is made.
type poolsLater chan *engineService

func (l poolsLater) complete(ctx context.Context) error {
	select {
	case s := <-l:
		l <- s
		return s.poolsComplete(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// poolsComplete returns when every pool on this node's own list is recorded and in service. After the metadata was recovered its records
// may not have a pool that was made since.
func (s *engineService) poolsComplete(ctx context.Context) error {
	said := ""
	for {
		err := s.poolsOnce(ctx)
		if err == nil {
			return nil
		}
		if err.Error() != said && ctx.Err() == nil {
			said = err.Error()
			s.log.Warn("this node can't say yet what its pools hold", "err", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

func (s *engineService) poolsOnce(ctx context.Context) error {
	list, err := listedPools(filepath.Dir(s.host.Dir))
	if err != nil {
		return err
	}
	for _, p := range list {
		rec, err := s.store.Pool(ctx, p.ID)
		if errors.Is(err, meta.ErrNotFound) && p.Capacity > 0 {
			p.Node, p.Draining, p.Leftovers = s.node, false, nil
			if _, err = s.store.PutPool(ctx, p, 0); err == nil || errors.Is(err, meta.ErrExists) {
				s.log.Warn("a pool that the recovered metadata doesn't know is recorded again", "pool", p.ID)
				rec, err = s.store.Pool(ctx, p.ID)
			}
		}
		if err != nil {
			return fmt.Errorf("pool %s: %w", p.ID, err)
		}
		s.adding.Lock()
		err = s.openPool(ctx, rec.Value)
		s.adding.Unlock()
		if err != nil {
			return fmt.Errorf("pool %s: %w; if its device is gone, `keelson pool remove %s --lost` says so", p.ID, err, p.ID)
		}
	}
	return nil
}
