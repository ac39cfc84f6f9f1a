package engine

import (
	"context"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// watch follows the metadata until ctx ends, and hands what concerns them to the shards.
func (e *Engine) watch(ctx context.Context) {
	pause := 100 * time.Millisecond
	for ctx.Err() == nil {
		w := &watcher{e: e, whole: newSnapshot()}
		err := e.cfg.Store.Watch(ctx, w.event)
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("the metadata can't be watched; going on with what is known", "err", err)
		if w.whole == nil {
			pause = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// watcher turns the events of one watch into changes. While whole is set the state is
// being sent whole: nothing is concluded from what isn't in it yet.
type watcher struct {
	e     *Engine
	whole *snapshot
}

func (w *watcher) event(ev meta.Event) error {
	switch ev.Kind {
	case meta.Resync:
		w.whole = newSnapshot()
		return nil
	case meta.Synced:
		if w.whole != nil {
			w.synced(ev.Rev)
		}
		return nil
	case meta.ClusterPut:
		w.e.view.mu.Lock()
		if w.whole != nil && !w.whole.again {
			w.whole.removed, w.whole.again = w.e.view.cluster.Removed, true
		}
		w.e.view.cluster = ev.Cluster
		w.e.view.mu.Unlock()
		w.e.settingsChanged(ev.Cluster.Settings)
		w.e.groupsChanged(ev.Cluster.Groups)
		return nil
	}
	if w.whole != nil {
		collect(w.whole, ev)
		return nil
	}
	w.change(ev)
	return nil
}

func collect(s *snapshot, ev meta.Event) {
	switch ev.Kind {
	case meta.NodePut:
		s.nodes[ev.Node.Name] = ev.Node
	case meta.NodeDeleted:
		delete(s.nodes, ev.Node.Name)
	case meta.LeaseHeld:
		s.alive[ev.Node.Name] = true
	case meta.LeaseGone:
		delete(s.alive, ev.Node.Name)
	case meta.VolumePut:
		s.volumes[ev.Volume.ID] = meta.Versioned[spec.Volume]{Value: ev.Volume, Rev: ev.Rev}
	case meta.VolumeDeleted:
		delete(s.volumes, ev.Volume.ID)
	}
}

func (w *watcher) synced(rev meta.Rev) {
	s := w.whole
	w.whole = nil
	first := !w.e.view.isSynced()
	deleted, known := w.e.view.replace(s, rev)
	if first || known != nil {
		w.e.afterRecovery(w.e.view.clusterNow(), known)
	}
	for _, n := range s.nodes {
		w.e.nodeChanged(n)
	}
	for _, v := range s.volumes {
		w.e.recordChanged(v)
	}
	for _, id := range deleted {
		w.e.recordDeleted(id)
	}
}

// change applies one event to the view, and tells the shards.
func (w *watcher) change(ev meta.Event) {
	v := w.e.view
	v.mu.Lock()
	v.upTo = max(v.upTo, ev.Rev)
	switch ev.Kind {
	case meta.NodePut:
		v.nodes[ev.Node.Name] = ev.Node
	case meta.NodeDeleted:
		delete(v.nodes, ev.Node.Name)
	case meta.LeaseHeld:
		v.alive[ev.Node.Name] = true
	case meta.LeaseGone:
		delete(v.alive, ev.Node.Name)
	case meta.VolumePut:
		v.volumes[ev.Volume.ID] = meta.Versioned[spec.Volume]{Value: ev.Volume, Rev: ev.Rev}
	case meta.VolumeDeleted:
		delete(v.volumes, ev.Volume.ID)
	}
	v.mu.Unlock()
	switch ev.Kind {
	case meta.NodePut:
		w.e.nodeChanged(ev.Node)
	case meta.VolumePut:
		w.e.recordChanged(meta.Versioned[spec.Volume]{Value: ev.Volume, Rev: ev.Rev})
	case meta.VolumeDeleted:
		w.e.recordDeleted(ev.Volume.ID)
	}
}

// nodeChanged tells every shard where a node is.
func (e *Engine) nodeChanged(n spec.Node) {
	for _, s := range e.shards {
		s.loop.Post(func() { s.nodeChanged(n) })
	}
}

// settingsChanged tells every volume that is attached here what the settings have become.
func (e *Engine) settingsChanged(set spec.Settings) {
	for _, s := range e.shards {
		s.loop.Post(func() {
			for _, v := range s.volumes {
				v.SetLimits(set)
			}
		})
	}
}

// recordChanged tells a volume's shard what its record has become.
func (e *Engine) recordChanged(rec meta.Versioned[spec.Volume]) {
	s := e.shardOf(rec.Value.ID)
	s.loop.Post(func() { s.recordChanged(rec) })
}

// recordDeleted tells a volume's shard that the volume is no more.
func (e *Engine) recordDeleted(id string) {
	e.mu.Lock()
	delete(e.lost, id)
	e.mu.Unlock()
	s := e.shardOf(id)
	s.loop.Post(func() { s.recordDeleted(id) })
}
