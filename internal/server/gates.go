package server

import (
	"context"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/etcd"
	"keelson.io/keelson/internal/spec"
)

// removedLook is how often it is looked whether a node was removed that is still connected.
const removedLook = 2 * time.Second

// gates are the two ports of the metadata.
type gates struct {
	list []*gate
	end  context.CancelFunc
	wg   sync.WaitGroup
}

// openGates opens the metadata's ports. Who was removed is read from the member's own copy: it is there also without a quorum.
func openGates(ctx context.Context, cfg Config, srv *etcdserver.EtcdServer, log *slog.Logger) (*gates, error) {
	id, err := loadIdentity(cfg.DataDir)
	if err != nil {
		return nil, err
	}
	list := &memberRemoved{kv: srv.KV()}
	if c, err := readRemoved(cfg.DataDir); err == nil {
		list.known = c
	}
	ctx, cancel := context.WithCancel(ctx)
	g := &gates{end: cancel}
	for _, x := range []struct {
		port   int
		socket string
		protos []string
	}{
		{cfg.EtcdClientPort, "client", []string{"h2", "http/1.1"}},
		{cfg.EtcdPeerPort, "peer", []string{"http/1.1"}},
	} {
		addr := net.JoinHostPort(cfg.listenHost(), strconv.Itoa(x.port))
		one, err := openGate(addr, cfg.etcdSocket(x.socket), id, list.refused, log, x.protos...)
		if err != nil {
			g.close()
			return nil, err
		}
		g.list = append(g.list, one)
	}
	g.wg.Go(func() {
		t := time.NewTicker(removedLook)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			for _, one := range g.list {
				one.look()
			}
		}
	})
	return g, nil
}

func (g *gates) close() {
	g.end()
	g.wg.Wait()
	for _, one := range g.list {
		one.close()
	}
}

// memberRemoved tells which nodes were removed, from a member's own copy of the cluster's record. Safe for concurrent use.
type memberRemoved struct {
	kv    mvcc.WatchableKV
	mu    sync.Mutex
	rev   int64
	known spec.Cluster
}

func (m *memberRemoved) refused(node string, issued time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if rev := m.kv.Rev(); rev != m.rev {
		if c, err := memberCluster(m.kv); err == nil {
			c.AlsoRemoved(m.known.Removed) // a state that was restored may not know of all
			m.known, m.rev = c, rev
		}
	}
	return m.known.Refuses(node, issued)
}

// memberCluster reads the cluster's record from a member's own copy.
func memberCluster(kv mvcc.WatchableKV) (c spec.Cluster, err error) {
	r, err := kv.Range(context.Background(), []byte(etcd.ClusterKey), nil, mvcc.RangeOptions{})
	if err != nil {
		return c, err
	}
	if len(r.KVs) == 0 {
		return c, meta.ErrNotFound
	}
	return c, meta.Decode("cluster", r.KVs[0].Value, &c)
}
