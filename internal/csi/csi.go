// Package csi is the driver by which Kubernetes uses Keelson: the services of the Container Storage Interface (spec 1.12),
// on a unix socket for each driver name, and the registration of the driver with kubelet.
//
// A volume's id is its name in Keelson, so that a volume which is there already can be used by naming it. The driver
// doesn't publish volumes in the controller: a volume is attached by the node that stages it, and its term is the fence.
//
// Invariants: the driver keeps no state of its own. What is attached stands in the metadata, what is mounted in the
// kernel, and every call looks there first; so each can be repeated, at any step, by any process. One call at a time works on a
// volume: others are told to come again. A device with a signature is never formatted.
//
// A volume that is written into a pod (an inline volume) is made when it is published and deleted when it is unpublished. What a crash
// between the two leaves is found by the record of the volume, which says for which path on which node it was made.
//
// Goroutines: one for each socket, grpc's, the collector of what pods left, and one that trims file systems when they are due, which Close ends and awaits; and one for each volume whose statistics are being
// asked, which lasts as long as the kernel takes to answer.
package csi

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// Keelson is what the driver needs of the cluster. Its errors are of the kinds below, those of
// the context, or what nobody expected. Safe for concurrent use.
type Keelson interface {
	// Create makes a volume. ErrExists: there is one of that name; ErrNoRoom: it can't be placed; ErrInvalid.
	Create(ctx context.Context, r Request) (Volume, error)
	// Clone makes a volume of a snapshot, or, if snapshot is "", of what another volume holds; of at least r.Size bytes. Its columns, and how
	// many copies it has if r doesn't say it, are its origin's. That it has done so is no error. ErrNotFound; ErrExists: there is another
	// volume of that name; ErrNoRoom: its copies can't come to where they are asked for.
	Clone(ctx context.Context, r Request, volume, snapshot string) (Volume, error)
	// CreateSnapshot takes a snapshot and answers when it is there. That it has is no error. ErrNotFound; ErrRefused: there are too many.
	CreateSnapshot(ctx context.Context, volume, name string) (Snapshot, error)
	// CreateGroup takes snapshots of several volumes at one moment, all of that name, and answers when they are there. That it has is no
	// error. ErrNotFound; ErrExists: there is a group of that name of other volumes; ErrRefused; ErrInvalid.
	CreateGroup(ctx context.Context, name string, volumes []string) ([]Snapshot, error)
	// DeleteGroup answers when all of a group's snapshots are gone. ErrNotFound.
	DeleteGroup(ctx context.Context, name string) error
	// DeleteSnapshot answers when it is gone. ErrNotFound; ErrInvalid: it is one of a group.
	DeleteSnapshot(ctx context.Context, volume, name string) error
	// SetSchedule has snapshots of a volume taken by themselves. ErrNotFound; ErrInvalid.
	SetSchedule(ctx context.Context, volume, schedule string) error
	// Snapshots lists those of a volume, or of all if volume is "". ErrNotFound.
	Snapshots(ctx context.Context, volume string) ([]Snapshot, error)
	// Modify changes a volume, also while it is in use. ErrNotFound; ErrInvalid.
	Modify(ctx context.Context, name string, c dialect.Change) error
	// Grow makes a volume larger, also while it is in use, and returns it when it is. A size that it has is no error. ErrNotFound;
	// ErrInvalid; ErrNoRoom: its pools have none; ErrAgain: it is on its way.
	Grow(ctx context.Context, name string, size int64) (Volume, error)
	// Trimmed records that this node trimmed a volume's file system: how many bytes came free, or what went wrong.
	Trimmed(ctx context.Context, name string, bytes int64, problem error) error
	// Delete lets a volume go. ErrNotFound; ErrRefused: it is attached.
	Delete(ctx context.Context, name string) error
	// Volume returns a volume by name. ErrNotFound.
	Volume(ctx context.Context, name string) (Volume, error)
	// Volumes returns all volumes, in any order.
	Volumes(ctx context.Context) ([]Volume, error)
	Nodes(ctx context.Context) ([]Node, error)
	Pools(ctx context.Context) ([]Pool, error)
	// Attach attaches a volume to this node, or finds it attached, and returns the path of its device. ErrNotFound;
	// ErrRefused: another node has it and is alive; ErrAgain: that isn't known yet.
	Attach(ctx context.Context, name string) (device string, err error)
	// Detach detaches a volume from this node. One that isn't attached here, or isn't there, is no error. ErrRefused: its
	// device is in use.
	Detach(ctx context.Context, name string) error
}

