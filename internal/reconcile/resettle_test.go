package reconcile

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

// moved lets the copy on a node come up to date, and the one that leaves go out of sync, as the coordinator does.
func (c *cluster) moved(name, from, to string) {
	c.set(name, to, spec.InSync)
	c.pass(time.Second)
	c.set(name, from, spec.Stale)
	c.pass(time.Second)
}

// One copy after the other moves to where the volume is asked for; then the wish is gone. Nothing moves while the volume is being
// made, or without the wish.
func TestResettle(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("copy", "n1", "n1", "n2")
		wish := func(v *spec.Volume) { v.Topology, _ = spec.TopologyOf([]string{"n3", "n4"}, nil) }
		c.update("copy", wish)
		c.pass(time.Minute)
		c.expect("copy", "n1 InSync", "n2 InSync")
		c.update("copy", func(v *spec.Volume) { v.Resettle, v.Source = true, &spec.Source{Volume: "gone", Pending: true} })
		c.pass(time.Minute)
		c.expect("copy", "n1 InSync", "n2 InSync")
		c.update("copy", func(v *spec.Volume) { v.Source.Pending = false })
		c.pass(time.Second)
		v, err := c.VolumeByName(c.ctx, "copy")
		if err != nil {
			t.Fatal(err)
		}
		members := v.Value.State.Columns[0].Members
		if len(members) != 3 || !members[0].Removing || members[0].Evict != spec.EvictMove {
			t.Fatalf("%+v", members)
		}
		first, second := members[2].Node, "n3"
		if first == "n3" {
			second = "n4"
		}
		c.expect("copy", "n1 InSync Removing", "n2 InSync", first+" Stale")
		c.moved("copy", "n1", first)
		c.expect("copy", "n2 InSync Removing", first+" InSync", second+" Stale")
		c.moved("copy", "n2", second)
		c.expect("copy", first+" InSync", second+" InSync")
		c.pass(time.Minute)
		if v, err = c.VolumeByName(c.ctx, "copy"); err != nil || v.Value.Resettle {
			t.Errorf("the wish is still there: %v", err)
		}
	})
}

// A copy that has no place to go to stays in use, and moves when there is one.
func TestResettleWaits(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("copy", "n1", "n1", "n2")
		c.node("n3", func(n *spec.Node) { n.Cordoned = true })
		c.update("copy", func(v *spec.Volume) {
			v.Resettle = true
			v.Topology, _ = spec.TopologyOf([]string{"n2", "n3"}, nil)
		})
		c.pass(time.Minute)
		c.expect("copy", "n1 InSync", "n2 InSync")
		c.node("n3", func(n *spec.Node) { n.Cordoned = false })
		c.pass(time.Second)
		c.expect("copy", "n1 InSync Removing", "n2 InSync", "n3 Stale")
	})
}
