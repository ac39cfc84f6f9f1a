package sim_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// grows is how often the volumes of this run grow. It is drawn apart, so that the other runs are what they were.
func (c *cluster) grows() int {
	if c.p.growAlways {
		return 3
	}
	rng := rand.New(rand.NewPCG(c.seed, 0x67726f77))
	if rng.IntN(3) > 0 {
		return 0
	}
	return 1 + rng.IntN(3)
}

// growSteps makes up the sizes that a volume comes to have; nil if it doesn't grow. With one column they are no multiples of a chunk.
func (v *vol) growSteps() {
	rng := rand.New(rand.NewPCG(v.c.seed, uint64(v.i)<<32|0x73697a65))
	at := v.size
	for range v.c.grows() {
		if v.columns == 1 {
			at += block.Size * (1 + rng.Int64N(3*block.PerChunk))
		} else {
			at += int64(v.columns) * spec.StripeUnit * (1 + rng.Int64N(6))
		}
		v.sizes = append(v.sizes, at)
		v.hot = append(v.hot, at/block.Size-1-rng.Int64N(8))
	}
}

// full is the size that the volume has in the end.
func (v *vol) full() int64 {
	if n := len(v.sizes); n > 0 {
		return v.sizes[n-1]
	}
	return v.size
}

// grow asks for larger volumes now and then, whatever happens meanwhile.
func (c *cluster) grow() {
	c.w.After(time.Second+time.Duration(c.w.Rand().Int64N(int64(5*time.Second))), "grow", c.grow)
	for _, v := range c.vols {
		next := cloneRecord(v.rec)
		if c.s.down || len(v.sizes) == 0 || v.finished || v.rec.Growth.To != 0 || v.rec.Restore != nil || v.rec.Size >= v.full() || !c.faulty {
			continue
		}
		for _, size := range v.sizes {
			if size > v.rec.Size {
				if err := next.PlanGrowth(size); err != nil {
					c.fail("%s: %v", v.rec.Name, err)
				}
				break
			}
		}
		c.s.put(v, next)
	}
}

// admitGrowth does what the elected leader does: the new size counts when every in-sync member has it.
func (v *vol) admitGrowth() {
	if next := cloneRecord(v.rec); next.AdmitGrowth() {
		v.c.count("grown")
		v.c.s.put(v, next)
	}
}

// growReplicas does what an engine does when it sees a record: its replicas get as large as that plans, and it records that.
func (e *engine) growReplicas(v *vol) {
	rec := cloneRecord(v.rec)
	if rec.Growth.Base == 0 || !e.ready {
		return
	}
	want := spec.ColumnSize(rec.Planned(), rec.Columns)
	for col, column := range rec.State.Columns {
		for _, m := range column.Members {
			w := e.replicas[replicaID(m.Replica)]
			if m.Node != e.n.name || w == nil || w.growing {
				continue
			}
			d := w.r.Desc()
			switch have := d.Size; {
			case have < m.Size:
				if !w.k.wentBack {
					v.c.fail("replica %s on %s has %d bytes, and had %d", w.k.id, e.n.name, have, m.Size)
				}
			case have < want:
				w.growing = true
				d.Size = want
				w.r.Grow(d, func(err error) {
					w.growing = false
					if err != nil {
						v.c.w.Tracef("replica %s on %s doesn't grow: %v", w.k.id, e.n.name, err)
						return
					}
					v.c.count("replicas grown")
					e.growReplicas(v)
				})
			case have > m.Size && !rec.Holds(m, rec.Planned()):
				w.growing = true
				e.meta[v.i].update(false, func(rec *spec.Volume) error {
					for i := range rec.State.Columns[col].Members {
						if x := &rec.State.Columns[col].Members[i]; x.Replica == m.Replica {
							x.Size = max(x.Size, have)
							return nil
						}
					}
					return errHeld
				}, func(spec.Volume, meta.Rev, error) { w.growing = false })
			}
		}
	}
}

// tellGrowth shows a node's engine what the volumes are to become.
func (s *store) tellGrowth(n *node) {
	e := n.eng
	if e == nil {
		return
	}
	for _, v := range s.c.vols {
		if v.rec.Growth.Base != 0 {
			e.l.Post(func() { e.growReplicas(v) })
		}
	}
}

// checkGrowth checks that sizes only grow, and that every in-sync member is large enough.
func (v *vol) checkGrowth(prev, next spec.Volume) {
	if next.Size < prev.Size || next.Growth.To != 0 && next.Growth.To <= next.Size {
		v.c.fail("%s: from %d bytes to %d, on its way to %d", v.rec.Name, prev.Size, next.Size, next.Growth.To)
	}
	for _, col := range next.State.Columns {
		for _, m := range col.Members {
			if m.State == spec.InSync && !next.Holds(m, next.Size) {
				v.c.fail("%s: replica %s on %s is in sync and has %d bytes: %s", v.rec.Name, m.Replica, m.Node, m.Size, describe(next))
			}
		}
	}
	v.size = next.Size
}

// growSeeds is how many runs TestGrow plays.
const growSeeds = 12

// TestGrow plays runs in which volumes grow while everything goes wrong.
func TestGrow(t *testing.T) {
	counts := map[string]int{}
	for seed := uint64(1); seed <= growSeeds; seed++ {
		d := directedBy(seed)
		c := newClusterGrown(seed, d.prepare)
		c.script, c.blesses = d.script, c.blesses || d.kills
		if err := c.run(); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
		for k, n := range c.counts {
			counts[k] += n
		}
	}
	if counts["grown"] < 20 || counts["replicas grown"] < 40 {
		t.Errorf("volumes grew %d times, replicas %d times: the test shows too little", counts["grown"], counts["replicas grown"])
	}
}

func newClusterGrown(seed uint64, fix func(*params)) *cluster {
	return newClusterWith(seed, nil, func(p *params) { fix(p); p.growAlways = true })
}
