package sim_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
)

// scrubs reports whether the volumes of this run are scrubbed. It is drawn apart, so that the other runs are what they were.
func (c *cluster) scrubs() bool {
	return c.scrubAlways || rand.New(rand.NewPCG(c.seed, 0x7363727562)).IntN(3) == 0
}

// scrub has every volume scrubbed again and again, whatever happens meanwhile.
func (c *cluster) scrub() {
	if !c.faulty {
		return
	}
	c.w.After(2*time.Second+time.Duration(c.w.Rand().Int64N(int64(4*time.Second))), "scrub", c.scrub)
	for _, v := range c.vols {
		if next := cloneRecord(v.rec); !c.s.down && !next.Scrub.Active {
			next.Scrub.Begin(time.Unix(epoch, 0).Add(c.w.Now()), true)
			c.s.put(v, next)
		}
	}
}

// lastScrub scrubs a volume once all is well. It finds nothing that it can't mend but what was damaged; no copies that differ.
func (v *vol) lastScrub() {
	c := v.c
	if !c.scrubs() || c.err != nil {
		return
	}
	wall := time.Unix(epoch, 0).Add(c.w.Now())
	next := cloneRecord(v.rec)
	if next.Scrub.Active {
		next.Scrub.Cancel(wall)
	}
	for range 3 {
		if c.scrubAlways && v.flipBit() {
			c.count("rotten before the last scrub")
		}
	}
	v.snaps.rot()
	next.Scrub.Begin(wall, false)
	number := next.Scrub.Number
	c.s.put(v, next)
	term := v.rec.State.Term
	if !c.stepUntil(settleTime, func() bool { return v.rec.Scrub.Last.Number == number || v.rec.State.Term != term }) && c.err == nil {
		c.fail("liveness: %s isn't scrubbed: %+v; %s", v.rec.Name, v.rec.Scrub, c.condition())
	}
	f := v.rec.Scrub.Last.Findings
	if c.err != nil || v.rec.Scrub.Last.Number != number {
		return
	}
	c.count("scrubbed")
	for range f.Repaired {
		c.count("scrub repaired")
	}
	damaged := len(v.tainted) > 0
	for _, id := range v.victims {
		damaged = damaged || id != ""
	}
	if f.Differing > 0 && !(damaged && c.blesses) || f.Unreadable > 0 && !damaged {
		c.fail("%s: a scrub found %+v", v.rec.Name, f)
	}
	if v.healed = f.Differing+f.Unreadable == 0 && !f.Partial; v.healed {
		v.snaps.mended()
	}
}

// flipBit flips a bit of a block in one of its intact copies. (A sector that can't be read wouldn't do: where nothing was ever written
// a scrub doesn't read.)
func (v *vol) flipBit() bool {
	rng := v.c.w.Rand()
	at := v.hot[rng.IntN(len(v.hot))]
	col, off := v.locate(at * block.Size)
	good := v.intact(col)
	if len(good) < 2 || v.tainted[at] {
		return false
	}
	k := good[rng.IntN(len(good))]
	v.tainted[at] = k.n.sn.Disk().FlipBit(k.head, off+rng.Int64N(block.Size))
	return v.tainted[at]
}

// checkHealed checks that the copies are the same in every block, also those that were damaged, after a scrub that left nothing.
func (v *vol) checkHealed() {
	if !v.healed || v.c.err != nil {
		return
	}
	for i, col := range v.rec.State.Columns {
		first := v.c.copies[col.Members[0].Replica]
		var want, got [block.Size]byte
		for off := int64(0); off < v.columnSize(); off += block.Size {
			clear(want[:])
			first.n.sn.Disk().Peek(first.head, want[:], off)
			for _, m := range col.Members[1:] {
				k := v.c.copies[m.Replica]
				clear(got[:])
				k.n.sn.Disk().Peek(k.head, got[:], off)
				if got != want {
					v.c.fail("%s column %d: after a scrub the copies %s and %s differ at %d", v.rec.Name, i, first.id, k.id, off)
					return
				}
			}
		}
	}
}

// TestScrubbed plays seeds with bit rot in all of them and scrubs in all of them.
func TestScrubbed(t *testing.T) {
	total := map[string]int{}
	for seed := uint64(1); seed <= 12; seed++ {
		c := newClusterWith(seed, nil, func(p *params) {
			p.steps = 0
			p.faults = append(p.faults, faultFlip, faultFlip, faultFlip)
			for i := range p.vols {
				p.vols[i].replicas = max(2, p.vols[i].replicas)
			}
		})
		c.scrubAlways = true
		if err := c.run(); err != nil {
			t.Errorf("seed %d (%v): %v", seed, c.p, err)
		}
		for k, n := range c.counts {
			total[k] += n
		}
	}
	if total["scrubbed"] == 0 || total["scrub repaired"] < total["rotten before the last scrub"]/2 || total["scrub repaired"] == 0 {
		t.Errorf("scrubs did nothing: %v", total)
	}
	t.Logf("%d scrubs at the end, which repaired %d blocks", total["scrubbed"], total["scrub repaired"])
}
