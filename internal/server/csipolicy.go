package server

import (
	"context"

	"google.golang.org/protobuf/types/known/durationpb"

	"keelson.io/keelson/internal/api"
	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/csi/dialect"
	"keelson.io/keelson/internal/spec"
)

// Modify implements csi.Keelson.
func (k *csiKeelson) Modify(ctx context.Context, name string, c dialect.Change) error {
	r := &pb.SetVolumeRequest{Name: name, Placement: &pb.Placement{Tier: c.Tier, Locality: c.Locality}, Limits: &pb.Limits{}}
	l := r.Limits
	for i, to := range []**int64{&l.Iops, &l.Bandwidth, &l.ReadIops, &l.WriteIops, &l.ReadBandwidth, &l.WriteBandwidth} {
		*to = c.Limits[i]
	}
	if c.TrimEvery != nil {
		r.TrimEvery = durationpb.New(*c.TrimEvery)
	}
	_, err := k.api.Volumes.SetVolume(ctx, r)
	return csiError(err)
}

// Trimmed implements csi.Keelson.
func (k *csiKeelson) Trimmed(ctx context.Context, name string, bytes int64, problem error) error {
	r := &pb.RecordTrimRequest{Name: name, Bytes: bytes}
	if problem != nil {
		r.Problem = problem.Error()
	}
	_, err := k.api.Volumes.RecordTrim(ctx, r)
	return csiError(err)
}

// askPolicy puts what can be changed later into a request for a volume.
func askPolicy(req *pb.CreateVolumeRequest, r csi.Request) {
	req.Limits = api.LimitsProto(r.Limits)
	tier, rule, locality := string(r.Placement.Tier), string(r.Placement.GroupRule), string(r.Placement.Locality)
	req.Placement = &pb.Placement{Tier: &tier, Group: &r.Placement.Group, GroupRule: &rule, Locality: &locality}
	req.TrimEvery = durationpb.New(r.TrimEvery)
}

// showPolicy takes what can be changed of a volume over.
func showPolicy(out *csi.Volume, v *pb.Volume) {
	if l := v.Limits; l != nil {
		out.Limits = spec.Limits{IOPS: l.GetIops(), Bandwidth: l.GetBandwidth(), ReadIOPS: l.GetReadIops(), WriteIOPS: l.GetWriteIops(),
			ReadBandwidth: l.GetReadBandwidth(), WriteBandwidth: l.GetWriteBandwidth()}
	}
	if p := v.Placement; p != nil {
		out.Placement = spec.Placement{Tier: spec.Tier(p.GetTier()), Group: p.GetGroup(), GroupRule: spec.GroupRule(p.GetGroupRule()), Locality: spec.Locality(p.GetLocality())}
	}
	if t := v.Trim; t != nil {
		out.Trim = spec.TrimState{Every: t.Every.AsDuration(), Node: t.Node, Bytes: t.Bytes, Problem: t.Problem}
		if t.Last != nil {
			out.Trim.Last = t.Last.AsTime()
		}
	}
}
