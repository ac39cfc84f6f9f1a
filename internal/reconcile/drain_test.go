package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/spec"
)

// pool changes the record of a pool, node that of a node, and settings those of the cluster.
func (c *cluster) pool(id string, change func(*spec.Pool)) {
	c.t.Helper()
	p, err := c.Pool(c.ctx, id)
	if err != nil {
		c.t.Fatal(err)
	}
	change(&p.Value)
	c.put(c.PutPool(c.ctx, p.Value, p.Rev))
}

func (c *cluster) node(name string, change func(*spec.Node)) {
	c.t.Helper()
	n, err := c.Node(c.ctx, name)
	if err != nil {
		c.t.Fatal(err)
	}
	change(&n.Value)
	c.put(c.PutNode(c.ctx, n.Value, n.Rev))
}

func (c *cluster) settings(change func(*spec.Settings)) {
	c.t.Helper()
	x, err := c.Cluster(c.ctx)
	if err != nil {
		c.t.Fatal(err)
	}
	change(&x.Value.Settings)
	c.put(c.PutCluster(c.ctx, x.Value, x.Rev))
}

func TestPoolDrain(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.pass(time.Second)
		c.pool("pool-n2", func(p *spec.Pool) { p.Draining = true })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale") // it is all right, and yet isn't to stay
		c.set("db", "n3", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 InSync") // the coordinator lets it go
		c.set("db", "n2", spec.Stale)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n3 InSync")
	})
}

// TestDrainWithoutPlace: a copy that has nowhere to go stays, and goes when there is a place.
func TestDrainWithoutPlace(t *testing.T) {
	inCluster(t, 2, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.pool("pool-n2", func(p *spec.Pool) { p.Draining = true })
		c.pass(time.Hour)
		c.expect("db", "n1 InSync", "n2 InSync")
		c.put(c.PutPool(c.ctx, spec.Pool{ID: "pool-n2b", Node: "n2", Media: spec.MediaSSD, Capacity: 1 << 40}, 0))
		c.pass(2 * time.Minute)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n2 Stale") // another pool of the same node will do
		c.update("db", func(v *spec.Volume) { v.State.Columns[0].Members[2].State = spec.InSync })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync")
		v, _ := c.VolumeByName(t.Context(), "db")
		if p := v.Value.State.Columns[0].Members[1].Pool; p != "pool-n2b" {
			t.Fatalf("the copy that stays is in %s", p)
		}
	})
}

func TestDrainCalledOff(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.node("n2", func(n *spec.Node) { n.Upkeep = spec.Decommission })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
		c.node("n2", func(n *spec.Node) { n.Upkeep = "" })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync")
	})
}

// TestMoveStays: what a person moves isn't called off by the end of an upkeep, and leaves although it is all right.
func TestMoveStays(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.update("db", func(v *spec.Volume) {
			v.State.Columns[0].Relocate(1, spec.EvictMove, spec.Member{Replica: spec.NewID(), Node: "n3", Pool: "pool-n3", State: spec.Stale})
		})
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale")
		if s := c.services(); len(s) == 0 || !strings.HasPrefix(s[0], "db@") {
			t.Fatalf("a detached volume isn't served while a copy moves: %v", s)
		}
		c.set("db", "n3", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n3 InSync")
	})
}

func TestDecommission(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		for i := range MaxRebuilds + 2 {
			c.create(fmt.Sprintf("db%d", i), "n1", "n1", "n2")
		}
		c.node("n2", func(n *spec.Node) { n.Upkeep = spec.Decommission })
		c.pass(time.Minute)
		moving := 0
		for range 20 {
			now := 0
			for i := range MaxRebuilds + 2 {
				v, _ := c.VolumeByName(t.Context(), fmt.Sprintf("db%d", i))
				if ms := v.Value.State.Columns[0].Members; len(ms) > 2 {
					now++
					c.update(v.Value.Name, func(v *spec.Volume) {
						v.State.Columns[0].Members[1].State, v.State.Columns[0].Members[2].State = spec.Stale, spec.InSync
					})
				}
			}
			moving = max(moving, now)
			c.pass(10 * time.Second)
		}
		if moving == 0 || moving > MaxRebuilds {
			t.Errorf("%d volumes had a copy moved at once", moving)
		}
		for i := range MaxRebuilds + 2 {
			v, _ := c.VolumeByName(t.Context(), fmt.Sprintf("db%d", i))
			for _, m := range v.Value.State.Columns[0].Members {
				if m.Node == "n2" {
					t.Errorf("%s is still there: %+v", v.Value.Name, v.Value.State)
				}
			}
		}
	})
}

