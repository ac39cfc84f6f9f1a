package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"connectrpc.com/connect"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
)

// poolRetry is how often a pool that can't be opened is tried again: its device may come late.
const poolRetry = 10 * time.Second

// engineService is the engine's control socket: what the control process asks.
type engineService struct {
	engine *engine.Engine
	store  meta.Store
	host   pool.Host
	node   string
	log    *slog.Logger
	// saves is the client by which the metadata is saved to pools; nil if Keelson doesn't run it. poolOpened has word, at most once,
	// when a pool has come into service.
	saves      *clientv3.Client
	poolOpened chan struct{}

	// adding has one pool added at a time.
	adding sync.Mutex

	mu struct {
		sync.Mutex
		open     map[string]bool   // pools in service
		problems map[string]string // why others are not
	}
}

// Attach implements api.Engine.
func (s *engineService) Attach(ctx context.Context, r *pb.EngineAttachRequest) (*pb.EngineAttachResponse, error) {
	ctx, cancel := patience(ctx, r.Wait)
	defer cancel()
	a, err := s.engine.Attach(ctx, r.VolumeId, engine.AttachOptions{Frontend: r.Frontend, AcceptLoss: r.AcceptLoss})
	if err != nil {
		return nil, engineError(err)
	}
	return &pb.EngineAttachResponse{Device: a.Device, Term: a.Term}, nil
}

// Detach implements api.Engine.
func (s *engineService) Detach(ctx context.Context, r *pb.EngineDetachRequest) (*pb.EngineDetachResponse, error) {
	ctx, cancel := patience(ctx, r.Wait)
	defer cancel()
	return &pb.EngineDetachResponse{}, engineError(s.engine.Detach(ctx, r.VolumeId))
}

// defaultPatience is how long attaching and detaching are waited for.
const defaultPatience = 30 * time.Second

// patience bounds a call here, in the engine: its answer then says what it waited for, which a bound of the
// caller's connection would not.
func patience(ctx context.Context, d *durationpb.Duration) (context.Context, context.CancelFunc) {
	wait := defaultPatience
	if d != nil {
		wait = d.AsDuration()
	}
	return context.WithTimeout(ctx, wait)
}

// AddPool implements api.Engine: it makes the file system, records the pool and takes it into service.
func (s *engineService) AddPool(ctx context.Context, r *pb.AddPoolRequest) (*pb.Pool, error) {
	if err := spec.CheckLabels("label", r.Labels); err != nil {
		return nil, engineError(err)
	}
	s.adding.Lock()
	defer s.adding.Unlock()
	p, err := s.host.Add(ctx, pool.AddOptions{
		Device: r.Device, File: r.File, Size: r.Size, Media: spec.Media(r.Media), Labels: r.Labels, Wipe: r.Wipe,
	})
	if err != nil {
		return nil, engineError(err)
	}
	if _, err := s.store.PutPool(ctx, p, 0); err != nil {
		// Whether it is recorded isn't known: what is there stays, and counts if it is.
		return nil, engineError(fmt.Errorf("pool %s was made but may not be recorded; see `keelson pool list`, and if it isn't there, add it again with --wipe: %w", p.ID, errors.Join(err, s.host.Close(p.ID))))
	}
	if err := s.openPool(ctx, p); err != nil {
		return nil, engineError(err)
	}
	m := api.PoolProto(p)
	m.Live = true
	if u, err := pool.Measure(s.host.MountPoint(p.ID)); err == nil {
		m.Used = u.Used
	}
	return m, nil
}

// openPools opens the pools that the metadata gives this node, and tries those again that can't be
// opened, until all are or ctx ends.
func (s *engineService) openPools(ctx context.Context) {
	for {
		again, err := s.openPoolsOnce(ctx)
		if err != nil {
			s.log.Warn("this node's pools can't be read; trying again", "err", err)
		} else if !again {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(poolRetry):
		}
	}
}

func (s *engineService) openPoolsOnce(ctx context.Context) (again bool, err error) {
	pools, err := s.store.Pools(ctx)
	if err != nil {
		return true, err
	}
	for _, p := range pools {
		if p.Value.Node != s.node {
			continue
		}
		s.adding.Lock()
		err := s.openPool(ctx, p.Value)
		s.adding.Unlock()
		if err != nil {
			s.log.Error("pool can't be opened; trying again", "pool", p.Value.ID, "err", err)
			again = true
		}
	}
	return again, nil
}

