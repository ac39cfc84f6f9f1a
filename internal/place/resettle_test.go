package place

import (
	"slices"
	"strings"
	"testing"

	"keelson.io/keelson/internal/spec"
)

// lying is a volume of one column with copies in the pools p1, ... of the nodes n1, ...
func lying(nodes ...string) spec.Volume {
	v := volume(len(nodes), 1)
	var col spec.Column
	for _, n := range nodes {
		col.Members = append(col.Members, spec.Member{Replica: "on-" + n, Node: n, Pool: "p" + n[1:], State: spec.InSync})
	}
	v.State.Columns = []spec.Column{col}
	return v
}

// resettled follows the moves to their end, and returns the nodes then.
func resettled(t *testing.T, c Cluster, v spec.Volume) (nodes []string, moves int) {
	t.Helper()
	for ; ; moves++ {
		m, ok, err := Resettle(c, v, 0)
		if err != nil {
			t.Fatal(err)
		}
		if !ok {
			break
		}
		if moves > 10 {
			t.Fatal("the copies don't come to rest")
		}
		x := &v.State.Columns[0].Members[m.Leaves]
		x.Node, x.Pool = m.Node, m.Pool
	}
	for _, m := range v.State.Columns[0].Members {
		nodes = append(nodes, m.Node)
	}
	slices.Sort(nodes)
	return nodes, moves
}

func TestResettle(t *testing.T) {
	nvme, hdd := spec.MediaNVMe, spec.MediaHDD
	on := func(nodes ...string) func(*Cluster, *spec.Volume) {
		return func(_ *Cluster, v *spec.Volume) { v.Topology, _ = spec.TopologyOf(nodes, nil) }
	}
	for name, tc := range map[string]struct {
		media []spec.Media
		from  []string
		ask   func(*Cluster, *spec.Volume)
		want  []string
		moves int
		fails string
	}{
		"nothing is asked for": {from: []string{"n1", "n2"}, ask: func(*Cluster, *spec.Volume) {}, want: []string{"n1", "n2"}},
		"a cordon moves none":  {from: []string{"n1", "n2"}, ask: func(c *Cluster, _ *spec.Volume) { c.Nodes[0].Cordoned = true }, want: []string{"n1", "n2"}},
		"one of two":           {from: []string{"n1", "n2"}, ask: on("n2", "n3"), want: []string{"n2", "n3"}, moves: 1},
		"all":                  {from: []string{"n1", "n2"}, ask: on("n3", "n4"), want: []string{"n3", "n4"}, moves: 2},
		"too few nodes":        {from: []string{"n1", "n2"}, ask: on("n3"), fails: "meets no term of the topology"},
		"no such node":         {from: []string{"n1"}, ask: on("n9"), fails: "meets no term of the topology"},
		"a label": {from: []string{"n1"}, ask: func(c *Cluster, v *spec.Volume) {
			v.NodeSelector, c.Nodes[2].Labels = map[string]string{"a": "b"}, map[string]string{"a": "b"}
		}, want: []string{"n3"}, moves: 1},
		"no such label": {from: []string{"n1"}, ask: func(_ *Cluster, v *spec.Volume) { v.NodeSelector = map[string]string{"a": "b"} }, fails: `label a is "", the node selector wants "b"`},
		"media":         {media: []spec.Media{hdd, hdd, nvme, nvme}, from: []string{"n1", "n3"}, ask: func(_ *Cluster, v *spec.Volume) { v.Media = nvme }, want: []string{"n3", "n4"}, moves: 1},
		"no such media": {from: []string{"n1"}, ask: func(_ *Cluster, v *spec.Volume) { v.Media = nvme }, fails: "media is ssd, nvme is asked for"},
		"no room":       {from: []string{"n1"}, ask: func(c *Cluster, v *spec.Volume) { on("n2")(c, v); c.Pools[1].Provisioned = 2000 * gib }, fails: "overcommit limit"},
		"zones":         {from: []string{"n1", "n2"}, ask: func(c *Cluster, v *spec.Volume) { c.Nodes[1].Zone, v.ZoneSpread = "z1", true }, want: []string{"n1", "n4"}, moves: 1},
		"zones, the other way": {from: []string{"n3", "n4"}, ask: func(c *Cluster, v *spec.Volume) {
			v.ZoneSpread = true
			c.Nodes[0].Zone, c.Nodes[1].Zone = "z4", "z3"
			on("n1", "n2")(c, v)
		}, want: []string{"n1", "n2"}, moves: 2},
		"a tier":                {media: []spec.Media{hdd, hdd, nvme, hdd}, from: []string{"n1", "n2"}, ask: func(_ *Cluster, v *spec.Volume) { v.Placement.Tier = spec.TierHigh }, want: []string{"n2", "n3"}, moves: 1},
		"a tier without a pool": {media: []spec.Media{hdd, hdd, hdd, hdd}, from: []string{"n1"}, ask: func(_ *Cluster, v *spec.Volume) { v.Placement.Tier = spec.TierHigh }, want: []string{"n1"}},
		"apart": {from: []string{"n1"}, ask: func(c *Cluster, v *spec.Volume) {
			member(c, "other", "n1", "n4", "n3")
			v.Placement = spec.Placement{Group: "g", GroupRule: spec.GroupApart}
		}, want: []string{"n2"}, moves: 1},
	} {
		t.Run(name, func(t *testing.T) {
			c, v := four(tc.media...), lying(tc.from...)
			tc.ask(&c, &v)
			copies, err := Settle(c, v)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Fatalf("%v, want %q", err, tc.fails)
				}
				return
			}
			if err != nil || copies != tc.moves {
				t.Fatalf("%d copies, %v; want %d", copies, err, tc.moves)
			}
			if nodes, moves := resettled(t, c, v); moves != tc.moves || !slices.Equal(nodes, tc.want) {
				t.Errorf("after %d moves on %v, want %v after %d", moves, nodes, tc.want, tc.moves)
			}
		})
	}
}
