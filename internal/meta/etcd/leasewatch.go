package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// FollowLease calls held each time a node takes its lease, until ctx ends. Unlike Watch it hears of nothing else, so it
// costs a node nothing.
func (s *Store) FollowLease(ctx context.Context, node string, held func()) {
	for ctx.Err() == nil {
		for resp := range s.c.Watch(clientv3.WithRequireLeader(ctx), leasePrefix+node, clientv3.WithFilterDelete()) {
			if len(resp.Events) > 0 {
				held()
			}
		}
		if pause(ctx, retryPause) != nil {
			return
		}
	}
}
