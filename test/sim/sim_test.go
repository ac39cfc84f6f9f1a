// Package sim_test is the simulation: the whole data path (replicas, links, coordinators) of three to five nodes with up to three
// volumes in a simulated world, with clients that read and write, and everything going wrong that the design says may go
// wrong. A seed decides all of it; the same seed on the same commit gives the same run. docs/design/simulation.md says what is
// simulated, what is checked, and how to run it.
//
// A step is one event that the world executes: the callback of a disk operation, of a timer, of a delivery, of a transaction, a
// client's turn, a fault. Every run goes on until it has at least minSteps of them.
//
// What is checked while a run goes on: after every change of an in-sync copy, that it holds nothing that was overwritten or never
// written; at every answer of a replica, that what it answers for is there, is durable if that was asked, and is not of a
// term below its fence; at every fence, that the journal names every chunk changed since the checkpoint; at every
// acknowledgement and at every change of the metadata, invariants 1, 2, 3 and 5 of the design on the members' disks. At the end:
// the history of every block is linearizable (invariants 3 and 4); no flushed data is lost, and acknowledged data only when every in-sync
// member had lost its run; every volume serves again once everything healed (invariant 6 the other way round); and the copies
// are identical, durable, and match their sums and gens.
package sim_test

import (
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

// settleTime bounds how long the cluster may take to be whole again once all faults are over.
const settleTime = 120 * time.Second

// maxTime bounds how long faults go on.
const maxTime = 24 * time.Hour

// minSteps is how many steps every drawn run has at least; maxSteps bounds a run.
const (
	minSteps = 20_000
	maxSteps = 20_000_000
)

// run plays a seed to its end and returns the first violation.
func (c *cluster) run() (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.w.Tracef("PANIC: %v", r)
			err = fmt.Errorf("at %v: panic: %v\n%s", c.w.Now(), r, debug.Stack())
		}
	}()
	if !c.stepUntil(settleTime, c.allReady) {
		return fmt.Errorf("the nodes don't start: %v, %s", c.err, c.condition())
	}
	c.place()
	c.reconcile()
	c.supervise()
	c.faulty = true
	c.w.After(time.Second, "nemesis", c.nemesis)
	if c.grows() > 0 {
		c.w.After(2*time.Second, "grow", c.grow)
	}
	if c.snapshots() {
		c.w.After(2*time.Second, "snapshots", c.snap)
	}
	if c.grouped() {
		c.w.After(2*time.Second, "groups", c.group)
	}
	if c.limited() {
		c.w.After(time.Second, "limits", c.limit)
	}
	if c.scrubs() {
		c.w.After(2*time.Second, "scrub", c.scrub)
	}
	if c.script != nil {
		c.w.After(2*time.Second, "script", c.playScript)
	}
	end := c.w.Now() + c.p.lasts
	c.stepUntil(maxTime, func() bool { return c.w.Now() >= end && c.w.Steps() >= c.p.steps })
	if c.err != nil {
		return c.err
	}
	c.w.Tracef("faults are over")
	c.heal()
	for try := 0; c.err == nil; try++ {
		if !c.stepUntil(settleTime, c.settledNow) && c.err == nil {
			if c.onlyOldCopies() {
				c.count("volumes that wait for a person")
				break
			}
			c.fail("liveness: %v after the last fault not all is whole: %s", settleTime, c.condition())
		}
		if c.err != nil || c.finish() {
			break
		}
		if try == 5 {
			c.fail("liveness: the volume is lost again and again: %s", c.condition())
		}
	}
	for _, v := range c.vols {
		if c.err == nil {
			if err := v.hist.judge(); err != nil {
				c.fail("%s: %v", v.rec.Name, err)
			}
		}
	}
	return c.err
}

// stepUntil steps until the condition holds, a violation is found, or d has gone by.
func (c *cluster) stepUntil(d time.Duration, cond func() bool) bool {
	end := c.w.Now() + d
	for c.w.Now() < end && c.err == nil && c.w.Steps() < maxSteps {
		if cond() {
			return true
		}
		if !c.w.Step() {
			return cond()
		}
	}
	if c.w.Steps() >= maxSteps {
		c.fail("liveness: %d steps", maxSteps)
	}
	return cond()
}

// onlyOldCopies reports whether the in-sync set of some column has only copies that went back in time: it may not serve
// before a person decides (invariant 6). (Seed 499.)
func (c *cluster) onlyOldCopies() bool {
	for _, v := range c.vols {
		for _, col := range v.rec.State.Columns {
			inSync, old := 0, 0
			for _, m := range col.Members {
				if m.State == spec.InSync {
					inSync++
					if k := c.copies[m.Replica]; k != nil && k.wentBack {
						old++
					}
				}
			}
			if inSync > 0 && old == inSync {
				return true
			}
		}
	}
	return false
}

