package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sort"
	"syscall"

	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
)

// Status is what an engine knows of itself.
type Status struct {
	Volumes  []VolumeStatus  // attached here, or lost by this node; by id
	Pools    []PoolStatus    // by id
	Replicas []ReplicaStatus // by id
	Counters map[string]int64
}

// VolumeStatus is a volume that is, or was, attached to this node.
type VolumeStatus struct {
	ID, Name  string
	Term      uint64
	Device    string
	Frontend  string
	Serving   bool
	Condition string // what it waits for, or why it is gone; "" if all is well
	Members   []volume.MemberStatus
	// Unreconciled chunks are still to be made identical on all members.
	Unreconciled int
	Stats        volume.Stats
	Scrub        *volume.ScrubStatus // nil unless one is active
	// SnapshotUsage is what snapshots occupy on disk, by their period.
	SnapshotUsage map[uint64]int64
}

// PoolStatus is a pool of this node. Sizes are bytes.
type PoolStatus struct {
	ID, Dir        string
	Capacity, Used int64
	Replicas       int
	Problem        string
}

// ReplicaStatus is a replica in a pool of this node.
type ReplicaStatus struct {
	ID, Volume, Pool string
	State            string
	Problem          string
	// DiskFails is set if it can't be opened because the disk answers with errors.
	DiskFails bool
	// Orphan is set if no record of the metadata knows its volume. It's left alone.
	Orphan bool
}

// Status describes the engine. ctx bounds how long it waits for the shards.
func (e *Engine) Status(ctx context.Context) (Status, error) {
	st := Status{Counters: make(map[string]int64)}
	e.mu.Lock()
	var list []*attachment
	for _, a := range e.attached {
		list = append(list, a)
	}
	for id, why := range e.lost {
		st.Volumes = append(st.Volumes, VolumeStatus{ID: id, Condition: why})
	}
	for id, why := range e.keyless {
		if e.lost[id] == "" && e.attached[id] == nil {
			st.Volumes = append(st.Volumes, VolumeStatus{ID: id, Condition: why.Error()})
		}
	}
	pools := make([]*pool, 0, len(e.pools))
	for _, p := range e.pools {
		pools = append(pools, p)
	}
	e.mu.Unlock()
	for _, a := range list {
		v, err := a.describe(ctx)
		if err != nil {
			return st, err
		}
		st.Volumes = append(st.Volumes, v)
		if !closed(a.gone) {
			st.count(v.Stats)
		}
	}
	e.mu.Lock()
	st.count(e.retired)
	e.mu.Unlock()
	for _, s := range e.shards {
		if err := s.do(ctx, func() { s.describe(&st) }); err != nil {
			return st, err
		}
	}
	for _, p := range pools {
		ps, err := e.describePool(ctx, p)
		if err != nil {
			return st, err
		}
		for _, r := range st.Replicas {
			if r.Pool != p.id {
				continue
			}
			if ps.Replicas++; r.DiskFails && ps.Problem == "" {
				ps.Problem = fmt.Sprintf("replica %s of volume %s can't be opened: %s", r.ID, r.Volume, r.Problem)
			}
		}
		st.Pools = append(st.Pools, ps)
	}
	sort.Slice(st.Volumes, func(i, j int) bool { return st.Volumes[i].ID < st.Volumes[j].ID })
	sort.Slice(st.Replicas, func(i, j int) bool { return st.Replicas[i].ID < st.Replicas[j].ID })
	sort.Slice(st.Pools, func(i, j int) bool { return st.Pools[i].ID < st.Pools[j].ID })
	return st, nil
}

// describePool asks the file system of a pool how full it is.
func (e *Engine) describePool(ctx context.Context, p *pool) (PoolStatus, error) {
	ps := PoolStatus{ID: p.id, Dir: p.dir}
	var size, free int64
	var err error
	loop, done := e.shards[0].loop, make(chan struct{})
	loop.Post(func() {
		loop.Work(func() { size, free, err = loop.FS().Space(filepath.Join(p.dir, replicasDir)) }, func() { close(done) })
	})
	select {
	case <-done:
	case <-ctx.Done():
		return ps, ctx.Err()
	}
	if err != nil {
		ps.Problem = err.Error()
	}
	ps.Capacity, ps.Used = size, size-free
	return ps, nil
}

