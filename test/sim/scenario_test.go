package sim_test

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
)

// scenario plays a run whose faults are given, instead of drawn.
func scenario(t *testing.T, seed uint64, prepare func(p *params, q *volParams), faults func(c *cluster)) *cluster {
	t.Helper()
	c := newClusterWith(seed, nil, func(p *params) {
		p.nodes, p.vols = 3, p.vols[:1]
		q := &p.vols[0]
		q.replicas, q.columns, q.size, q.diskless, q.seam = 2, 1, 8<<20, false, false
		q.clients, q.readers, q.readShare, q.think = 2, 2, 0.4, 5*time.Millisecond
		p.lasts, p.steps, p.faults, p.lostAnswers, p.drift = 16*time.Second, 0, nil, 0, 0
		if prepare != nil {
			prepare(p, q)
		}
	})
	var begin func()
	begin = func() {
		if !c.faulty { // a node whose disk is slow hasn't started yet
			c.w.After(time.Second, "scenario", begin)
			return
		}
		faults(c)
	}
	c.w.After(3*time.Second, "scenario", begin)
	err := c.run()
	if testing.Verbose() {
		t.Logf("seed %d: %s", seed, c.condition())
	}
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	return c
}

// TestCutHolder cuts the node that has the volume off from everything: another takes over, and what the old
// one's clients read meanwhile is never stale.
func TestCutHolder(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		c := scenario(t, seed, nil, func(c *cluster) { c.isolateFor(c.vols[0].holder(), 12*time.Second) })
		if c.counts["takeover"] != 1 {
			t.Errorf("seed %d: not taken over: %s", seed, c.condition())
		}
	}
}

// TestLostLease cuts the holder off from the metadata only, until its lease is gone, and from the other nodes just
// about when another takes over: what it may still read is over before anything is written there.
func TestLostLease(t *testing.T) {
	for seed := uint64(1); seed <= 8; seed++ {
		c := scenario(t, seed, func(_ *params, q *volParams) { q.readers = 4 }, func(c *cluster) {
			n := c.vols[0].holder()
			n.metaCut = true
			c.w.After(time.Duration(2500+250*seed)*time.Millisecond, "cut", func() { c.isolateFor(n, 8*time.Second) })
		})
		if c.counts["takeover"] != 1 {
			t.Errorf("seed %d: not taken over: %s", seed, c.condition())
		}
	}
}

// TestLastCopyLosesPower cuts one of two copies off, and takes the power of the other one's machine before the first was
// taken out of the in-sync set: it must not be taken out any more.
func TestLastCopyLosesPower(t *testing.T) {
	for seed := uint64(1); seed <= 20; seed++ {
		scenario(t, seed, func(_ *params, q *volParams) { q.readShare, q.diskless = 0.1, true }, func(c *cluster) {
			h := c.vols[0].holder()
			members := c.vols[0].rec.State.Columns[0].Members
			a, b := c.node(members[0].Node), c.node(members[1].Node)
			c.w.Cut(h.sn, a.sn)
			c.w.Cut(a.sn, h.sn)
			c.w.After(time.Duration(2000+100*seed)*time.Millisecond, "power", func() {
				b.powerLoss()
				c.restartLater(b, 4*time.Second)
			})
			c.w.After(15*time.Second, "heal", c.w.HealAll)
		})
	}
}

// TestOwnWritesOfLostHolder cuts the holder, which has a copy, off in the middle of writes, and nothing is written any
// more: what only its copy has must not survive there.
func TestOwnWritesOfLostHolder(t *testing.T) {
	for seed := uint64(1); seed <= 10; seed++ {
		scenario(t, seed, func(_ *params, p *volParams) {
			p.size, p.checkpointEvery, p.readShare = 64<<20, 300*time.Millisecond, 0
			p.clients, p.think = 6, 60*time.Millisecond
		}, func(c *cluster) {
			c.isolateFor(c.vols[0].holder(), 10*time.Second)
			c.w.After(time.Second, "no more writes", func() { c.vols[0].readOnly = true })
		})
	}
}

