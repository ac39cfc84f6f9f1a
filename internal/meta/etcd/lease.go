package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
)

// Times of a lease. Within its TTL there are at least three attempts to confirm it, each of which may meet
// another endpoint.
const (
	confirmEvery   = meta.LeaseTTL / 3
	confirmTimeout = time.Second
	confirmPause   = 100 * time.Millisecond // after a failed attempt
	retryPause     = 500 * time.Millisecond // before taking a lease anew
)

var errLeaseLost = errors.New("lease lost")

// lease is an etcd lease and the moment by which it must be taken for lost, by the local clock.
type lease struct {
	id       clientv3.LeaseID
	deadline time.Time
}

func (s *Store) grant(ctx context.Context) (*lease, error) {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	sent := time.Now()
	resp, err := s.c.Grant(bounded, int64(meta.LeaseTTL/time.Second))
	if err != nil {
		return nil, failed(ctx, "lease", err)
	}
	return &lease{resp.ID, sent.Add(meta.LeaseTTL)}, nil
}

// revoke gives a lease up. It is best effort, and works also when ctx has ended.
func (s *Store) revoke(ctx context.Context, l *lease) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), confirmTimeout)
	defer cancel()
	_, _ = s.c.Revoke(bounded, l.id)
}

// keep confirms a lease again and again. It returns errLeaseLost once etcd doesn't know the lease
// or its time passed without a confirmation, and ctx.Err() when ctx ends.
func (s *Store) keep(ctx context.Context, l *lease) error {
	next := time.NewTimer(confirmEvery)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-next.C:
		}
		sent := time.Now()
		err := s.confirm(ctx, l)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, rpctypes.ErrLeaseNotFound):
			return errLeaseLost
		case err == nil:
			l.deadline = sent.Add(meta.LeaseTTL)
			next.Reset(time.Until(sent.Add(confirmEvery)))
		case !time.Now().Before(l.deadline):
			return errLeaseLost
		default:
			next.Reset(min(confirmPause, time.Until(l.deadline)))
		}
	}
}

// confirm asks etcd once to prolong a lease. (The client's KeepAliveOnce would ask again without a
// pause for as long as nobody answers.)
func (s *Store) confirm(ctx context.Context, l *lease) error {
	bounded, cancel := context.WithDeadline(clientv3.WithRequireLeader(ctx), earlier(time.Now().Add(confirmTimeout), l.deadline))
	defer cancel()
	stream, err := pb.NewLeaseClient(s.c.ActiveConnection()).LeaseKeepAlive(bounded)
	if err != nil {
		return rpctypes.Error(err)
	}
	if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: int64(l.id)}); err != nil {
		return rpctypes.Error(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return rpctypes.Error(err)
	}
	if resp.TTL <= 0 {
		return rpctypes.ErrLeaseNotFound
	}
	return nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// pause waits, or ends with ctx.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// HoldLease implements meta.Store.
func (s *Store) HoldLease(ctx context.Context, node string, held, lost func()) error {
	for ctx.Err() == nil {
		l, err := s.take(ctx, leasePrefix+node, node)
		if err != nil {
			if err := pause(ctx, retryPause); err != nil {
				return err
			}
			continue
		}
		held()
		err = s.keep(ctx, l)
		if errors.Is(err, errLeaseLost) {
			lost()
		}
		if ctx.Err() != nil {
			s.revoke(ctx, l)
		}
	}
	return ctx.Err()
}

// take gets a lease and binds the key to it, also if an older lease still has it: the process that held
// that one has ended.
func (s *Store) take(ctx context.Context, key, value string) (*lease, error) {
	l, err := s.grant(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.txn(ctx, nil, []clientv3.Op{clientv3.OpPut(key, value, clientv3.WithLease(l.id))}, nil)
	if err == nil && !time.Now().Before(l.deadline) {
		err = errLeaseLost
	}
	if err != nil {
		s.revoke(ctx, l)
		return nil, err
	}
	return l, nil
}

// Alive implements meta.Store.
func (s *Store) Alive(ctx context.Context) (map[string]bool, error) {
	alive := map[string]bool{}
	_, err := s.pages(ctx, leasePrefix, 0, func(kv *mvccpb.KeyValue) error {
		alive[strings.TrimPrefix(string(kv.Key), leasePrefix)] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return alive, nil
}

// Lead implements meta.Store.
func (s *Store) Lead(ctx context.Context, node string, fn func(ctx context.Context)) error {
	for ctx.Err() == nil {
		l, err := s.campaign(ctx, node)
		if err != nil {
			if err := pause(ctx, retryPause); err != nil {
				return err
			}
			continue
		}
		s.serve(ctx, l, fn)
	}
	return ctx.Err()
}

// serve runs fn while the lease holds, and gives it up when fn has returned.
func (s *Store) serve(ctx context.Context, l *lease, fn func(ctx context.Context)) {
	lctx, cancel := context.WithCancel(ctx)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		_ = s.keep(lctx, l)
		cancel()
	}()
	fn(lctx)
	cancel()
	<-kept
	s.revoke(ctx, l)
}

// campaign waits until nobody leads, and tries to take the leadership.
func (s *Store) campaign(ctx context.Context, node string) (*lease, error) {
	resp, err := s.get(ctx, leaderKey)
	if err != nil {
		return nil, failed(ctx, "leader", err)
	}
	if len(resp.Kvs) > 0 {
		if err := s.untilDeleted(ctx, leaderKey, resp.Header.Revision+1); err != nil {
			return nil, err
		}
	}
	l, err := s.grant(ctx)
	if err != nil {
		return nil, err
	}
	won, err := s.txn(ctx, []clientv3.Cmp{unchanged(leaderKey, 0)},
		[]clientv3.Op{clientv3.OpPut(leaderKey, node, clientv3.WithLease(l.id))}, nil)
	if err == nil && won.Succeeded && time.Now().Before(l.deadline) {
		return l, nil
	}
	s.revoke(ctx, l)
	if err != nil {
		return nil, failed(ctx, "leader", err)
	}
	return nil, fmt.Errorf("leader: %w", meta.ErrConflict)
}

// untilDeleted waits until a key is deleted at revision from or later.
func (s *Store) untilDeleted(ctx context.Context, key string, from int64) error {
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.c.Watch(wctx, key, clientv3.WithRev(from), clientv3.WithFilterPut()) {
		if err := resp.Err(); err != nil {
			return failed(ctx, what(key), err)
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	return failed(ctx, what(key), errors.New("the watch ended"))
}

// Leader implements meta.Store.
func (s *Store) Leader(ctx context.Context) (string, error) {
	resp, err := s.get(ctx, leaderKey)
	if err != nil {
		return "", failed(ctx, "leader", err)
	}
	if len(resp.Kvs) == 0 {
		return "", nil
	}
	return string(resp.Kvs[0].Value), nil
}
