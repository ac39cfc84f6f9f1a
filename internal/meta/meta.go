// Package meta is the repository of Keelson's nouns: typed access to the metadata
// store. The Store interface has two implementations, meta/etcd and meta/mem, that pass
// one contract suite (meta/metatest). It holds nouns and decisions, never anything
// that changes with I/O.
//
// Every change is one transaction that compares the revision on which it was decided:
// read a noun with its revision, decide, write with that revision, and on ErrConflict
// read again. Values are JSON in an envelope with a format version; an unknown
// newer version is refused.
package meta

import (
	"context"
	"errors"
	"time"

	"keelson.io/keelson/internal/spec"
)

// What a Store answers besides success. Test with errors.Is.
var (
	// ErrNotFound: there is no such noun.
	ErrNotFound = errors.New("not found")
	// ErrExists: the name, or the id, is taken.
	ErrExists = errors.New("exists already")
	// ErrConflict: the noun was changed since the revision given, or a condition
	// doesn't hold. Nothing was changed.
	ErrConflict = errors.New("changed meanwhile")
	// ErrUnavailable: the store can't be reached, or has lost its quorum. Whether a write
	// was done isn't known: read again.
	ErrUnavailable = errors.New("metadata unavailable")
)

// Rev is the revision of one noun: it changes with every write of that noun. 0 means
// "doesn't exist".
type Rev int64

// Cond is a further condition of a transaction; the zero value is none.
type Cond struct {
	// NodeGone, if not "", is a node that must hold no lease at the moment of the transaction.
	NodeGone string
}

// Versioned is a noun with the revision at which it was read.
type Versioned[T any] struct {
	Value T
	Rev   Rev
}

// Store is the metadata. All methods are safe for concurrent use, honour ctx, and
// return one of the errors above (wrapped) or ctx.Err().
type Store interface {
	// Cluster reads the cluster's record. PutCluster writes it; rev 0 creates it.
	Cluster(ctx context.Context) (Versioned[spec.Cluster], error)
	PutCluster(ctx context.Context, c spec.Cluster, rev Rev) (Rev, error)

	Node(ctx context.Context, name string) (Versioned[spec.Node], error)
	Nodes(ctx context.Context) ([]Versioned[spec.Node], error) // by name
	PutNode(ctx context.Context, n spec.Node, rev Rev) (Rev, error)
	DeleteNode(ctx context.Context, name string, rev Rev) error

	Pool(ctx context.Context, id string) (Versioned[spec.Pool], error)
	Pools(ctx context.Context) ([]Versioned[spec.Pool], error) // by node, id
	PutPool(ctx context.Context, p spec.Pool, rev Rev) (Rev, error)
	DeletePool(ctx context.Context, id string, rev Rev) error

	// CreateVolume fails with ErrExists if the id or the name is taken.
	CreateVolume(ctx context.Context, v spec.Volume) (Rev, error)
	// Volume reads by id, VolumeByName by name.
	Volume(ctx context.Context, id string) (Versioned[spec.Volume], error)
	VolumeByName(ctx context.Context, name string) (Versioned[spec.Volume], error)
	Volumes(ctx context.Context) ([]Versioned[spec.Volume], error) // by name
	// PutVolume changes an existing volume (rev ≠ 0). The name can't change.
	PutVolume(ctx context.Context, v spec.Volume, rev Rev, cond Cond) (Rev, error)
	DeleteVolume(ctx context.Context, id string, rev Rev) error

	Token(ctx context.Context, id string) (Versioned[spec.Token], error)
	Tokens(ctx context.Context) ([]Versioned[spec.Token], error)
	PutToken(ctx context.Context, t spec.Token, rev Rev) (Rev, error)
	DeleteToken(ctx context.Context, id string, rev Rev) error

	APIToken(ctx context.Context, id string) (Versioned[spec.APIToken], error)
	APITokens(ctx context.Context) ([]Versioned[spec.APIToken], error) // by id
	PutAPIToken(ctx context.Context, t spec.APIToken, rev Rev) (Rev, error)
	DeleteAPIToken(ctx context.Context, id string, rev Rev) error

	// Events reads what happened, the oldest first; ErrNotFound if nothing has. PutEvents writes the whole list; rev 0
	// creates it. AddEvent does both.
	Events(ctx context.Context) (Versioned[[]spec.Event], error)
	PutEvents(ctx context.Context, list []spec.Event, rev Rev) (Rev, error)

	// HoldLease keeps this node's lease alive until ctx ends, taking it anew when it was
	// lost (the store unreachable for longer than the TTL). lost is called
	// each time it was lost, held each time it is (again) held. Blocks until ctx ends, then gives
	// the lease up at once.
	HoldLease(ctx context.Context, node string, held, lost func()) error
	// Alive returns the nodes that hold a lease.
	Alive(ctx context.Context) (map[string]bool, error)

	// Watch calls fn with every change, in order, beginning with the whole present state
	// (Put events, then one Synced). When the connection to the store was lost
	// for so long that changes were missed, the state is sent whole again, with Resync
	// first. Blocks until ctx ends or fn returns an error.
	Watch(ctx context.Context, fn func(Event) error) error

	// Lead campaigns for leadership of the cluster's reconcilers under this node's name, and
	// calls fn while it is the leader, with a context that ends when it no
	// longer is; it campaigns again until ctx ends. Blocks.
	Lead(ctx context.Context, node string, fn func(ctx context.Context)) error
	// Leader returns the name of the leading node, "" if there is none.
	Leader(ctx context.Context) (string, error)

	Close() error
}

// LeaseTTL is how long after a node's last sign of life its lease goes.
const LeaseTTL = 5 * time.Second

// EventKind says what changed.
type EventKind int

// The kinds of events. For Put events of a noun the field of that noun is set, for
// deletions only its identity.
const (
	Resync        EventKind = iota + 1 // forget what you know; the whole state follows
	Synced                             // the whole state was sent
	NodePut                            // Node
	NodeDeleted                        // Node.Name
	PoolPut                            // Pool
	PoolDeleted                        // Pool.ID
	VolumePut                          // Volume
	VolumeDeleted                      // Volume.ID
	LeaseHeld                          // Node.Name
	LeaseGone                          // Node.Name
	ClusterPut                         // Cluster
)

// Event is one change of the metadata.
type Event struct {
	Kind    EventKind
	Rev     Rev
	Cluster spec.Cluster
	Node    spec.Node
	Pool    spec.Pool
	Volume  spec.Volume
}
