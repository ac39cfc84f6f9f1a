package api

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// SetVolume changes the record; the coordinator, and the reconcilers, follow it.
func (x volumeService) SetVolume(ctx context.Context, r *pb.SetVolumeRequest) (*pb.Volume, error) {
	err := retry(ctx, func() error {
		vol, err := x.s.volume(ctx, r.Name)
		if err != nil {
			return err
		}
		if vol.Value.Deleting {
			return errorf(errRefused, "volume %s is being deleted", r.Name)
		}
		before := vol.Value
		applyPolicy(&vol.Value, r.Limits, r.Placement, r.TrimEvery)
		if err := x.s.setReplicas(ctx, &vol.Value, r.Replicas); err != nil {
			return err
		}
		if err := vol.Value.Validate(); err != nil {
			return err
		}
		if before.Replicas == vol.Value.Replicas && before.Limits == vol.Value.Limits && before.Placement == vol.Value.Placement && before.Trim == vol.Value.Trim {
			return nil
		}
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return x.GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Name})
}

// applyPolicy takes what is set over into a volume.
func applyPolicy(v *spec.Volume, l *pb.Limits, p *pb.Placement, trim *durationpb.Duration) {
	if l != nil {
		for i, n := range limitFields(l) {
			if n != nil {
				*spec.LimitKinds[i].Of(&v.Limits) = *n
			}
		}
	}
	if p != nil {
		set(&v.Placement.Tier, p.Tier)
		set(&v.Placement.Group, p.Group)
		set(&v.Placement.GroupRule, p.GroupRule)
		set(&v.Placement.Locality, p.Locality)
		if v.Placement.Group == "" && p.GroupRule == nil {
			v.Placement.GroupRule = ""
		}
	}
	if trim != nil {
		v.Trim.Every = trim.AsDuration()
	}
}

// set takes a text over, if it is given.
func set[T ~string](to *T, from *string) {
	if from != nil {
		*to = T(*from)
	}
}

// limitFields are the fields of a message in the order of spec.LimitKinds.
func limitFields(l *pb.Limits) []*int64 {
	return []*int64{l.Iops, l.Bandwidth, l.ReadIops, l.WriteIops, l.ReadBandwidth, l.WriteBandwidth}
}

// LimitsProto shows limits.
func LimitsProto(l spec.Limits) *pb.Limits {
	return &pb.Limits{Iops: &l.IOPS, Bandwidth: &l.Bandwidth, ReadIops: &l.ReadIOPS, WriteIops: &l.WriteIOPS,
		ReadBandwidth: &l.ReadBandwidth, WriteBandwidth: &l.WriteBandwidth}
}

// policyProtos shows what can be changed of a volume, and its import.
func policyProtos(m *pb.Volume, vol *spec.Volume) {
	if vol.Limits != (spec.Limits{}) {
		m.Limits = LimitsProto(vol.Limits)
	}
	if p := vol.Placement; p != (spec.Placement{}) {
		tier, rule, locality := string(p.Tier), string(p.GroupRule), string(p.Locality)
		m.Placement = &pb.Placement{Tier: &tier, Group: &p.Group, GroupRule: &rule, Locality: &locality}
	}
	if t := vol.Trim; t != (spec.TrimState{}) {
		m.Trim = &pb.Trim{Every: durationpb.New(t.Every), Node: t.Node, Bytes: t.Bytes, Problem: t.Problem}
		if !t.Last.IsZero() {
			m.Trim.Last = timestamppb.New(t.Last)
		}
	}
	if i := vol.Import; i.Active() {
		m.Import = &pb.Import{Source: i.Source, Size: i.Size, Version: i.Version, Position: i.Position, Begun: timestamppb.New(i.Begun), Clearing: i.Clearing}
	}
}

