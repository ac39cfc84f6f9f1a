package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/spec"
)

// ErrUnproven: the metadata was recovered, and it isn't known yet whether the volume's record is the newest.
var ErrUnproven = fmt.Errorf("the metadata was recovered, and not all nodes have said yet what they have of the volume; `keelson status` names those that are waited for: %w", meta.ErrUnavailable)

// errOtherRecovery: what is to be told is about a recovery that isn't the last one any more.
var errOtherRecovery = errors.New("the metadata was recovered again")

// memory is what an engine knew of the metadata when that was put back to an older state.
type memory struct {
	volumes map[string]meta.Versioned[spec.Volume]
	nodes   map[string]spec.Node
	removed map[string]time.Time
	upTo    meta.Rev // a volume that isn't in volumes, of a revision up to this, had been deleted
}

// afterRecovery has the metadata told what this node has, if it hasn't heard that yet. m is nil if the engine knows nothing from
// before.
func (e *Engine) afterRecovery(c spec.Cluster, m *memory) {
	r := c.Recovery
	if r.Number == 0 || slices.Contains(r.Heard, e.cfg.Node) {
		return
	}
	e.log.Warn("the metadata was recovered; it is told what this node has", "recovery", r.Number, "state_of", r.StateOf, "remembers", m != nil)
	e.spawn(func() {
		pause := 100 * time.Millisecond
		for {
			err := e.tell(e.ctx, r.Number, m)
			if err == nil || e.ctx.Err() != nil || errors.Is(err, errOtherRecovery) {
				return
			}
			if pause > time.Second {
				e.log.Warn("the metadata can't be told what this node has; trying again", "err", err)
			}
			select {
			case <-e.ctx.Done():
				return
			case <-time.After(pause):
			}
			pause = min(2*pause, 2*time.Second)
		}
	})
}

