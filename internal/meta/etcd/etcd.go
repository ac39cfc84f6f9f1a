// Package etcd is the metadata in etcd: the meta.Store that a cluster runs on.
//
// Keys stand under /keelson/v1/: cluster, node/<name>, pool/<id>, volume/<id>, volume-name/<name> (holds the
// volume's id, and is written and deleted in the volume's own transaction), token/<id>, api-token/<id>, events, lease/<node> and
// leader (both bound to an etcd lease). A noun's revision is its key's ModRevision.
//
// Invariants: every call is bounded in time; every write is one transaction that compares the revision it
// was decided on; a lease that wasn't confirmed for meta.LeaseTTL by the local monotonic clock, counted from
// when the confirmed request was sent, is treated as lost.
//
// The package owns no goroutine beyond those of etcd's client, which end with Close, and one for a
// Lead that leads.
package etcd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"keelson.io/keelson/internal/meta"
)

// Config says where etcd is.
type Config struct {
	Endpoints []string    // client URLs, at least one
	TLS       *tls.Config // nil for plain HTTP endpoints
	// Timeout bounds each request; 0 is 3 s.
	Timeout time.Duration
}

// Times of the connection. A silent peer is given up after about two seconds, so that a node
// that was cut off isn't asked again and again, and is looked for every second.
const (
	defaultTimeout = 3 * time.Second
	peerSilence    = 2 * time.Second
	probeEvery     = time.Second
	redialMax      = time.Second
)

// pageSize is how many keys are read at once from long lists.
const pageSize = 1000

// Store implements meta.Store.
type Store struct {
	c       *clientv3.Client
	timeout time.Duration
}

var _ meta.Store = (*Store)(nil)

// New makes a store. It doesn't wait for a connection.
func New(cfg Config) (*Store, error) {
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("metadata: no endpoints")
	}
	c, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		TLS:                  cfg.TLS,
		DialTimeout:          peerSilence,
		DialKeepAliveTime:    10 * time.Second, // gRPC's minimum; the probes of TCP are faster
		DialKeepAliveTimeout: peerSilence,
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(dial),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: redialMax},
				MinConnectTimeout: peerSilence,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("metadata: %w", err)
	}
	s := &Store{c: c, timeout: cfg.Timeout}
	if s.timeout <= 0 {
		s.timeout = defaultTimeout
	}
	return s, nil
}

func dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: probeEvery, Interval: probeEvery, Count: int(peerSilence / probeEvery)}}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		return d.DialContext(ctx, "unix", strings.TrimPrefix(path, "//"))
	}
	return d.DialContext(ctx, "tcp", addr)
}

// SetEndpoints changes where etcd is looked for, such as after a metadata member was replaced.
func (s *Store) SetEndpoints(urls []string) { s.c.SetEndpoints(urls...) }

// Client returns etcd's client, for the administration of the etcd cluster itself. It belongs to the store.
func (s *Store) Client() *clientv3.Client { return s.c }

// Close implements meta.Store.
func (s *Store) Close() error {
	if err := s.c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("metadata: %w", err)
	}
	return nil
}

// failed translates an error of etcd's client. ctx is the caller's own, not the bounded one.
func failed(ctx context.Context, what string, err error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w: no answer in time: most of its members are away, or their disks are overloaded, see `keelson status`; whether it was done isn't known, repeat it", what, meta.ErrUnavailable)
	}
	return fmt.Errorf("%s: %w: %v", what, meta.ErrUnavailable, rpctypes.Error(err))
}

func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.c.Get(bounded, key, opts...)
}

// txn commits a transaction: then, if all conditions hold.
func (s *Store) txn(ctx context.Context, conds []clientv3.Cmp, then, otherwise []clientv3.Op) (*clientv3.TxnResponse, error) {
	bounded, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	return s.c.Txn(bounded).If(conds...).Then(then...).Else(otherwise...).Commit()
}
