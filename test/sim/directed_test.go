package sim_test

import (
	"math/rand/v2"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

// directed is a sort of run whose faults come in an order that chance alone makes up too rarely. One seed of four is
// directed; what is done, and when, is drawn even so.
type directed struct {
	name    string
	prepare func(p *params)
	script  func(c *cluster) // played again and again until the faults are over
	kills   bool             // engines die
}

// directedBy returns what a seed directs; nothing for most of them.
func directedBy(seed uint64) directed {
	rng := rand.New(rand.NewPCG(seed, 0x64697265))
	if rng.IntN(4) > 0 {
		return directed{prepare: func(*params) {}}
	}
	d := directions[rng.IntN(len(directions))]
	prepare := d.prepare
	d.prepare = func(p *params) {
		p.directed, p.vols, p.faults = d.name, p.vols[:1], nil
		p.vols[0].think = 5 * time.Millisecond
		prepare(p)
	}
	return d
}

// playScript plays the script, and after a while again.
func (c *cluster) playScript() {
	if !c.faulty || c.err != nil {
		return
	}
	c.script(c)
	c.w.After(14*time.Second+time.Duration(c.w.Rand().Int64N(int64(4*time.Second))), "script again", c.playScript)
}

// upTo draws a time.
func (c *cluster) upTo(d time.Duration) time.Duration {
	return time.Duration(c.w.Rand().Int64N(int64(d)))
}

// kill kills the engine of a node, if it runs, and starts another.
func (c *cluster) kill(n *node, down time.Duration) {
	if n.sn.Loop() != nil {
		n.crash()
	}
	c.restartLater(n, down)
}

// unplug takes the power of a node's machine.
func (c *cluster) unplug(n *node, down time.Duration) {
	n.powerLoss()
	c.restartLater(n, down)
}

// copiesOf are the nodes with a copy of the volume's first column, and those without.
func (v *vol) copiesOf() (with, without []*node) {
	for _, n := range v.c.nodes {
		has := false
		for _, m := range v.rec.State.Columns[0].Members {
			has = has || m.Node == n.name
		}
		if has {
			with = append(with, n)
		} else {
			without = append(without, n)
		}
	}
	return with, without
}

// others are the nodes of a list but one.
func others(list []*node, n *node) (rest []*node) {
	for _, o := range list {
		if o != n {
			rest = append(rest, o)
		}
	}
	return rest
}

// when calls fn some time after a condition has come true; not at all if it doesn't within 12 s, or the faults are over by then.
func (c *cluster) when(cond func() bool, after time.Duration, fn func()) {
	end := c.w.Now() + 12*time.Second
	var look func()
	look = func() {
		switch {
		case !c.faulty || c.w.Now() > end:
		case !cond():
			c.w.After(time.Millisecond, "look again", look)
		default:
			c.w.After(after, "it is so", func() {
				if c.faulty {
					fn()
				}
			})
		}
	}
	look()
}

// whenTerm calls fn some time after the volume has got a newer term.
func (v *vol) whenTerm(after time.Duration, fn func()) {
	term := v.rec.State.Term
	v.c.when(func() bool { return v.rec.State.Term != term }, after, fn)
}

var directions = []directed{
	{"old reads", func(p *params) {
		q := &p.vols[0]
		q.readers, q.clients, q.readShare, q.seam, q.columns, q.think = 6, 2, 0.2, false, 1, 2*time.Millisecond
		q.diskless = false
		q.replicas = max(q.replicas, 2)
		p.drift = 0
	}, (*cluster).oldReads, true},
	{"powerless rejoin", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.readShare, q.clients, q.columns = 2, 0.1, 5, 1
		q.checkpointEvery = 300 * time.Millisecond
	}, (*cluster).powerlessRejoin, true},
	{"last copy", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.readShare, q.diskless, q.columns, q.clients = 2, 0.1, true, 1, 5
		p.ioLatency.Max, p.ioLatency.Tail = 2*time.Second, 0.03
	}, (*cluster).lastCopy, true},
	{"own writes", func(p *params) {
		q := &p.vols[0]
		q.size, q.checkpointEvery, q.readShare = 32<<20, 300*time.Millisecond, 0
		q.clients, q.think, q.columns = 6, 60*time.Millisecond, 1
		q.replicas = max(q.replicas, 2)
	}, (*cluster).ownWrites, true},
	{"restart in attach", func(p *params) {
		q := &p.vols[0]
		q.readShare, q.replicas, q.checkpointEvery, q.clients, q.readers, q.columns = 0.1, 3, 30*time.Second, 6, 0, 1
		p.nodes = 3
	}, (*cluster).restartInAttach, true},
	{"takeovers", func(p *params) {
		q := &p.vols[0]
		q.readShare, q.clients, q.readers, q.seam = 0.3, 6, 0, true
		p.ioLatency.Max, p.ioLatency.Tail = 100*time.Millisecond, 0.1
	}, (*cluster).takeovers, true},
	{"slow disks", func(p *params) {
		q := &p.vols[0]
		q.readShare, q.clients, q.seam = 0.3, 6, true
		q.replicas = max(q.replicas, 2)
		p.ioLatency.Max, p.ioLatency.Tail = 2*time.Second, 0.05
	}, (*cluster).slowDisks, true},
	{"away and back", func(p *params) {
		q := &p.vols[0]
		q.readShare, q.clients, q.readers, q.seam = 0.4, 6, 2, true
		p.ioLatency.Max, p.ioLatency.Tail = 100*time.Millisecond, 0.1
	}, (*cluster).awayAndBack, true},
	{"rot", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.readers, q.clients, q.readShare, q.think = max(q.replicas, 2), 3, 6, 0.4, 2*time.Millisecond
		q.diskless = false
		p.ioLatency.Typical, p.ioLatency.Max, p.ioLatency.Tail = 2*time.Millisecond, 50*time.Millisecond, 0.2
		p.faults, p.ambush, p.faultEvery = []faultKind{faultFlip, faultFlip, faultBreak}, 0, 500*time.Millisecond
	}, func(*cluster) {}, false},
	{"failing disks", func(p *params) {
		q := &p.vols[0]
		q.replicas = max(q.replicas, 2)
		p.faults, p.ambush, p.faultEvery = []faultKind{faultFailDisk, faultFailDisk, faultSlowDisk}, 0, 2*time.Second
	}, func(*cluster) {}, false},
	{"outages", func(p *params) {
		q := &p.vols[0]
		q.checkpointEvery, q.clients = 300*time.Millisecond, 6
		q.replicas = max(q.replicas, 2)
	}, (*cluster).outages, true},
	{"rolled back", func(p *params) {
		q := &p.vols[0]
		q.columns, q.readShare, q.clients = 1, 0.3, 5
		q.replicas = max(q.replicas, 2)
		q.checkpointEvery = 300 * time.Millisecond
	}, (*cluster).rolledBack, true},
	{"reconciling", func(p *params) {
		q := &p.vols[0]
		q.size, q.clients, q.readShare, q.readers, q.checkpointEvery = 64<<20, 6, 0.3, 0, 60*time.Millisecond
		q.replicas, q.diskless = 2, p.steps%2 == 0
		p.ioLatency.Max, p.ioLatency.Tail = 500*time.Millisecond, 0.05
	}, (*cluster).reconciling, true},
	{"moves", func(p *params) {
		q := &p.vols[0]
		q.clients, q.readShare = 6, 0.1
		q.checkpointEvery = 30 * time.Second
	}, (*cluster).moves, true},
	{"broken rejoins", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.clients, q.checkpointEvery = 64<<20, 2, 1, 6, 60*time.Millisecond
	}, (*cluster).brokenRejoins, true},
	{"away and dark", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.readShare, q.clients, q.checkpointEvery = 64<<20, 2, 1, 0, 6, 200*time.Millisecond
	}, (*cluster).awayAndDark, true},
	{"strangers", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.diskless, q.readShare, q.readers = 64<<20, 2, 1, true, 0.3, 0
		q.clients, q.checkpointEvery = 6, 60*time.Millisecond
		p.nodes = 5
	}, (*cluster).strangers, true},
	{"late packets", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.readShare, q.clients, q.seam, q.columns = 2, 0.1, 6, true, 1
	}, (*cluster).latePackets, false},
	{"dark fences", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.columns, q.clients, q.checkpointEvery = max(q.replicas, 2), 1, 3, 30*time.Second
	}, (*cluster).darkFences, true},
	{"slow writes", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.readShare, q.clients, q.checkpointEvery = 24<<20, max(q.replicas, 2), 1, 0.1, 6, 60*time.Millisecond
		p.ioLatency.Max, p.ioLatency.Tail = 2*time.Second, 0.02
	}, (*cluster).slowWrites, true},
	{"rotten source", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.readShare, q.clients, q.checkpointEvery = 12<<20, 2, 1, 0.2, 6, 200*time.Millisecond
		q.diskless, q.seam = false, false
	}, (*cluster).rottenSource, false},
}

