// Package mem is the metadata in memory: a meta.Store for tests and simulations, which also plays the faults
// that tests need (Cut, Heal, SetUnavailable). All the nodes of a test share one Store.
//
// Values are kept encoded, as in etcd, so that nothing is shared with callers. The only
// goroutine is one for each Lead that leads. All waiting is on channels, so that it runs under testing/synctest.
package mem

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// The kinds of nouns.
const (
	kindCluster  = "cluster"
	kindNode     = "node"
	kindPool     = "pool"
	kindVolume   = "volume"
	kindToken    = "token"
	kindAPIToken = "api-token"
	kindEvents   = "events"
)

type entry struct {
	data []byte
	rev  meta.Rev
}

// Store implements meta.Store.
type Store struct {
	mu       sync.Mutex
	closed   bool
	down     bool
	rev      meta.Rev
	nouns    map[string]map[string]entry // kind, key
	names    map[string]string           // volume name -> id
	leases   map[string]int              // node -> how many hold it in its name
	cut      map[string]bool
	leader   string
	watchers map[*watcher]struct{}
	// changed is closed, and made anew, whenever leases, leadership or faults change.
	changed chan struct{}
}

var _ meta.Store = (*Store)(nil)

// New returns an empty store.
func New() *Store {
	s := &Store{
		nouns: map[string]map[string]entry{}, names: map[string]string{}, leases: map[string]int{},
		cut: map[string]bool{}, watchers: map[*watcher]struct{}{}, changed: make(chan struct{}),
	}
	for _, k := range []string{kindCluster, kindNode, kindPool, kindVolume, kindToken, kindAPIToken, kindEvents} {
		s.nouns[k] = map[string]entry{}
	}
	return s
}

// Close makes every later call fail with ErrUnavailable.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.broadcastLocked()
	return nil
}

func (s *Store) broadcastLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// usableLocked says whether a call can be answered.
func (s *Store) usableLocked(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.down || s.closed {
		return meta.ErrUnavailable
	}
	return nil
}

func decode[T any](kind, key string, e entry) (meta.Versioned[T], error) {
	v := meta.Versioned[T]{Rev: e.rev}
	err := meta.Decode(kind+" "+key, e.data, &v.Value)
	return v, err
}

func get[T any](ctx context.Context, s *Store, kind, key string) (meta.Versioned[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return meta.Versioned[T]{}, err
	}
	e, ok := s.nouns[kind][key]
	if !ok {
		return meta.Versioned[T]{}, fmt.Errorf("%s %s: %w", kind, key, meta.ErrNotFound)
	}
	return decode[T](kind, key, e)
}

func list[T any](ctx context.Context, s *Store, kind string, less func(a, b T) int) ([]meta.Versioned[T], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return nil, err
	}
	return listLocked(s, kind, less)
}

func listLocked[T any](s *Store, kind string, less func(a, b T) int) ([]meta.Versioned[T], error) {
	out := make([]meta.Versioned[T], 0, len(s.nouns[kind]))
	for key, e := range s.nouns[kind] {
		v, err := decode[T](kind, key, e)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b meta.Versioned[T]) int { return less(a.Value, b.Value) })
	return out, nil
}

// compareLocked compares a noun's revision with the one that a change was decided on.
func (s *Store) compareLocked(kind, key string, rev meta.Rev) error {
	e, ok := s.nouns[kind][key]
	switch {
	case ok && rev == 0:
		return fmt.Errorf("%s %s: %w", kind, key, meta.ErrExists)
	case !ok && rev != 0:
		return fmt.Errorf("%s %s: %w", kind, key, meta.ErrNotFound)
	case e.rev != rev:
		return fmt.Errorf("%s %s: %w", kind, key, meta.ErrConflict)
	}
	return nil
}

// put writes a noun if its revision is still rev, and tells the watchers. ev is nil for
// nouns that aren't watched.
func (s *Store) put(ctx context.Context, kind, key string, noun any, rev meta.Rev, ev *meta.Event) (meta.Rev, error) {
	data, err := meta.Encode(noun)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return 0, err
	}
	if err := s.compareLocked(kind, key, rev); err != nil {
		return 0, err
	}
	return s.setLocked(kind, key, data, ev), nil
}

func (s *Store) setLocked(kind, key string, data []byte, ev *meta.Event) meta.Rev {
	s.rev++
	s.nouns[kind][key] = entry{data, s.rev}
	if ev != nil {
		s.notifyLocked(kind, key, *ev)
	}
	return s.rev
}

