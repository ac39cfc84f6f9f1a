package sim_test

import (
	"math/rand/v2"
	"time"

	"keelson.io/keelson/internal/aio/sim"
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

// later does a script's harm after d, unless the faults have ended by then. What mends things again needs no such care.
func (c *cluster) later(d time.Duration, name string, harm func()) {
	c.w.After(d, name, func() {
		if c.faulty {
			harm()
		}
	})
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
		q.size, q.replicas, q.columns, q.diskless, q.seam = 128<<20, 2, 1, true, false
		q.clients, q.readShare, q.readers, q.checkpointEvery = 8, 0.1, p.steps%2*6, 30*time.Second
		p.nodes, p.lostAnswers = 5, 0
	}, (*cluster).strangers, true},
	{"late packets", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.readShare, q.clients, q.readers, q.seam, q.columns = 2, 0.1, 16, 0, false, 1
	}, (*cluster).latePackets, false},
	{"dark fences", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.columns, q.clients, q.checkpointEvery = max(q.replicas, 2), 1, 3, 30*time.Second
	}, (*cluster).darkFences, true},
	{"slow writes", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.readShare, q.clients, q.checkpointEvery = 24<<20, max(q.replicas, 2), 1, 0.1, 6, 60*time.Millisecond
		p.ioLatency.Max, p.ioLatency.Tail = 2*time.Second, 0.05
	}, (*cluster).slowWrites, true},
	{"rotten source", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.readShare, q.clients, q.checkpointEvery = 12<<20, 2, 1, 0.2, 6, 200*time.Millisecond
		q.diskless, q.seam = false, false
	}, (*cluster).rottenSource, false},
	{"last disk fails", func(p *params) {
		q := &p.vols[0]
		q.replicas, q.columns, q.readShare, q.clients, q.readers, q.checkpointEvery = 1, 1, 0.3, 6, 2, 60*time.Millisecond
	}, (*cluster).lastDiskFails, true},
	{"left while copied", func(p *params) {
		q := &p.vols[0]
		q.size, q.replicas, q.columns, q.diskless, q.seam = 16<<20, 3, 1, true, false
		q.clients, q.readShare, q.readers = 12, 0, 0
		p.nodes = 5
	}, (*cluster).leftWhileCopied, false},
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
	c.later(cut, "cut", func() { c.isolateFor(h, 6*time.Second) })
	with, _ := v.copiesOf()
	switch rest := others(with, h); c.w.Rand().IntN(5) {
	case 0: // the members forget when they confirmed last
		c.later(cut+c.upTo(time.Second), "members restart", func() {
			for _, n := range rest {
				c.kill(n, 20*time.Millisecond)
			}
		})
	case 2, 3: // late answers are the last that is heard of the members
		c.later(cut-1500*time.Millisecond, "slow", func() {
			c.w.SetNet(sim.Latency{Min: 100 * time.Microsecond, Typical: 100 * time.Millisecond, Max: time.Second, Tail: 0.3})
		})
		c.later(cut-500*time.Millisecond, "cut one way", func() {
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
	c.later(3500*time.Millisecond, "power", func() {
		if c.w.Rand().IntN(2) == 0 {
			c.later(c.upTo(3*time.Second), "power", func() { c.unplug(away, c.somewhile()) })
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
	c.later(power, "power", func() {
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
			c.later(c.upTo(700*time.Millisecond), "power", func() {
				if c.faulty {
					c.inflict(faultBlackout, c.vols[0], c.vols[0].phaseNow())
				}
			})
		})
	}
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
