package place

import (
	"errors"
	"strings"
	"testing"

	"keelson.io/keelson/internal/spec"
)

func upkeepCluster() Cluster {
	c := Cluster{Overcommit: 2}
	for _, n := range []string{"n1", "n2"} {
		c.Nodes = append(c.Nodes, Node{Node: spec.Node{Name: n, Roles: []spec.Role{spec.RoleStorage}}, Alive: true})
	}
	for _, p := range []string{"n1a", "n1b", "n2a"} {
		c.Pools = append(c.Pools, Pool{Pool: spec.Pool{ID: p, Node: p[:2], Capacity: 10 << 30}, Free: -1})
	}
	return c
}

func held(pools ...string) spec.Volume {
	v := spec.Volume{Name: "db", Size: 1 << 30, Replicas: len(pools), Columns: 1, State: spec.State{Columns: make([]spec.Column, 1)}}
	for _, p := range pools {
		v.State.Columns[0].Members = append(v.State.Columns[0].Members, spec.Member{Replica: "r" + p, Node: p[:2], Pool: p, State: spec.InSync})
	}
	return v
}

func TestUpkeepRules(t *testing.T) {
	for what, x := range map[string]struct {
		change func(c *Cluster, r *Request)
		want   string // pool, or words of the refusal
	}{
		"another pool of the node":  {func(*Cluster, *Request) {}, "n1b"},
		"not the one that leaves":   {func(_ *Cluster, r *Request) { r.Pools = []string{"n1a"} }, "has the copy that is to leave"},
		"only where it is asked":    {func(_ *Cluster, r *Request) { r.Pools = []string{"n2a"} }, "has a copy already"},
		"a pool that is drained":    {func(c *Cluster, _ *Request) { c.Pools[1].Draining = true }, "is being drained"},
		"a node that is drained":    {func(c *Cluster, _ *Request) { c.Nodes[0].Upkeep = spec.Drain }, "is being drained"},
		"a node that leaves":        {func(c *Cluster, _ *Request) { c.Nodes[0].Upkeep = spec.Decommission }, "is being decommissioned"},
		"a node that has one of it": {func(_ *Cluster, r *Request) { r.Replacing = "" }, "has a copy already"},
	} {
		c := upkeepCluster()
		r := Request{Volume: held("n1a", "n2a"), Column: 0, Replacing: "rn1a"}
		x.change(&c, &r)
		got, err := Place(c, r)
		if len(got) == 1 && got[0].Pool == x.want || err != nil && strings.Contains(err.Error(), x.want) {
			continue
		}
		t.Errorf("%s: %+v, %v, want %s", what, got, err, x.want)
	}
}

func TestGrow(t *testing.T) {
	c := upkeepCluster()
	c.Pools[0].Provisioned, c.Pools[2].Provisioned = 1<<30, 15<<30
	v := held("n1a", "n2a")
	if err := Grow(c, v, 6<<30); err != nil {
		t.Errorf("what fits exactly: %v", err)
	}
	var full *NoRoomError
	err := Grow(c, v, 6<<30+4096)
	if !errors.As(err, &full) || full.Largest != 6<<30 || len(full.Full) != 1 || full.Full[0].Pool != "n2a" || !strings.Contains(err.Error(), "overcommit limit of 20Gi") {
		t.Errorf("%v: %+v", err, full)
	}
	// Two columns with a copy each in one pool: both grow there.
	v = held("n1a")
	v.Columns, v.State.Columns = 2, append(v.State.Columns, v.State.Columns[0])
	c.Pools[0].Provisioned = 10 << 30
	if err := Grow(c, v, 11<<30); err != nil {
		t.Errorf("what fits exactly: %v", err)
	}
	if err := Grow(c, v, 11<<30+2*spec.StripeUnit); !errors.As(err, &full) || full.Largest < 11<<30 || full.Largest > 11<<30+2*spec.StripeUnit {
		t.Errorf("%v: %+v", err, full)
	}
}
