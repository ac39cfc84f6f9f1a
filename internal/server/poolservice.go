package server

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pool"
)

// How long the replicas of a pool that is to be removed are waited for; those of a lost one only as long as closing takes on a
// device that answers.
const (
	closePatience = 20 * time.Second
	lostPatience  = 5 * time.Second
)

// ExpandPool implements api.Engine: the file system grows, and then its new size is recorded.
func (s *engineService) ExpandPool(ctx context.Context, r *pb.ExpandPoolRequest) (*pb.Pool, error) {
	s.adding.Lock()
	defer s.adding.Unlock()
	for {
		rec, err := s.store.Pool(ctx, r.Id)
		if err != nil {
			return nil, engineError(err)
		}
		p, err := s.host.Expand(ctx, rec.Value, r.Size)
		if err != nil {
			return nil, engineError(err)
		}
		if p.Capacity != rec.Value.Capacity {
			_, err = s.store.PutPool(ctx, p, rec.Rev)
		}
		if errors.Is(err, meta.ErrConflict) {
			continue
		}
		if err != nil {
			return nil, engineError(fmt.Errorf("pool %s has grown, and that isn't recorded; repeat the command: %w", r.Id, err))
		}
		m := api.PoolProto(p)
		m.Live = true
		if u, err := pool.Measure(s.host.MountPoint(p.ID)); err == nil {
			m.Used = u.Used
		}
		return m, nil
	}
}

// ClosePool implements api.Engine. The pool's record is deleted after it; until then the next start of the engine takes the
// pool into service again.
func (s *engineService) ClosePool(ctx context.Context, r *pb.ClosePoolRequest) (*pb.ClosePoolResponse, error) {
	s.adding.Lock()
	defer s.adding.Unlock()
	patience := closePatience
	if r.Lost {
		patience = lostPatience
	}
	cctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if err := s.engine.RemovePool(cctx, r.Id, r.Lost); err != nil {
		return nil, engineError(err)
	}
	s.mu.Lock()
	delete(s.mu.open, r.Id)
	delete(s.mu.problems, r.Id)
	s.mu.Unlock()
	err := s.host.Close(r.Id)
	if err != nil && r.Lost {
		err = s.host.Abandon(r.Id)
	}
	if err == nil {
		err = unlistPool(filepath.Dir(s.host.Dir), r.Id)
	}
	return &pb.ClosePoolResponse{}, engineError(err)
}
