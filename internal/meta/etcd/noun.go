package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// The keys.
const (
	root           = "/keelson/v1/"
	clusterKey     = root + "cluster"
	leaderKey      = root + "leader"
	nodePrefix     = root + "node/"
	poolPrefix     = root + "pool/"
	volumePrefix   = root + "volume/"
	namePrefix     = root + "volume-name/"
	tokenPrefix    = root + "token/"
	apiTokenPrefix = root + "api-token/"
	leasePrefix    = root + "lease/"
	eventsKey      = root + "events"
)

// what names a key in errors: "volume/8d2f…".
func what(key string) string { return strings.TrimPrefix(key, root) }

func decode[T any](kv *mvccpb.KeyValue) (meta.Versioned[T], error) {
	v := meta.Versioned[T]{Rev: meta.Rev(kv.ModRevision)}
	err := meta.Decode(what(string(kv.Key)), kv.Value, &v.Value)
	return v, err
}

func get[T any](ctx context.Context, s *Store, key string) (meta.Versioned[T], error) {
	resp, err := s.get(ctx, key)
	if err != nil {
		return meta.Versioned[T]{}, failed(ctx, what(key), err)
	}
	if len(resp.Kvs) == 0 {
		return meta.Versioned[T]{}, fmt.Errorf("%s: %w", what(key), meta.ErrNotFound)
	}
	return decode[T](resp.Kvs[0])
}

func list[T any](ctx context.Context, s *Store, prefix string, less func(a, b T) int) ([]meta.Versioned[T], error) {
	var out []meta.Versioned[T]
	_, err := s.pages(ctx, prefix, 0, func(kv *mvccpb.KeyValue) error {
		v, err := decode[T](kv)
		out = append(out, v)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(out, func(a, b meta.Versioned[T]) int { return less(a.Value, b.Value) })
	return out, nil
}

// pages reads all keys with a prefix as of one revision (0: the present one, which it returns), in order of
// the keys, a page at a time, so that no request grows with the cluster.
func (s *Store) pages(ctx context.Context, prefix string, rev int64, fn func(*mvccpb.KeyValue) error) (int64, error) {
	from, end := prefix, clientv3.GetPrefixRangeEnd(prefix)
	for {
		resp, err := s.get(ctx, from, clientv3.WithRange(end), clientv3.WithRev(rev), clientv3.WithLimit(pageSize),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortAscend))
		if err != nil {
			return 0, failed(ctx, "list of "+what(prefix), err)
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			if err := fn(kv); err != nil {
				return 0, err
			}
		}
		if !resp.More {
			return rev, nil
		}
		from = string(resp.Kvs[len(resp.Kvs)-1].Key) + "\x00"
	}
}

// put writes a noun if its revision is still rev.
func (s *Store) put(ctx context.Context, key string, noun any, rev meta.Rev) (meta.Rev, error) {
	data, err := meta.Encode(noun)
	if err != nil {
		return 0, err
	}
	resp, err := s.txn(ctx, []clientv3.Cmp{unchanged(key, rev)}, []clientv3.Op{clientv3.OpPut(key, string(data))},
		[]clientv3.Op{clientv3.OpGet(key, clientv3.WithCountOnly())})
	if err != nil {
		return 0, writeFailed(ctx, what(key), err)
	}
	if !resp.Succeeded {
		return 0, refusal(key, rev, resp.Responses[0].GetResponseRange().Count > 0)
	}
	return meta.Rev(resp.Header.Revision), nil
}

// remove deletes a noun, and the further keys, if its revision is still rev.
func (s *Store) remove(ctx context.Context, key string, rev meta.Rev, further ...string) error {
	then := []clientv3.Op{clientv3.OpDelete(key)}
	for _, k := range further {
		then = append(then, clientv3.OpDelete(k))
	}
	conds := []clientv3.Cmp{unchanged(key, rev), clientv3.Compare(clientv3.CreateRevision(key), "!=", 0)}
	resp, err := s.txn(ctx, conds, then, []clientv3.Op{clientv3.OpGet(key, clientv3.WithCountOnly())})
	if err != nil {
		return writeFailed(ctx, what(key), err)
	}
	if resp.Succeeded {
		return nil
	}
	if resp.Responses[0].GetResponseRange().Count == 0 {
		return fmt.Errorf("%s: %w", what(key), meta.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what(key), meta.ErrConflict)
}

// unchanged is the condition that a key's revision is still rev; 0 means that there is no such key.
func unchanged(key string, rev meta.Rev) clientv3.Cmp {
	return clientv3.Compare(clientv3.ModRevision(key), "=", int64(rev))
}

// refusal says why a noun wasn't written.
func refusal(key string, rev meta.Rev, exists bool) error {
	switch {
	case rev == 0:
		return fmt.Errorf("%s: %w", what(key), meta.ErrExists)
	case !exists:
		return fmt.Errorf("%s: %w", what(key), meta.ErrNotFound)
	}
	return fmt.Errorf("%s: %w", what(key), meta.ErrConflict)
}

// writeFailed is failed for writes: etcd may also refuse them for good.
func writeFailed(ctx context.Context, what string, err error) error {
	if errors.Is(rpctypes.Error(err), rpctypes.ErrNoSpace) {
		return fmt.Errorf("%s: %w: etcd's database is full; compact and defragment it, then disarm its NOSPACE alarm", what, meta.ErrUnavailable)
	}
	return failed(ctx, what, err)
}

// Cluster implements meta.Store.
func (s *Store) Cluster(ctx context.Context) (meta.Versioned[spec.Cluster], error) {
	return get[spec.Cluster](ctx, s, clusterKey)
}

// PutCluster implements meta.Store.
func (s *Store) PutCluster(ctx context.Context, c spec.Cluster, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, clusterKey, c, rev)
}

// Node implements meta.Store.
func (s *Store) Node(ctx context.Context, name string) (meta.Versioned[spec.Node], error) {
	return get[spec.Node](ctx, s, nodePrefix+name)
}

// Nodes implements meta.Store.
func (s *Store) Nodes(ctx context.Context) ([]meta.Versioned[spec.Node], error) {
	return list(ctx, s, nodePrefix, func(a, b spec.Node) int { return cmp.Compare(a.Name, b.Name) })
}

// PutNode implements meta.Store.
func (s *Store) PutNode(ctx context.Context, n spec.Node, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, nodePrefix+n.Name, n, rev)
}

