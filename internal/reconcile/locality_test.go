package reconcile

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

func (c *cluster) locality(name string, l spec.Locality, frontend string) {
	c.update(name, func(v *spec.Volume) { v.Placement.Locality, v.State.Frontend = l, frontend })
}

func TestCopiesFollow(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("pg", "n3", "n1", "n2")
		c.pass(time.Hour)
		c.expect("pg", "n1 InSync", "n2 InSync") // not asked for
		c.locality("pg", spec.LocalityPrefer, spec.FrontendFUSE)
		c.pass(localityAfter / 2)
		c.expect("pg", "n1 InSync", "n2 InSync")
		c.pass(localityAfter)
		c.expect("pg", "n1 InSync Removing", "n2 InSync", "n3 Stale")

		// It moves on before the copy is there: that one is finished first.
		c.update("pg", func(v *spec.Volume) { v.State.Term, v.State.Node = 2, "n4" })
		c.pass(time.Hour)
		c.expect("pg", "n1 InSync Removing", "n2 InSync", "n3 Stale")
		c.set("pg", "n3", spec.InSync)
		c.pass(time.Second)
		c.set("pg", "n1", spec.Stale) // as its coordinator does
		c.pass(localityAfter / 2)
		c.expect("pg", "n2 InSync", "n3 InSync")
		c.pass(localityAfter)
		c.expect("pg", "n2 InSync Removing", "n3 InSync", "n4 Stale")
	})
}

func TestCopiesFollowAtOnce(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("one", "n2", "n1")
		c.locality("one", spec.LocalityRequire, spec.FrontendNBD)
		c.pass(time.Second)
		c.expect("one", "n1 InSync Removing", "n2 Stale")

		c.create("rebuilding", "n2", "n1")
		c.locality("rebuilding", spec.LocalityRequire, spec.FrontendNone) // nobody uses it there
		c.create("here", "n1", "n1", "n2")
		c.locality("here", spec.LocalityRequire, spec.FrontendNBD)
		c.create("elsewhere", "n3", "n1", "n2")
		c.update("elsewhere", func(v *spec.Volume) {
			v.Placement.Locality, v.Topology = spec.LocalityRequire, []map[string]string{{spec.TopologyNode: "n1"}, {spec.TopologyNode: "n2"}}
		})
		c.pass(time.Hour)
		c.expect("rebuilding", "n1 InSync")
		c.expect("here", "n1 InSync", "n2 InSync")
		c.expect("elsewhere", "n1 InSync", "n2 InSync") // a hard rule forbids it
		c.update("elsewhere", func(v *spec.Volume) { v.Topology = nil })
		c.pass(2 * retryMax)
		c.expect("elsewhere", "n1 InSync Removing", "n2 InSync", "n3 Stale")
	})
}

// TestFollowingIsBounded: copies that follow count as rebuilds.
func TestFollowingIsBounded(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		names := []string{"a", "b", "c", "d", "e", "f"}
		for _, name := range names {
			c.create(name, "n2", "n1")
			c.locality(name, spec.LocalityRequire, spec.FrontendNBD)
		}
		c.pass(time.Minute)
		moving := 0
		for _, name := range names {
			v, err := c.VolumeByName(c.ctx, name)
			if err != nil {
				t.Fatal(err)
			}
			moving += len(v.Value.State.Columns[0].Members) - 1
		}
		if moving != MaxRebuilds {
			t.Errorf("%d move at once", moving)
		}
	})
}
