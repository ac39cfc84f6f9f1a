package api

import (
	"context"
	"errors"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

type volumeService struct{ s *Server }

func (x volumeService) ListVolumes(ctx context.Context, _ *pb.ListVolumesRequest) (*pb.ListVolumesResponse, error) {
	v, err := x.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.ListVolumesResponse{Volumes: v.volumeProtos()}, nil
}

func (v *view) volumeProtos() []*pb.Volume {
	out := make([]*pb.Volume, 0, len(v.volumes))
	for _, x := range v.volumes {
		if x.ReadOnly == nil {
			out = append(out, v.volumeProto(x))
		}
	}
	return out
}

func (x volumeService) GetVolume(ctx context.Context, r *pb.GetVolumeRequest) (*pb.Volume, error) {
	v, err := x.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	for _, vol := range v.volumes {
		if vol.Name == r.Name && vol.ReadOnly == nil {
			return v.volumeProto(vol), nil
		}
	}
	return nil, noVolume(r.Name)
}

func noVolume(name string) error {
	return errorf(errMissing, "there is no volume %q; `keelson volume list` shows them", name)
}

// volume reads a volume by name, for a change.
func (s *Server) volume(ctx context.Context, name string) (meta.Versioned[spec.Volume], error) {
	v, err := s.cfg.Store.VolumeByName(ctx, name)
	if errors.Is(err, meta.ErrNotFound) || err == nil && v.Value.ReadOnly != nil {
		return v, noVolume(name)
	}
	return v, err
}

// AttachVolume finds out whether the volume can be had, and has the engine of the
// target take it. The decision is the engine's transaction; what is looked at before makes the
// answer a clear one.
func (x volumeService) AttachVolume(ctx context.Context, r *pb.AttachVolumeRequest) (*pb.AttachVolumeResponse, error) {
	if r.Frontend == "" {
		r.Frontend = spec.FrontendFUSE
	}
	if err := spec.CheckFrontend(r.Frontend); err != nil {
		return nil, err
	}
	if r.AcceptLoss {
		if err := allowed(callerOf(ctx), access{who: admin}, "force-online"); err != nil {
			return nil, err
		}
	}
	vol, err := x.s.volume(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	if vol.Value.Deleting {
		return nil, errorf(errRefused, "volume %s is being deleted", r.Name)
	}
	if why := preparing(&vol.Value); why != "" && r.Frontend != spec.FrontendNone {
		return nil, errorf(errAgain, "volume %s %s", r.Name, why)
	}
	if r.Node != "" && r.Node != x.s.cfg.Node {
		c, err := x.s.other(ctx, r.Node)
		if err != nil {
			return nil, err
		}
		return c.Volumes.AttachVolume(ctx, r)
	}
	if x.s.cfg.Engine == nil {
		return nil, errorf(errRefused, "node %s has no storage role, so no volume can be attached there; choose another with --node", x.s.cfg.Node)
	}
	if err := x.s.checkHolder(ctx, vol.Value); err != nil {
		return nil, err
	}
	if err := x.s.checkAttach(ctx, &vol.Value, r); err != nil {
		return nil, err
	}
	got, err := x.s.cfg.Engine.Attach(ctx, &pb.EngineAttachRequest{VolumeId: vol.Value.ID, Frontend: r.Frontend, AcceptLoss: r.AcceptLoss, Wait: r.Wait})
	if err != nil {
		return nil, err
	}
	return &pb.AttachVolumeResponse{Device: got.Device, Term: got.Term, Node: x.s.cfg.Node}, nil
}

// checkHolder refuses if another node has the volume and is alive; if that node can't be reached,
// but its lease hasn't ended yet, the caller is to ask again.
func (s *Server) checkHolder(ctx context.Context, vol spec.Volume) error {
	holder := vol.State.Node
	if holder == "" || holder == s.cfg.Node || vol.State.Frontend == spec.FrontendNone {
		return nil
	}
	alive, err := s.cfg.Store.Alive(ctx)
	if err != nil {
		return err
	}
	if !alive[holder] {
		return nil
	}
	n, err := s.cfg.Store.Node(ctx, holder)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, _, err := s.ask(ctx, n.Value); err == nil {
		return errorf(errRefused, "volume %s is attached to node %s, which is alive; detach it there first: keelson volume detach %s", vol.Name, holder, vol.Name)
	}
	return errorf(errAgain, "volume %s is attached to node %s, which can't be reached, but whose lease hasn't ended yet", vol.Name, holder)
}

func (x volumeService) DetachVolume(ctx context.Context, r *pb.DetachVolumeRequest) (*pb.DetachVolumeResponse, error) {
	vol, err := x.s.volume(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	holder := vol.Value.State.Node
	switch {
	case r.From != "" && (holder != r.From || vol.Value.State.Frontend == spec.FrontendNone):
		return &pb.DetachVolumeResponse{}, nil
	case holder == "" || vol.Value.State.Frontend == spec.FrontendNone:
		return nil, errorf(errRefused, "volume %s is not attached", r.Name)
	case holder != x.s.cfg.Node:
		c, err := x.s.other(ctx, holder)
		if errors.Is(err, errGone) || errors.Is(err, errMissing) {
			return nil, errorf(errGone, "volume %s is attached to node %s, which is gone, so it can't be detached there; attach it on another node: that fences the old one", r.Name, holder)
		}
		if err != nil {
			return nil, err
		}
		return c.Volumes.DetachVolume(ctx, r)
	case x.s.cfg.Engine == nil:
		return nil, errorf(errGone, "node %s runs no engine", holder)
	}
	_, err = x.s.cfg.Engine.Detach(ctx, &pb.EngineDetachRequest{VolumeId: vol.Value.ID, Wait: r.Wait})
	return &pb.DetachVolumeResponse{}, err
}

// DeleteVolume marks the volume; the engines drop its replicas, and then it is gone.
func (x volumeService) DeleteVolume(ctx context.Context, r *pb.DeleteVolumeRequest) (*pb.DeleteVolumeResponse, error) {
	err := retry(ctx, func() error {
		vol, err := x.s.volume(ctx, r.Name)
		if err != nil || vol.Value.Deleting {
			return err
		}
		if st := vol.Value.State; st.Node != "" && st.Frontend != spec.FrontendNone && !x.s.abandoned(ctx, vol.Value) {
			return errorf(errRefused, "volume %s is attached to node %s; detach it first: keelson volume detach %s", r.Name, st.Node, r.Name)
		}
		if err := x.s.deletable(ctx, &vol.Value); err != nil {
			return err
		}
		vol.Value.Deleting = true
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	return &pb.DeleteVolumeResponse{}, err
}

// abandoned reports whether a volume was made for a pod whose node has it, but is gone: what that node still writes is for
// nobody, and often it has the only copy, so that no other node could take the volume from it.
func (s *Server) abandoned(ctx context.Context, vol spec.Volume) bool {
	if vol.Ephemeral == nil {
		return false
	}
	alive, err := s.cfg.Store.Alive(ctx)
	return err == nil && !alive[vol.State.Node]
}