// DeleteNode implements meta.Store.
func (s *Store) DeleteNode(ctx context.Context, name string, rev meta.Rev) error {
	return s.remove(ctx, nodePrefix+name, rev)
}

// Pool implements meta.Store.
func (s *Store) Pool(ctx context.Context, id string) (meta.Versioned[spec.Pool], error) {
	return get[spec.Pool](ctx, s, poolPrefix+id)
}

// Pools implements meta.Store.
func (s *Store) Pools(ctx context.Context) ([]meta.Versioned[spec.Pool], error) {
	return list(ctx, s, poolPrefix, func(a, b spec.Pool) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
}

// PutPool implements meta.Store.
func (s *Store) PutPool(ctx context.Context, p spec.Pool, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, poolPrefix+p.ID, p, rev)
}

// DeletePool implements meta.Store.
func (s *Store) DeletePool(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, poolPrefix+id, rev)
}

// Events implements meta.Store.
func (s *Store) Events(ctx context.Context) (meta.Versioned[[]spec.Event], error) {
	return get[[]spec.Event](ctx, s, eventsKey)
}

// PutEvents implements meta.Store.
func (s *Store) PutEvents(ctx context.Context, list []spec.Event, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, eventsKey, list, rev)
}

// Token implements meta.Store.
func (s *Store) Token(ctx context.Context, id string) (meta.Versioned[spec.Token], error) {
	return get[spec.Token](ctx, s, tokenPrefix+id)
}

// Tokens implements meta.Store.
func (s *Store) Tokens(ctx context.Context) ([]meta.Versioned[spec.Token], error) {
	return list(ctx, s, tokenPrefix, func(a, b spec.Token) int { return cmp.Compare(a.ID, b.ID) })
}

// PutToken implements meta.Store.
func (s *Store) PutToken(ctx context.Context, t spec.Token, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, tokenPrefix+t.ID, t, rev)
}

// DeleteToken implements meta.Store.
func (s *Store) DeleteToken(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, tokenPrefix+id, rev)
}

// APIToken implements meta.Store.
func (s *Store) APIToken(ctx context.Context, id string) (meta.Versioned[spec.APIToken], error) {
	return get[spec.APIToken](ctx, s, apiTokenPrefix+id)
}

// APITokens implements meta.Store.
func (s *Store) APITokens(ctx context.Context) ([]meta.Versioned[spec.APIToken], error) {
	return list(ctx, s, apiTokenPrefix, func(a, b spec.APIToken) int { return cmp.Compare(a.ID, b.ID) })
}

// PutAPIToken implements meta.Store.
func (s *Store) PutAPIToken(ctx context.Context, t spec.APIToken, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, apiTokenPrefix+t.ID, t, rev)
}

// DeleteAPIToken implements meta.Store.
func (s *Store) DeleteAPIToken(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, apiTokenPrefix+id, rev)
}