// oldReads cuts the holder off from the metadata, and from the other nodes just about when its lease ends: what it may still
// read must be over before anything is written elsewhere. Clocks differ as much as they may. The members and the node that
// takes over may be restarted meanwhile.
func (c *cluster) oldReads() {
	v := c.vols[0]
	h := v.holder()
	for _, n := range c.nodes {
		n.sn.SetClock(45_000)
	}
	h.sn.SetClock(-45_000)
	h.metaCut = true
	cut := 3500*time.Millisecond + c.upTo(2500*time.Millisecond)
	c.w.After(cut, "cut", func() { c.isolateFor(h, 6*time.Second) })
	with, _ := v.copiesOf()
	switch rest := others(with, h); c.w.Rand().IntN(5) {
	case 0: // the members forget when they confirmed last
		c.w.After(cut+c.upTo(time.Second), "members restart", func() {
			for _, n := range rest {
				c.kill(n, 20*time.Millisecond)
			}
		})
	case 2, 3: // late answers are the last that is heard of the members
		c.w.After(cut-1500*time.Millisecond, "slow", func() {
			c.w.SetNet(sim.Latency{Min: 100 * time.Microsecond, Typical: 100 * time.Millisecond, Max: time.Second, Tail: 0.3})
		})
		c.w.After(cut-500*time.Millisecond, "cut one way", func() {
			for _, n := range rest {
				c.w.Cut(h.sn, n.sn)
			}
		})
		c.w.After(cut+50*time.Millisecond, "fast again", func() { c.w.SetNet(goodNet) })
	case 1: // the newcomer dies while it waits, and comes again
		v.whenTerm(100*time.Millisecond+c.upTo(time.Second), func() {
			if n := v.holder(); n != h {
				c.kill(n, 20*time.Millisecond)
			}
		})
	}
}