// retire keeps what an attachment that ended has counted. Called on the loop.
func (e *Engine) retire(s volume.Stats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	t := &e.retired
	t.Reads, t.Writes, t.Flushes, t.Trims = t.Reads+s.Reads, t.Writes+s.Writes, t.Flushes+s.Flushes, t.Trims+s.Trims
	t.ReadBytes, t.WriteBytes = t.ReadBytes+s.ReadBytes, t.WriteBytes+s.WriteBytes
	t.Repaired, t.Unreadable = t.Repaired+s.Repaired, t.Unreadable+s.Unreadable
	t.Checkpoints += s.Checkpoints
	t.ResyncedChunks, t.ResyncedBytes = t.ResyncedChunks+s.ResyncedChunks, t.ResyncedBytes+s.ResyncedBytes
	t.Held += s.Held
	t.Snapshots, t.SnapshotPause = t.Snapshots+s.Snapshots, max(t.SnapshotPause, s.SnapshotPause)
	t.ScrubBytes, t.ScrubUnreadable, t.ScrubDiffering = t.ScrubBytes+s.ScrubBytes, t.ScrubUnreadable+s.ScrubUnreadable, t.ScrubDiffering+s.ScrubDiffering
}

// describe asks an attachment how it is.
func (a *attachment) describe(ctx context.Context) (VolumeStatus, error) {
	v := VolumeStatus{ID: a.id, Name: a.name, Term: a.term, Frontend: a.frontend, Device: a.path()}
	err := a.s.do(ctx, func() {
		if a.device == nil {
			v.Condition = "starting"
			return
		}
		vs := a.device.Status()
		v.Serving, v.Condition, v.Members = vs.Serving, vs.Condition, vs.Members
		v.Unreconciled, v.Stats, v.Scrub = vs.Unreconciled, vs.Stats, vs.Scrub
		v.SnapshotUsage = vs.SnapshotUsage
	})
	if err == nil && v.Condition == "" && closed(a.ready) && a.err != nil {
		v.Condition = a.err.Error()
	}
	return v, err
}

// describe adds the shard's replicas and connections, on the loop.
func (s *shard) describe(st *Status) {
	for _, r := range s.replicas {
		rs := ReplicaStatus{ID: r.id.String(), Volume: r.volume, State: r.state.String()}
		if r.pool != nil {
			rs.Pool = r.pool.id
		}
		if r.err != nil {
			rs.Problem, rs.DiskFails = r.err.Error(), errors.Is(r.err, syscall.EIO)
		}
		if r.state == open {
			rep := r.rep.Stats()
			st.Counters["replica_bad_blocks"] += int64(rep.BadBlocks)
			st.Counters["replica_io_errors"] += int64(rep.IOErrors)
			st.Counters["replica_verified_bytes"] += int64(rep.Verified)
			st.Counters["pieces_preserved"] += int64(rep.Preserved)
		}
		_, known := s.records[r.volume]
		rs.Orphan = !known && !s.deleted[r.volume]
		st.Replicas = append(st.Replicas, rs)
	}
	for _, l := range s.links.Status() {
		if l.Up {
			st.Counters["links_up"]++
		} else {
			st.Counters["links_down"]++
		}
		st.Counters["link_requests_in_flight"] += int64(l.InFlight + l.Waiting)
	}
}

func (st *Status) count(v volume.Stats) {
	for name, n := range map[string]uint64{
		"reads": v.Reads, "writes": v.Writes, "flushes": v.Flushes, "trims": v.Trims,
		"read_bytes": v.ReadBytes, "write_bytes": v.WriteBytes,
		"blocks_repaired": v.Repaired, "blocks_unreadable": v.Unreadable, "checkpoints": v.Checkpoints,
		"resynced_chunks": v.ResyncedChunks, "resynced_bytes": v.ResyncedBytes,
		"scrub_bytes": v.ScrubBytes, "scrub_blocks_unreadable": v.ScrubUnreadable, "scrub_blocks_differing": v.ScrubDiffering,
		"snapshots": v.Snapshots, "snapshot_pause_max_microseconds": uint64(v.SnapshotPause.Microseconds()),
		"held_by_limits": v.Held,
	} {
		st.Counters[name] += int64(n)
	}
}

// Attachment returns the term and device of a volume that is attached to this node.
func (e *Engine) Attachment(volumeID string) (Attached, bool) {
	a := e.attachment(volumeID)
	if a == nil || a.frontend == spec.FrontendNone {
		return Attached{}, false
	}
	return Attached{Device: a.path(), Term: a.term}, true
}