// openPool mounts a pool and takes it into service, once.
func (s *engineService) openPool(ctx context.Context, p spec.Pool) error {
	s.mu.Lock()
	done := s.mu.open[p.ID]
	s.mu.Unlock()
	if done {
		return nil
	}
	dir, err := s.host.Open(ctx, p)
	if err == nil {
		err = s.engine.AddPool(ctx, p.ID, dir)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.open == nil {
		s.mu.open, s.mu.problems = map[string]bool{}, map[string]string{}
	}
	if err != nil {
		s.mu.problems[p.ID] = err.Error()
		return err
	}
	delete(s.mu.problems, p.ID)
	s.mu.open[p.ID] = true
	select {
	case s.poolOpened <- struct{}{}:
	default:
	}
	if err := notePool(filepath.Dir(s.host.Dir), p); err != nil {
		s.log.Warn("a pool isn't on the list of this node's pools", "pool", p.ID, "err", err)
	}
	return nil
}

// closePools unmounts the pools; the engine is closed.
func (s *engineService) closePools() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id := range s.mu.open {
		errs = append(errs, s.host.Close(id))
	}
	return errors.Join(errs...)
}

// Status implements api.Engine.
func (s *engineService) Status(ctx context.Context, _ *pb.EngineStatusRequest) (*pb.NodeStatusResponse, error) {
	st, err := s.engine.Status(ctx)
	if err != nil {
		return nil, engineError(err)
	}
	r := &pb.NodeStatusResponse{Counters: st.Counters}
	for _, v := range st.Volumes {
		lv := &pb.LiveVolume{Id: v.ID, Name: v.Name, Term: v.Term, Device: v.Device, Frontend: v.Frontend, Condition: v.Condition}
		for _, m := range v.Members {
			lv.Members = append(lv.Members, &pb.LiveMember{
				Replica: m.Replica, State: m.Role,
				ResyncDone: int64(m.Done) * block.ChunkSize, ResyncTotal: int64(m.Todo) * block.ChunkSize,
			})
		}
		for period, used := range v.SnapshotUsage {
			lv.Snapshots = append(lv.Snapshots, &pb.LiveSnapshot{Period: period, Used: used})
		}
		if v.Scrub != nil {
			lv.ScrubDone, lv.ScrubTotal, lv.ScrubFindings = v.Scrub.Done, v.Scrub.Total, api.FindingsProto(v.Scrub.Findings)
		}
		r.Volumes = append(r.Volumes, lv)
	}
	for _, p := range st.Pools {
		r.Pools = append(r.Pools, &pb.LivePool{Id: p.ID, Capacity: p.Capacity, Used: p.Used, Replicas: int32(p.Replicas), Problem: p.Problem})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, why := range s.mu.problems {
		r.Pools = append(r.Pools, &pb.LivePool{Id: id, Problem: why})
	}
	return r, nil
}

// engineError gives the errors of the engine and the pools their codes.
func engineError(err error) error {
	if err == nil {
		return nil
	}
	for _, k := range []struct {
		err  error
		code connect.Code
	}{
		{pool.ErrInvalid, connect.CodeInvalidArgument},
		{pool.ErrInUse, connect.CodeFailedPrecondition},
		{pool.ErrSigned, connect.CodeFailedPrecondition},
		{pool.ErrForeign, connect.CodeFailedPrecondition},
		{frontend.ErrBusy, connect.CodeFailedPrecondition},
		{engine.ErrPoolInUse, connect.CodeFailedPrecondition},
		{engine.ErrAttached, connect.CodeFailedPrecondition},
		{engine.ErrNotAttached, connect.CodeFailedPrecondition},
		{engine.ErrDeleting, connect.CodeFailedPrecondition},
		{engine.ErrFrontend, connect.CodeInvalidArgument},
		{engine.ErrLost, connect.CodeAborted},
		{repl.ErrLost, connect.CodeAborted},
		{repl.ErrRunLost, connect.CodeFailedPrecondition},
		{volume.ErrAttaching, connect.CodeFailedPrecondition},
		{engine.ErrClosed, connect.CodeUnavailable},
	} {
		if errors.Is(err, k.err) {
			return connect.NewError(k.code, err)
		}
	}
	return api.ToConnect(err)
}