// TestMemberRestartsDuringAttach takes the power of a member's machine after it answered the fence of a new term, and
// before the metadata, which can't be reached, has recorded it as in sync: what it had not flushed is gone, and it
// must not count as a copy.
func TestMemberRestartsDuringAttach(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		scenario(t, seed, func(_ *params, p *volParams) {
			p.readShare, p.replicas, p.checkpointEvery, p.clients, p.readers = 0.1, 3, 30*time.Second, 6, 0
		}, func(c *cluster) {
			h := c.vols[0].holder()
			term := c.vols[0].rec.State.Term
			h.crash()
			c.restartLater(h, time.Second)
			var wait func()
			wait = func() {
				if c.vols[0].rec.State.Term == term {
					c.w.After(time.Millisecond, "wait for the new term", wait)
					return
				}
				c.s.down = true
				var others []*node
				for _, n := range c.nodes {
					if n != h {
						others = append(others, n)
					}
				}
				c.w.After(500*time.Millisecond, "power", others[0].powerLoss)
				c.w.After(500*time.Millisecond, "crash", others[1].crash)
				c.restartLater(others[0], 600*time.Millisecond)
				c.restartLater(others[1], 600*time.Millisecond)
				c.w.After(4*time.Second, "meta up", func() { c.s.down = false })
			}
			wait()
		})
	}
}

// TestTakeoverOfStriped kills the engine of a striped volume again and again under load: requests that touch several columns
// are executed again as a whole, and nothing that was answered meanwhile may be undone.
func TestTakeoverOfStriped(t *testing.T) {
	for seed := uint64(1); seed <= 6; seed++ {
		scenario(t, seed, func(p *params, q *volParams) {
			q.columns, q.readShare, q.clients, q.readers, q.seam = 2, 0.3, 6, 0, true
			p.ioLatency.Max, p.ioLatency.Tail = 100*time.Millisecond, 0.1
		}, func(c *cluster) {
			for i := range 20 {
				c.w.After(time.Duration(i)*600*time.Millisecond, "kill", func() {
					if n := c.vols[0].holder(); n.sn.Loop() != nil {
						n.crash()
						c.restartLater(n, 50*time.Millisecond)
					}
				})
			}
		})
	}
}

// TestDamagedSumsBehindTheEnd damages, while a member is away, its sums of blocks that its last chunk doesn't have, as the
// volume ends inside it: that must not keep the member from coming back.
func TestDamagedSumsBehindTheEnd(t *testing.T) {
	for seed := uint64(1); seed <= 4; seed++ {
		scenario(t, seed, func(_ *params, q *volParams) { q.size, q.readShare = 6<<20, 0.1 }, func(c *cluster) {
			v := c.vols[0]
			for _, m := range v.rec.State.Columns[0].Members {
				k := c.copies[m.Replica]
				if k.n == v.holder() {
					continue
				}
				k.n.crash()
				k.n.sn.Disk().FlipBit(k.dir+"/sums", 8192+8*int64(512+seed))
				c.restartLater(k.n, 3*time.Second)
				return
			}
		})
	}
}

// TestDamageOfTheOnlyCopy damages blocks of the only in-sync copy that the other one, which is away, misses: it must become in
// sync again all the same, without what is lost. Then the engine of the damaged copy dies again and again under writes, and computes its checksums
// anew: what is lost must stay so, and the damage never be taken for data. (While it is the only copy, nothing would tell them apart.)
func TestDamageOfTheOnlyCopy(t *testing.T) {
	lost := 0
	for seed := uint64(1); seed <= 6; seed++ {
		c := scenario(t, seed, func(_ *params, q *volParams) { q.readShare, q.readers = 0.2, 0 }, func(c *cluster) {
			v := c.vols[0]
			h := v.holder()
			with, _ := v.copiesOf()
			away := others(with, h)[0]
			since := *v.hist.clock
			c.isolateFor(away, 7*time.Second)
			c.w.After(6*time.Second, "no more writes", func() { v.readOnly = true })
			c.w.After(6500*time.Millisecond, "damage", func() { v.damage(h, since, 3) })
			c.w.After(10*time.Second, "writes again", func() { v.readOnly = false })
			for i := range 4 {
				c.later(10500*time.Millisecond+time.Duration(i)*600*time.Millisecond, "kill", func() {
					if v.settled() {
						c.kill(h, 50*time.Millisecond)
					}
				})
			}
		})
		lost += c.counts["lost blocks"]
	}
	if lost == 0 {
		t.Error("no block was ever lost: the scenario doesn't happen")
	}
}

// damage flips a bit in each of up to n blocks of node's copy of the first column that were written since a moment.
func (v *vol) damage(node *node, since int64, n int) {
	for _, m := range v.rec.State.Columns[0].Members {
		k := v.c.copies[m.Replica]
		for _, blk := range v.hist.written {
			if b := &v.hist.blocks[blk]; k.n != node || n == 0 || b.open > 0 || b.lastRet <= since || v.tainted[int64(blk)] {
				continue
			}
			v.tainted[int64(blk)] = node.sn.Disk().FlipBit(k.head, int64(blk)*block.Size+v.c.w.Rand().Int64N(block.Size))
			n--
		}
	}
}
