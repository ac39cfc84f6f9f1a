package engine

import (
	"encoding/json"
	"errors"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// reviewEvery is when replicas that couldn't be opened or removed are tried again.
const reviewEvery = 5 * time.Second

// unreadTries is how often a stale replica whose disk fails is tried, before it is taken as damaged for good.
const unreadTries = 24

// poolAdded takes the replicas of a new pool over; those of unknown volumes stay where they are.
func (s *shard) poolAdded(p *pool, list []found) {
	s.pools[p.id] = p
	for _, f := range list {
		r := s.replicas[f.id]
		if r == nil {
			r = &localReplica{s: s, id: f.id, volume: f.desc.Volume}
			s.replicas[f.id] = r
		}
		r.pool, r.onDisk = p, true
		if f.err != nil {
			r.state, r.err = failed, f.err
		}
	}
	s.reviewAll()
}

// reviewLater has all records looked at again in a while, as something may have to be tried again.
func (s *shard) reviewLater() {
	if !s.stopped {
		s.retry.Reset(reviewEvery)
	}
}

func (s *shard) reviewAll() {
	if s.stopped || !s.e.view.isSynced() {
		return
	}
	for _, rec := range s.records {
		s.review(rec)
	}
	for id := range s.deleted {
		s.removeReplicasOf(id)
	}
}

// review makes the replicas of this node what a volume's record says.
func (s *shard) review(rec meta.Versioned[spec.Volume]) {
	v := &rec.Value
	wanted := make(map[wire.ReplicaID]bool)
	for col := range v.State.Columns {
		for _, m := range v.State.Columns[col].Members {
			if m.Node != s.e.cfg.Node {
				continue
			}
			id, err := parseReplica(m.Replica)
			if err != nil {
				s.log.Error("the record of a volume names an impossible replica", "volume", v.ID, "err", err)
				continue
			}
			wanted[id] = true
			if !v.Deleting && !v.Cloning() {
				s.ensure(v, col, m, id)
			}
		}
	}
	for _, r := range s.replicas {
		if r.volume == v.ID && !wanted[r.id] && (r.onDisk || r.state != absent) && !errors.Is(r.err, errForeign) {
			s.removeIfUnwanted(r)
		}
	}
	s.growReplicas(v)
	s.describeReplicas(v)
	if v.Deleting && len(wanted) > 0 {
		s.removeForDeletion(v, wanted)
	}
}

// ensure opens a member's replica, or creates it if nothing can be lost by its being empty.
func (s *shard) ensure(v *spec.Volume, col int, m spec.Member, id wire.ReplicaID) {
	r := s.local(v.ID, m)
	if r == nil || r.state == opening || r.state == open || r.state == closing {
		return
	}
	p := s.pools[m.Pool]
	if p == nil || errors.Is(r.err, errForeign) {
		return // the pool isn't in service yet, or something else is in the replica's place
	}
	if r.pool != nil && r.onDisk && r.pool != p {
		s.log.Error("a replica is in another pool than its record says", "volume", v.ID, "replica", m.Replica, "pool", r.pool.id, "recorded", m.Pool)
		return
	}
	r.pool = p
	damaged := r.state == failed && (errors.Is(r.err, replica.ErrDamaged) || errors.Is(r.err, replica.ErrNotFound) || r.unread >= unreadTries)
	switch {
	case r.onDisk && damaged && m.State == spec.Stale:
		s.log.Warn("a damaged stale replica is replaced by an empty one", "volume", v.ID, "replica", m.Replica, "pool", p.id, "err", r.err)
		r.remove()
	case r.onDisk:
		r.openIt()
	case mayCreate(v, m):
		r.create(s.desc(v, nil, col, id))
	case r.state == absent:
		// It isn't known to be there. Either its volume could not be found out when the pool was taken into service, or its
		// directory is missing; then it is made anew once the record says that it is stale.
		r.openIt()
	}
}

// mayCreate reports whether an empty replica can take a member's place. Until the first
// term was fenced nothing can have been written, but to a clone; a member that isn't in sync is brought up to date. An
// in-sync one must first be recorded as stale by the coordinator, which finds it missing.
func mayCreate(v *spec.Volume, m spec.Member) bool {
	return v.State.Fenced == 0 && v.Source == nil || m.State == spec.Stale
}

// desc describes a replica of a volume; source is what it was made from, nil if it was made empty.
func (s *shard) desc(v *spec.Volume, source *spec.Source, col int, id wire.ReplicaID) replica.Desc {
	policy := v.Described()
	policy.Source = source
	text, err := json.Marshal(policy)
	if err != nil {
		text = nil
	}
	return replica.Desc{
		Cluster: s.e.cfg.Cluster, Volume: v.ID, Name: v.Name, Replica: id,
		Column: col, Columns: v.Columns, Size: spec.ColumnSize(v.Planned(), v.Columns), Policy: text,
	}
}

// local returns the place of a member of this node; nil if its id is impossible.
func (s *shard) local(volumeID string, m spec.Member) *localReplica {
	id, err := parseReplica(m.Replica)
	if err != nil {
		return &localReplica{s: s, volume: volumeID, state: failed, err: err}
	}
	r := s.replicas[id]
	if r == nil {
		r = &localReplica{s: s, id: id, volume: volumeID}
		s.replicas[id] = r
	}
	return r
}

// removeReplicasOf removes the replicas of a volume that was deleted.
func (s *shard) removeReplicasOf(volumeID string) {
	for _, r := range s.replicas {
		if r.volume == volumeID && r.onDisk && !errors.Is(r.err, errForeign) {
			s.removeIfUnwanted(r)
		}
	}
}

// removeLeftover removes a replica that was left when its volume was deleted.
func (s *shard) removeLeftover(id wire.ReplicaID) {
	if r := s.replicas[id]; r != nil && r.onDisk && !s.stopped {
		r.leftover = true
		s.removeIfUnwanted(r)
	}
}

// removeIfUnwanted removes a replica, once the metadata was asked again whether it really has no such member: what was
// seen by watching may be old.
func (s *shard) removeIfUnwanted(r *localReplica) {
	if r.doomed || r.checking {
		return
	}
	r.checking = true
	s.e.spawn(func() {
		rec, err := s.e.cfg.Store.Volume(s.e.ctx, r.volume)
		wanted := err != nil && !errors.Is(err, meta.ErrNotFound) || rec.Value.Unproven != nil
		if s.e.view.declaredLost(s.e.cfg.Node) {
			return // what it has was never looked at: it may be the best that there is
		}
		for _, m := range allMembers(&rec.Value) {
			wanted = wanted || m.Replica == r.id.String()
		}
		s.loop.Post(func() {
			r.checking = false
			if !wanted {
				r.remove()
			} else {
				s.reviewLater()
			}
		})
	})
}

// removeForDeletion removes this node's replicas of a volume that is on its way out, and then its
// members from the record.
func (s *shard) removeForDeletion(v *spec.Volume, members map[wire.ReplicaID]bool) {
	if s.volumes[v.ID] != nil {
		s.e.abandon(v.ID)
		return
	}
	for id := range members {
		s.expectClone(v, id)
		if r := s.replicas[id]; r != nil && (r.onDisk || r.state != absent) {
			r.remove() // the record is reviewed again after that
			return
		}
	}
	for _, m := range allMembers(v) {
		if m.Node == s.e.cfg.Node && s.pools[m.Pool] == nil {
			return // its directory may still be there
		}
	}
	node := s.e.cfg.Node
	(&record{e: s.e, s: s, id: v.ID}).Update(func(rec *spec.Volume) error {
		if !rec.Deleting {
			return errors.New("the volume isn't being deleted any more")
		}
		for i := range rec.State.Columns {
			rec.State.Columns[i].Members = without(rec.State.Columns[i].Members, node)
		}
		return nil
	}, func(_ spec.Volume, _ meta.Rev, err error) {
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			s.log.Warn("members of a deleted volume can't be dropped from its record", "volume", v.ID, "err", err)
			s.reviewLater()
		}
	})
}

func (s *shard) reviewRecord(id string) {
	if rec, ok := s.records[id]; ok && !s.stopped {
		s.review(rec)
	}
}

func allMembers(v *spec.Volume) (list []spec.Member) {
	for _, c := range v.State.Columns {
		list = append(list, c.Members...)
	}
	return list
}

func without(members []spec.Member, node string) []spec.Member {
	kept := members[:0:0]
	for _, m := range members {
		if m.Node != node {
			kept = append(kept, m)
		}
	}
	return kept
}

// closeReplicas closes all replicas; then is called when all are closed.
func (s *shard) closeReplicas(then func()) {
	left := 1
	done := func() {
		if left--; left == 0 {
			then()
		}
	}
	for _, r := range s.replicas {
		left++
		r.close(done)
	}
	done()
}