// Kinds of errors.
var (
	ErrInvalid     = errors.New("invalid")
	ErrNotFound    = errors.New("not found")
	ErrExists      = errors.New("exists already")
	ErrNoRoom      = errors.New("no room")
	ErrRefused     = errors.New("refused")
	ErrAgain       = errors.New("not yet")
	ErrUnavailable = errors.New("unavailable")
)

// Problem is an error of a kind, in words that are shown as they are.
type Problem struct {
	Kind error
	Text string
}

// Error returns the words.
func (p *Problem) Error() string { return p.Text }

// Unwrap returns the kind.
func (p *Problem) Unwrap() error { return p.Kind }

// Request asks for a volume. Zero values are Keelson's defaults.
type Request struct {
	Name         string
	Size         int64 // bytes, a multiple of 4096
	Replicas     int
	Columns      int
	ZoneSpread   bool
	Media        string
	NodeSelector map[string]string
	// Topology, if not empty, says which nodes may get copies: those that match all keys of one of the terms. A key is a label
	// of nodes, or dialect.KeyNode or dialect.KeyZone.
	Topology []map[string]string
	// Near is a node that should get a copy if it can; "" is any.
	Near      string
	Limits    spec.Limits
	Placement spec.Placement
	// TrimEvery is how often the mounted file system is trimmed; 0 is never.
	TrimEvery time.Duration
	// Encrypt has its data encrypted on all copies.
	Encrypt bool
	// Ephemeral is set for a volume that lives as long as a pod.
	Ephemeral *spec.Ephemeral
}

// Volume is a volume as the cluster shows it.
type Volume struct {
	Name         string
	Size         int64
	Replicas     int
	Columns      int
	ZoneSpread   bool
	Media        string
	NodeSelector map[string]string
	Topology     []map[string]string
	Ephemeral    *spec.Ephemeral
	Limits       spec.Limits
	Placement    spec.Placement
	Trim         spec.TrimState
	Encrypted    bool
	Deleting     bool
	// Node is where it is attached with a device; "" if nowhere.
	Node    string
	Healthy bool
	// Condition says what is wrong, or that nothing is.
	Condition string
}

// Node is a node of the cluster.
type Node struct {
	Name     string
	Zone     string
	Labels   map[string]string
	Storage  bool // it can have copies, and attach volumes
	Alive    bool
	Cordoned bool
}

// Pool is a pool of the cluster.
type Pool struct {
	Node  string
	Media string
	// Room is the size of the largest replica that placement would put there, in bytes.
	Room int64
}

// toStatus gives an error its code. One that has a code keeps it.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Internal
	var invalid *spec.InvalidError
	switch {
	case errors.As(err, &invalid), errors.Is(err, ErrInvalid):
		code = codes.InvalidArgument
	case errors.Is(err, ErrNotFound):
		code = codes.NotFound
	case errors.Is(err, ErrExists):
		code = codes.AlreadyExists
	case errors.Is(err, ErrNoRoom):
		code = codes.ResourceExhausted
	case errors.Is(err, ErrRefused):
		code = codes.FailedPrecondition
	case errors.Is(err, ErrAgain):
		code = codes.Aborted
	case errors.Is(err, ErrUnavailable):
		code = codes.Unavailable
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.Error(code, err.Error())
}

// driver is one driver name on one socket.
type driver struct {
	cfg      Config
	endpoint Endpoint
	log      *slog.Logger
}

// noVolume is the error for a volume that isn't there.
func noVolume(id string) error {
	return status.Errorf(codes.NotFound, "there is no volume %q", id)
}

// volume returns the volume with that id. One that is on its way out isn't there any more.
func (d *driver) volume(ctx context.Context, id string) (Volume, error) {
	if spec.CheckName("volume", id) != nil {
		return Volume{}, noVolume(id)
	}
	v, err := d.cfg.Keelson.Volume(ctx, id)
	if err == nil && v.Deleting || errors.Is(err, ErrNotFound) {
		return v, noVolume(id)
	}
	return v, err
}

// wanting returns an error that names the first field that is empty.
func wanting(fields ...string) error {
	for i := 0; i+1 < len(fields); i += 2 {
		if strings.TrimSpace(fields[i+1]) == "" {
			return status.Errorf(codes.InvalidArgument, "%s is missing in the request", fields[i])
		}
	}
	return nil
}
