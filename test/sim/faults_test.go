package sim_test

import (
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
)

// faultKind is a sort of thing that goes wrong, or is done to the volumes meanwhile.
type faultKind int

const (
	faultCrash       faultKind = iota // an engine is killed between two events
	faultCrashInWork                  // or between two steps of a blocking call
	faultPower                        // a machine loses its power
	faultBlackout                     // nearly all of them do
	faultPause                        // an engine is stopped, and goes on
	faultCutOneWay                    // packets between two nodes get lost in one direction
	faultCutBoth                      // in both
	faultIsolate                      // a node is cut off from everything
	faultBreak                        // the connections between two nodes are reset
	faultDelay                        // the network is slow
	faultMetaCut                      // a node doesn't reach the metadata store
	faultMetaDown                     // nobody does
	faultMetaSlow                     // it answers late
	faultSlowDisk                     // a disk is slow
	faultStuckDisk                    // or answers nothing
	faultFailDisk                     // or answers everything, or some sorts, with an error
	faultFullDisk                     // or has no space
	faultFlip                         // a bit of a head flips, or a sector of it can't be read
	faultRotSums                      // the same in sums
	faultRotGens                      // and gens
	faultRotJournal                   // and journal
	faultRotMeta                      // and a slot of meta, while no engine runs
	faultMove                         // a volume is detached, and attached elsewhere
	faultReplace                      // a replica is replaced by one elsewhere
	faultPair                         // something happens to one node, and to another while the cluster is busy with that
	faultLease                        // the holder loses the store, then its lease, then the other nodes
	faultLapse                        // a node's lease isn't kept alive, and nothing else is wrong
	faultClock                        // a clock begins to run fast or slow
	faultWall                         // a wall clock jumps
	faultKinds
)

func (f faultKind) String() string {
	return [...]string{"crash", "crash-in-work", "power", "blackout", "pause", "cut-one-way", "cut", "isolate", "reset", "delay", "meta-cut",
		"meta-down", "meta-slow", "slow-disk", "stuck-disk", "fail-disk", "full-disk", "flip", "rot-sums", "rot-gens", "rot-journal",
		"rot-meta", "move", "replace", "pair", "lease", "lapse", "clock", "wall-clock"}[f]
}

// nemesis lets something happen, and comes again.
func (c *cluster) nemesis() {
	if !c.faulty || c.err != nil {
		return
	}
	rng := c.w.Rand()
	c.w.After(time.Duration(rng.Int64N(2*int64(c.p.faultEvery))), "nemesis", c.nemesis)
	v := c.vols[rng.IntN(len(c.vols))]
	v.checkIdentical()
	if len(c.p.faults) == 0 {
		return
	}
	kind := c.p.faults[rng.IntN(len(c.p.faults))]
	if rng.Float64() < c.p.ambush {
		a := ambush{kind, phase(rng.IntN(int(phases)))}
		c.lay(a)
		if rng.IntN(2) == 0 {
			c.provoke(v, a.at)
		}
		return
	}
	c.inflict(kind, v, v.phaseNow())
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

// inflict lets a fault happen, while a volume is in some phase.
func (c *cluster) inflict(kind faultKind, v *vol, at phase) {
	rng := c.w.Rand()
	n := c.anyNode()
	if rng.IntN(3) == 0 {
		n = v.holder()
	}
	c.w.Tracef("fault: %v of %s at %s in %v", kind, n.name, v.rec.Name, at)
	switch {
	case kind <= faultPause:
		c.inflictProcess(kind, n)
	case kind <= faultDelay:
		c.inflictNetwork(kind, n)
	case kind <= faultMetaSlow || kind >= faultPair:
		c.inflictTime(kind, n, v)
	default:
		if !c.inflictDisk(kind, n, v) {
			return
		}
	}
	c.counts["fault "+kind.String()]++
	c.matrix[kind][at]++
}

func (c *cluster) inflictProcess(kind faultKind, n *node) {
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
			if c.w.Rand().IntN(8) > 0 {
				n.powerLoss()
				c.restartLater(n, c.somewhile())
			}
		}
	case faultPause:
		n.sn.Pause()
		c.w.After(c.somewhile(), "resume", n.sn.Resume)
	}
}

