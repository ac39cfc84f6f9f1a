package volume

import (
	"cmp"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// Times of the snapshotter.
const (
	snapWait  = 5 * time.Millisecond // until something that is about to end is looked at again
	snapRetry = time.Second
)

// snapshotter does what the volume's record asks for: takes and deletes snapshots, makes clones, restores. One at a time:
//
//	follow -> (equalize) -> take | delete | clone | restore -> the record says so -> follow …
//
// A snapshot is the end of a period P:
//
//	every member makes an empty snapshot P, while writes of period P go on
//	-> no change is begun; those under way end -> period P+1 begins, changes go on: members preserve what they change
//	-> checkpoint of P: what the snapshot has, and didn't change since, is durable on every in-sync member
//	-> the record names P
//
// Invariant: every in-sync member has every snapshot that the record names, with the same content. What the record doesn't name is
// nobody's, and is removed before anything else is done with snapshots.
type snapshotter struct {
	v     *Volume
	timer aio.Timer
	// busy: something is under way. Invariant: then the timer is armed or a callback comes.
	busy bool
	// equal: every member in the sets has just the snapshots of told, which the record named then, and no others.
	equal bool
	told  []uint64
	// pending is the period that is being made a snapshot; 0 if none is. Then no checkpoint is begun but by the snapshotter.
	pending uint64
	size    int64  // of the volume, when that began
	tried   uint64 // the last period that was pending
	// holding: no change of data is begun. held are those that wait.
	holding bool
	held    []func()
	since   time.Duration // when holding began

	// syncing are chunks whose snapshots are being made equal on a member; gate is set while what snapshots there are changes, or is about
	// to. Invariant: never both under way.
	syncing int
	gate    bool
	opening func()          // begins when syncing is 0
	waiting []func(ok bool) // begin when gate is open

	job     *snapJob
	restore restoring
	usage   snapUsage
	group   grouping
}

func (s *snapshotter) init(v *Volume) {
	s.v = v
	s.timer = v.loop.NewTimer(s.step)
	s.restore.s = s
	s.group.s = s
}

// list returns the snapshots that the members of a column shall have now: two words for each, its period and its size there.
func (s *snapshotter) list() (list []uint64) {
	ready := slices.Clone(s.v.rec.Snapshots)
	slices.SortFunc(ready, func(a, b spec.Snapshot) int { return cmp.Compare(a.Period, b.Period) })
	last := uint64(0)
	for _, x := range ready {
		if (x.State == spec.SnapshotReady || x.State == spec.SnapshotCut) && x.Period != last {
			last = x.Period
			list = append(list, x.Period, uint64(spec.ColumnSize(x.Size, s.v.rec.Columns)))
		}
	}
	if s.pending != 0 && s.pending != last {
		list = append(list, s.pending, uint64(spec.ColumnSize(s.size, s.v.rec.Columns)))
	}
	return list
}

// has reports whether the members shall have a snapshot of the period.
func (s *snapshotter) has(period uint64) bool {
	list := s.list()
	for i := 0; i < len(list); i += 2 {
		if list[i] == period {
			return true
		}
	}
	return false
}

// ends is where the snapshot that the members were told of ends in a column; 0 if there is no such snapshot.
func (s *snapshotter) ends(period uint64) int64 {
	for i := 0; i+1 < len(s.told); i += 2 {
		if s.told[i] == period {
			return int64(s.told[i+1])
		}
	}
	return 0
}

// name is what people call the snapshot of a period; "" if the record doesn't know it.
func (s *snapshotter) name(period uint64) string {
	for _, x := range s.v.rec.Snapshots {
		if x.Period == period {
			return x.Name
		}
	}
	return ""
}

// any reports whether there is, or may be, a snapshot.
func (s *snapshotter) any() bool { return len(s.v.rec.Snapshots) > 0 || s.pending != 0 }

// follow does what the record says now.
func (s *snapshotter) follow() {
	if s.group.waits() {
		s.timer.Reset(0)
		return
	}
	if s.busy || s.v.phase != serving || !s.work() {
		return
	}
	s.busy = true
	s.timer.Reset(0)
}

// work reports whether there is something to do.
func (s *snapshotter) work() bool {
	rec := &s.v.rec
	if !s.equal && len(rec.Snapshots) > 0 || s.takes() || s.deletes() || rec.Restore != nil {
		return true
	}
	return s.group.asks() || slices.ContainsFunc(rec.Clones, func(j spec.CloneJob) bool { return !j.Done })
}

// done ends a piece of work, and looks for the next.
func (s *snapshotter) done() {
	s.busy = false
	if s.v.rec.Size > s.v.size {
		s.v.loop.Post(s.v.membersChanged) // it may grow now
	}
	s.follow()
	if s.v.phase == detaching {
		s.v.drained()
	}
}

// again looks again later.
func (s *snapshotter) again(d time.Duration) {
	if s.v.phase == detaching {
		s.done()
		return
	}
	s.timer.Reset(d)
}

// step begins what comes next.
func (s *snapshotter) step() {
	v := s.v
	if s.group.waits() {
		s.group.step()
		return
	}
	if v.phase != serving || !s.work() {
		s.done()
		return
	}
	for _, c := range v.columns {
		if len(c.unreconciled) > 0 && !invariant.Mutant("snapshot-unreconciled") {
			s.again(snapWait)
			return
		}
	}
	due, group := s.group.due()
	switch {
	case !s.equal:
		s.equalize(func(ok bool) {
			if !ok {
				s.again(snapRetry)
				return
			}
			s.done()
		})
	case s.restorable() != nil:
		s.stepJobs() // a snapshot of a volume that is half restored is of no use to anybody
	case s.takes():
		s.take()
	case s.deletes():
		s.remove()
	case due != nil:
		s.group.begin(due, group)
	default:
		s.stepJobs()
	}
}

// taken reports whether a snapshot is to be taken by itself. takes whether there is one, deletes whether one is to be deleted.
func taken(x spec.Snapshot) bool { return x.State == spec.SnapshotTaking && x.Group == "" }

func (s *snapshotter) takes() bool { return slices.ContainsFunc(s.v.rec.Snapshots, taken) }

func (s *snapshotter) deletes() bool {
	return slices.ContainsFunc(s.v.rec.Snapshots, func(x spec.Snapshot) bool { return x.State == spec.SnapshotDeleting })
}

// equalize has every member have exactly the snapshots that it shall have now.
func (s *snapshotter) equalize(then func(ok bool)) {
	v := s.v
	list := s.list()
	s.gate, s.equal = true, false
	s.opening = func() {
		s.opening = nil
		left, failed := len(v.columns), false
		if v.phase != serving {
			s.open()
			then(false)
			return
		}
		for _, c := range v.columns {
			o := v.getOp(c)
			o.kind, o.period, o.off, o.n = wire.KindSnaps, 0, 0, 0
			o.list = list
			o.Slow = true
			o.then = func(f bool) {
				failed = failed || f
				if left--; left == 0 && v.phase != lost {
					s.equal, s.told = !failed, list
					s.open()
					then(!failed)
				}
			}
			c.rc.Begin(&o.Op, c.rc.Everyone(), v.loop.Now())
		}
	}
	if s.syncing == 0 {
		s.opening()
	}
}

// open lets members' chunks be made equal again.
func (s *snapshotter) open() {
	s.gate = false
	waiting := s.waiting
	s.waiting = nil
	for _, fn := range waiting {
		s.beginSync(fn)
	}
}

// beginSync calls fn, now or later. If ok, the members have the same snapshots, and which those are doesn't change until endSync. It isn't
// enough that the record doesn't change: a snapshot that is to be deleted there may be gone on one member, which then has its chunks in an older one,
// and not on the other.
func (s *snapshotter) beginSync(fn func(ok bool)) {
	switch {
	case s.gate:
		s.waiting = append(s.waiting, fn)
	case s.any() && !s.equal:
		fn(false)
	default:
		s.syncing++
		fn(true)
	}
}

func (s *snapshotter) endSync() {
	if s.syncing--; s.syncing == 0 && s.opening != nil {
		s.opening()
	}
}

// blocks reports whether no checkpoint may begin: the period that is to become a snapshot must last until the cut.
func (s *snapshotter) blocks() bool { return s.pending != 0 }

// prepare makes the present period the one that is to be a snapshot; it is false if that is to be tried again in a while. A member that
// was asked to make it before, and was away when it was given up, has it still, of the size that the volume had then: so a period
// isn't asked for with another size.
func (s *snapshotter) prepare() bool {
	v := s.v
	if v.ckpt.state == ckptIdle && s.tried == v.period && s.size != v.size && !invariant.Mutant("period-of-two-sizes") {
		v.ckpt.begin()
	}
	if v.ckpt.state != ckptIdle {
		s.again(snapWait)
		return false
	}
	s.pending, s.size = v.period, v.size
	s.tried = s.pending
	return true
}

// take makes the present period a snapshot.
func (s *snapshotter) take() {
	v := s.v
	if !s.prepare() {
		return
	}
	s.equalize(func(ok bool) {
		if !ok || v.phase != serving {
			s.abandon()
			s.again(snapRetry)
			return
		}
		s.holding, s.since = true, v.loop.Now()
		s.drained()
	})
}

// abandon gives up a snapshot that wasn't recorded. What members have of it is removed before the next one.
func (s *snapshotter) abandon() {
	s.pending, s.equal = 0, false
}

// hold keeps a change back until the cut.
func (s *snapshotter) hold(fn func()) { s.held = append(s.held, fn) }

// drained cuts when no change is under way any more.
func (s *snapshotter) drained() {
	if s.holding && (s.v.mut+s.v.oldMut == 0 || invariant.Mutant("snapshot-without-drain")) {
		if s.group.waits() {
			s.group.drained()
			return
		}
		var ids []string
		for _, x := range s.v.rec.Snapshots {
			if taken(x) {
				ids = append(ids, x.ID)
			}
		}
		s.cut(ids, s.v.cfg.Wall().UTC())
	}
}

// cut ends the period, lets changes go on, and has what the snapshot holds made durable.
func (s *snapshotter) cut(ids []string, at time.Time) {
	v := s.v
	period, size := s.pending, s.size
	s.pending = 0
	begun := s.checkpoint(func() { s.record(ids, period, size, at) })
	if begun {
		s.pending = period // is to be had by who comes back meanwhile
		v.log.Info("snapshot cut", "period", period, "pause", v.loop.Now()-s.since)
		v.Stats.Snapshots++
		v.Stats.SnapshotPause = max(v.Stats.SnapshotPause, v.loop.Now()-s.since)
	}
	s.release()
	if !begun {
		s.abandon()
		s.group.state = groupIdle
		s.again(snapRetry)
	}
}

// release lets changes go on.
func (s *snapshotter) release() {
	s.holding = false
	held := s.held
	s.held = nil
	for _, fn := range held {
		fn()
	}
}

// checkpoint begins a checkpoint of the present period, and calls then when one that covers it has succeeded. It is false if none can
// begin now.
func (s *snapshotter) checkpoint(then func()) bool {
	v := s.v
	if v.ckpt.state != ckptIdle {
		return false
	}
	v.ckpt.then = append(v.ckpt.then, func(ok bool) {
		if ok {
			then()
			return
		}
		s.later(func() { s.retryCheckpoint(then) })
	})
	if invariant.Mutant("snapshot-without-checkpoint") {
		fns := v.ckpt.then
		v.ckpt.then = nil
		v.period++
		v.loop.Post(func() {
			for _, fn := range fns {
				fn(true)
			}
		})
		return true
	}
	if !v.ckpt.begin() {
		v.ckpt.then = nil
		return false
	}
	return true
}

// retryCheckpoint is checkpoint, as often as it takes.
func (s *snapshotter) retryCheckpoint(then func()) {
	pending := s.pending
	s.pending = 0
	begun := s.checkpoint(then)
	s.pending = pending
	if !begun {
		s.later(func() { s.retryCheckpoint(then) })
	}
}

// later calls fn in a while, unless the volume is lost by then.
func (s *snapshotter) later(fn func()) {
	s.v.loop.NewTimer(func() {
		if s.v.phase != lost && s.v.phase != detached {
			fn()
		}
	}).Reset(4 * snapWait)
}

// record makes the snapshot real.
func (s *snapshotter) record(ids []string, period uint64, size int64, at time.Time) {
	s.commit(func(rec *spec.Volume) {
		for i := range rec.Snapshots {
			if x := &rec.Snapshots[i]; slices.Contains(ids, x.ID) && x.State == spec.SnapshotTaking {
				x.State, x.Period, x.Size, x.Taken = spec.SnapshotReady, period, size, at
				if x.Group != "" {
					x.State = spec.SnapshotCut
				}
			}
		}
	}, func(ok bool) {
		s.pending, s.group.state = 0, groupIdle
		if !ok || !s.has(period) {
			s.equal = false
		}
		s.done()
	})
}

// commit changes the record in this coordinator's term.
func (s *snapshotter) commit(change func(*spec.Volume), done func(ok bool)) {
	v := s.v
	v.cfg.Meta.Update(func(rec *spec.Volume) error {
		if rec.State.Term != v.term || rec.State.Node != v.cfg.Self {
			return repl.ErrLost
		}
		rec.Snapshots, rec.Clones = slices.Clone(rec.Snapshots), slices.Clone(rec.Clones)
		change(rec)
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		if v.phase == lost || v.phase == detached {
			return
		}
		if err == nil {
			v.Update(rec, rev)
		} else {
			v.log.Warn("a snapshot can't be recorded", "error", err)
		}
		done(err == nil)
	})
}

// remove deletes the snapshots that are to be deleted, on all members, and then from the record.
func (s *snapshotter) remove() {
	var ids []string
	for _, x := range s.v.rec.Snapshots {
		if x.State == spec.SnapshotDeleting {
			ids = append(ids, x.ID)
		}
	}
	s.equalize(func(ok bool) {
		if !ok {
			s.again(snapRetry)
			return
		}
		s.commit(func(rec *spec.Volume) {
			rec.Snapshots = slices.DeleteFunc(rec.Snapshots, func(x spec.Snapshot) bool { return slices.Contains(ids, x.ID) })
		}, func(bool) { s.done() })
	})
}

// stop lets what waits go on, as the volume is lost.
func (s *snapshotter) stop() {
	s.timer.Stop()
	s.release()
}
