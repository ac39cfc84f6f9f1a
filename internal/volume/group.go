package volume

import (
	"time"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/spec"
)

// Times of a part in a group.
const (
	// FreezeLimit is how long a volume holds changes back for a group. Then it lets them go on by itself, and isn't cut.
	FreezeLimit = 2 * time.Second
	// groupPatience is how long a part stays prepared. There is no checkpoint meanwhile.
	groupPatience = 30 * time.Second
	// groupPoll is how soon a part notices that the volume is being detached.
	groupPoll = 50 * time.Millisecond
)

// grouping is the volume's part in a snapshot of several volumes at one moment. See spec.Group.
//
//	asking: every member makes an empty snapshot -> prepared -> draining: no change is begun, those under way end -> frozen
//	-> cutting: as any snapshot is cut -> idle
//
// Invariant: it is cut only while it is frozen, in the attempt for which it was: it has been since before the leader knew that all are.
type grouping struct {
	s     *snapshotter
	list  []spec.Group
	state groupState
	// Of the part that is under way:
	snap    string // id of the snapshot
	group   string // id
	attempt int
	until   time.Duration // when it is given up
}

type groupState uint8

const (
	groupIdle groupState = iota
	groupAsking
	groupPrepared
	groupDraining
	groupFrozen
	groupCutting
)

// SetGroups tells the volume which groups there are. Called on the loop.
func (v *Volume) SetGroups(list []spec.Group) {
	v.snaps.group.list = list
	v.snaps.follow()
}

// waits reports whether the part has to be told, or to drain, or to be given up, before it goes on.
func (g *grouping) waits() bool {
	return g.state == groupPrepared || g.state == groupDraining || g.state == groupFrozen
}

func (g *grouping) find(id string) *spec.Group {
	for i := range g.list {
		if g.list[i].ID == id {
			return &g.list[i]
		}
	}
	return nil
}

// due returns the snapshot of which a group wants something now.
func (g *grouping) due() (*spec.Snapshot, *spec.Group) {
	rec := &g.s.v.rec
	for i := range rec.Snapshots {
		x := &rec.Snapshots[i]
		if x.Group == "" || x.State != spec.SnapshotTaking {
			continue
		}
		grp := g.find(x.Group)
		if grp == nil || !grp.Under() {
			continue
		}
		if p := x.Part; p.State != spec.PartMissed || p.Attempt != grp.Attempt || p.Term != g.s.v.term {
			return x, grp
		}
	}
	return nil, nil
}

// asks reports whether a group wants something now.
func (g *grouping) asks() bool {
	x, _ := g.due()
	return x != nil
}

// begin has the members make the snapshot, empty.
func (g *grouping) begin(x *spec.Snapshot, grp *spec.Group) {
	s, v := g.s, g.s.v
	g.snap, g.group, g.attempt = x.ID, grp.ID, grp.Attempt
	if grp.Phase != spec.GroupPreparing {
		g.miss("its coordinator is another one than when it was prepared")
		return
	}
	if !s.prepare() {
		return
	}
	g.state = groupAsking
	s.equalize(func(ok bool) {
		if !ok || v.phase != serving {
			s.abandon()
			g.state = groupIdle
			s.again(snapRetry)
			return
		}
		g.state, g.until = groupPrepared, v.loop.Now()+groupPatience
		g.mark(spec.GroupPart{State: spec.PartPrepared}, nil)
		g.step()
	})
}

// step does what the group's phase asks of a part that waits.
func (g *grouping) step() {
	s, v := g.s, g.s.v
	grp, now := g.find(g.group), v.loop.Now()
	x := v.rec.SnapshotByName(g.snap)
	switch {
	case v.phase != serving || x == nil || x.State != spec.SnapshotTaking || grp == nil || !grp.Under() || grp.Attempt != g.attempt:
		g.leave()
		s.done()
	case now >= g.until && g.state == groupFrozen && g.lateCut():
	case now >= g.until:
		waited := "nobody said that it should be frozen"
		if g.state != groupPrepared {
			waited = "it was frozen for as long as may be (" + FreezeLimit.String() + "), and others weren't"
		}
		if g.state == groupDraining {
			waited = "changes under way didn't end within " + FreezeLimit.String()
		}
		g.leave()
		g.miss(waited)
	case g.state == groupPrepared && grp.Phase == spec.GroupFreezing:
		g.state, g.until = groupDraining, now+FreezeLimit
		s.holding, s.since = true, now
		s.timer.Reset(min(groupPoll, FreezeLimit))
		s.drained()
	case g.state == groupFrozen && grp.Phase == spec.GroupCutting && v.mut+v.oldMut == 0:
		g.state = groupCutting
		s.cut([]string{g.snap}, grp.Taken)
	default:
		s.timer.Reset(min(groupPoll, g.until-now))
	}
}

// lateCut plants a mistake: changes go on, and it is cut all the same.
func (g *grouping) lateCut() bool {
	if !invariant.Mutant("group-cut-after-freeze") {
		return false
	}
	g.until += groupPatience
	g.s.release()
	g.s.timer.Reset(groupPoll)
	return true
}

// drained notes that no change is under way any more.
func (g *grouping) drained() {
	if g.state == groupDraining {
		g.state = groupFrozen
		g.mark(spec.GroupPart{State: spec.PartFrozen}, nil)
	}
	if g.state == groupFrozen {
		g.s.timer.Reset(0)
	}
}

// leave lets changes go on, and forgets the part. What members have of it is removed before the next snapshot.
func (g *grouping) leave() {
	g.state = groupIdle
	g.s.abandon()
	g.s.release()
}

// miss tells the leader that the volume isn't cut in this attempt.
func (g *grouping) miss(reason string) {
	g.s.v.log.Warn("the volume's part in a group snapshot is given up", "group", g.group, "reason", reason)
	g.mark(spec.GroupPart{State: spec.PartMissed, Reason: reason}, g.s.done)
}

// mark records how far the part is; then, if not nil, is called after that. It may come late, and say what isn't so any more: the cut is
// refused all the same.
func (g *grouping) mark(p spec.GroupPart, then func()) {
	id := g.snap
	p.Attempt, p.Term = g.attempt, g.s.v.term
	g.s.commit(func(rec *spec.Volume) {
		for i := range rec.Snapshots {
			if x := &rec.Snapshots[i]; x.ID == id && x.State == spec.SnapshotTaking {
				x.Part = p
			}
		}
	}, func(bool) {
		if then != nil {
			then()
		}
	})
}
