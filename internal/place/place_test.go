package place

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"keelson.io/keelson/internal/spec"
)

const gib = 1 << 30

func node(name, zone string) Node {
	return Node{Node: spec.Node{Name: name, Zone: zone, Roles: []spec.Role{spec.RoleStorage}}, Alive: true}
}

func pool(id, node string, free int64) Pool {
	return Pool{Pool: spec.Pool{ID: id, Node: node, Media: spec.MediaSSD, Capacity: 100 * gib, Reserve: gib}, Free: free}
}

func three() Cluster {
	return Cluster{
		Nodes:      []Node{node("n1", "z1"), node("n2", "z1"), node("n3", "z2")},
		Pools:      []Pool{pool("p1", "n1", 50*gib), pool("p2", "n2", 60*gib), pool("p3", "n3", 10*gib)},
		Overcommit: 10,
	}
}

func volume(replicas, columns int) spec.Volume {
	return spec.Volume{Name: "pg", Size: 4 * gib, Replicas: replicas, Columns: columns}
}

func TestPlace(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Cluster, *Request)
		want   string // node of each replica, and its reason
		fails  []string
	}{
		{"zones before space", nil,
			"n2 (zone z1 had no copy; most free space (59Gi) of 3 candidates), n3 (zone z2 had no copy; the only candidate)", nil},
		{"a third copy goes where a zone has one", func(_ *Cluster, r *Request) { r.Volume.Replicas = 3 },
			"n2 (zone z1 had no copy; most free space (59Gi) of 3 candidates), n3 (zone z2 had no copy; the only candidate), " +
				"n1 (every usable zone has a copy already; the only candidate)", nil},
		{"zone spread is a rule", func(_ *Cluster, r *Request) { r.Volume.Replicas, r.Volume.ZoneSpread = 3, true }, "",
			[]string{"needs 3 replicas but only 2", "node n1: zone z1 has a copy already"}},
		{"more replicas than nodes", func(_ *Cluster, r *Request) { r.Volume.Replicas = 4 }, "",
			[]string{"needs 4 replicas but only 3", "node n1: has a copy already"}},
		{"dead and cordoned", func(c *Cluster, _ *Request) { c.Nodes[1].Alive, c.Nodes[2].Cordoned = false, true }, "",
			[]string{"node n2: isn't alive", "node n3: is cordoned"}},
		{"selector", func(c *Cluster, r *Request) {
			c.Nodes[0].Labels = map[string]string{"disk": "fast"}
			r.Volume.NodeSelector = map[string]string{"disk": "fast"}
		}, "", []string{`node n2: label disk is "", the node selector wants "fast"`}},
		{"topology", func(c *Cluster, r *Request) {
			c.Nodes[0].Labels = map[string]string{"rack": "a"}
			r.Volume.Topology = []map[string]string{{"rack": "a"}, {spec.TopologyZone: "z2"}}
		}, "n1 (zone z1 had no copy; most free space (49Gi) of 2 candidates), n3 (zone z2 had no copy; the only candidate)", nil},
		{"topology of one node", func(_ *Cluster, r *Request) {
			r.Volume.Topology = []map[string]string{{spec.TopologyNode: "n2", spec.TopologyZone: "z1"}}
		}, "", []string{"needs 2 replicas but only 1", "node n1: meets no term of the topology"}},
		{"near", func(_ *Cluster, r *Request) { r.Near = "n1" },
			"n1 (the node where it will be used; zone z1 had no copy; most free space (49Gi) of 3 candidates), n3 (zone z2 had no copy; the only candidate)", nil},
		{"near, but it can't", func(c *Cluster, r *Request) { r.Near, c.Nodes[0].Cordoned = "n1", true },
			"n2 (zone z1 had no copy; most free space (59Gi) of 2 candidates), n3 (zone z2 had no copy; the only candidate)", nil},
		{"more than nodes", func(_ *Cluster, r *Request) { r.Volume.Replicas = 4 }, "",
			[]string{"a node takes one of them, and the cluster has 3 with the storage role", "node n1: has a copy already"}},
		{"media", func(_ *Cluster, r *Request) { r.Volume.Media = spec.MediaHDD }, "", []string{"pool p1: media is ssd, hdd is asked for"}},
		{"overcommit", func(c *Cluster, _ *Request) { c.Pools[2].Provisioned = 990 * gib }, "n2 (zone z1 had no copy; most free space (59Gi) of 2 candidates), " +
			"n1 (every usable zone has a copy already; the only candidate)", nil},
		{"full", func(c *Cluster, _ *Request) { c.Pools[2].Free, c.Pools[0].Free = 0, gib }, "",
			[]string{"pool p3: is full", "pool p1: is full"}},
		{"no pools", func(c *Cluster, _ *Request) { c.Pools = nil }, "", []string{"node n1: has no pool"}},
		{"columns", func(_ *Cluster, r *Request) { r.Volume.Replicas, r.Volume.Columns = 1, 3 },
			"n2 (zone z1 had no copy; most free space (59Gi) of 3 candidates), n1 (zone z1 had no copy; most free space (49Gi) of 2 candidates), " +
				"n3 (zone z2 had no copy; the only candidate)", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, r := three(), Request{Volume: volume(2, 1), Column: -1}
			if tc.change != nil {
				tc.change(&c, &r)
			}
			got, err := Place(c, r)
			var impossible *ImpossibleError
			if errors.As(err, &impossible) != (tc.fails != nil) {
				t.Fatalf("got %v, %v", got, err)
			}
			for _, part := range tc.fails {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q doesn't say %q", err, part)
				}
			}
			if s := describe(got); tc.fails == nil && s != tc.want {
				t.Errorf("got  %s\nwant %s", s, tc.want)
			}
		})
	}
}

