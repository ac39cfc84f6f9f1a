// Package kube is what Keelson does in Kubernetes besides the CSI driver. On the node that leads: when a node's storage is lost it
// moves that node's volumes to a new term on another node and deletes the pods that used them, so that their controllers start
// them elsewhere (failover.go); it guards the last in-sync copy of a volume against drains (guard.go), passes `kubectl cordon` on to
// placement (cordon.go), and tells of parameters without effect at the claims (warnings.go). On every node: an extender by which kube-scheduler prefers nodes that have the data
// (extender.go), and the removal of dead mounts that nobody takes away any more (sweep.go).
//
// The leader is the one of Keelson's reconcilers and not the holder of a Lease in Kubernetes: what is decided here follows from the
// metadata, and the fence that makes it safe is a transaction there; a leader that could reach Kubernetes and not the metadata
// could do nothing.
//
// Invariants: a pod is deleted by force only after each of its volumes was seen in the metadata not to be held by the lost node
// any more; the term that was raised for it is conditional on that node's lease being gone. What can't be moved keeps
// its pod. A pod that doesn't use Keelson is never touched. The taint on the Kubernetes node is the record of a failover that
// has begun: a new leader goes on from there.
//
// Nothing here keeps copies of Kubernetes' objects or polls: pods, claims and volumes are read when a node's lease is gone, or a
// scheduler asks. Two watches stand on the leader, of persistent volumes and of cordoned nodes; one of a node's pods, while that node is lost.
//
// Goroutines: Run owns one for the metadata's watch, one for each node without a lease, and one each for the guards,
// the cordons and the warnings; it returns when they have ended. Extender.Serve and Sweeper.Run own one each.
package kube

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"syscall"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Words that users see on their objects.
const (
	// TaintStorageLost keeps pods from a node whose storage is lost.
	TaintStorageLost = "keelson.io/storage-lost"
	// AnnotationFailover on a pod or a claim, with the value FailoverOff, keeps the pod from being deleted.
	AnnotationFailover = "keelson.io/failover"
	FailoverOff        = "off"
	// LabelGuard is on the pods and budgets that guard last copies; its value is the node.
	LabelGuard = "keelson.io/guards-last-copy-on"
	component  = "keelson"
)

// Store is what is read of the metadata: a part of meta.Store, with its errors.
type Store interface {
	Volume(ctx context.Context, id string) (meta.Versioned[spec.Volume], error)
	VolumeByName(ctx context.Context, name string) (meta.Versioned[spec.Volume], error)
	Node(ctx context.Context, name string) (meta.Versioned[spec.Node], error)
	Nodes(ctx context.Context) ([]meta.Versioned[spec.Node], error)
	PutNode(ctx context.Context, n spec.Node, rev meta.Rev) (meta.Rev, error)
	Alive(ctx context.Context) (map[string]bool, error)
	Watch(ctx context.Context, fn func(meta.Event) error) error
}

// Patience is how long things are waited for.
type Patience struct {
	// Silent is how long a node without a lease must have answered nothing to count as lost.
	Silent time.Duration
	// Reachable is how long one may be without a lease whose machine answers: Keelson is being started anew there.
	Reachable time.Duration
	// Hold is how long nothing is moved because too many nodes are without a lease at once.
	Hold time.Duration
	// Retry is the first pause after something failed; it doubles up to RetryMax.
	Retry, RetryMax time.Duration
	// Settle is how long a last copy is looked at before it is guarded.
	Settle time.Duration
}

// DefaultPatience is what Config.Patience should be, outside of tests.
func DefaultPatience() Patience {
	return Patience{
		Silent: 2 * time.Second, Reachable: 2 * time.Minute, Hold: 5 * time.Minute, Retry: time.Second, RetryMax: 15 * time.Second, Settle: 3 * time.Second,
	}
}

// Config is what a Controller is made from.
type Config struct {
	API     API
	Store   Store
	Log     *slog.Logger
	Drivers []string // names of the CSI driver and its aliases
	// Fence moves a volume to a new term on a node, which serves it without a frontend then, and returns when that was done.
	// It must fail if the node that has the volume holds its lease.
	Fence func(ctx context.Context, volume, node string) error
	// Reach asks whether a node's machine answers; nil is Dial.
	Reach func(ctx context.Context, n spec.Node) Reach
	// Failover is off if false: taints are set, and nothing is deleted.
	Failover bool
	// Namespace and GuardImage are for guards; without an image there are none.
	Namespace, GuardImage string
	Patience              Patience
}

// Reach is what a machine answers.
type Reach int

// What a machine answers.
const (
	Silent  Reach = iota // nothing
	Refuses              // that nothing listens there
	Answers
)

// reachWait is how long an answer is waited for.
const reachWait = time.Second

// Dial asks a node's machine by opening a connection to its engine. A machine that is up refuses it while Keelson is
// being started anew; one that is off or cut off is silent.
func Dial(ctx context.Context, n spec.Node) Reach {
	d := net.Dialer{Timeout: reachWait}
	c, err := d.DialContext(ctx, "tcp", n.EngineAddr)
	switch {
	case err == nil:
		_ = c.Close() // nothing was sent
		return Answers
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refuses
	}
	return Silent
}

func storageNode(n spec.Node) bool { return slices.Contains(n.Roles, spec.RoleStorage) }
