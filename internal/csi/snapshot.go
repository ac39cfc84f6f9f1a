package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Snapshot is a snapshot as the cluster shows it.
type Snapshot struct {
	Name, Volume string
	Size         int64
	Taken        time.Time
	Ready        bool
	// Group is the name of the group that it was taken with, "" if none. It is deleted with the group only.
	Group string
}

// id is the snapshot's id in Kubernetes.
func (s Snapshot) id() string { return s.Volume + "/" + s.Name }

func (s Snapshot) message() *pb.Snapshot {
	return &pb.Snapshot{SnapshotId: s.id(), SourceVolumeId: s.Volume, SizeBytes: s.Size, CreationTime: timestamppb.New(s.Taken), ReadyToUse: s.Ready, GroupSnapshotId: s.Group}
}

// CreateSnapshot implements the controller service. It answers when the snapshot can be used.
func (c *controller) CreateSnapshot(ctx context.Context, r *pb.CreateSnapshotRequest) (*pb.CreateSnapshotResponse, error) {
	if err := wanting("name", r.GetName(), "source volume id", r.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	if _, err := c.volume(ctx, r.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	name := volumeName(r.GetName())
	all, err := c.cfg.Keelson.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		if s.Name == name && s.Volume != r.GetSourceVolumeId() {
			return nil, &Problem{ErrExists, fmt.Sprintf("there is a snapshot %s already, of volume %s and not of %s", name, s.Volume, r.GetSourceVolumeId())}
		}
	}
	s, err := c.cfg.Keelson.CreateSnapshot(ctx, r.GetSourceVolumeId(), name)
	if err != nil {
		return nil, err
	}
	return &pb.CreateSnapshotResponse{Snapshot: s.message()}, nil
}

// DeleteSnapshot implements the controller service.
func (c *controller) DeleteSnapshot(ctx context.Context, r *pb.DeleteSnapshotRequest) (*pb.DeleteSnapshotResponse, error) {
	if err := wanting("snapshot id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	volume, name, ok := strings.Cut(r.GetSnapshotId(), "/")
	if ok {
		if err := c.cfg.Keelson.DeleteSnapshot(ctx, volume, name); err != nil && !errors.Is(err, ErrNotFound) {
			return nil, err
		}
	}
	return &pb.DeleteSnapshotResponse{}, nil
}

// ListSnapshots implements the controller service. As with volumes, a token is good whatever was made or deleted since.
func (c *controller) ListSnapshots(ctx context.Context, r *pb.ListSnapshotsRequest) (*pb.ListSnapshotsResponse, error) {
	begin, err := beginOf(r)
	if err != nil {
		return nil, err
	}
	list, err := c.cfg.Keelson.Snapshots(ctx, "")
	if err != nil {
		return nil, err
	}
	list = slices.DeleteFunc(slices.Clone(list), func(s Snapshot) bool {
		return s.id() <= begin || r.GetSourceVolumeId() != "" && s.Volume != r.GetSourceVolumeId() || r.GetSnapshotId() != "" && s.id() != r.GetSnapshotId()
	})
	var out pb.ListSnapshotsResponse
	list, out.NextToken = page(list, Snapshot.id, r.GetMaxEntries())
	for _, s := range list {
		out.Entries = append(out.Entries, &pb.ListSnapshotsResponse_Entry{Snapshot: s.message()})
	}
	return &out, nil
}

// GetSnapshot implements the controller service.
func (c *controller) GetSnapshot(ctx context.Context, r *pb.GetSnapshotRequest) (*pb.GetSnapshotResponse, error) {
	if err := wanting("snapshot id", r.GetSnapshotId()); err != nil {
		return nil, err
	}
	s, err := c.snapshot(ctx, r.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &pb.GetSnapshotResponse{Snapshot: s.message()}, nil
}

func (d *driver) snapshot(ctx context.Context, id string) (Snapshot, error) {
	none := status.Errorf(codes.NotFound, "there is no snapshot %q", id)
	volume, _, ok := strings.Cut(id, "/")
	if !ok {
		return Snapshot{}, none
	}
	list, err := d.cfg.Keelson.Snapshots(ctx, volume)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return Snapshot{}, err
	}
	for _, s := range list {
		if s.id() == id {
			return s, nil
		}
	}
	return Snapshot{}, none
}

// clone makes a volume of a snapshot, or of another volume, or finds the one that an earlier call made. Where its copies lie is what
// the class says: where that differs from its origin's places they move there, while it is used.
func (d *driver) clone(ctx context.Context, req Request, from *pb.VolumeContentSource, capacity *pb.CapacityRange) (Volume, error) {
	var volume, snapshot string
	var size int64
	switch {
	case from.GetSnapshot() != nil:
		s, err := d.snapshot(ctx, from.GetSnapshot().GetSnapshotId())
		if err != nil {
			return Volume{}, err
		}
		volume, snapshot, size = s.Volume, s.Name, s.Size
	case from.GetVolume() != nil:
		v, err := d.volume(ctx, from.GetVolume().GetVolumeId())
		if err != nil {
			return Volume{}, err
		}
		volume, size = v.Name, v.Size
	default:
		return Volume{}, status.Error(codes.InvalidArgument, "the claim's dataSource is neither a snapshot nor a volume")
	}
	if limit := capacity.GetLimitBytes(); limit > 0 && size > limit {
		return Volume{}, status.Errorf(codes.OutOfRange, "at most %d bytes are asked for, but %s has %d", limit, volume, size)
	}
	if err := d.keepsSecret(ctx, req, volume); err != nil {
		return Volume{}, err
	}
	grown := req
	grown.Size = max(size, req.Size)
	v, err := d.cfg.Keelson.Clone(ctx, grown, volume, snapshot)
	if err != nil {
		return v, err
	}
	if v.Size < capacity.GetRequiredBytes() {
		return d.cfg.Keelson.Grow(ctx, req.Name, req.Size)
	}
	return v, nil
}

// keepsSecret refuses a clone that is to be encrypted of a volume that isn't: they have the same blocks. The other way round it is
// encrypted although nobody asks for it.
func (d *driver) keepsSecret(ctx context.Context, req Request, origin string) error {
	if !req.Encrypt {
		return nil
	}
	v, err := d.volume(ctx, origin)
	if err == nil && !v.Encrypted {
		err = status.Errorf(codes.InvalidArgument, "the storage class asks for an encrypted volume, but %s, of which it is to be a clone, isn't encrypted: copy its data into a new volume", origin)
	}
	return err
}