func (c *cluster) inflictNetwork(kind faultKind, n *node) {
	o := c.anyNode()
	switch kind {
	case faultCutOneWay:
		c.w.Cut(n.sn, o.sn)
		c.w.After(c.somewhile(), "heal", func() { c.w.Heal(n.sn, o.sn) })
	case faultCutBoth:
		c.w.Cut(n.sn, o.sn)
		c.w.Cut(o.sn, n.sn)
		c.w.After(c.somewhile(), "heal", func() { c.w.Heal(n.sn, o.sn); c.w.Heal(o.sn, n.sn) })
	case faultIsolate:
		c.isolate(n)
	case faultBreak:
		c.w.BreakConns(n.sn, o.sn)
	case faultDelay:
		c.w.SetNet(sim.Latency{Min: 100 * time.Microsecond, Typical: 20 * time.Millisecond, Max: 2 * time.Second, Tail: 0.05})
		c.w.After(c.somewhile(), "network fast again", func() { c.w.SetNet(goodNet) })
	}
}

// inflictTime lets what decides go wrong: the metadata store, leases, clocks.
func (c *cluster) inflictTime(kind faultKind, n *node, v *vol) {
	rng := c.w.Rand()
	switch kind {
	case faultMetaCut:
		n.metaCut = true
		c.w.After(c.somewhile(), "meta reachable again", func() { n.metaCut = false })
	case faultMetaDown:
		c.s.down = true
		c.w.After(c.somewhile(), "meta up again", func() { c.s.down = false })
	case faultMetaSlow:
		c.s.slow = true
		c.w.After(c.somewhile(), "meta fast again", func() { c.s.slow = false })
	case faultPair:
		c.pair()
	case faultLease:
		n := v.holder()
		n.metaCut = true
		c.w.After(2*time.Second+time.Duration(rng.Int64N(int64(4*time.Second))), "cut as well", func() {
			if c.faulty {
				c.isolateFor(n, c.somewhile())
			}
		})
	case faultLapse:
		n.lapsed = true
		c.w.After(meta.LeaseTTL+time.Duration(rng.Int64N(int64(3*time.Second))), "lease kept again", func() { n.lapsed = false })
	case faultClock:
		n.sn.SetClock((rng.Float64()*2 - 1) * 20000)
	case faultWall:
		n.wallOff += time.Duration(rng.Int64N(int64(48*time.Hour))) - 24*time.Hour
	}
}

// inflictDisk does something to the disk of a node, or to a replica of a volume. It is false if there was nothing to do it to.
func (c *cluster) inflictDisk(kind faultKind, n *node, v *vol) bool {
	rng, d := c.w.Rand(), n.sn.Disk()
	switch kind {
	case faultSlowDisk:
		d.SetSlow(float64(5 + rng.IntN(200)))
		c.w.After(c.somewhile(), "disk fast again", func() { d.SetSlow(1) })
	case faultStuckDisk:
		d.SetStuck(true)
		c.w.After(c.somewhile(), "disk free again", func() { d.SetStuck(false) })
	case faultFailDisk:
		if n.eng == nil || !n.eng.ready {
			return false
		}
		x := 1 + rng.IntN(7)
		d.Fail(x&1 != 0, x&2 != 0, x&4 != 0)
		n.failing, n.eng.failed = true, true
		c.w.After(c.somewhile(), "disk whole again", func() { d.Fail(false, false, false); n.failing = false })
	case faultFullDisk:
		d.SetQuota(d.Used() + int64(rng.IntN(64))*block.Size)
		c.w.After(c.somewhile(), "disk has space again", func() { d.SetQuota(1 << 40) })
	case faultFlip:
		return v.flip()
	case faultRotSums, faultRotGens, faultRotJournal, faultRotMeta:
		return v.rot(kind)
	case faultMove:
		return v.move()
	case faultReplace:
		return v.replace()
	}
	return true
}

var goodDisk = sim.Latency{Min: 30 * time.Microsecond, Typical: 300 * time.Microsecond, Max: 5 * time.Millisecond, Tail: 0.01}

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

// heal ends all faults.
func (c *cluster) heal() {
	c.faulty = false
	c.ambushes = nil
	c.s.down, c.s.slow = false, false
	c.w.SetNet(goodNet)
	c.w.SetDisk(goodDisk)
	c.w.HealAll()
	for _, n := range c.nodes {
		n.metaCut, n.lapsed, n.failing = false, false, false
		d := n.sn.Disk()
		d.Fail(false, false, false)
		d.SetSlow(1)
		d.SetStuck(false)
		d.SetQuota(1 << 40)
		d.HealSectors()
		n.sn.Resume()
		c.restartLater(n, 100*time.Millisecond)
	}
}
