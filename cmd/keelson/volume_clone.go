package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/spec"
)

// whereProto is where the flags say that copies shall lie.
func (o *VolumeCreateOptions) whereProto() (*pb.Where, error) {
	sel, err := spec.ParseLabels("node-selector", o.NodeSelector)
	if err != nil {
		return nil, err
	}
	topology, err := spec.TopologyOf(o.Nodes, o.Zones)
	if err != nil {
		return nil, err
	}
	w := &pb.Where{ZoneSpread: o.ZoneSpread, NodeSelector: sel, Media: o.Media}
	for _, t := range topology {
		w.Topology = append(w.Topology, &pb.TopologyTerm{Segments: t})
	}
	return w, nil
}

// runVolumeClone is volume create of what another volume holds, or held.
func runVolumeClone(ctx context.Context, g *globalOptions, o VolumeCreateOptions, policy *pb.SetVolumeRequest, w io.Writer) error {
	r := &pb.CloneVolumeRequest{Name: policy.Name, FromVolume: o.FromVolume, Limits: policy.Limits, Placement: policy.Placement, TrimEvery: policy.TrimEvery}
	if o.counted {
		if err := spec.CheckReplicas(int(o.Replicas)); err != nil {
			return err
		}
		r.Replicas = o.Replicas
	}
	if o.where {
		var err error
		if r.Where, err = o.whereProto(); err != nil {
			return err
		}
	}
	if o.FromSnapshot != "" {
		var ok bool
		if r.FromVolume, r.FromSnapshot, ok = strings.Cut(o.FromSnapshot, "/"); !ok || r.FromSnapshot == "" {
			return usageError{&spec.InvalidError{Field: "from-snapshot", Value: o.FromSnapshot, Legal: "VOLUME/SNAPSHOT"}}
		}
	}
	if o.Size != "" {
		size, err := spec.ParseSize(o.Size)
		if err != nil {
			return err
		}
		r.Size = size
	}
	c, err := g.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWait)
	defer cancel()
	v, err := c.Snaps.CloneVolume(ctx, r)
	if err != nil {
		return err
	}
	return o.output.print(w, plain(v), func(w io.Writer) {
		fmt.Fprintf(w, "volume %s, %s, replicas on %s\n", v.Name, spec.FormatSize(v.Size), replicaNodes(v))
		if v.Resettling != "" {
			fmt.Fprintf(w, "it can be used at once; %s in the background: keelson volume show %s\n", v.Resettling, v.Name)
		}
	})
}
