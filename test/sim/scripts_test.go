package sim_test

import (
	"slices"
	"time"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

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
		k.wentBack = true
		for _, o := range c.nodes {
			c.restartLater(o, c.upTo(500*time.Millisecond))
		}
		c.w.After(6*time.Second, "right disk", func() {
			n.powerLoss()
			n.sn.Disk().Restore(right)
			k.wentBack = false
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
				c.later(c.upTo(600*time.Millisecond), "cut", func() { c.isolateFor(n, 3*time.Second) })
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

// forsake kills the engine of the node that has the volume, with much of it under way, and lets the node's lease end when old reads have:
// another takes over, and nobody sends again what was unanswered.
func (c *cluster) forsake(h *node) {
	c.kill(h, 4500*time.Millisecond)
	h.lapsed, h.leaseUntil = true, c.w.Now()+3500*time.Millisecond
	c.w.After(5*time.Second, "lease kept again", func() { h.lapsed = false })
}

// strangers has nodes take over from each other while copies differ by what the one before had under way. Either the next
// one dies as well before it has made them identical; or it is cut off from one copy and from the metadata meanwhile, and
// then it and the other copy die: what it has read must be so still.
func (c *cluster) strangers() {
	v := c.vols[0]
	for at := int64(0); v.readers == 0 && at < v.size/block.Size; at += block.PerChunk {
		v.hot = append(v.hot, at+c.w.Rand().Int64N(block.PerChunk))
	}
	c.w.SetNet(slowNet)
	c.w.After(15*time.Second, "network fast again", func() { c.w.SetNet(goodNet) })
	c.later(400*time.Millisecond, "forsake", func() {
		c.forsake(v.holder())
		term := v.rec.State.Term
		served := func() bool { return v.rec.State.Term > term && v.rec.State.Fenced == v.rec.State.Term }
		if v.readers == 0 {
			v.think, v.checkpointEvery = 300*time.Millisecond, 20*time.Millisecond
			c.when(served, 300*time.Millisecond+c.upTo(600*time.Millisecond), func() { c.forsake(v.holder()) })
			for i := range 20 {
				c.w.After(5*time.Second+time.Duration(i)*300*time.Millisecond, "compare", v.checkIdentical)
			}
			c.w.After(11*time.Second, "as before", func() { v.think, v.checkpointEvery = 5*time.Millisecond, 30*time.Second })
			return
		}
		c.when(served, 0, func() {
			h := v.holder()
			with, _ := v.copiesOf()
			kept := others(with, h)[0]
			c.s.down = true
			c.w.BreakConns(h.sn, kept.sn)
			c.later(90*time.Millisecond, "cut", func() {
				c.w.Cut(h.sn, kept.sn)
				c.w.Cut(kept.sn, h.sn)
			})
			c.later(2*time.Second+c.upTo(1500*time.Millisecond), "both die", func() {
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
	v.hot = v.hot[:3]
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
	for i := range 5 {
		c.w.After(time.Duration(i)*2500*time.Millisecond+c.upTo(time.Second), "kill", func() {
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
	before := *v.hist.clock
	c.w.After(2*time.Second, "a few writes", func() { v.readOnly, before = false, *v.hist.clock })
	c.w.After(2010*time.Millisecond+c.upTo(10*time.Millisecond), "rot", func() {
		if !c.faulty || !v.settled() {
			v.readOnly = false
			return
		}
		for try := 0; try < 20; try++ {
			blk := v.hist.written[c.w.Rand().IntN(len(v.hist.written))]
			b := &v.hist.blocks[blk]
			if b.open > 0 || b.lastRet >= before || b.last == 0 || v.tainted[int64(blk)] || !v.vouched(int64(blk)) {
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

// vouched reports whether every copy of the first column has stored the checksum that block blk's data has. Until the last of them has made
// its checkpoint, nothing would tell after a crash which of two is the damaged one.
func (v *vol) vouched(blk int64) bool {
	for _, m := range v.rec.State.Columns[0].Members {
		k := v.c.copies[m.Replica]
		if k.storedSum(blk) != block.Sum(k.n.sn.Disk().Page(k.head, blk*block.Size, false)) {
			return false
		}
	}
	return true
}

// lastDiskFails has the disk of the only copy fail some writes, of which it does a part, lets clients only read then, and kills the engine:
// checksums computed from the disk while a checkpoint is made must outlive it.
func (c *cluster) lastDiskFails() {
	v := c.vols[0]
	with, _ := v.copiesOf()
	n := with[0]
	n.sn.Disk().SetSlow(float64(1 + c.w.Rand().IntN(40)))
	for i := range 5 {
		at := time.Duration(i) * 2500 * time.Millisecond
		c.w.After(at, "fail", func() {
			if !c.faulty {
				return
			}
			n.sn.Disk().Fail(false, true, false)
			v.readOnly = true
		})
		c.w.After(at+c.upTo(20*time.Millisecond), "disk whole again", func() { n.sn.Disk().Fail(false, false, false) })
		c.w.After(at+200*time.Millisecond+c.upTo(time.Second), "kill", func() {
			if c.faulty {
				c.kill(n, 20*time.Millisecond)
			}
		})
		c.w.After(at+1800*time.Millisecond, "writes again", func() { v.readOnly = false })
	}
}

// leftWhileCopied has a copy that others are brought up to date from miss writes, leave, and come back to be brought up to date itself,
// all while such a write hangs at another one.
func (c *cluster) leftWhileCopied() {
	v := c.vols[0]
	h := v.holder()
	members := v.rec.State.Columns[0].Members
	source, slow, back := c.node(members[0].Node), c.node(members[1].Node), c.node(members[2].Node)
	if slices.Contains([]*node{source, slow, back}, h) || !v.settled() {
		return
	}
	v.hot = v.hot[:0]
	for at := int64(100); at < v.size/block.Size; at += block.PerChunk / 2 {
		v.hot = append(v.hot, at) // little of each chunk has to be copied
	}
	is := func(i int, state spec.MemberState) func() bool {
		return func() bool { return v.rec.State.Columns[0].Members[i].State == state }
	}
	c.isolateFor(back, 5*time.Second)
	c.later(4500*time.Millisecond, "no more writes", func() {
		v.readOnly = true
		back.sn.Disk().SetSlow(float64(20 + c.w.Rand().IntN(80)))
	})
	c.w.After(5*time.Second, "wait for the rejoin", func() {
		c.when(is(2, spec.Syncing), 5*time.Millisecond+c.upTo(20*time.Millisecond), func() {
			// Some writes hang at the slow copy, and every chunk that is left to be copied waits for one of them; the other writes go on.
			v.readOnly = false
			slow.sn.Disk().SetSlow(20000)
			c.w.After(5*time.Millisecond+c.upTo(10*time.Millisecond), "some hang", func() { slow.sn.Disk().SetSlow(1) })
			c.later(50*time.Millisecond+c.upTo(100*time.Millisecond), "break", func() {
				c.w.Cut(h.sn, source.sn)
				c.w.BreakConns(h.sn, source.sn)
				c.when(is(0, spec.Stale), 0, func() { c.w.Heal(h.sn, source.sn) })
			})
		})
	})
	c.w.After(13500*time.Millisecond, "as before", func() {
		v.readOnly = false
		back.sn.Disk().SetSlow(1)
		slow.sn.Disk().SetSlow(1)
		c.w.Heal(h.sn, source.sn)
	})
}
