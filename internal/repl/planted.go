package repl

import "time"

// serveEarly is the planted mistake serve-before-record: it serves before the metadata says who is in sync.
func (c *Column) serveEarly(change Change, now time.Duration) {
	for _, mc := range change.Members {
		if i := c.Slot(mc.Replica); i >= 0 {
			c.applied(i, mc, true, now)
		}
	}
	c.phase = PhaseServing
	c.fx.Serve()
}
