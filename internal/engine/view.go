package engine

import (
	"maps"
	"slices"
	"sync"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// view is what the engine knows of the metadata, from its watch. It may be behind.
type view struct {
	mu      sync.RWMutex
	synced  chan struct{} // closed when the whole state was seen for the first time
	nodes   map[string]spec.Node
	alive   map[string]bool
	volumes map[string]meta.Versioned[spec.Volume]
	cluster spec.Cluster
	// recovery is the number of the metadata's recovery, and upTo a revision, as of which the rest is known.
	recovery int
	upTo     meta.Rev
}

func newView() *view {
	return &view{
		synced:  make(chan struct{}),
		nodes:   make(map[string]spec.Node),
		alive:   make(map[string]bool),
		volumes: make(map[string]meta.Versioned[spec.Volume]),
	}
}

func (v *view) isSynced() bool {
	select {
	case <-v.synced:
		return true
	default:
		return false
	}
}

// isAlive reports whether a node holds its lease, as far as is known.
func (v *view) isAlive(node string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.alive[node]
}

func (v *view) settings() spec.Settings {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.cluster.Settings
}

// clusterNow is the cluster's record, as far as is known.
func (v *view) clusterNow() spec.Cluster {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.cluster
}

// declaredLost reports whether a node was declared lost when the metadata was recovered, and has come back all the same.
func (v *view) declaredLost(node string) bool {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return slices.Contains(v.cluster.Recovery.Lost, node)
}

// snapshot is the state that a watch sends whole, collected until it is complete.
type snapshot struct {
	removed map[string]time.Time // as it was known before
	again   bool                 // removed is set
	nodes   map[string]spec.Node
	alive   map[string]bool
	volumes map[string]meta.Versioned[spec.Volume]
}

func newSnapshot() *snapshot {
	return &snapshot{
		nodes:   make(map[string]spec.Node),
		alive:   make(map[string]bool),
		volumes: make(map[string]meta.Versioned[spec.Volume]),
	}
}

// replace makes the snapshot, of a revision, the view's state. It returns the volumes that were known and are no more: they were
// deleted while nobody watched. If the metadata was recovered meanwhile, nothing follows from what isn't there: then it returns what was
// known.
func (v *view) replace(s *snapshot, rev meta.Rev) (deleted []string, known *memory) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.isSynced() && v.cluster.Recovery.Number != v.recovery {
		known = &memory{volumes: v.volumes, nodes: v.nodes, removed: s.removed, upTo: v.upTo}
		v.volumes = nil
	}
	v.recovery, v.upTo = v.cluster.Recovery.Number, rev
	for id := range v.volumes {
		if _, ok := s.volumes[id]; !ok {
			deleted = append(deleted, id)
		}
	}
	v.nodes, v.alive, v.volumes = maps.Clone(s.nodes), maps.Clone(s.alive), maps.Clone(s.volumes)
	if !v.isSynced() {
		close(v.synced)
	}
	return deleted, known
}

// Refuses reports whether a node whose certificate was issued then has been removed from the cluster since, as far as is known.
// Safe for concurrent use.
func (e *Engine) Refuses(node string, issued time.Time) bool {
	e.view.mu.RLock()
	defer e.view.mu.RUnlock()
	return e.view.cluster.Refuses(node, issued)
}