// tell writes down, with each volume, what this node has of it, and then that it has done so. It can be repeated.
func (e *Engine) tell(ctx context.Context, number int, m *memory) error {
	if e.cfg.Complete != nil {
		if err := e.cfg.Complete(ctx); err != nil {
			return err
		}
	}
	if err := e.recall(ctx, m); err != nil {
		return err
	}
	here, err := e.holdings(ctx)
	if err != nil {
		return err
	}
	recorded, err := e.cfg.Store.Volumes(ctx)
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, v := range recorded {
		ids[v.Value.ID] = true
	}
	for id := range here {
		ids[id] = true
	}
	if m != nil {
		for id := range m.volumes {
			ids[id] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		if err := e.claim(ctx, id, here[id], m); err != nil {
			return err
		}
	}
	for {
		c, err := e.cfg.Store.Cluster(ctx)
		switch {
		case err != nil:
			return err
		case c.Value.Recovery.Number != number:
			return errOtherRecovery
		}
		c.Value.Recovery.Heard = append(slices.Clone(c.Value.Recovery.Heard), e.cfg.Node)
		if _, err := e.cfg.Store.PutCluster(ctx, c.Value, c.Rev); !errors.Is(err, meta.ErrConflict) {
			return err
		}
	}
}

// recall brings nodes back that the restored state doesn't know, and removals of nodes.
func (e *Engine) recall(ctx context.Context, m *memory) error {
	if m == nil {
		return nil
	}
	for {
		c, err := e.cfg.Store.Cluster(ctx)
		if err != nil {
			return err
		}
		if c.Value.AlsoRemoved(m.removed) {
			if _, err = e.cfg.Store.PutCluster(ctx, c.Value, c.Rev); errors.Is(err, meta.ErrConflict) {
				continue
			}
		}
		if err != nil {
			return err
		}
		break
	}
	for _, n := range m.nodes {
		if _, err := e.cfg.Store.Node(ctx, n.Name); errors.Is(err, meta.ErrNotFound) {
			if _, err := e.cfg.Store.PutNode(ctx, n, 0); err != nil && !errors.Is(err, meta.ErrExists) {
				return err
			}
		} else if err != nil {
			return err
		}
	}
	return nil
}

// holding is what this node has of a volume.
type holding struct {
	claim  spec.Claim
	record *meta.Versioned[spec.Volume] // of an attachment that serves
	desc   *replica.Desc                // of one of its copies
}

// holdings looks through attachments and pools.
func (e *Engine) holdings(ctx context.Context) (map[string]*holding, error) {
	all := map[string]*holding{}
	of := func(id string) *holding {
		if all[id] == nil {
			all[id] = &holding{claim: spec.Claim{Node: e.cfg.Node}}
		}
		return all[id]
	}
	e.mu.Lock()
	attached := slices.Collect(maps.Values(e.attached))
	e.mu.Unlock()
	for _, a := range attached {
		if closed(a.gone) {
			continue
		}
		h := of(a.id)
		h.claim.Term, h.claim.Serving = a.term, closed(a.serves)
		err := a.s.do(ctx, func() {
			if v := a.s.volumes[a.id]; v != nil && h.claim.Serving {
				rec := v.Record()
				h.record = &rec
			}
		})
		if err != nil {
			return nil, err
		}
		h.claim.Serving = h.claim.Serving && h.record != nil
	}
	for _, s := range e.shards {
		var list []*localReplica
		if err := s.do(ctx, func() {
			for _, r := range s.replicas {
				if r.onDisk && !r.doomed && r.pool != nil && !errors.Is(r.err, errForeign) {
					list = append(list, r)
				}
			}
		}); err != nil {
			return nil, err
		}
		slices.SortFunc(list, func(a, b *localReplica) int { return int(min(max(int64(a.id)-int64(b.id), -1), 1)) })
		for _, r := range list {
			st, err := s.standing(ctx, r.pool.path(r.id))
			if errors.Is(err, ctx.Err()) && err != nil {
				return nil, err
			}
			if err != nil || st.Cluster != e.cfg.Cluster {
				e.log.Warn("a replica can't say how far it has come; it isn't counted", "replica", r.id.String(), "pool", r.pool.id, "err", err)
				continue
			}
			h := of(st.Volume)
			h.desc = &st.Desc
			h.claim.Copies = append(h.claim.Copies, spec.ClaimedCopy{
				Replica: r.id.String(), Pool: r.pool.id, Column: st.Column, Size: st.Size, Fence: st.Fence, Checkpoint: st.Checkpoint, Run: e.cfg.Run,
				Clone: sourceOf(st.Policy) != nil,
			})
		}
	}
	return all, nil
}

// standing reads a replica's standing, and waits for it.
func (s *shard) standing(ctx context.Context, dir string) (st replica.Standing, err error) {
	done := make(chan struct{})
	s.loop.Post(func() {
		replica.ReadStanding(s.loop, dir, func(got replica.Standing, e error) {
			st, err = got, e
			close(done)
		})
	})
	select {
	case <-done:
		return st, err
	case <-ctx.Done():
		return replica.Standing{}, ctx.Err()
	}
}

// claim writes down what this node has of a volume and knows of its record. It can be repeated.
func (e *Engine) claim(ctx context.Context, id string, h *holding, m *memory) error {
	known := e.remembered(id, h, m)
	for {
		rec, err := e.cfg.Store.Volume(ctx, id)
		switch {
		case errors.Is(err, meta.ErrNotFound):
			done, err := e.bringBack(ctx, id, h, m, known)
			if done || err != nil {
				return err
			}
			continue
		case err != nil:
			return err
		case rec.Value.Unproven == nil:
			return nil
		}
		v, was := rec.Value, *rec.Value.Unproven
		now, changed := was, false
		switch {
		case known != nil && (int64(known.Rev) > was.Rev || h != nil && h.record != nil && int64(known.Rev) == was.Rev):
			v, now.Rev, changed = known.Value, int64(known.Rev), int64(known.Rev) > was.Rev
		case known == nil && m != nil && was.Rev > 0 && was.Rev <= int64(m.upTo) && !v.Deleting:
			v.Deleting, changed = true, true
		}
		if h != nil && now.Claim(h.claim) {
			changed = true
		}
		if !changed {
			return nil
		}
		v.Unproven = &now
		if _, err = e.cfg.Store.PutVolume(ctx, v, rec.Rev, meta.Cond{}); !errors.Is(err, meta.ErrConflict) {
			return err
		}
	}
}

// remembered is the newest record of a volume that this node knows from before the recovery; nil if there is none.
func (e *Engine) remembered(id string, h *holding, m *memory) (known *meta.Versioned[spec.Volume]) {
	if m != nil {
		if rec, ok := m.volumes[id]; ok {
			known = &rec
		}
	}
	if h != nil && h.record != nil && (known == nil || h.record.Rev >= known.Rev) {
		known = h.record
	}
	return known
}

// bringBack makes the record of a volume that the restored state doesn't know: what is remembered of it, or else what its copies say.
// done is false if another node was faster.
func (e *Engine) bringBack(ctx context.Context, id string, h *holding, m *memory, known *meta.Versioned[spec.Volume]) (done bool, err error) {
	var v spec.Volume
	switch {
	case known != nil:
		v = known.Value
		v.Unproven = &spec.Unproven{Rev: int64(known.Rev)}
	case h == nil || h.desc == nil || m != nil:
		return true, nil // what was an orphan before stays one
	case len(h.desc.Policy) == 0 || json.Unmarshal(h.desc.Policy, &v) != nil || v.ID != id:
		e.log.Error("copies of a volume are here that nobody knows, and they don't say what it was; they are left alone", "volume", id, "name", h.desc.Name)
		return true, nil
	default:
		left, err := e.leftover(ctx, h)
		if left || err != nil {
			return true, err
		}
		v.State = spec.State{Columns: make([]spec.Column, h.desc.Columns)}
		v.Unproven = &spec.Unproven{}
	}
	if h != nil {
		v.Unproven.Claim(h.claim)
	}
	_, err = e.cfg.Store.CreateVolume(ctx, v)
	if !errors.Is(err, meta.ErrExists) {
		return true, err
	}
	if _, err := e.cfg.Store.Volume(ctx, id); err == nil {
		return false, nil
	}
	e.event(spec.Event{Time: time.Now().UTC(), What: "volume-unknown", Warning: true, Volume: v.Name, Node: e.cfg.Node,
		Message: fmt.Sprintf("copies of volume %s are on this node that the recovered metadata doesn't know, and its name is taken by another volume; they are left alone", id)})
	return true, nil
}

// leftover reports whether the copies were left when their volume was deleted.
func (e *Engine) leftover(ctx context.Context, h *holding) (bool, error) {
	for _, c := range h.claim.Copies {
		p, err := e.cfg.Store.Pool(ctx, c.Pool)
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return false, err
		}
		if !slices.Contains(p.Value.Leftovers, c.Replica) {
			return false, nil
		}
	}
	return true, nil
}

// awaitsProof reports whether a volume that isn't in the metadata may be brought back there: then nothing follows from that.
func (e *Engine) awaitsProof(ctx context.Context) bool {
	c, err := e.cfg.Store.Cluster(ctx)
	if err != nil {
		return true
	}
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	r := c.Value.Recovery
	return r.Number != e.view.recovery || r.Number > 0 && !slices.Contains(r.Heard, e.cfg.Node)
}
