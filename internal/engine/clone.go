package engine

import (
	"errors"
	"fmt"

	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// What stands against an attachment for the sake of snapshots.
var (
	// ErrCloning: the volume's copies are still being made.
	ErrCloning = errors.New("volume is still being made from another one")
	// ErrRestoring: the volume is on its way back to a snapshot.
	ErrRestoring = errors.New("volume is being restored to a snapshot")
)

// attachable reports why a volume can't be attached with a frontend just now.
func attachable(v *spec.Volume, frontend string) error {
	switch {
	case v.Cloning():
		return fmt.Errorf("volume %q: %w: try again", v.Name, ErrCloning)
	case v.Restore != nil && frontend != spec.FrontendNone:
		return fmt.Errorf("volume %q: %w: try again", v.Name, ErrRestoring)
	}
	return nil
}

// expectClone takes it that a clone's replica may be on disk: it was made beside that of its origin, and this shard may not have seen it.
func (s *shard) expectClone(v *spec.Volume, id wire.ReplicaID) {
	if v.Source == nil || s.replicas[id] != nil || s.expected[id] {
		return
	}
	for _, m := range allMembers(v) {
		if p := s.pools[m.Pool]; m.Replica == id.String() && p != nil {
			if s.expected == nil {
				s.expected = make(map[wire.ReplicaID]bool)
			}
			s.expected[id] = true // once: then it is gone
			s.replicas[id] = &localReplica{s: s, id: id, volume: v.ID, pool: p, onDisk: true}
		}
	}
}
