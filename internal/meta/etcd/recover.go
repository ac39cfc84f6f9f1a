package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// ClusterKey is the key of the cluster's record, for who reads a member's own copy of it.
const ClusterKey = clusterKey

// lockPrefix is where locks stand that are bound to leases of the past.
const lockPrefix = "/keelson/locks/"

// Recover marks a state that was restored as one that may be old: nobody holds a lease or leads, no volume is proven, and the
// cluster's record says r, with the number that is returned: that of r, or the next one if that was used. It must be called before
// anybody else can reach the store; nothing is left to be undone if it fails.
func (s *Store) Recover(ctx context.Context, r spec.Recovery) (number int, err error) {
	for _, prefix := range []string{leasePrefix, leaderKey, lockPrefix} {
		if _, err := s.txn(ctx, nil, []clientv3.Op{clientv3.OpDelete(prefix, clientv3.WithPrefix())}, nil); err != nil {
			return 0, failed(ctx, what(prefix), err)
		}
	}
	var volumes []meta.Versioned[spec.Volume]
	_, err = s.pages(ctx, volumePrefix, 0, func(kv *mvccpb.KeyValue) error {
		v, err := decode[spec.Volume](kv)
		volumes = append(volumes, v)
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, v := range volumes {
		v.Value.Unproven = &spec.Unproven{Rev: int64(v.Rev)}
		if _, err := s.PutVolume(ctx, v.Value, v.Rev, meta.Cond{}); err != nil {
			return 0, err
		}
	}
	c, err := s.Cluster(ctx)
	if err != nil {
		return 0, err
	}
	if r.Number <= c.Value.Recovery.Number {
		r.Number = c.Value.Recovery.Number + 1
	}
	c.Value.Recovery = r
	if _, err := s.PutCluster(ctx, c.Value, c.Rev); err != nil {
		return 0, err
	}
	err = meta.AddEvent(ctx, s, spec.Event{Time: r.At, What: "metadata-recovered", Warning: true, Node: r.Node,
		Message: fmt.Sprintf("the metadata was recovered from %s; it is the state of %s", r.From, r.StateOf.UTC().Format("2006-01-02 15:04:05 MST"))})
	if errors.Is(err, meta.ErrConflict) {
		err = nil
	}
	return r.Number, err
}

// Declare adds nodes to those that are lost for good, of the last recovery.
func (s *Store) Declare(ctx context.Context, lost ...string) error {
	for {
		c, err := s.Cluster(ctx)
		if err != nil {
			return err
		}
		if c.Value.Recovery.Number == 0 {
			return fmt.Errorf("%w: the metadata was never recovered, so no node is waited for", meta.ErrNotFound)
		}
		c.Value.Recovery.Lost = append(c.Value.Recovery.Lost, lost...)
		if _, err = s.PutCluster(ctx, c.Value, c.Rev); !errors.Is(err, meta.ErrConflict) {
			return err
		}
	}
}