func (s *Store) remove(ctx context.Context, kind, key string, rev meta.Rev, ev *meta.Event) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usableLocked(ctx); err != nil {
		return err
	}
	e, ok := s.nouns[kind][key]
	if !ok {
		return fmt.Errorf("%s %s: %w", kind, key, meta.ErrNotFound)
	}
	if e.rev != rev {
		return fmt.Errorf("%s %s: %w", kind, key, meta.ErrConflict)
	}
	if kind == kindVolume {
		v, err := decode[spec.Volume](kind, key, e)
		if err != nil {
			return err
		}
		delete(s.names, v.Value.Name)
	}
	delete(s.nouns[kind], key)
	s.rev++
	if ev != nil {
		ev.Rev = s.rev
		s.sendLocked(*ev)
	}
	return nil
}

// Cluster implements meta.Store.
func (s *Store) Cluster(ctx context.Context) (meta.Versioned[spec.Cluster], error) {
	return get[spec.Cluster](ctx, s, kindCluster, "")
}

// PutCluster implements meta.Store.
func (s *Store) PutCluster(ctx context.Context, c spec.Cluster, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindCluster, "", c, rev, &meta.Event{Kind: meta.ClusterPut})
}

// Node implements meta.Store.
func (s *Store) Node(ctx context.Context, name string) (meta.Versioned[spec.Node], error) {
	return get[spec.Node](ctx, s, kindNode, name)
}

// Nodes implements meta.Store.
func (s *Store) Nodes(ctx context.Context) ([]meta.Versioned[spec.Node], error) {
	return list(ctx, s, kindNode, func(a, b spec.Node) int { return cmp.Compare(a.Name, b.Name) })
}

// PutNode implements meta.Store.
func (s *Store) PutNode(ctx context.Context, n spec.Node, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindNode, n.Name, n, rev, &meta.Event{Kind: meta.NodePut})
}

// DeleteNode implements meta.Store.
func (s *Store) DeleteNode(ctx context.Context, name string, rev meta.Rev) error {
	return s.remove(ctx, kindNode, name, rev, &meta.Event{Kind: meta.NodeDeleted, Node: spec.Node{Name: name}})
}

// Pool implements meta.Store.
func (s *Store) Pool(ctx context.Context, id string) (meta.Versioned[spec.Pool], error) {
	return get[spec.Pool](ctx, s, kindPool, id)
}

// Pools implements meta.Store.
func (s *Store) Pools(ctx context.Context) ([]meta.Versioned[spec.Pool], error) {
	return list(ctx, s, kindPool, func(a, b spec.Pool) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
}

// PutPool implements meta.Store.
func (s *Store) PutPool(ctx context.Context, p spec.Pool, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindPool, p.ID, p, rev, &meta.Event{Kind: meta.PoolPut})
}

// DeletePool implements meta.Store.
func (s *Store) DeletePool(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, kindPool, id, rev, &meta.Event{Kind: meta.PoolDeleted, Pool: spec.Pool{ID: id}})
}

// Events implements meta.Store.
func (s *Store) Events(ctx context.Context) (meta.Versioned[[]spec.Event], error) {
	return get[[]spec.Event](ctx, s, kindEvents, "")
}

// PutEvents implements meta.Store.
func (s *Store) PutEvents(ctx context.Context, list []spec.Event, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindEvents, "", list, rev, nil)
}

// Token implements meta.Store.
func (s *Store) Token(ctx context.Context, id string) (meta.Versioned[spec.Token], error) {
	return get[spec.Token](ctx, s, kindToken, id)
}

// Tokens implements meta.Store.
func (s *Store) Tokens(ctx context.Context) ([]meta.Versioned[spec.Token], error) {
	return list(ctx, s, kindToken, func(a, b spec.Token) int { return cmp.Compare(a.ID, b.ID) })
}

// PutToken implements meta.Store.
func (s *Store) PutToken(ctx context.Context, t spec.Token, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindToken, t.ID, t, rev, nil)
}

// DeleteToken implements meta.Store.
func (s *Store) DeleteToken(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, kindToken, id, rev, nil)
}

// APIToken implements meta.Store.
func (s *Store) APIToken(ctx context.Context, id string) (meta.Versioned[spec.APIToken], error) {
	return get[spec.APIToken](ctx, s, kindAPIToken, id)
}

// APITokens implements meta.Store.
func (s *Store) APITokens(ctx context.Context) ([]meta.Versioned[spec.APIToken], error) {
	return list(ctx, s, kindAPIToken, func(a, b spec.APIToken) int { return cmp.Compare(a.ID, b.ID) })
}

// PutAPIToken implements meta.Store.
func (s *Store) PutAPIToken(ctx context.Context, t spec.APIToken, rev meta.Rev) (meta.Rev, error) {
	return s.put(ctx, kindAPIToken, t.ID, t, rev, nil)
}

// DeleteAPIToken implements meta.Store.
func (s *Store) DeleteAPIToken(ctx context.Context, id string, rev meta.Rev) error {
	return s.remove(ctx, kindAPIToken, id, rev, nil)
}