// powerlessRejoin brings a member back again and again, and takes its power when it has just been made in sync, or the others'.
func (c *cluster) powerlessRejoin() {
	v := c.vols[0]
	with, _ := v.copiesOf()
	away := with[c.w.Rand().IntN(len(with))]
	if c.w.Rand().IntN(3) > 0 {
		away = others(with, v.holder())[0]
	}
	c.isolateFor(away, 3*time.Second)
	c.w.After(3*time.Second, "ambush", func() { c.lay(ambush{faultPower, phasePromote}) })
	c.w.After(3500*time.Millisecond, "power", func() {
		if c.w.Rand().IntN(2) == 0 {
			c.w.After(c.upTo(3*time.Second), "power", func() { c.unplug(away, c.somewhile()) })
		}
	})
}

// lastCopy cuts one of two copies off, and takes the power of the other one's machine about when the first is taken out of the
// in-sync set.
func (c *cluster) lastCopy() {
	v := c.vols[0]
	with, _ := v.copiesOf()
	h := v.holder()
	rest := others(with, h)
	if len(rest) < 2 {
		rest = with
	}
	a, b := rest[0], rest[1]
	if c.w.Rand().IntN(2) == 0 {
		// One copy loses its memory, the other is away with it, and the volume is attached anew: it has to wait.
		c.unplug(a, 200*time.Millisecond)
		c.isolateFor(b, 8*time.Second)
		c.kill(h, 300*time.Millisecond)
		return
	}
	power := 1500*time.Millisecond + c.upTo(3*time.Second)
	if c.s.slow = c.w.Rand().IntN(2) == 0; c.s.slow {
		// What the first has answered, the other one's disk does only when the first is on its way out.
		free := 3500*time.Millisecond + c.upTo(1500*time.Millisecond)
		b.sn.Disk().SetStuck(true)
		c.w.After(free, "disk free again", func() { b.sn.Disk().SetStuck(false) })
		power = free + c.upTo(1500*time.Millisecond)
	}
	c.w.After(9*time.Second, "meta fast again", func() { c.s.slow = false })
	c.w.Cut(h.sn, a.sn)
	c.w.Cut(a.sn, h.sn)
	c.w.After(power, "power", func() {
		if c.faulty {
			c.unplug(b, 3*time.Second)
		}
	})
	c.w.After(10*time.Second, "heal", c.w.HealAll)
}