func TestReplicaCount(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("db", "n2", "n1", "n2", "n3")
		c.update("db", func(v *spec.Volume) { v.Replicas = 1 })
		c.pass(time.Second)
		c.expect("db", "n1 InSync Removing", "n2 InSync", "n3 InSync Removing") // where it is used one stays
		c.update("db", func(v *spec.Volume) { v.Replicas = 2 })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync", "n3 InSync Removing") // none is built while one is there
		c.set("db", "n3", spec.Stale)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync")
		c.update("db", func(v *spec.Volume) { v.Replicas = 3 })
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync", "n3 Stale")
	})
}

// TestCountRaisedDuringMove: the copy that leaves doesn't count for what is wanted.
func TestCountRaisedDuringMove(t *testing.T) {
	inCluster(t, 4, func(t *testing.T, c *cluster) {
		c.create("db", "", "n1", "n2")
		c.update("db", func(v *spec.Volume) {
			v.State.Columns[0].Relocate(1, spec.EvictMove, spec.Member{Replica: spec.NewID(), Node: "n3", Pool: "pool-n3", State: spec.Stale})
			v.Replicas = 3
		})
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 Stale", "n4 Stale")
		c.set("db", "n3", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n2 InSync Removing", "n3 InSync", "n4 Stale")
		c.set("db", "n4", spec.InSync)
		c.pass(time.Second)
		c.expect("db", "n1 InSync", "n3 InSync", "n4 InSync")
	})
}

func TestResize(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		c.create("db", "n1", "n1", "n2")
		c.set("db", "n2", spec.Stale)
		c.update("db", func(v *spec.Volume) {
			if err := v.PlanGrowth(2 << 30); err != nil {
				t.Fatal(err)
			}
		})
		size := func() (now, to int64) {
			v, _ := c.VolumeByName(t.Context(), "db")
			return v.Value.Size, v.Value.Growth.To
		}
		c.pass(time.Minute)
		if now, to := size(); now != 1<<30 || to != 2<<30 {
			t.Fatalf("%d on its way to %d before any copy has grown", now, to)
		}
		c.update("db", func(v *spec.Volume) { v.State.Columns[0].Members[0].Size = 2 << 30 })
		c.pass(time.Second)
		if now, to := size(); now != 2<<30 || to != 0 { // the stale one isn't waited for
			t.Fatalf("%d on its way to %d after the copy in sync has grown", now, to)
		}
	})
}

func TestRebalance(t *testing.T) {
	inCluster(t, 3, func(t *testing.T, c *cluster) {
		for i := range 8 {
			c.create(fmt.Sprintf("db%d", i), "", "n1", "n2")
		}
		for _, p := range []string{"pool-n1", "pool-n2", "pool-n3"} {
			c.pool(p, func(p *spec.Pool) { p.Capacity = 16 << 30 })
		}
		moves := func() (n int) {
			for i := range 8 {
				v, _ := c.VolumeByName(t.Context(), fmt.Sprintf("db%d", i))
				if len(v.Value.State.Columns[0].Members) > 2 {
					n++
				}
			}
			return n
		}
		c.pass(time.Hour)
		if moves() != 0 {
			t.Fatal("copies move although nobody wants it")
		}
		c.settings(func(s *spec.Settings) { s.Rebalance, s.RebalanceMoves = 20, 2 })
		total := 0
		for range 40 {
			c.pass(time.Minute)
			if n := moves(); n > 2 {
				t.Fatalf("%d copies move at once", n)
			}
			for i := range 8 {
				v, _ := c.VolumeByName(t.Context(), fmt.Sprintf("db%d", i))
				if len(v.Value.State.Columns[0].Members) > 2 {
					total++
					c.update(v.Value.Name, func(v *spec.Volume) { v.State.Columns[0].Members[2].State = spec.InSync })
				}
			}
		}
		// 8, 8 and 0 of 16 GiB: within 20 % of each other after four moves, and then all is quiet.
		if total < 3 || total > 5 {
			t.Errorf("%d copies were moved", total)
		}
		shares := map[string]int{}
		for i := range 8 {
			v, _ := c.VolumeByName(t.Context(), fmt.Sprintf("db%d", i))
			for _, m := range v.Value.State.Columns[0].Members {
				shares[m.Pool]++
			}
		}
		for p, n := range shares {
			if n < 3 || n > 7 {
				t.Errorf("%s has %d copies: %v", p, n, shares)
			}
		}
	})
}
