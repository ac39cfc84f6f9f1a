package sim_test

import (
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// faultKind is a sort of thing that goes wrong, or is done to the volume meanwhile.
type faultKind int

const (
	faultCrash faultKind = iota
	faultCrashInWork
	faultPower
	faultPause
	faultCutOneWay
	faultCutBoth
	faultIsolate
	faultBreak
	faultDelay
	faultMetaCut
	faultMetaDown
	faultSlowDisk
	faultStuckDisk
	faultFullDisk
	faultFlip
	faultMove
	faultReplace
	faultBlackout
	faultPair
	faultLease
	faultKinds
)

func (f faultKind) String() string {
	return [...]string{"crash", "crash-in-work", "power", "pause", "cut-one-way", "cut", "isolate", "break", "delay", "meta-cut", "meta-down",
		"slow-disk", "stuck-disk", "full-disk", "flip", "move", "replace", "blackout", "pair", "lease"}[f]
}

func (c *cluster) count(what string) { c.counts[what]++ }

// nemesis lets something happen, and comes again.
func (c *cluster) nemesis() {
	if !c.faulty || c.err != nil {
		return
	}
	rng := c.w.Rand()
	c.w.After(time.Duration(rng.Int64N(2*int64(c.p.faultEvery))), "nemesis", c.nemesis)
	if len(c.p.faults) == 0 {
		return
	}
	kind := c.p.faults[rng.IntN(len(c.p.faults))]
	c.count(kind.String())
	c.w.Tracef("fault: %v", kind)
	c.inflict(kind)
}

// somewhile is for how long a fault lasts.
func (c *cluster) somewhile() time.Duration {
	rng := c.w.Rand()
	d := []time.Duration{200 * time.Millisecond, 2 * time.Second, 8 * time.Second}[rng.IntN(3)]
	if d > 2*time.Second {
		return d + time.Duration(rng.Int64N(int64(d))) // longer than a lease
	}
	return time.Duration(rng.Int64N(int64(d)))
}

func (c *cluster) anyNode() *node { return c.nodes[c.w.Rand().IntN(len(c.nodes))] }

// supervise notices the engines that died by themselves, and starts others.
func (c *cluster) supervise() {
	c.w.After(50*time.Millisecond, "supervisor", c.supervise)
	for _, n := range c.nodes {
		if n.eng != nil && n.eng.l.Dead() {
			n.down()
			c.restartLater(n, c.somewhile()/2)
		}
	}
}

// restartLater starts an engine on n, unless somebody else did.
func (c *cluster) restartLater(n *node, after time.Duration) {
	c.w.After(after, "restart", func() {
		if n.sn.Loop() == nil {
			n.start()
		}
	})
}

// holder is the node where the volume is attached, or any.
func (c *cluster) holder() *node {
	if n := c.node(c.s.rec.State.Node); n != nil {
		return n
	}
	return c.anyNode()
}

func (c *cluster) inflict(kind faultKind) {
	rng := c.w.Rand()
	n := c.anyNode()
	if rng.IntN(3) == 0 {
		n = c.holder()
	}
	o := c.anyNode()
	switch kind {
	case faultCrash:
		n.crash()
		c.restartLater(n, c.somewhile()/2)
	case faultCrashInWork:
		n.sn.CrashInWork()
	case faultPower:
		n.powerLoss()
		c.restartLater(n, c.somewhile())
	case faultBlackout:
		for _, n := range c.nodes {
			if rng.IntN(8) > 0 {
				n.powerLoss()
				c.restartLater(n, c.somewhile())
			}
		}
	case faultPause:
		n.sn.Pause()
		c.w.After(c.somewhile(), "resume", n.sn.Resume)
	case faultCutOneWay:
		c.w.Cut(n.sn, o.sn)
		c.w.After(c.somewhile(), "heal", func() { c.w.Heal(n.sn, o.sn) })
	case faultCutBoth:
		c.w.Cut(n.sn, o.sn)
		c.w.Cut(o.sn, n.sn)
		c.w.After(c.somewhile(), "heal", func() { c.w.Heal(n.sn, o.sn); c.w.Heal(o.sn, n.sn) })
	case faultIsolate:
		c.isolate(n)
	case faultPair:
		c.pair()
	case faultLease:
		n := c.holder()
		n.metaCut = true
		c.w.After(2*time.Second+time.Duration(rng.Int64N(int64(4*time.Second))), "cut as well", func() {
			if c.faulty {
				c.isolateFor(n, c.somewhile())
			}
		})
	case faultBreak:
		c.w.BreakConns(n.sn, o.sn)
	case faultDelay:
		c.w.SetNet(sim.Latency{Min: 100 * time.Microsecond, Typical: 20 * time.Millisecond, Max: 2 * time.Second, Tail: 0.05})
		c.w.After(c.somewhile(), "network fast again", func() { c.w.SetNet(goodNet) })
	case faultMetaCut:
		n.metaCut = true
		c.w.After(c.somewhile(), "meta reachable again", func() { n.metaCut = false })
	case faultMetaDown:
		c.s.down = true
		c.w.After(c.somewhile(), "meta up again", func() { c.s.down = false })
	case faultSlowDisk:
		n.sn.Disk().SetSlow(float64(5 + rng.IntN(200)))
		c.w.After(c.somewhile(), "disk fast again", func() { n.sn.Disk().SetSlow(1) })
	case faultStuckDisk:
		n.sn.Disk().SetStuck(true)
		c.w.After(c.somewhile(), "disk free again", func() { n.sn.Disk().SetStuck(false) })
	case faultFullDisk:
		n.sn.Disk().SetQuota(n.sn.Disk().Used() + int64(rng.IntN(64))*block.Size)
		c.w.After(c.somewhile(), "disk has space again", func() { n.sn.Disk().SetQuota(1 << 40) })
	case faultFlip:
		c.flip()
	case faultMove:
		c.move()
	case faultReplace:
		c.replace()
	}
}

var goodNet = sim.Latency{Min: 20 * time.Microsecond, Typical: 200 * time.Microsecond, Max: 5 * time.Millisecond, Tail: 0.02}

// pair has something happen to one node, and then, while the cluster is busy with that, to another.
func (c *cluster) pair() {
	rng := c.w.Rand()
	perm := rng.Perm(len(c.nodes))
	first, second := c.nodes[perm[0]], c.nodes[perm[1]]
	switch rng.IntN(4) {
	case 0:
		c.isolate(first)
	case 1:
		first.crash()
		c.restartLater(first, c.somewhile())
	case 2:
		first.sn.Pause()
		c.w.After(c.somewhile(), "resume", first.sn.Resume)
	default:
		c.w.Cut(first.sn, second.sn)
		c.w.Cut(second.sn, first.sn)
		c.w.After(c.somewhile(), "heal", func() { c.rejoinNetwork(first) })
	}
	c.w.After(time.Duration(rng.Int64N(int64(5*time.Second))), "the second of a pair", func() {
		if !c.faulty {
			return
		}
		switch rng.IntN(3) {
		case 0:
			second.powerLoss()
		case 1:
			second.crash()
		default:
			c.isolate(second)
			return
		}
		c.restartLater(second, c.somewhile())
	})
}

// isolate cuts a node off from everything.
func (c *cluster) isolate(n *node) { c.isolateFor(n, c.somewhile()) }

func (c *cluster) isolateFor(n *node, d time.Duration) {
	n.metaCut = true
	for _, o := range c.nodes {
		c.w.Cut(n.sn, o.sn)
		c.w.Cut(o.sn, n.sn)
	}
	c.w.After(d, "heal", func() { c.rejoinNetwork(n) })
}

func (c *cluster) rejoinNetwork(n *node) {
	n.metaCut = false
	for _, o := range c.nodes {
		c.w.Heal(n.sn, o.sn)
		c.w.Heal(o.sn, n.sn)
	}
}

// place is where the scheduler wants the volume: where it is, or, when that node is gone, elsewhere.
func (c *cluster) place() {
	c.w.After(300*time.Millisecond, "scheduler", c.place)
	if c.moving || c.desired < 0 {
		return
	}
	st := c.s.rec.State
	if st.Node != "" && c.s.leaseAlive(st.Node) {
		c.desired = c.node(st.Node).idx
		return
	}
	if n := c.nodes[c.desired]; n.eng == nil || !c.s.reachable(n) || n.name == st.Node {
		c.desired = c.w.Rand().IntN(len(c.nodes))
	}
}

// move detaches the volume cleanly and has it attached elsewhere.
func (c *cluster) move() {
	n := c.node(c.s.rec.State.Node)
	if n == nil || n.eng == nil || n.eng.vol == nil || c.moving {
		return
	}
	c.moving = true
	end := func() { c.moving = false }
	c.w.After(10*time.Second, "move takes too long", end)
	n.eng.detach(func(err error) {
		if err == nil {
			c.desired = c.w.Rand().IntN(len(c.nodes))
		}
		end()
	})
}

// replace adds a replica on a node that has none of its column, in place of another.
func (c *cluster) replace() {
	rng := c.w.Rand()
	col := rng.IntN(c.p.columns)
	members := c.s.rec.State.Columns[col].Members
	if len(members) > c.p.replicas {
		return // one at a time
	}
	n := c.anyNode()
	for _, m := range members {
		if m.Node == n.name {
			return
		}
	}
	e := n.eng
	if e == nil || !e.ready {
		return
	}
	c.replaces++
	out := members[rng.IntN(len(members))].Replica
	m := c.newMember(n.idx, spec.Stale)
	m.Reason = "replacement"
	e.createReplica(m.Replica, col, func() {
		e.meta.update(false, func(rec *spec.Volume) error {
			list := rec.State.Columns[col].Members
			if len(list) > c.p.replicas {
				return errHeld // another replacement came first
			}
			found := false
			for i := range list {
				list[i].Removing = list[i].Replica == out
				found = found || list[i].Removing
			}
			if !found {
				return errHeld // it was replaced meanwhile
			}
			rec.State.Columns[col].Members = append(list, m)
			return nil
		}, func(spec.Volume, meta.Rev, error) {})
	})
}

// reconcile drops replaced replicas once the others are in sync, as the elected leader does.
func (c *cluster) reconcile() {
	c.w.After(500*time.Millisecond, "reconciler", c.reconcile)
	if c.s.down {
		return
	}
	for i, col := range c.s.rec.State.Columns {
		inSync, removing := 0, -1
		for j, m := range col.Members {
			if m.Removing {
				removing = j
			} else if m.State == spec.InSync {
				inSync++
			}
		}
		if removing < 0 || inSync < c.p.replicas {
			continue
		}
		next := cloneRecord(c.s.rec)
		members := next.State.Columns[i].Members
		next.State.Columns[i].Members = append(members[:removing:removing], members[removing+1:]...)
		c.count("replaced")
		c.s.put(next)
		return
	}
}

// flip damages a block of one in-sync copy, if another has it whole.
func (c *cluster) flip() {
	rng := c.w.Rand()
	i := rng.IntN(c.p.columns)
	members := c.s.rec.State.Columns[i].Members
	var good []spec.Member
	for _, m := range members {
		if m.State == spec.InSync {
			good = append(good, m)
		}
	}
	if len(good) < 2 {
		return
	}
	m := good[rng.IntN(len(good))]
	at := c.hot[rng.IntN(len(c.hot))]
	col, off := c.locate(at * block.Size)
	if col != i || c.tainted[at] {
		return
	}
	d, head := c.node(m.Node).sn.Disk(), replicaDir(m.Replica)+"/head"
	if rng.IntN(3) == 0 && d.BreakSector(head, off) || d.FlipBit(head, off+rng.Int64N(block.Size)) {
		c.tainted[at] = true
	}
}

// locate returns the column of a byte of the volume, and where in it it is.
func (c *cluster) locate(off int64) (col int, colOff int64) {
	stripe := off / spec.StripeUnit
	n := int64(c.p.columns)
	return int(stripe % n), stripe/n*spec.StripeUnit + off%spec.StripeUnit
}

// heal ends all faults.
func (c *cluster) heal() {
	c.faulty = false
	c.s.down = false
	c.w.SetNet(goodNet)
	c.w.HealAll()
	for _, n := range c.nodes {
		n.metaCut = false
		d := n.sn.Disk()
		d.SetSlow(1)
		d.SetStuck(false)
		d.SetQuota(1 << 40)
		d.HealSectors()
		n.sn.Resume()
		c.restartLater(n, 100*time.Millisecond)
	}
}
