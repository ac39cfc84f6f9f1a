package api

import (
	"context"
	"errors"
	"fmt"
	"strings"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/place"
	"keelson.io/keelson/internal/spec"
)

// maxHolds bounds how much of what an upkeep waits for is told.
const maxHolds = 100

// SetUpkeep records what is to be done to a node, and says how far that is. A drain that can't end by itself is refused.
func (u upkeepService) SetUpkeep(ctx context.Context, r *pb.SetUpkeepRequest) (*pb.Progress, error) {
	want := spec.Upkeep(r.Upkeep)
	switch want {
	case "", spec.Drain:
	case spec.Decommission:
		if err := allowed(callerOf(ctx), access{who: admin}, "decommissioning a node"); err != nil {
			return nil, err
		}
	default:
		return nil, errorf(errInvalid, "upkeep %q is none of drain, decommission and nothing", r.Upkeep)
	}
	if want == spec.Drain && !r.Force {
		v, err := u.s.readLive(ctx)
		if err != nil {
			return nil, err
		}
		if _, ok := v.node(r.Node); !ok {
			return nil, noNode(r.Node)
		}
		if stuck := stuckHolds(v.drainHolds(r.Node)); len(stuck) > 0 {
			return nil, errorf(errRefused, "node %s can't be drained: %s; or add --force, and these volumes will wait while the node is down", r.Node, strings.Join(stuck, "; "))
		}
	}
	err := retry(ctx, func() error {
		rec, err := u.s.cfg.Store.Node(ctx, r.Node)
		if errors.Is(err, meta.ErrNotFound) {
			return noNode(r.Node)
		}
		if err != nil || rec.Value.Upkeep == want {
			return err
		}
		rec.Value.Upkeep = want
		_, err = u.s.cfg.Store.PutNode(ctx, rec.Value, rec.Rev)
		return err
	})
	if err != nil {
		return nil, err
	}
	return u.GetProgress(ctx, &pb.GetProgressRequest{Node: r.Node})
}

func stuckHolds(holds []*pb.Hold) (list []string) {
	for _, h := range holds {
		if !h.Stuck {
			continue
		}
		text := h.Why
		if h.Volume != "" {
			text = "volume " + h.Volume + ": " + text
		}
		list = append(list, text)
	}
	return list
}

// GetProgress implements the call.
func (u upkeepService) GetProgress(ctx context.Context, r *pb.GetProgressRequest) (*pb.Progress, error) {
	if (r.Node == "") == (r.Pool == "") {
		return nil, errorf(errInvalid, "give one of node and pool")
	}
	v, err := u.s.readLive(ctx)
	if err != nil {
		return nil, err
	}
	p := &pb.Progress{}
	if r.Pool != "" {
		pool, ok := v.pool(r.Pool)
		if !ok {
			return nil, noPool(r.Pool)
		}
		if pool.Draining {
			p.Upkeep = string(spec.Drain)
		}
		v.leaving(p, func(m spec.Member) bool { return m.Pool == r.Pool })
	} else {
		n, ok := v.node(r.Node)
		if !ok {
			return nil, noNode(r.Node)
		}
		p.Upkeep = string(n.Upkeep)
		switch n.Upkeep {
		case spec.Drain:
			p.Holds = v.drainHolds(r.Node)
			p.Holds = append(p.Holds, v.attachedHolds(r.Node)...)
			if hold := u.quorumHold(ctx, n); hold != nil {
				p.Holds = append(p.Holds, hold)
			}
		case spec.Decommission:
			v.leaving(p, func(m spec.Member) bool { return m.Node == r.Node })
			p.Holds = append(p.Holds, v.attachedHolds(r.Node)...)
			if hold := u.quorumHold(ctx, n); hold != nil {
				p.Holds = append(p.Holds, hold)
			}
		}
	}
	p.Done = p.Upkeep != "" && p.Copies == 0 && len(p.Holds) == 0
	p.Holds = p.Holds[:min(len(p.Holds), maxHolds)]
	return p, nil
}

// drainHolds are the volumes that would stop if a node were down: no other copy is in sync on a node that stays up.
func (v *view) drainHolds(node string) (holds []*pb.Hold) {
	for _, vol := range v.volumes {
		if vol.Deleting {
			continue
		}
		for i, c := range vol.State.Columns {
			here, safe := false, false
			var others []string
			for _, m := range c.Members {
				switch {
				case m.Node == node:
					here = true
				case v.usable(m):
					safe = true
				default:
					others = append(others, v.whyNot(m))
				}
			}
			if !here || safe {
				continue
			}
			h := &pb.Hold{Volume: vol.Name}
			if len(others) == 0 && vol.Replicas <= 1 {
				h.Stuck = true
				h.Why = fmt.Sprintf("its only copy is on node %s; add one: keelson volume set %s --replicas 2, or move it: keelson volume move %s --from %s",
					node, vol.Name, vol.Name, node)
			} else {
				h.Why = fmt.Sprintf("column %d has no other copy in sync: %s", i, strings.Join(append(others, "none is being made yet")[:max(1, len(others))], ", "))
			}
			holds = append(holds, h)
			break
		}
	}
	return holds
}

