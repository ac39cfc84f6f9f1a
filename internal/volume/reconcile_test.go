package volume_test

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// A chunk isn't reconciled without a member that the metadata still has as in sync: that one may be all that is left at the
// next attach, and what was read in between would be gone.
func TestReconcileWaitsForLeavingMember(t *testing.T) {
	c := newCluster(t, 11, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 1))
	n1.n.Crash()
	n1.start(false)
	n1.attach(repl.PrevOwnDead)
	c.down = true
	n2.n.Crash()
	_, ended := n1.submit(block.OpRead, 0, pattern(0, 1), 0)
	c.w.RunFor(10 * time.Second)
	if n := n1.vol.Status().Unreconciled; n != 1 || *ended {
		t.Fatalf("%d chunks wait for being reconciled, want 1, while a member can't be made stale; read answered: %v", n, *ended)
	}
	c.down = false
	c.until("read goes on", func() bool { return *ended })
	if c.rec.State.Columns[0].Members[1].State != spec.Stale {
		t.Fatalf("the lost member isn't stale: %+v", c.rec.State)
	}
	n2.start(false)
	c.until("in sync again", c.allInSync)
}
