package volume_test

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
)

// TestReadsWaitForResentChanges: no read is answered before every change that a dead engine left unanswered was executed again; a
// read elsewhere would be answered at once.
func TestReadsWaitForResentChanges(t *testing.T) {
	for _, end := range []string{"answered", "lost"} {
		t.Run(end, func(t *testing.T) {
			c := newCluster(t, 9, 2, 2)
			n1, n2 := c.nodes["n1"], c.nodes["n2"]
			n1.attach(repl.PrevDetached)
			n1.write(0, pattern(1, 2))

			c.w.Cut(n2.n, n1.n) // so that a write isn't answered
			var order []block.Op
			submit := func(op block.Op, off int64, resent bool) *block.Request {
				r := &block.Request{Op: op, Off: off, Len: block.Size, Resent: resent, Data: n1.loop.Buffers().Get(block.Size)}
				r.Done = func(*block.Request) { order = append(order, op) }
				n1.vol.Submit(r)
				return r
			}
			submit(block.OpWrite, 0, true)
			read := submit(block.OpRead, 8<<20, false)
			c.w.RunFor(200 * time.Millisecond)
			if len(order) != 0 {
				t.Fatalf("answered: %v", order)
			}
			if end == "lost" {
				n1.vol.Stop()
				c.until("both have ended", func() bool { return len(order) == 2 })
				if read.Err == nil {
					t.Error("a read of a lost volume succeeded")
				}
				return
			}
			c.w.Heal(n2.n, n1.n)
			c.until("both are answered", func() bool { return len(order) == 2 })
			if order[0] != block.OpWrite || read.Err != nil {
				t.Errorf("answered: %v, %v", order, read.Err)
			}
			submit(block.OpRead, 8<<20, true)
			c.until("a read is answered when nothing is left", func() bool { return len(order) == 3 })
		})
	}
}
