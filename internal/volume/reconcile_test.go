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

// TestCheckpointWaitsForReconciliation has two copies that differ in a chunk which can't be reconciled for a while, as their disks don't read it. What
// says that it has to be mustn't be given up by a checkpoint meanwhile: after the death of all engines nothing else knows.
func TestCheckpointWaitsForReconciliation(t *testing.T) {
	c := newCluster(t, 11, 2, 1)
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	n3.attach(repl.PrevDetached)
	n3.write(0, pattern(1, 8))
	n3.write(8<<20, pattern(1, 1))
	c.w.Cut(n3.n, n2.n)
	n3.submit(block.OpWrite, 0, pattern(2, 8), 0)
	c.w.RunFor(20 * time.Millisecond) // it is on n1, and not on n2
	n3.n.Crash()
	c.w.HealAll()
	for _, n := range []*node{n1, n2} {
		n.n.Disk().Fail(true, false, false)
	}
	n3.start(false)
	n3.attach(repl.PrevOwnDead)
	n3.write(8<<20, pattern(3, 1))
	c.w.RunFor(3 * time.Minute)
	if n3.vol.Status().Unreconciled == 0 {
		t.Fatal("chunks were reconciled that no disk reads")
	}
	for _, n := range []*node{n1, n2, n3} {
		n.n.Disk().Fail(false, false, false)
		n.n.Crash()
	}
	for _, n := range []*node{n1, n2, n3} {
		n.start(false)
	}
	n3.attach(repl.PrevOwnDead)
	c.until("reconciled", func() bool { return n3.vol.Status().Unreconciled == 0 })
	got := make([]byte, 8*block.Size)
	n1.n.Disk().Peek(n1.head(0), got, 0)
	c.same(0, 0, got)
}
