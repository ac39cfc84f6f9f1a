package sim_test

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
)

// groups are the snapshots of several volumes at one moment, as the metadata has them, and their leader.
type groups struct {
	list    []spec.Group
	rev     int
	next    int
	began   map[string]time.Duration
	leading bool
}

// groupPatience is how long the leader waits for a group.
const groupPatience = 20 * time.Second

// grouped reports whether snapshots of all volumes at one moment are taken in this run. It is drawn apart.
func (c *cluster) grouped() bool {
	return len(c.vols) > 1 && (c.p.groupAlways || rand.New(rand.NewPCG(c.seed, 0x67727570)).IntN(3) == 0)
}

// group asks for one now and then.
func (c *cluster) group() {
	c.w.After(c.upTo(1500*time.Millisecond)+200*time.Millisecond, "groups", c.group)
	g := &c.groups
	if c.s.down || !c.faulty || len(g.list) > 0 {
		return
	}
	g.next++
	x := spec.Group{ID: fmt.Sprintf("%016x", 0x60000+g.next), Name: fmt.Sprintf("g%d", g.next), Phase: spec.GroupPreparing, Attempt: 1}
	for _, v := range c.vols {
		if v.finished || len(v.rec.Snapshots) > 6 {
			return
		}
		x.Volumes = append(x.Volumes, v.rec.ID)
	}
	g.began = map[string]time.Duration{x.ID: c.w.Now()}
	c.putGroups([]spec.Group{x})
	c.lead()
}

// putGroups writes the list, and tells the coordinators.
func (c *cluster) putGroups(list []spec.Group) {
	c.groups.list = list
	c.groups.rev++
	c.w.Tracef("meta: groups: %+v", list)
	for _, n := range c.nodes {
		c.w.After(c.s.delay(), "watch", func() {
			if c.s.reachable(n) {
				c.s.tellGroups(n)
			}
		})
	}
}

// tellGroups shows a node's coordinators the groups as they are now.
func (s *store) tellGroups(n *node) {
	e, list := n.eng, slices.Clone(s.c.groups.list)
	if e == nil || s.c.groups.next == 0 {
		return
	}
	for _, v := range s.c.vols {
		e.l.Post(func() {
			if vol := e.atts[v.i].vol; vol != nil {
				vol.SetGroups(list)
			}
		})
	}
}

// lead has the leader take the group's next step, over and over: it decides on what it sees, and writes somewhat later, if what it
// writes wasn't changed meanwhile.
func (c *cluster) lead() {
	g := &c.groups
	if g.leading || len(g.list) == 0 {
		return
	}
	g.leading = true
	x, rev := g.list[0], g.rev
	records, revs := map[string]*spec.Volume{}, map[string]meta.Rev{}
	for _, v := range c.vols {
		rec := cloneRecord(v.rec)
		records[rec.ID], revs[rec.ID] = &rec, v.rev
	}
	overdue := x.Phase == spec.GroupFailed || c.w.Now()-g.began[x.ID] > groupPatience
	step := x.Step(func(id string) *spec.Volume { return records[id] }, 12, time.Unix(epoch, 0), overdue)
	delay := c.s.delay()
	if x.Phase == spec.GroupFreezing && c.w.Chance(0.15) {
		delay += c.upTo(2 * volume.FreezeLimit)
	}
	c.w.After(delay, "leader", func() {
		g.leading = false
		c.w.After(c.s.delay()+time.Millisecond, "leader", c.lead)
		if c.s.down {
			return
		}
		if (step.Group != nil || step.Drop) && rev == g.rev {
			c.groupStep(x, step)
			return
		}
		for _, next := range step.Volumes {
			for _, v := range c.vols {
				if v.rec.ID == next.ID && v.rev == revs[next.ID] {
					v.snaps.expect(&next, x.ID)
					c.s.put(v, next)
				}
			}
		}
	})
}

// groupStep changes the group's own record.
func (c *cluster) groupStep(x spec.Group, step spec.GroupStep) {
	if step.Drop {
		if x.Phase == spec.GroupDone {
			c.judgeGroup(x)
		}
		c.putGroups(nil)
		return
	}
	if step.Group.Phase == spec.GroupFailing {
		c.count("groups failed")
	}
	c.putGroups([]spec.Group{*step.Group})
}

// expect gives a snapshot that the leader asks for an id that every run of the seed gives it.
func (s *snapsOf) expect(next *spec.Volume, group string) {
	x := next.InGroup(group)
	if x == nil || x.State != spec.SnapshotTaking || x.Part != (spec.GroupPart{}) {
		return
	}
	s.next++
	x.ID = fmt.Sprintf("%016x", s.next)
	if s.known == nil {
		s.known = map[string]*knownSnap{}
	}
	s.known[x.ID] = &knownSnap{id: x.ID, asked: s.v.hist.tick()}
}

// judgeGroup checks that there was a moment at which every volume held what its snapshot has.
func (c *cluster) judgeGroup(g spec.Group) {
	from, to := int64(0), int64(never)
	var first, last *knownSnap
	n := 0
	for _, v := range c.vols {
		x := v.rec.InGroup(g.ID)
		if x == nil {
			continue // deleted since
		}
		k := v.snaps.known[x.ID]
		if x.State == spec.SnapshotDeleting || k.period == 0 {
			continue
		}
		n++
		if k.from > from {
			from, first = k.from, k
		}
		if k.to < to {
			to, last = k.to, k
		}
	}
	if n > 1 {
		c.count("groups")
	}
	if from > to && c.err == nil {
		c.fail("group %s is of no moment: snapshot %s has what was begun at %d, %+v, and snapshot %s lacks what had ended at %d, %+v",
			g.Name, first.id, from, first.first, last.id, to, last.last)
	}
}

var (
	groupBase  = flag.Uint64("group-base", 1, "the first seed of TestGroups")
	groupSeeds = flag.Uint64("group-seeds", 8, "how many runs TestGroups plays")
)

// TestGroups plays runs in which snapshots of two volumes at one moment are taken while everything goes wrong.
func TestGroups(t *testing.T) {
	counts := map[string]int{}
	seeds := []uint64{256} // a member has a snapshot that was given up, of a period that was tried again
	for i := range *groupSeeds {
		seeds = append(seeds, *groupBase+i)
	}
	for _, seed := range seeds {
		if err := playGroups(seed, counts); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	t.Log(counts)
	if least := int(2 * *groupSeeds); counts["groups"] < least {
		t.Errorf("groups: %d, want %d at least: the test shows too little", counts["groups"], least)
	}
}

func playGroups(seed uint64, counts map[string]int) error {
	c := newClusterWith(seed, nil, func(p *params) {
		p.groupAlways = true
		rng := rand.New(rand.NewPCG(seed, 0x67727571))
		p.vols = []volParams{drawVolume(rng, 2), drawVolume(rng, 2)}
		if len(p.faults) > 3 {
			p.faults = p.faults[:3]
		}
	})
	err := c.run()
	for _, k := range slices.Sorted(maps.Keys(c.counts)) {
		counts[k] += c.counts[k]
	}
	return err
}