func describe(choices []Choice) string {
	var out []string
	for _, c := range choices {
		out = append(out, fmt.Sprintf("%s (%s)", c.Node, c.Reason))
	}
	return strings.Join(out, ", ")
}

func TestReplacement(t *testing.T) {
	r := Request{Volume: volume(2, 1), Column: 0}
	r.Volume.State.Columns = []spec.Column{{Members: []spec.Member{{Node: "n2", Pool: "p2"}, {Node: "n3", Pool: "p3", Removing: true}}}}
	got, err := Place(three(), r)
	if err != nil || len(got) != 1 || got[0].Node != "n1" {
		t.Fatalf("got %v, %v", got, err)
	}
}

// TestProperties: whatever the cluster, no column has two copies on a node, no rule is broken, and the order in which
// nodes and pools are listed doesn't matter.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Cluster{Overcommit: rapid.Float64Range(0.1, 3).Draw(t, "overcommit")}
		for i := range rapid.IntRange(0, 6).Draw(t, "nodes") {
			n := node(fmt.Sprintf("n%d", i), fmt.Sprintf("z%d", rapid.IntRange(0, 2).Draw(t, "zone")))
			n.Alive = rapid.IntRange(0, 4).Draw(t, "alive") > 0
			c.Nodes = append(c.Nodes, n)
			for j := range rapid.IntRange(0, 2).Draw(t, "pools") {
				p := pool(fmt.Sprintf("p%d%d", i, j), n.Name, rapid.Int64Range(0, 50*gib).Draw(t, "free"))
				p.Provisioned = rapid.Int64Range(0, 200*gib).Draw(t, "provisioned")
				c.Pools = append(c.Pools, p)
			}
		}
		r := Request{Volume: volume(rapid.IntRange(1, 3).Draw(t, "replicas"), rapid.IntRange(1, 3).Draw(t, "columns")), Column: -1}
		r.Volume.ZoneSpread = rapid.Bool().Draw(t, "spread")
		got, err := Place(c, r)
		shuffled := c
		shuffled.Nodes, shuffled.Pools = append([]Node(nil), c.Nodes...), append([]Pool(nil), c.Pools...)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		rng.Shuffle(len(shuffled.Nodes), func(i, j int) {
			shuffled.Nodes[i], shuffled.Nodes[j] = shuffled.Nodes[j], shuffled.Nodes[i]
		})
		rng.Shuffle(len(shuffled.Pools), func(i, j int) {
			shuffled.Pools[i], shuffled.Pools[j] = shuffled.Pools[j], shuffled.Pools[i]
		})
		again, errAgain := Place(shuffled, r)
		if !reflect.DeepEqual(got, again) || fmt.Sprint(err) != fmt.Sprint(errAgain) {
			t.Fatalf("the order of the input matters: %v %v, %v %v", got, err, again, errAgain)
		}
		if err != nil {
			return
		}
		if len(got) != r.Volume.Replicas*r.Volume.Columns {
			t.Fatalf("%d replicas", len(got))
		}
		seen := map[string]bool{}
		for _, ch := range got {
			n := c.Nodes[int(ch.Node[1]-'0')]
			for _, key := range []string{fmt.Sprint(ch.Column, ch.Node), fmt.Sprint(ch.Column, "zone", n.Zone)} {
				if seen[key] && (r.Volume.ZoneSpread || !strings.Contains(key, "zone")) {
					t.Fatalf("column %d has two copies: %v", ch.Column, got)
				}
				seen[key] = true
			}
			if !n.Alive || ch.Reason == "" {
				t.Fatalf("%+v on %+v", ch, n)
			}
		}
	})
}
