package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// FollowLease calls held each time a node takes its lease, until ctx ends. Unlike Watch it hears of nothing else, so it
// costs a node nothing.
func (s *Store) FollowLease(ctx context.Context, node string, held func()) {
	s.follow(ctx, leasePrefix+node, held)
}

// FollowNode calls changed when the record of a node was written, until ctx ends. What happens while etcd can't be reached may be missed.
func (s *Store) FollowNode(ctx context.Context, node string, changed func()) {
	s.follow(ctx, nodePrefix+node, changed)
}

// FollowCluster does the same for the cluster's record.
func (s *Store) FollowCluster(ctx context.Context, changed func()) {
	s.follow(ctx, clusterKey, changed)
}

func (s *Store) follow(ctx context.Context, key string, changed func()) {
	for ctx.Err() == nil {
		for resp := range s.c.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithFilterDelete()) {
			if len(resp.Events) > 0 {
				changed()
			}
		}
		if pause(ctx, retryPause) != nil {
			return
		}
	}
}