// ownWrites cuts the holder, which has a copy, off in the middle of writes, and nothing is written for a while: what only its copy
// has must not survive there.
func (c *cluster) ownWrites() {
	v := c.vols[0]
	c.isolateFor(v.holder(), 8*time.Second)
	c.w.After(time.Second, "no more writes", func() { v.readOnly = true })
	c.w.After(13*time.Second, "writes again", func() { v.readOnly = false })
}

// restartInAttach takes the power of a member's machine after it answered the fence of a new term, and before the metadata,
// which can't be reached, has recorded it as in sync.
func (c *cluster) restartInAttach() {
	v := c.vols[0]
	h := v.holder()
	c.kill(h, time.Second)
	v.whenTerm(0, func() {
		c.s.down = true
		rest := others(c.nodes, h)
		c.w.After(500*time.Millisecond, "restarts", func() {
			c.unplug(rest[0], 100*time.Millisecond)
			c.kill(rest[1], 100*time.Millisecond)
		})
		c.w.After(4*time.Second, "meta up", func() { c.s.down = false })
	})
}

// takeovers kills the engine that has the volume again and again: what it had not answered is executed again, and nothing
// that was answered meanwhile may be undone.
func (c *cluster) takeovers() {
	for i := range 18 {
		c.w.After(time.Duration(i)*600*time.Millisecond+c.upTo(400*time.Millisecond), "kill", func() {
			if n := c.vols[0].holder(); c.faulty && n.sn.Loop() != nil {
				c.kill(n, 50*time.Millisecond)
			}
		})
	}
}

// slowDisks makes engines and connections come and go while disks take seconds for some writes.
func (c *cluster) slowDisks() {
	v := c.vols[0]
	for range 8 {
		c.w.After(c.upTo(10*time.Second), "disturb", func() {
			if !c.faulty {
				return
			}
			h := v.holder()
			with, _ := v.copiesOf()
			n := with[c.w.Rand().IntN(len(with))]
			switch c.w.Rand().IntN(4) {
			case 0:
				c.kill(n, 20*time.Millisecond)
			case 1:
				c.kill(h, 20*time.Millisecond)
			default:
				c.w.BreakConns(h.sn, n.sn)
			}
		})
	}
	if c.w.Rand().IntN(2) == 0 {
		c.w.After(c.upTo(5*time.Second), "move", func() { v.move() })
	}
}

// awayAndBack kills the engine that has the volume while requests are unanswered; another node has the volume for a while, and
// it comes back to the first one, whose requests have waited.
func (c *cluster) awayAndBack() {
	v := c.vols[0]
	h := v.holder()
	h.crash()
	h.lapsed = true
	v.whenTerm(c.upTo(2*time.Second)+500*time.Millisecond, func() {
		c.restartLater(h, 0)
		h.lapsed = false
		c.w.After(time.Second+c.upTo(time.Second), "back", func() {
			n := v.holder()
			if n == h || n.eng == nil || !c.faulty {
				return
			}
			v.moving = true
			n.eng.detach(v, func(err error) {
				if v.moving = false; err == nil {
					v.desired = h.idx
				}
			})
		})
	})
	c.w.After(12*time.Second, "restart", func() {
		c.restartLater(h, 0)
		h.lapsed = false
	})
}

