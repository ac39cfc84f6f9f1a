package api

import (
	"context"
	"errors"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// AttachSnapshot implements the call. What is attached is a clone of the snapshot that can't be written to: it shares all its space
// with the snapshot, has the same copies, and reads, repairs and moves as any volume does.
//
//	the clone's record, pending -> the snapshot's record names it -> its copies are made -> the engine attaches it
//
// What a crash leaves of it isn't attached, and is deleted by the leader.
func (x snapshotService) AttachSnapshot(ctx context.Context, r *pb.AttachSnapshotRequest) (*pb.AttachSnapshotResponse, error) {
	if r.Frontend == "" {
		r.Frontend = spec.FrontendFUSE
	}
	if err := spec.CheckFrontend(r.Frontend); err != nil {
		return nil, err
	}
	if r.Node != "" && r.Node != x.s.cfg.Node {
		if _, err := x.readySnapshot(ctx, r.Volume, r.Name); err != nil {
			return nil, err
		}
		c, err := x.s.other(ctx, r.Node)
		if err != nil {
			return nil, err
		}
		return c.Snaps.AttachSnapshot(ctx, r)
	}
	if x.s.cfg.Engine == nil {
		return nil, errorf(errRefused, "node %s has no storage role, so no snapshot can be attached there; choose another with --node", x.s.cfg.Node)
	}
	id, err := x.deviceVolume(ctx, r)
	if err != nil {
		return nil, err
	}
	err = x.await(ctx, id, "attaching the snapshot", func(v *spec.Volume) (bool, error) {
		if v.Deleting {
			return false, errorf(errRefused, "snapshot %s of volume %s was detached meanwhile", r.Name, r.Volume)
		}
		return !v.Cloning(), nil
	})
	if err != nil {
		return nil, err
	}
	got, err := x.s.cfg.Engine.Attach(ctx, &pb.EngineAttachRequest{VolumeId: id, Frontend: r.Frontend})
	if err != nil {
		return nil, err
	}
	return &pb.AttachSnapshotResponse{Device: got.Device, Node: x.s.cfg.Node}, nil
}

// readySnapshot reads a snapshot that can be used, and its volume.
func (x snapshotService) readySnapshot(ctx context.Context, volume, name string) (spec.Volume, error) {
	vol, err := x.s.volume(ctx, volume)
	if err != nil {
		return spec.Volume{}, err
	}
	_, err = ready(&vol.Value, name)
	return vol.Value, err
}

// deviceVolume returns the id of the volume that shows a snapshot to this node, which it makes if there is none.
func (x snapshotService) deviceVolume(ctx context.Context, r *pb.AttachSnapshotRequest) (string, error) {
	origin, err := x.readySnapshot(ctx, r.Volume, r.Name)
	if err != nil {
		return "", err
	}
	s, _ := ready(&origin, r.Name)
	name := spec.DeviceName(origin.Name, s.Name)
	old, err := x.s.cfg.Store.VolumeByName(ctx, name)
	if errors.Is(err, meta.ErrNotFound) {
		old.Value, err = x.newDevice(ctx, &origin, s, name, r.Frontend)
	}
	if err != nil {
		return "", err
	}
	v := &old.Value
	switch {
	case v.Deleting:
		return "", errorf(errAgain, "snapshot %s of volume %s is being detached; try again", s.Name, origin.Name)
	case v.ReadOnly.Node != x.s.cfg.Node:
		return "", errorf(errRefused, "snapshot %s of volume %s is attached to node %s; detach it first: keelson snapshot detach %s", s.Name, origin.Name, v.ReadOnly.Node, name)
	case v.ReadOnly.Frontend != r.Frontend:
		return "", errorf(errRefused, "snapshot %s of volume %s is attached to this node with frontend %s; detach it first: keelson snapshot detach %s", s.Name, origin.Name, v.ReadOnly.Frontend, name)
	}
	// The snapshot isn't deleted from now on.
	_, err = x.change(ctx, origin.Name, func(o *spec.Volume) error {
		s, err := ready(o, v.ReadOnly.Snapshot)
		if err != nil {
			return err
		}
		if s.Device.Volume == v.ID {
			return errUnchanged
		}
		s.Device = spec.SnapshotDevice{Volume: v.ID, Node: v.ReadOnly.Node}
		return nil
	})
	if errors.Is(err, errMissing) || errors.Is(err, errRefused) {
		err = errors.Join(err, x.endDevice(ctx, *v)) // it was deleted meanwhile
	}
	return v.ID, err
}

// newDevice records the volume that shows a snapshot to this node.
func (x snapshotService) newDevice(ctx context.Context, origin *spec.Volume, s *spec.Snapshot, name, frontend string) (spec.Volume, error) {
	id := spec.NewID()
	v, err := x.cloneOf(ctx, origin, s, &pb.CloneVolumeRequest{Name: "snapshot-" + id}, id)
	if err != nil {
		return v, err
	}
	v.Name = name
	v.ReadOnly = &spec.ReadOnly{Volume: origin.ID, Snapshot: s.ID, Node: x.s.cfg.Node, Frontend: frontend}
	v.Limits, v.Placement = spec.Limits{}, spec.Placement{}
	_, err = x.s.cfg.Store.CreateVolume(ctx, v)
	if errors.Is(err, meta.ErrExists) {
		err = errorf(errAgain, "snapshot %s of volume %s is being attached; try again", s.Name, origin.Name)
	}
	return v, err
}

// DetachSnapshot implements the call. If the node that has the snapshot is gone, nothing is lost by taking it from there.
func (x snapshotService) DetachSnapshot(ctx context.Context, r *pb.DetachSnapshotRequest) (*pb.DetachSnapshotResponse, error) {
	vol, err := x.s.volume(ctx, r.Volume)
	if err != nil {
		return nil, err
	}
	s := vol.Value.SnapshotByName(r.Name)
	if s == nil {
		return nil, noSnapshot(r.Volume, r.Name)
	}
	dev, err := x.s.cfg.Store.VolumeByName(ctx, spec.DeviceName(vol.Value.Name, s.Name))
	if errors.Is(err, meta.ErrNotFound) {
		if s.Device.Volume == "" {
			return nil, errorf(errRefused, "snapshot %s of volume %s is not attached", s.Name, r.Volume)
		}
		return &pb.DetachSnapshotResponse{}, x.endDevice(ctx, spec.Volume{ID: s.Device.Volume, ReadOnly: &spec.ReadOnly{Volume: vol.Value.ID}})
	}
	if err != nil {
		return nil, err
	}
	holder := dev.Value.State.Node
	if holder != "" && dev.Value.State.Frontend != spec.FrontendNone {
		if holder != x.s.cfg.Node {
			c, err := x.s.other(ctx, holder)
			if err == nil {
				return c.Snaps.DetachSnapshot(ctx, r)
			}
			if alive, aerr := x.s.cfg.Store.Alive(ctx); aerr != nil || alive[holder] {
				return nil, err
			}
		} else if _, err := x.s.cfg.Engine.Detach(ctx, &pb.EngineDetachRequest{VolumeId: dev.Value.ID}); err != nil {
			return nil, err
		}
	}
	return &pb.DetachSnapshotResponse{}, x.endDevice(ctx, dev.Value)
}

// endDevice has the volume that showed a snapshot deleted, and lets the snapshot go.
func (x snapshotService) endDevice(ctx context.Context, dev spec.Volume) error {
	err := retry(ctx, func() error {
		v, err := x.s.cfg.Store.Volume(ctx, dev.ID)
		if errors.Is(err, meta.ErrNotFound) || err == nil && v.Value.Deleting {
			return nil
		}
		if err != nil {
			return err
		}
		v.Value.Deleting = true
		_, err = x.s.cfg.Store.PutVolume(ctx, v.Value, v.Rev, meta.Cond{})
		return err
	})
	if err != nil {
		return err
	}
	origin, err := x.s.cfg.Store.Volume(ctx, dev.ReadOnly.Volume)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = x.change(ctx, origin.Value.Name, func(o *spec.Volume) error {
		for i := range o.Snapshots {
			if s := &o.Snapshots[i]; s.Device.Volume == dev.ID {
				s.Device = spec.SnapshotDevice{}
				return nil
			}
		}
		return errUnchanged
	})
	return err
}