// settledNow is settled, looked at now and then only, as it takes long.
func (c *cluster) settledNow() bool { return c.w.Steps()%64 == 0 && c.settled() }

// settled reports whether every volume is attached and serves, all its members are in sync, and every node is up.
func (c *cluster) settled() bool {
	if !c.allReady() {
		return false
	}
	for _, v := range c.vols {
		if !v.finished && (!v.settled() || v.disturbed()) {
			return false
		}
	}
	return true
}

// disturbed reports whether the coordinator is about to find that a member isn't what it was: a request has waited for so long that a member may be taken out for it, as a
// disk that was slow may still have it; or a machine has lost its power since, which nobody has noticed.
func (v *vol) disturbed() bool {
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			if m.State == spec.InSync && m.Run != "" && m.Run != v.c.node(m.Node).runName {
				return true
			}
		}
	}
	g := v.c.node(v.rec.State.Node).guests[v.i]
	return len(g.pending) > 0 && v.c.w.Now()-g.pending[0].begun > time.Second
}

func (v *vol) settled() bool {
	if v.moving || v.rec.Growth.To != 0 || !v.snaps.settled() {
		return false
	}
	n := v.c.node(v.rec.State.Node)
	if n == nil || n.eng == nil || n.eng.atts[v.i].vol == nil {
		return false
	}
	if g := n.guests[v.i]; g == nil || g.vol == nil || g.stopped {
		return false
	}
	for _, col := range v.rec.State.Columns {
		if len(col.Members) != v.replicas {
			return false
		}
	}
	st := n.eng.atts[v.i].vol.Status()
	return st.Serving && st.InSync && st.Unreconciled == 0
}

func (c *cluster) allReady() bool {
	for _, n := range c.nodes {
		if n.eng == nil || !n.eng.ready {
			return false
		}
	}
	return true
}

func (c *cluster) condition() string {
	var b strings.Builder
	for _, v := range c.vols {
		fmt.Fprintf(&b, "%s\n", describe(v.rec))
	}
	for _, n := range c.nodes {
		if n.eng == nil {
			fmt.Fprintf(&b, "%s: no engine; ", n.name)
			continue
		}
		fmt.Fprintf(&b, "%s: ready=%v; ", n.name, n.eng.ready)
		for i, a := range n.eng.atts {
			if a.vol != nil {
				fmt.Fprintf(&b, "vol%d: %+v; ", i, a.vol.Status())
			}
		}
	}
	return b.String()
}

// finish ends every volume. It is false if one was lost meanwhile, to a takeover that was decided before all was well again.
func (c *cluster) finish() bool {
	for _, v := range c.vols {
		if !v.finished {
			v.lastScrub()
		}
	}
	for _, v := range c.vols {
		if !v.finished && !v.finish() {
			return false
		}
	}
	for _, v := range c.vols {
		v.checkReplicas()
		v.snaps.check("all is over")
		v.checkHealed()
	}
	for _, n := range c.nodes {
		if n.eng != nil && n.eng.l.Outstanding() > 0 {
			c.count("buffers left")
		}
	}
	return true
}

// finish ends the clients, reads the whole volume and detaches it.
func (v *vol) finish() bool {
	c := v.c
	n := c.node(v.rec.State.Node)
	if n == nil || n.guests[v.i] == nil {
		return false
	}
	g := n.guests[v.i]
	idle := false
	g.stop(func() { idle = true })
	if !c.stepUntil(settleTime, func() bool { return idle || g.dead }) {
		c.fail("liveness: requests are never answered: %v; %s", g.pending, c.condition())
	}
	const step = 256 << 10
	for off := int64(0); off < v.size && c.err == nil && !g.dead; off += step {
		done := false
		if !c.stepUntil(settleTime, func() bool { return g.vol != nil || g.dead }) || g.dead {
			break // a late crash, and nobody has come back
		}
		g.submit(&ioreq{g: g, op: block.OpRead, off: off, len: min(step, v.size-off), then: func() { done = true }})
		if !c.stepUntil(settleTime, func() bool { return done || g.dead }) {
			c.fail("liveness: the last read at %d is not answered", off)
		}
	}
	if c.err != nil || g.dead || n.eng == nil {
		return false
	}
	ended := false
	v.ending = true
	defer func() { v.ending = false }()
	n.eng.detach(v, func(err error) {
		if ended = true; err == nil {
			v.finished = true
			v.desired = -1
		}
	})
	if !c.stepUntil(settleTime, func() bool { return ended || g.dead }) {
		c.fail("liveness: the volume doesn't detach: %s", c.condition())
	}
	if !v.finished || c.err != nil {
		return false
	}
	for _, col := range v.rec.State.Columns {
		for _, m := range col.Members {
			if m.State != spec.InSync { // lost at the last moment; it must be brought back first
				v.desired, v.finished = n.idx, false
				return false
			}
		}
	}
	return true
}