// outages takes the power of several machines at any moment, mostly while members make checkpoints.
func (c *cluster) outages() {
	for range 4 {
		c.w.After(c.upTo(12*time.Second), "outage", func() {
			if !c.faulty {
				return
			}
			switch c.w.Rand().IntN(3) {
			case 0:
				c.lay(ambush{faultBlackout, phaseCheckpoint})
			case 1:
				c.lay(ambush{faultPower, phaseCheckpoint})
			default:
				c.inflict(faultBlackout, c.vols[0], c.vols[0].phaseNow())
			}
		})
	}
}

// moves detaches the volume, and takes all power before it is attached elsewhere, or soon after.
func (c *cluster) moves() {
	for i := range 3 {
		c.w.After(time.Duration(i)*4*time.Second, "move", func() {
			if !c.faulty || !c.vols[0].move() {
				return
			}
			c.w.After(c.upTo(700*time.Millisecond), "power", func() {
				if c.faulty {
					c.inflict(faultBlackout, c.vols[0], c.vols[0].phaseNow())
				}
			})
		})
	}
}

// rolledBack has all machines lose their power, and one come back with an older image of its replica, that knows nothing of the
// last term: it must not be used. Somebody notices, and gives it the right disk again.
func (c *cluster) rolledBack() {
	v := c.vols[0]
	members := v.rec.State.Columns[0].Members
	m := members[c.w.Rand().IntN(len(members))]
	n, k := c.node(m.Node), c.copies[m.Replica]
	old := n.sn.Disk().Image(k.dir)
	if !v.settled() || old == nil {
		return
	}
	c.kill(v.holder(), 100*time.Millisecond)
	v.whenTerm(time.Second+c.upTo(2*time.Second), func() {
		if now := v.member(0, m.Replica); now == nil || now.State != spec.InSync || v.rec.State.Fenced != v.rec.State.Term {
			return
		}
		for _, o := range c.nodes {
			o.powerLoss()
		}
		right := n.sn.Disk().Image(k.dir)
		n.sn.Disk().Restore(old)
		for _, o := range c.nodes {
			c.restartLater(o, c.upTo(500*time.Millisecond))
		}
		c.w.After(6*time.Second, "right disk", func() {
			n.powerLoss()
			n.sn.Disk().Restore(right)
			c.restartLater(n, 100*time.Millisecond)
			c.kill(v.holder(), 200*time.Millisecond)
		})
	})
}

// reconciling kills engines while chunks are still being made identical after the kill before.
func (c *cluster) reconciling() {
	slow, _ := c.vols[0].copiesOf()
	for _, n := range slow {
		n.sn.Disk().SetSlow(float64(10 + c.w.Rand().IntN(100)))
	}
	c.w.After(11*time.Second, "disks fast again", func() {
		for _, n := range c.nodes {
			n.sn.Disk().SetSlow(1)
		}
	})
	only := c.w.Rand().IntN(2) == 0
	for i := range 20 {
		c.w.After(time.Duration(i)*500*time.Millisecond+c.upTo(500*time.Millisecond), "kill", func() {
			if !c.faulty {
				return
			}
			with, _ := c.vols[0].copiesOf()
			h := c.vols[0].holder()
			c.kill(h, 50*time.Millisecond)
			if only {
				return
			}
			switch n := with[c.w.Rand().IntN(len(with))]; c.w.Rand().IntN(5) {
			case 0:
				c.kill(n, 50*time.Millisecond)
			case 1:
				c.unplug(n, c.somewhile()/4)
			case 2:
				c.w.After(c.upTo(600*time.Millisecond), "cut", func() { c.isolateFor(n, 3*time.Second) })
			}
		})
	}
}

