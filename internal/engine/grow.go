package engine

import (
	"context"
	"errors"
	"fmt"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// growReplicas makes this node's open replicas of a volume as large as its record plans, and records how large they are. It is
// repeated whenever the record is looked at, so it needs no memory of how far it came.
func (s *shard) growReplicas(v *spec.Volume) {
	if v.Growth.Base == 0 || v.Deleting {
		return
	}
	want := spec.ColumnSize(v.Planned(), v.Columns)
	for col := range v.State.Columns {
		for _, m := range v.State.Columns[col].Members {
			if m.Node != s.e.cfg.Node {
				continue
			}
			id, err := parseReplica(m.Replica)
			if err != nil {
				continue
			}
			if r := s.replicas[id]; r != nil && r.state == open && !r.growing {
				s.growReplica(r, v, col, m, want)
			}
		}
	}
}

func (s *shard) growReplica(r *localReplica, v *spec.Volume, col int, m spec.Member, want int64) {
	have := r.rep.Desc().Size
	switch {
	case have < m.Size:
		// It was as large as the record says, so it was set back, as by restoring an image of its disk: what was written to the
		// rest is gone, and making it longer would pass that off as zeros. Its coordinator refuses it as too small.
		s.log.Error("a replica is smaller than it was; it isn't used", "volume", v.ID, "replica", m.Replica, "pool", r.pool.id, "size", have, "recorded", m.Size)
		if m.State == spec.Stale {
			r.remove() // an empty one takes its place
		}
	case have < want:
		r.growing = true
		r.rep.Grow(s.desc(v, sourceOf(r.rep.Desc().Policy), col, r.id), func(err error) {
			r.growing = false
			if err != nil {
				s.log.Error("a replica can't be made larger; it is tried again", "volume", v.ID, "replica", m.Replica, "pool", r.pool.id, "err", err)
				s.reviewLater()
				return
			}
			s.reviewRecord(v.ID)
		})
	case have > m.Size && !v.Holds(m, v.Planned()):
		r.growing = true
		s.recordSize(r.id, v.ID, col, have, func() { r.growing = false })
	}
}

// recordSize notes in a volume's record how large a member is.
func (s *shard) recordSize(id wire.ReplicaID, volumeID string, col int, size int64, done func()) {
	(&record{e: s.e, s: s, id: volumeID}).Update(func(rec *spec.Volume) error {
		if col >= len(rec.State.Columns) {
			return fmt.Errorf("volume %s has no column %d", rec.Name, col)
		}
		members := rec.State.Columns[col].Members
		for i := range members {
			if members[i].Replica == id.String() {
				members[i].Size = max(members[i].Size, size)
				return nil
			}
		}
		return meta.ErrNotFound
	}, func(_ spec.Volume, _ meta.Rev, err error) {
		done()
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			s.log.Warn("the new size of a replica can't be recorded; it is tried again", "volume", volumeID, "replica", id.String(), "err", err)
			s.reviewLater()
		}
	})
}

// resized tells a volume's frontend that the volume has become larger. A frontend asks the kernel, which asks the loop: so it
// isn't called on the loop.
func (a *attachment) resized() {
	a.e.spawn(func() {
		select {
		case <-a.ready:
		case <-a.e.ctx.Done():
			return
		}
		f, ok := a.fe.(resizer)
		if !ok || closed(a.gone) || a.leaving.Load() {
			return
		}
		if err := f.Resize(a.e.ctx); err != nil {
			a.e.log.Error("the device of a volume doesn't show its new size", "volume", a.name, "term", a.term, "err", err)
		}
	})
}

// resizer is a frontend whose device shows the volume's size of now after Resize, to those that have it open too.
type resizer interface {
	Resize(ctx context.Context) error
}