// whyNot says why a copy can't be relied on.
func (v *view) whyNot(m spec.Member) string {
	n, known := v.node(m.Node)
	switch {
	case !known || !v.alive[m.Node]:
		return "node " + m.Node + " is gone"
	case m.State != spec.InSync:
		return "the one on node " + m.Node + " is " + string(m.State)
	case n.Upkeep == spec.Drain:
		return "node " + m.Node + " is being drained too"
	}
	return "the pool of the one on node " + m.Node + " is gone"
}

// attachedHolds are the volumes that are used on a node. They stay until what uses them goes.
func (v *view) attachedHolds(node string) (holds []*pb.Hold) {
	for _, vol := range v.volumes {
		if vol.State.Node == node && vol.State.Frontend != spec.FrontendNone && !vol.Deleting {
			holds = append(holds, &pb.Hold{Volume: vol.Name, Why: "is attached to node " + node + ": it stays until what uses it goes; then detach it, if that doesn't"})
		}
	}
	return holds
}

// quorumHold says whether the metadata would stop without a node that holds it; nil if not.
func (u upkeepService) quorumHold(ctx context.Context, n spec.Node) *pb.Hold {
	if !hasRole(n.Roles, spec.RoleMetadata) || u.s.cfg.External || u.s.cfg.Members == nil {
		return nil
	}
	list, err := u.s.cfg.Members.List(ctx)
	if err != nil {
		return &pb.Hold{Why: "the members of the metadata can't be asked: " + err.Error()}
	}
	voters, healthy := 0, 0
	var sick []string
	for _, m := range list {
		if m.Learner {
			continue
		}
		voters++
		switch {
		case m.Name == n.Name:
		case m.Healthy:
			healthy++
		default:
			sick = append(sick, m.Name)
		}
	}
	switch {
	case n.Upkeep == spec.Drain && voters <= 2:
		return nil // it stops for as long as the node is away, whenever that is
	case n.Upkeep == spec.Drain && healthy <= voters/2:
		return &pb.Hold{Why: fmt.Sprintf("the metadata would stop without node %s: its members on %s don't answer", n.Name, strings.Join(sick, ", "))}
	case n.Upkeep == spec.Decommission && healthy == 0:
		return &pb.Hold{Stuck: true, Why: fmt.Sprintf("node %s is the only one that holds the metadata; let another node join with the role metadata first", n.Name)}
	case n.Upkeep == spec.Decommission && healthy <= (voters-1)/2:
		return &pb.Hold{Why: fmt.Sprintf("the metadata would have no majority without node %s: its members on %s don't answer", n.Name, strings.Join(sick, ", "))}
	}
	return nil
}

// leaving counts the copies that are still where they are to leave, and says which can't go anywhere.
func (v *view) leaving(p *pb.Progress, here func(spec.Member) bool) {
	for _, vol := range v.volumes {
		if vol.Deleting {
			continue
		}
		for i, c := range vol.State.Columns {
			for _, m := range c.Members {
				if !here(m) {
					continue
				}
				p.Copies++
				if m.Removing {
					p.Bytes += v.toCopy(&vol, c)
				} else if hold := v.placeHold(&vol, i, m); hold != nil && len(p.Holds) < maxHolds {
					p.Holds = append(p.Holds, hold)
				}
			}
		}
	}
}

// toCopy is how much is still to be copied to the members of a column that are catching up, as far as is known.
func (v *view) toCopy(vol *spec.Volume, c spec.Column) (n int64) {
	live := v.liveVolumes[vol.ID]
	for _, m := range c.Members {
		for _, lm := range live.GetMembers() {
			if lm.Replica == m.Replica && m.State == spec.Syncing {
				n += max(0, lm.ResyncTotal-lm.ResyncDone)
			}
		}
	}
	return n
}

// placeHold says why a copy that is to leave can't; nil if it can.
func (v *view) placeHold(vol *spec.Volume, column int, m spec.Member) *pb.Hold {
	if len(vol.State.Columns[column].Members) > vol.Replicas {
		return nil // another one moves first
	}
	if v.clusterView == nil {
		c := v.placeable()
		v.clusterView = &c
	}
	_, err := place.Place(*v.clusterView, place.Request{Volume: *vol, Column: column, Replacing: m.Replica})
	if err == nil {
		return nil
	}
	return &pb.Hold{Volume: vol.Name, Stuck: true, Why: err.Error()}
}