// brokenRejoins has a copy come back while the other one goes on, and breaks its way back again and again: what it has got so
// far isn't all. Or the other one's disk fails writes that the one on its way executes.
func (c *cluster) brokenRejoins() {
	v := c.vols[0]
	with, _ := v.copiesOf()
	away := others(with, v.holder())[0]
	source := others(with, away)[0]
	syncing := func() bool {
		for _, m := range v.rec.State.Columns[0].Members {
			if m.Node == away.name && m.State == spec.Syncing {
				return true
			}
		}
		return false
	}
	c.isolateFor(away, 5*time.Second)
	away.sn.Disk().SetSlow(float64(5 + c.w.Rand().IntN(40)))
	failing := c.w.Rand().IntN(2) == 0
	for i := range 4 {
		c.w.After(5*time.Second+time.Duration(i)*1500*time.Millisecond, "wait for the rejoin", func() {
			c.when(syncing, c.upTo(400*time.Millisecond), func() {
				if !failing {
					c.w.BreakConns(v.holder().sn, away.sn)
					return
				}
				v.readOnly = true
				source.sn.Disk().Fail(false, true, false)
				c.w.After(c.upTo(5*time.Millisecond), "disk whole again", func() { source.sn.Disk().Fail(false, false, false) })
			})
		})
	}
	c.w.After(13*time.Second, "as before", func() {
		away.sn.Disk().SetSlow(1)
		v.checkIdentical()
		v.readOnly = false
	})
}

// awayAndDark has one copy miss a few writes, that a checkpoint covers, and the other one lose its power then: what that
// knows of them is all that tells what the first has missed.
func (c *cluster) awayAndDark() {
	v := c.vols[0]
	with, _ := v.copiesOf()
	away := others(with, v.holder())[0]
	dark := others(with, away)[0]
	v.readOnly = true
	c.isolateFor(away, 8*time.Second)
	c.w.After(5*time.Second, "a few writes", func() { v.readOnly = false })
	c.w.After(5010*time.Millisecond+c.upTo(20*time.Millisecond), "no more", func() { v.readOnly = true })
	c.w.After(5100*time.Millisecond+c.upTo(time.Second), "power", func() {
		if c.faulty {
			c.unplug(dark, 100*time.Millisecond)
		}
	})
	c.w.After(11*time.Second, "writes again", func() { v.readOnly = false })
}

// slowNet is a network on which much is under way at any moment.
var slowNet = sim.Latency{Min: 100 * time.Microsecond, Typical: 30 * time.Millisecond, Max: 300 * time.Millisecond, Tail: 0.1}

// forsake kills the engine of the node that has the volume, with much of it under way, and ends the node's lease: another takes over, and
// nobody sends again what was unanswered.
func (c *cluster) forsake(h *node) {
	c.kill(h, 3*time.Second)
	h.lapsed, h.leaseUntil = true, c.w.Now()
	c.w.After(4*time.Second, "lease kept again", func() { h.lapsed = false })
}

// strangers has nodes take over from each other while copies differ by what the one before had under way. Either the next
// one dies as well before it has made them identical; or it is cut off from one copy and from the metadata meanwhile, and
// then it and the other copy die: what it has read must be so still.
func (c *cluster) strangers() {
	v := c.vols[0]
	c.w.SetNet(slowNet)
	c.w.After(15*time.Second, "network fast again", func() { c.w.SetNet(goodNet) })
	c.w.After(400*time.Millisecond, "forsake", func() {
		c.forsake(v.holder())
		term := v.rec.State.Term
		served := func() bool { return v.rec.State.Term > term && v.rec.State.Fenced == v.rec.State.Term }
		if c.w.Rand().IntN(2) == 0 {
			v.think = 300 * time.Millisecond
			c.when(served, 150*time.Millisecond+c.upTo(600*time.Millisecond), func() { c.forsake(v.holder()) })
			for i := range 20 {
				c.w.After(5*time.Second+time.Duration(i)*300*time.Millisecond, "compare", v.checkIdentical)
			}
			c.w.After(11*time.Second, "as before", func() { v.think = 5 * time.Millisecond })
			return
		}
		c.when(served, 0, func() {
			h := v.holder()
			with, _ := v.copiesOf()
			kept := others(with, h)[0]
			c.s.down = true
			c.w.Cut(h.sn, kept.sn)
			c.w.Cut(kept.sn, h.sn)
			c.w.BreakConns(h.sn, kept.sn)
			c.w.After(2*time.Second+c.upTo(1500*time.Millisecond), "both die", func() {
				c.forsake(h)
				c.unplug(others(with, kept)[0], 6*time.Second)
				c.rejoinNetwork(kept)
				c.s.down = false
			})
		})
	})
}

