package volume

import (
	"encoding/json"
	"math/bits"
	"slices"
	"strconv"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// cloneTries is how often a clone is asked for of members that don't make it, before those that do are enough.
const cloneTries = 3

// snapJob is a clone that is being made.
type snapJob struct {
	job   spec.CloneJob
	tries int
	made  map[string]bool // by the clone's replica
	left  int
}

// stepJobs goes on with a clone or a restore.
func (s *snapshotter) stepJobs() {
	rec := &s.v.rec
	for _, j := range rec.Clones {
		if x := rec.SnapshotByName(j.Snapshot); !j.Done && x != nil && x.State == spec.SnapshotReady {
			if s.job == nil || s.job.job.Volume != j.Volume || !slices.Equal(s.job.job.Members, j.Members) {
				s.job = &snapJob{job: j, made: map[string]bool{}}
			}
			s.clone(s.job, x.Period)
			return
		}
	}
	if rec.Restore != nil {
		if x := s.restorable(); x != nil {
			s.restore.begin(x)
			return
		}
		s.v.log.Error("the snapshot to restore isn't there", "snapshot", rec.Restore.Snapshot)
	}
	s.again(snapRetry)
}

// restorable returns the snapshot that the volume is to become; nil if it can't, or there is none.
func (s *snapshotter) restorable() *spec.Snapshot {
	rec := &s.v.rec
	if rec.Restore == nil {
		return nil
	}
	if x := rec.SnapshotByName(rec.Restore.Snapshot); x != nil && x.State == spec.SnapshotReady && x.Size == s.v.size {
		return x
	}
	return nil
}

// clone asks every in-sync member that hasn't done so to make its copy of the clone.
func (s *snapshotter) clone(j *snapJob, period uint64) {
	v := s.v
	j.tries++
	j.left = 1
	for _, m := range j.job.Members {
		if j.made[m.Replica] || m.Column >= len(v.columns) {
			continue
		}
		c := v.columns[m.Column]
		slot := c.rc.Slot(m.From)
		if slot < 0 || c.rc.InSync()&(1<<slot) == 0 {
			continue
		}
		j.left++
		q := &wire.Request{Kind: wire.KindClone, Period: period, Text: cloneDesc(j.job.Desc, m)}
		c.ask(slot, q, func(*wire.Request) {
			// Who left the in-sync set meanwhile may have cloned what isn't so any more.
			if in := c.rc.Slot(m.From) == slot && c.rc.InSync()&(1<<slot) != 0; q.Status == wire.StatusOK && in {
				j.made[m.Replica] = true
			} else if q.Status != wire.StatusOK {
				c.log(slot).Warn("a clone wasn't made", "status", q.Status)
			}
			s.cloned(j)
		})
	}
	v.loop.Post(func() { s.cloned(j) })
}

// cloneDesc completes the description of a clone's replica.
func cloneDesc(base json.RawMessage, m spec.CloneMember) []byte {
	fields := map[string]json.RawMessage{}
	if err := json.Unmarshal(base, &fields); err != nil {
		return nil
	}
	fields["replica"] = json.RawMessage(strconv.Quote(m.Replica))
	fields["column"] = json.RawMessage(strconv.Itoa(m.Column))
	text, err := json.Marshal(fields)
	if err != nil {
		return nil
	}
	return text
}

// cloned records the outcome when all have answered.
func (s *snapshotter) cloned(j *snapJob) {
	v := s.v
	if j.left--; j.left > 0 || v.phase == lost || v.phase == detached {
		return
	}
	columns := map[int]bool{}
	for _, m := range j.job.Members {
		if j.made[m.Replica] {
			columns[m.Column] = true
		}
	}
	if len(columns) < len(v.columns) || len(j.made) < len(j.job.Members) && j.tries < cloneTries {
		s.again(snapRetry / 4)
		return
	}
	s.commit(func(rec *spec.Volume) {
		for i := range rec.Clones {
			if x := &rec.Clones[i]; x.Volume == j.job.Volume {
				members := make([]spec.CloneMember, len(x.Members))
				for k, m := range x.Members {
					m.Made = j.made[m.Replica]
					members[k] = m
				}
				x.Done, x.Members = true, members
			}
		}
	}, func(ok bool) {
		if ok {
			s.job = nil
		}
		s.done()
	})
}

// restoring makes the volume what a snapshot has, chunk by chunk, on all members at once. It can begin anew at any time: what a
// snapshot has doesn't change by it.
type restoring struct {
	s      *snapshotter
	period uint64
	id     string
	column int
	chunk  int64
	left   int
	failed bool
	rng    repl.Range
}

func (r *restoring) begin(x *spec.Snapshot) {
	if r.id != x.ID {
		r.id, r.period, r.column, r.chunk = x.ID, x.Period, 0, 0
		r.s.v.log.Info("restoring a snapshot", "snapshot", x.Name)
	}
	r.next()
}

func (r *restoring) next() {
	v := r.s.v
	switch {
	case v.phase == lost || v.phase == detached:
		return
	case v.phase != serving:
		r.s.again(0)
		return
	case r.column == len(v.columns):
		r.end()
		return
	case r.chunk == block.Chunks(v.columns[r.column].size):
		r.column, r.chunk = r.column+1, 0
		r.next()
		return
	}
	c := v.columns[r.column]
	if c.rc.Everyone() != c.rc.InSync() {
		r.s.again(4 * snapWait) // first who catches up
		return
	}
	r.rng = repl.Range{Granted: r.locked}
	if c.lock.Lock(&r.rng, r.chunk*block.ChunkSize, block.ChunkSize, false) {
		r.locked()
	}
}

func (r *restoring) locked() {
	v := r.s.v
	c := v.columns[r.column]
	members := c.rc.InSync()
	r.left, r.failed = bits.OnesCount32(members), c.rc.Everyone() != members
	off := r.chunk * block.ChunkSize
	for rest := members; rest != 0; rest &= rest - 1 {
		q := &wire.Request{Kind: wire.KindRestore, Off: off, Len: min(block.ChunkSize, c.size-off), Sums: []uint64{r.period}}
		c.ask(bits.TrailingZeros32(rest), q, func(*wire.Request) {
			r.failed = r.failed || q.Status != wire.StatusOK
			if r.left--; r.left == 0 {
				r.restored()
			}
		})
	}
}

func (r *restoring) restored() {
	v := r.s.v
	v.columns[r.column].lock.Unlock(&r.rng)
	if r.failed {
		r.s.again(snapRetry / 4)
		return
	}
	r.chunk++
	r.next()
}

// end records that the volume is restored, once that is durable.
func (r *restoring) end() {
	s, id := r.s, r.id
	durable := s.retryCheckpoint
	if invariant.Mutant("restore-not-durable") {
		durable = func(then func()) { then() }
	}
	durable(func() {
		s.commit(func(rec *spec.Volume) {
			if rec.Restore != nil && rec.Restore.Snapshot == id {
				rec.Restore = nil
			}
		}, func(ok bool) {
			if ok {
				r.id = ""
				s.v.log.Info("snapshot restored", "period", r.period)
			}
			s.done()
		})
	})
}
