package sim_test

import (
	"math/rand/v2"
	"time"

	"keelson.io/keelson/internal/spec"
)

// limited reports whether volumes have limits in this run. It is drawn apart, so that the other runs are what they were.
func (c *cluster) limited() bool {
	return rand.New(rand.NewPCG(c.seed, 0x6c696d69)).IntN(4) == 0
}

// limit changes the limits of volumes now and then, whatever happens meanwhile.
func (c *cluster) limit() {
	if !c.faulty {
		for _, v := range c.vols {
			c.setLimits(v, spec.Limits{})
		}
		return
	}
	c.w.After(c.upTo(2*time.Second)+100*time.Millisecond, "limits", c.limit)
	rng := c.w.Rand()
	pick := func(values ...int64) int64 { return values[rng.IntN(len(values))] }
	for _, v := range c.vols {
		if rng.IntN(2) == 0 {
			c.setLimits(v, spec.Limits{
				IOPS: pick(0, 0, 100, 1000), Bandwidth: pick(0, 0, 1<<20, 16<<20), ReadIOPS: pick(0, 0, 0, 100), WriteIOPS: pick(0, 0, 0, 100),
				ReadBandwidth: pick(0, 0, 0, 2<<20), WriteBandwidth: pick(0, 0, 0, 2<<20),
			})
		}
	}
}

func (c *cluster) setLimits(v *vol, l spec.Limits) {
	if c.s.down || v.finished || v.rec.Limits == l {
		return
	}
	next := cloneRecord(v.rec)
	next.Limits = l
	c.count("limits changed")
	c.s.put(v, next)
}
