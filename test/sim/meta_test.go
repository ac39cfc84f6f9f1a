package sim_test

import (
	"errors"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// store is the metadata, as far as a run needs it: the volumes' records with their revisions, and the nodes'
// leases. It's outside all nodes and never fails itself; the way to it does.
type store struct {
	c    *cluster
	down bool
	slow bool
}

var errHeld = errors.New("held by a node whose lease is alive")

func cloneRecord(v spec.Volume) spec.Volume {
	v.State.Columns = slices.Clone(v.State.Columns)
	for i := range v.State.Columns {
		v.State.Columns[i].Members = slices.Clone(v.State.Columns[i].Members)
	}
	v.Snapshots, v.Clones = slices.Clone(v.Snapshots), slices.Clone(v.Clones)
	return v
}

func (s *store) reachable(n *node) bool { return !s.down && !n.metaCut && n.sn.On() }

// leaseAlive reports whether a node's lease is held at this moment.
func (s *store) leaseAlive(name string) bool {
	n := s.c.node(name)
	return n != nil && s.c.w.Now() < n.leaseUntil
}

// tick keeps the leases of the nodes that reach the store, and tells them of the record's and
// the leases' changes.
func (s *store) tick() {
	for _, n := range s.c.nodes {
		if !s.reachable(n) {
			continue
		}
		if !n.lapsed {
			n.leaseUntil = s.c.w.Now() + meta.LeaseTTL
		}
		for _, o := range s.c.nodes {
			n.sees[o.idx] = s.leaseAlive(o.name)
		}
		s.tell(n)
		s.tellGrowth(n)
		s.tellGroups(n)
	}
	for _, v := range s.c.vols {
		if n := s.c.node(v.rec.State.Node); n != nil && s.leaseAlive(n.name) != v.leased {
			if v.leased = !v.leased; !v.leased {
				v.reach(phaseLapse)
			}
		}
	}
	s.c.w.After(time.Second, "leases", s.tick)
}

// tell shows a node's coordinators the records as they are now.
func (s *store) tell(n *node) {
	if n.eng == nil {
		return
	}
	for _, v := range s.c.vols {
		s.tellOf(v, n)
	}
}

func (s *store) tellOf(v *vol, n *node) {
	e := n.eng
	if e == nil || e.atts[v.i].vol == nil {
		return
	}
	rec, rev := cloneRecord(v.rec), v.rev
	e.l.Post(func() {
		if vol := e.atts[v.i].vol; vol != nil {
			vol.Update(rec, rev)
		}
	})
}

// put writes the record of a volume.
func (s *store) put(v *vol, next spec.Volume) {
	prev := v.rec
	if next.State.Fenced > prev.State.Fenced {
		for i, col := range prev.State.Columns {
			if s.runsLost(col) {
				s.c.w.Tracef("meta: %s column %d: every in-sync member had lost its run", v.rec.Name, i)
				v.loss[i] = true
			}
		}
	}
	v.rev++
	v.rec = next
	if s.c.w.Tracing() {
		s.c.w.Tracef("meta: rev %d: %s", v.rev, describe(next))
	}
	v.checkRecord(prev, next)
	v.checkLeaving(prev, next)
	v.checkJoined(prev, next)
	v.changed(prev, next)
	v.checkGrowth(prev, next)
	v.snaps.recorded(prev, next)
	for _, n := range s.c.nodes {
		s.c.w.After(s.delay(), "watch", func() {
			if s.reachable(n) {
				s.tellOf(v, n)
				s.tellGrowth(n)
			}
		})
	}
}

// runsLost reports whether no in-sync member is in the run in which it acknowledged.
func (s *store) runsLost(col spec.Column) bool {
	for _, m := range col.Members {
		if m.State == spec.InSync && (m.Run == "" || m.Run == s.c.node(m.Node).run()) {
			return false
		}
	}
	return true
}

func (s *store) delay() time.Duration {
	d := time.Duration(300+s.c.w.Rand().IntN(2000)) * time.Microsecond
	if s.c.w.Chance(0.05) {
		d *= 50
	}
	if s.slow {
		d = min(200*d, 4*time.Second)
	}
	return d
}

// client is one process's access to the store: volume.Metadata.
type client struct {
	s *store
	v *vol
	n *node
	l *sim.Loop
}

// Update implements volume.Metadata.
func (m *client) Update(mutate func(*spec.Volume) error, done func(spec.Volume, meta.Rev, error)) {
	m.update(true, mutate, done)
}

// update reads, changes and writes the record. If it isn't patient it ends with an error where the
// store can't be reached.
func (m *client) update(patient bool, mutate func(*spec.Volume) error, done func(spec.Volume, meta.Rev, error)) {
	s, v, w := m.s, m.v, m.s.c.w
	answer := func(rec spec.Volume, rev meta.Rev, err error) {
		rec = cloneRecord(rec)
		w.After(s.delay(), "meta answer", func() {
			if !m.l.Dead() {
				m.l.Post(func() { done(rec, rev, err) })
			}
		})
	}
	again := func() {
		if !patient {
			answer(v.rec, v.rev, meta.ErrUnavailable)
			return
		}
		w.After(s.delay()+200*time.Millisecond, "meta retry", func() { m.update(patient, mutate, done) })
	}
	if m.l.Dead() {
		return
	}
	w.After(s.delay(), "meta read", func() {
		if m.l.Dead() {
			return
		}
		if !s.reachable(m.n) {
			again()
			return
		}
		rec, rev := cloneRecord(v.rec), v.rev
		if err := mutate(&rec); err != nil {
			answer(v.rec, v.rev, err)
			return
		}
		v.reach(phaseTransaction)
		w.After(s.delay(), "meta write", func() {
			// A request that was sent arrives also when its sender is dead by now.
			switch {
			case !s.reachable(m.n):
				again()
			case v.rev != rev:
				s.c.count("conflicts in the store")
				w.After(s.delay(), "meta conflict", func() { m.update(patient, mutate, done) })
			default:
				s.put(v, rec)
				if w.Chance(s.c.p.lostAnswers) {
					s.c.count("lost answers of the store")
					w.Tracef("meta: answer to %s is lost", m.n.name)
					again()
					return
				}
				answer(rec, v.rev, nil)
			}
		})
	})
}
