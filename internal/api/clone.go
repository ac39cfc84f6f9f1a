package api

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// askedOfClone takes over what is asked for of a clone besides what its origin has. elsewhere says that it may concern where its copies lie.
func askedOfClone(c *spec.Volume, r *pb.CloneVolumeRequest) (elsewhere bool) {
	before := c.Placement
	if w := r.Where; w != nil {
		c.ZoneSpread, c.NodeSelector, c.Media, c.Topology = w.ZoneSpread, w.NodeSelector, spec.Media(w.Media), nil
		for _, t := range w.Topology {
			c.Topology = append(c.Topology, t.GetSegments())
		}
	}
	if r.Replicas != 0 {
		c.Replicas = int(r.Replicas)
	}
	applyPolicy(c, r.Limits, r.Placement, r.TrimEvery)
	before.Locality = c.Placement.Locality // nothing moves for it until the clone is attached
	return r.Where != nil || r.Replicas != 0 || before != c.Placement
}

// settle looks whether the copies of a clone can come to where they are asked for, before anything is made, and has them moved there if
// they aren't. Of more copies than are wanted those that lie right are kept.
func (s *Server) settle(ctx context.Context, c *spec.Volume) error {
	v, err := s.readLive(ctx)
	if err != nil {
		return err
	}
	cluster := v.placeable()
	for i := range c.State.Columns {
		col := &c.State.Columns[i]
		unfit := place.Unfit(cluster, *c, i)
		for j := len(unfit) - 1; j >= 0; j-- {
			if len(col.Members) > c.Replicas && unfit[j] != "" {
				col.Members = slices.Delete(col.Members, j, j+1)
			}
		}
		col.Members = col.Members[:min(len(col.Members), c.Replicas)]
	}
	if _, err = place.Settle(cluster, *c); err != nil {
		return err
	}
	for i := range c.State.Columns {
		_, moves, _ := place.Resettle(cluster, *c, i)
		c.Resettle = c.Resettle || moves
	}
	return nil
}

// resettling says how far a volume is whose copies move to where its rules want them, and what it waits for; "" if none do.
func (v *view) resettling(vol *spec.Volume) string {
	if !vol.Resettle || vol.Deleting {
		return ""
	}
	cluster := v.placeable()
	left, total, what := 0, 0, ""
	for i, col := range vol.State.Columns {
		unfit := place.Unfit(cluster, *vol, i)
		for j, m := range col.Members {
			if m.Removing || unfit[j] != "" {
				left++
			}
		}
		total += vol.Replicas
		if _, _, err := place.Resettle(cluster, *vol, i); err != nil && col.Staying() == len(col.Members) && what == "" {
			what = "; it waits: " + err.Error()
		}
	}
	return fmt.Sprintf("%d of %d copies are still to move%s", left, total, what)
}

// stay takes back that copies are to move. What is on its way already goes on.
func stay(vol *spec.Volume) (changed bool, err error) {
	if !vol.Resettle {
		return false, errorf(errRefused, "volume %s has no copies that are still to move to where its rules want them", vol.Name)
	}
	vol.Resettle = false
	return true, nil
}

// maxClonePolicy leaves room in the description of a replica for the rest.
const maxClonePolicy = 7 << 10

// describe adds to the description of a clone's replicas what is needed to make its record anew of them. One that is too long is
// left out, as a replica can't have it.
func describe(c *spec.Volume) error {
	described := c.Described()
	described.Source = &spec.Source{Volume: c.Source.Volume, Snapshot: c.Source.Snapshot} // it isn't empty
	policy, err := json.Marshal(described)
	if err != nil || len(policy) > maxClonePolicy {
		return err
	}
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(c.Source.Desc, &fields); err != nil {
		return err
	}
	fields["policy"] = policy
	c.Source.Desc, err = json.Marshal(fields)
	return err
}