// latePackets breaks connections whose bytes take their time: requests of the old one come after those of the new one.
func (c *cluster) latePackets() {
	v := c.vols[0]
	c.w.SetNet(sim.Latency{Min: 100 * time.Microsecond, Typical: time.Millisecond, Max: time.Second, Tail: 0.1})
	for i := range 24 {
		c.w.After(time.Duration(i)*450*time.Millisecond+c.upTo(400*time.Millisecond), "break", func() {
			with, _ := v.copiesOf()
			c.w.BreakConns(v.holder().sn, with[c.w.Rand().IntN(len(with))].sn)
		})
	}
	c.w.After(11*time.Second, "network fast again", func() { c.w.SetNet(goodNet) })
}

// darkFences takes all power again and again while fences are being made durable, each soon after the one before.
func (c *cluster) darkFences() {
	v := c.vols[0]
	for _, n := range c.nodes {
		n.sn.Disk().SetSlow(10)
	}
	for i := range 8 {
		c.w.After(time.Duration(i)*1400*time.Millisecond, "next term", func() {
			if !c.faulty {
				return
			}
			c.kill(v.holder(), 50*time.Millisecond)
			if i%2 == 0 {
				return
			}
			v.whenTerm(c.upTo(10*time.Millisecond), func() {
				for _, n := range c.nodes {
					c.unplug(n, 100*time.Millisecond)
				}
			})
		})
	}
	c.w.After(13*time.Second, "disks fast again", func() {
		for _, n := range c.nodes {
			n.sn.Disk().SetSlow(1)
		}
	})
}

// slowWrites kills the engines of copies, or takes their power, while some of their writes take longer than a checkpoint.
func (c *cluster) slowWrites() {
	v := c.vols[0]
	for i := range 8 {
		c.w.After(time.Duration(i)*1500*time.Millisecond+c.upTo(time.Second), "kill", func() {
			if !c.faulty {
				return
			}
			with, _ := v.copiesOf()
			rest := others(with, v.holder())
			if n := rest[c.w.Rand().IntN(len(rest))]; c.w.Rand().IntN(2) == 0 {
				c.kill(n, 20*time.Millisecond)
			} else {
				c.unplug(n, 20*time.Millisecond)
			}
		})
	}
}

// rottenSource damages a block of the copy that everybody would copy from, in a chunk that was just written, and kills all
// engines: the checksum that is then computed from the damaged block must give way to the one that the other copy has stored.
func (c *cluster) rottenSource() {
	v := c.vols[0]
	v.readOnly = true
	before := v.hist.clock
	c.w.After(2*time.Second, "a few writes", func() { v.readOnly, before = false, v.hist.clock })
	c.w.After(2010*time.Millisecond+c.upTo(10*time.Millisecond), "rot", func() {
		if !c.faulty || !v.settled() {
			v.readOnly = false
			return
		}
		for try := 0; try < 20; try++ {
			blk := v.hist.written[c.w.Rand().IntN(len(v.hist.written))]
			b := &v.hist.blocks[blk]
			if b.open > 0 || b.lastRet >= before || b.last == 0 || v.tainted[int64(blk)] {
				continue
			}
			with, _ := v.copiesOf()
			n := with[0]
			if slices.Contains(with, v.holder()) {
				n = v.holder()
			}
			for _, m := range v.rec.State.Columns[0].Members {
				if k := c.copies[m.Replica]; k.n == n && n.sn.Disk().FlipBit(k.head, int64(blk)*block.Size+c.w.Rand().Int64N(block.Size)) {
					v.tainted[int64(blk)] = true
				}
			}
			break
		}
		for _, n := range c.nodes {
			c.kill(n, 50*time.Millisecond)
		}
		v.readOnly = false
	})
}

// sendLate gives a request to a new engine later than it should: the planted mistake resend-after-others.
func (r *ioreq) sendLate() {
	g, vol, tries := r.g, r.g.vol, r.tries
	g.c.w.After(g.c.upTo(2*time.Second), "late resend", func() {
		if g.vol == vol && !g.dead && r.tries == tries {
			r.send()
		}
	})
}
