package reconcile

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

// TestChaos lets nodes come and go at random, with the test as the coordinators of all volumes. Whatever happens, no
// column loses its last copy, has two on a node, or grows; and when all nodes are back, every column gets its copies.
func TestChaos(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			inCluster(t, 5, func(t *testing.T, c *cluster) { (&chaos{c, rand.New(rand.NewPCG(seed, 0)), map[string]bool{}}).run(t) })
		})
	}
}

type chaos struct {
	*cluster
	rng *rand.Rand
	cut map[string]bool
}

func (c *chaos) node() string { return fmt.Sprintf("n%d", 1+c.rng.IntN(5)) }

func (c *chaos) run(t *testing.T) {
	for i := range 7 {
		a := 1 + c.rng.IntN(5)
		c.create(fmt.Sprintf("v%d", i), "", fmt.Sprintf("n%d", a), fmt.Sprintf("n%d", 1+a%5))
	}
	for range 50 {
		n := c.node()
		switch {
		case c.cut[n]:
			c.Heal(n)
			delete(c.cut, n)
		case len(c.cut) < 3:
			c.Cut(n)
			c.cut[n] = true
		}
		c.pass(time.Duration(c.rng.IntN(8*60)) * time.Second)
		c.check(t, false)
		c.engines(0.5)
		c.pass(time.Second)
		c.check(t, false)
	}
	for n := range c.cut {
		c.Heal(n)
	}
	clear(c.cut)
	for range 20 {
		c.engines(1)
		c.pass(time.Minute)
	}
	c.check(t, true)
}

// engines does what coordinators do: of each volume that has a copy in sync, members that are away become stale, and
// those that are there are brought into sync, some of the time.
func (c *chaos) engines(p float64) {
	list, err := c.Volumes(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, v := range list {
		c.update(v.Value.Name, func(v *spec.Volume) {
			v.State.Node, v.State.Frontend = "", ""
			if n := c.node(); c.rng.IntN(2) == 0 {
				v.State.Node, v.State.Frontend = n, spec.FrontendNBD
			}
			for i := range v.State.Columns {
				members := v.State.Columns[i].Members
				source := false
				for _, m := range members {
					source = source || m.State == spec.InSync && !c.cut[m.Node]
				}
				for j := range members {
					m := &members[j]
					switch {
					case source && c.cut[m.Node]:
						m.State = spec.Stale
					case source && c.rng.Float64() < p:
						m.State = spec.InSync
					}
				}
			}
		})
	}
}

func (c *chaos) check(t *testing.T, end bool) {
	t.Helper()
	list, err := c.Volumes(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	rebuilds := 0
	for _, v := range list {
		for i, col := range v.Value.State.Columns {
			nodes, copies := map[string]bool{}, 0
			for _, m := range col.Members {
				if nodes[m.Node] {
					t.Fatalf("volume %s column %d: two members on %s: %+v", v.Value.Name, i, m.Node, col.Members)
				}
				nodes[m.Node] = true
				if m.State == spec.InSync && !(end && m.Removing) {
					copies++
				}
			}
			if copies == 0 || len(col.Members) > 4 || end && (copies != 2 || len(col.Members) != 2) {
				t.Fatalf("volume %s column %d: %+v", v.Value.Name, i, col.Members)
			}
		}
		if rebuilding(&v.Value) {
			rebuilds++
		}
	}
	if rebuilds > MaxRebuilds {
		t.Fatalf("%d rebuilds at once", rebuilds)
	}
}