// RecordTrim implements the call.
func (x volumeService) RecordTrim(ctx context.Context, r *pb.RecordTrimRequest) (*pb.RecordTrimResponse, error) {
	err := retry(ctx, func() error {
		vol, err := x.s.volume(ctx, r.Name)
		if err != nil {
			return err
		}
		t := &vol.Value.Trim
		t.Last, t.Node, t.Bytes, t.Problem = x.s.cfg.Now().UTC().Truncate(time.Second), x.s.cfg.Node, r.Bytes, r.Problem
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	return &pb.RecordTrimResponse{}, err
}

// RecordImport implements the call.
func (x volumeService) RecordImport(ctx context.Context, r *pb.RecordImportRequest) (*pb.Volume, error) {
	err := retry(ctx, func() error {
		vol, err := x.s.volume(ctx, r.Name)
		if err != nil {
			return err
		}
		now := &vol.Value.Import
		next, err := importState(r.Import, vol.Value.Size)
		switch {
		case err != nil:
			return err
		case !next.Active(): // complete
		case !now.Active() && !r.Restart && vol.Value.State.Term == 0:
			next.Begun = x.s.cfg.Now().UTC().Truncate(time.Second) // nobody can have written to it
		case !now.Active() && !r.Restart:
			return errorf(errRefused, "volume %s has data already, and nothing is being imported into it; to replace what it has, add --overwrite", r.Name)
		case !r.Restart && (now.Source != next.Source || now.Size != next.Size || now.Version != next.Version):
			return errorf(errRefused, "an import of %s into volume %s isn't complete, and %s is another source, or has changed since; "+
				"give the same one, or begin anew with --overwrite", now.Source, r.Name, next.Source)
		case now.Active() && !r.Restart:
			next.Begun = now.Begun
		default:
			next.Begun = x.s.cfg.Now().UTC().Truncate(time.Second)
		}
		*now = next
		_, err = x.s.cfg.Store.PutVolume(ctx, vol.Value, vol.Rev, meta.Cond{})
		return err
	})
	if err != nil {
		return nil, err
	}
	return x.GetVolume(ctx, &pb.GetVolumeRequest{Name: r.Name})
}

// importState reads what is said of an import into a volume of that size.
func importState(m *pb.Import, size int64) (spec.ImportState, error) {
	if m == nil {
		return spec.ImportState{}, nil
	}
	if m.Source == "" || m.Size < 0 || m.Position < 0 || m.Position > m.Size {
		return spec.ImportState{}, errorf(errInvalid, "an import names its source, and a position within its size; not source %q, position %d of %d", m.Source, m.Position, m.Size)
	}
	if m.Size > size {
		return spec.ImportState{}, &spec.InvalidError{Field: "size", Value: spec.FormatSize(size), Legal: "at least that of the image, " + spec.FormatSize(m.Size)}
	}
	return spec.ImportState{Source: m.Source, Size: m.Size, Version: m.Version, Position: m.Position, Clearing: m.Clearing}, nil
}

// checkAttach refuses to attach a volume that isn't complete, and one that needs a copy on this node where none can be.
func (s *Server) checkAttach(ctx context.Context, vol *spec.Volume, r *pb.AttachVolumeRequest) error {
	if i := vol.Import; i.Active() && !r.Importing {
		return errorf(errRefused, "the import of %s into volume %s isn't complete; go on with: keelson volume import %s --from %s", i.Source, vol.Name, vol.Name, i.Source)
	}
	here := vol.State.Node == s.cfg.Node && vol.State.Frontend != spec.FrontendNone
	if vol.Placement.Locality != spec.LocalityRequire || here {
		return nil
	}
	missing := slices.IndexFunc(vol.State.Columns, func(c spec.Column) bool { return !place.HasCopy(c, s.cfg.Node) })
	if missing < 0 {
		return nil
	}
	v, err := s.readLive(ctx)
	if err != nil {
		return err
	}
	if _, _, err := place.Follow(v.placeable(), *vol, missing, s.cfg.Node); err != nil {
		return errorf(errRefused, "volume %s requires a copy on the node where it is attached, and node %s can't have one: %v", vol.Name, s.cfg.Node, err)
	}
	return nil
}
