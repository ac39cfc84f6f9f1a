package api

import (
	"context"
	"errors"
	"slices"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// CreateVolume places a volume's replicas and records it. The engines make the replicas.
func (x volumeService) CreateVolume(ctx context.Context, r *pb.CreateVolumeRequest) (*pb.Volume, error) {
	now := x.s.cfg.Now().UTC().Truncate(time.Second)
	vol := spec.Volume{
		ID: spec.NewID(), Name: r.Name, Size: r.Size, Replicas: int(r.Replicas), Columns: int(r.Columns),
		ZoneSpread: r.ZoneSpread, NodeSelector: r.NodeSelector, Media: spec.Media(r.Media), Created: now,
	}
	if e := r.Ephemeral; e != nil {
		vol.Ephemeral = &spec.Ephemeral{Node: e.Node, Path: e.Path}
	}
	for _, t := range r.Topology {
		vol.Topology = append(vol.Topology, t.GetSegments())
	}
	if vol.Replicas == 0 {
		vol.Replicas = spec.DefaultReplicas
	}
	if vol.Columns == 0 {
		vol.Columns = 1
	}
	applyPolicy(&vol, r.Limits, r.Placement, r.TrimEvery)
	if err := vol.Validate(); err != nil {
		return nil, err
	}
	var err error
	if vol.Import, err = importState(r.Import, vol.Size); err != nil {
		return nil, err
	}
	taken := errorf(meta.ErrExists, "there is a volume named %s already; choose another name", vol.Name)
	if _, err := x.s.cfg.Store.VolumeByName(ctx, vol.Name); err == nil {
		return nil, taken
	} else if !errors.Is(err, meta.ErrNotFound) {
		return nil, err
	}
	v, err := x.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	choices, err := place.Place(v.placeable(), place.Request{Volume: vol, Column: -1, Near: r.Near})
	if err != nil {
		return nil, err
	}
	vol.State.Columns = make([]spec.Column, vol.Columns)
	for _, c := range choices {
		col := &vol.State.Columns[c.Column]
		col.Members = append(col.Members, spec.Member{
			Replica: spec.NewID(), Node: c.Node, Pool: c.Pool, State: spec.InSync, Since: now, Reason: c.Reason,
		})
	}
	if r.Encrypt {
		if err := x.s.encryption(ctx, &vol); err != nil {
			return nil, err
		}
	}
	if _, err := x.s.cfg.Store.CreateVolume(ctx, vol); errors.Is(err, meta.ErrExists) {
		return nil, taken
	} else if err != nil {
		return nil, err
	}
	return v.volumeProto(vol), nil
}

// placeable is the cluster as placement sees it.
func (v *view) placeable() place.Cluster {
	c := place.Cluster{Overcommit: v.cluster.Settings.Overcommit}
	for _, n := range v.nodes {
		c.Nodes = append(c.Nodes, place.Node{Node: n, Alive: v.alive[n.Name]})
	}
	for _, p := range v.pools {
		pp := place.Pool{Pool: p, Provisioned: v.provisioned(p.ID), Free: -1}
		if live := v.livePools[p.ID]; live != nil && live.Problem == "" {
			pp.Free = live.Capacity - live.Used
		}
		c.Pools = append(c.Pools, pp)
	}
	c.Groups = place.GroupsOf(slices.Values(v.volumes))
	return c
}

// provisioned is the sum of the sizes of a pool's replicas.
func (v *view) provisioned(pool string) (sum int64) {
	for _, vol := range v.volumes {
		for _, c := range vol.State.Columns {
			for _, m := range c.Members {
				if m.Pool == pool {
					sum += spec.ColumnSize(vol.Planned(), vol.Columns)
				}
			}
		}
	}
	return sum
}
