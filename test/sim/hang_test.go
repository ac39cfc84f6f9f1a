package sim_test

import (
	"testing"
	"time"
)

// TestHangingDisk stops the disk of one copy, of the holder's in half of the runs, for minutes while its engine and its
// connections live: the copy is taken out and I/O goes on. Sometimes another disk hangs for a while meanwhile, or engines are
// killed. What hung takes its effect in the end, also after the copy's engine was killed, and must not be seen.
func TestHangingDisk(t *testing.T) {
	for seed := uint64(1); seed <= 12; seed++ {
		c := scenario(t, seed, func(p *params, q *volParams) {
			q.clients, q.readShare, q.think = 4, 0.3, 20*time.Millisecond
			p.lasts = 4 * time.Minute
			if seed%4 > 1 {
				q.replicas = 3
			}
		}, func(c *cluster) {
			v := c.vols[0]
			h := v.holder()
			n := h
			if seed%2 == 0 {
				for _, m := range v.rec.State.Columns[0].Members {
					if m.Node != h.name {
						n = c.node(m.Node)
					}
				}
			}
			n.sn.Disk().SetStuck(true)
			c.w.After(2*time.Minute, "disk free again", func() { n.sn.Disk().SetStuck(false) })
			if seed%3 == 0 {
				c.w.After(40*time.Second, "engine killed", func() {
					n.crash()
					c.restartLater(n, time.Second)
				})
			}
			if seed%3 == 1 {
				o := c.nodes[(n.idx+1)%len(c.nodes)]
				c.w.After(time.Duration(seed)*3*time.Second, "a second disk hangs", func() { o.sn.Disk().SetStuck(true) })
				c.w.After(time.Duration(seed)*3*time.Second+50*time.Second, "disk free again", func() { o.sn.Disk().SetStuck(false) })
			}
		})
		if v := c.vols[0]; seed%3 != 1 && v.hist.failures > 0 && seed%2 == 0 {
			t.Errorf("seed %d: %d requests failed: %s", seed, v.hist.failures, c.condition())
		}
	}
}
