package engine

import (
	"context"
	"log/slog"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
	"keelson.io/keelson/internal/wire"
)

// shard is one event loop and everything that lives on it. All fields but the first four are
// touched on the loop only.
type shard struct {
	e     *Engine
	index int
	loop  aio.Loop
	log   *slog.Logger

	links    *link.Links
	nodes    map[string]spec.Node
	records  map[string]meta.Versioned[spec.Volume] // of this shard's volumes
	deleted  map[string]bool                        // volumes that are known to be gone
	pools    map[string]*pool
	replicas map[wire.ReplicaID]*localReplica
	volumes  map[string]*volume.Volume // attached here
	remotes  []*remoteReplica
	retry    aio.Timer // looks at all records again
	stopped  bool
	expected map[wire.ReplicaID]bool // clones that were to be deleted before this shard had seen them
}

func newShard(e *Engine, index int, loop aio.Loop) *shard {
	return &shard{
		e: e, index: index, loop: loop, log: e.log.With("shard", index),
		nodes:    make(map[string]spec.Node),
		records:  make(map[string]meta.Versioned[spec.Volume]),
		deleted:  make(map[string]bool),
		pools:    make(map[string]*pool),
		replicas: make(map[wire.ReplicaID]*localReplica),
		volumes:  make(map[string]*volume.Volume),
	}
}

func (s *shard) start(incarnation uint64) {
	s.links = link.New(link.Config{
		Loop: s.loop, Self: s.e.cfg.Node, Cluster: s.e.cfg.Cluster, Incarnation: incarnation, Log: s.log,
		Local: s.member,
	})
	s.retry = s.loop.NewTimer(s.reviewAll)
}

// do runs fn on the loop and waits for it, at most until ctx ends.
func (s *shard) do(ctx context.Context, fn func()) error {
	done := make(chan struct{})
	s.loop.Post(func() {
		fn()
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop ends everything on the shard, and waits for it.
func (s *shard) stop() {
	done := make(chan struct{})
	s.loop.Post(func() {
		s.stopped = true
		s.retry.Stop()
		for _, v := range s.volumes {
			v.Stop()
		}
		s.links.Close()
		s.closeReplicas(func() { close(done) })
	})
	<-done
}

// member finds a replica of this shard for the links.
func (s *shard) member(id wire.ReplicaID) (wire.Member, bool) {
	r := s.replicas[id]
	if r == nil || !r.Up() {
		return nil, false
	}
	return r, true
}

func (s *shard) nodeChanged(n spec.Node) {
	s.nodes[n.Name] = n
	if n.Name == s.e.cfg.Node && n.Shards != len(s.e.shards) && s.index == 0 {
		s.log.Error("this node's record has another number of shards than its engine: other nodes can't reach all replicas",
			"recorded", n.Shards, "shards", len(s.e.shards))
	}
	for _, r := range s.remotes {
		if r.node == n.Name {
			r.resolve()
		}
	}
}

func (s *shard) recordChanged(rec meta.Versioned[spec.Volume]) {
	if s.stopped || rec.Rev < s.records[rec.Value.ID].Rev || rec.Value.Unproven != nil {
		return // an unproven record isn't acted on: what was known before stands
	}
	s.records[rec.Value.ID] = rec
	if v := s.volumes[rec.Value.ID]; v != nil {
		v.Update(rec.Value, rec.Rev)
		s.e.released(rec.Value)
	}
	s.review(rec)
}

func (s *shard) recordDeleted(id string) {
	if s.stopped {
		return
	}
	s.deleted[id] = true
	delete(s.records, id)
	s.e.stopKeyWait(id)
	if v := s.volumes[id]; v != nil {
		s.log.Error("an attached volume was deleted from the metadata", "volume", id)
	}
	s.removeReplicasOf(id)
}

// link returns how a volume's coordinator on this shard reaches a member.
func (s *shard) link(volumeID string, m spec.Member) volume.Link {
	if m.Node == s.e.cfg.Node {
		return s.local(volumeID, m)
	}
	r := &remoteReplica{s: s, node: m.Node, volume: volumeID}
	s.remotes = append(s.remotes, r)
	r.resolve()
	return r
}
