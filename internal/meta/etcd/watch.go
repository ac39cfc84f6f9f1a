package etcd

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// errMissed: changes were compacted away before they were seen.
var errMissed = errors.New("changes were missed")

// Watch implements meta.Store. While etcd can't be reached it waits, and goes on where it was.
func (s *Store) Watch(ctx context.Context, fn func(meta.Event) error) error {
	w := &watcher{fn: fn}
	for {
		err := w.follow(ctx, s)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case w.refused != nil:
			return w.refused
		case errors.Is(err, meta.ErrFormat):
			return err
		case errors.Is(err, errMissed):
			w.next = 0
			continue
		}
		if err := pause(ctx, retryPause); err != nil {
			return err
		}
	}
}

// watcher is one call of Watch.
type watcher struct {
	fn      func(meta.Event) error
	refused error // what fn returned
	next    int64 // the first revision that wasn't handed on; 0: the whole state is to be sent
	begun   bool  // something was handed on: a whole state begins with Resync
}

func (w *watcher) send(ev meta.Event) error {
	w.begun = true
	w.refused = w.fn(ev)
	return w.refused
}

// follow hands on changes until something fails.
func (w *watcher) follow(ctx context.Context, s *Store) error {
	if w.next == 0 {
		if err := w.whole(ctx, s); err != nil {
			return err
		}
	}
	wctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.c.Watch(wctx, root, clientv3.WithPrefix(), clientv3.WithRev(w.next), clientv3.WithProgressNotify()) {
		if resp.CompactRevision != 0 {
			return errMissed
		}
		if err := resp.Err(); err != nil {
			return failed(ctx, "watch", err)
		}
		for _, ev := range resp.Events {
			if err := w.change(ev); err != nil {
				return err
			}
			w.next = ev.Kv.ModRevision + 1
		}
		if resp.IsProgressNotify() {
			w.next = resp.Header.Revision + 1
		}
	}
	return failed(ctx, "watch", errors.New("it ended"))
}

// whole hands on the state as of one revision.
func (w *watcher) whole(ctx context.Context, s *Store) error {
	if w.begun {
		if err := w.send(meta.Event{Kind: meta.Resync}); err != nil {
			return err
		}
	}
	put := func(kv *mvccpb.KeyValue) error {
		return w.change(&clientv3.Event{Type: clientv3.EventTypePut, Kv: kv})
	}
	var rev int64
	for _, prefix := range []string{clusterKey, nodePrefix, leasePrefix, poolPrefix, volumePrefix} {
		at, err := s.pages(ctx, prefix, rev, put)
		if err != nil {
			return err
		}
		rev = at
	}
	if err := w.send(meta.Event{Kind: meta.Synced, Rev: meta.Rev(rev)}); err != nil {
		return err
	}
	w.next = rev + 1
	return nil
}

// change hands on a change of one key, if it is of a kind that is watched.
func (w *watcher) change(e *clientv3.Event) error {
	key := string(e.Kv.Key)
	ev := meta.Event{Rev: meta.Rev(e.Kv.ModRevision)}
	deleted := e.Type == clientv3.EventTypeDelete
	var into any
	switch {
	case key == clusterKey && !deleted:
		ev.Kind, into = meta.ClusterPut, &ev.Cluster
	case strings.HasPrefix(key, nodePrefix):
		ev.Kind, into = meta.NodePut, &ev.Node
		if deleted {
			ev.Kind, ev.Node = meta.NodeDeleted, spec.Node{Name: key[len(nodePrefix):]}
		}
	case strings.HasPrefix(key, poolPrefix):
		ev.Kind, into = meta.PoolPut, &ev.Pool
		if deleted {
			ev.Kind, ev.Pool = meta.PoolDeleted, spec.Pool{ID: key[len(poolPrefix):]}
		}
	case strings.HasPrefix(key, volumePrefix):
		ev.Kind, into = meta.VolumePut, &ev.Volume
		if deleted {
			ev.Kind, ev.Volume = meta.VolumeDeleted, spec.Volume{ID: key[len(volumePrefix):]}
		}
	case strings.HasPrefix(key, leasePrefix):
		ev.Kind, ev.Node = meta.LeaseHeld, spec.Node{Name: key[len(leasePrefix):]}
		if deleted {
			ev.Kind = meta.LeaseGone
		}
	default:
		return nil
	}
	if into != nil && !deleted {
		if err := meta.Decode(what(key), e.Kv.Value, into); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	return w.send(ev)
}
