package place

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"keelson.io/keelson/internal/spec"
)

// four nodes, each in a zone of its own with pools of its media.
func four(media ...spec.Media) Cluster {
	c := Cluster{Overcommit: 10}
	for i := range 4 {
		name := fmt.Sprintf("n%d", i+1)
		c.Nodes = append(c.Nodes, node(name, fmt.Sprintf("z%d", i+1)))
		p := pool(fmt.Sprintf("p%d", i+1), name, int64(40+i)*gib)
		if i < len(media) {
			p.Media = media[i]
		}
		c.Pools = append(c.Pools, p)
	}
	return c
}

// member adds a volume of group g with copies on the nodes.
func member(c *Cluster, id string, nodes ...string) {
	v := spec.Volume{ID: id, Placement: spec.Placement{Group: "g"}, State: spec.State{Columns: make([]spec.Column, 1)}}
	for _, n := range nodes {
		v.State.Columns[0].Members = append(v.State.Columns[0].Members, spec.Member{Node: n})
	}
	groups := GroupsOf(slices.Values([]spec.Volume{v}))
	groups["g"] = append(groups["g"], c.Groups["g"]...)
	c.Groups = groups
}

func TestAffinity(t *testing.T) {
	nvme, ssd, hdd := spec.MediaNVMe, spec.MediaSSD, spec.MediaHDD
	for _, tc := range []struct {
		name  string
		media []spec.Media
		p     spec.Placement
		group [][]string // nodes of the other volumes of group g
		reqs  func(*Cluster, *Request)
		want  []string // nodes
		why   string   // is in the first one's reason
		fails []string
	}{
		{name: "no tier: space", media: []spec.Media{hdd, nvme, ssd, ssd}, want: []string{"n4", "n3"}},
		{name: "high", media: []spec.Media{hdd, nvme, ssd, hdd}, p: spec.Placement{Tier: spec.TierHigh}, want: []string{"n2", "n3"}, why: "nvme is what io-priority high prefers"},
		{name: "medium falls back to the faster", media: []spec.Media{hdd, nvme, ssd, hdd}, p: spec.Placement{Tier: spec.TierMedium}, want: []string{"n3", "n2"}, why: "ssd is what io-priority medium prefers"},
		{name: "low", media: []spec.Media{hdd, nvme, ssd, hdd}, p: spec.Placement{Tier: spec.TierLow}, want: []string{"n4", "n1"}, why: "hdd is what io-priority low prefers"},
		{name: "high falls back", media: []spec.Media{hdd, hdd, hdd, hdd}, p: spec.Placement{Tier: spec.TierHigh}, want: []string{"n4", "n3"}, why: "hdd is the nearest to io-priority high"},
		{name: "zones before tiers", media: []spec.Media{nvme, nvme, hdd, hdd}, p: spec.Placement{Tier: spec.TierHigh},
			reqs: func(c *Cluster, _ *Request) { c.Nodes[1].Zone = "z1" }, want: []string{"n2", "n4"}},
		{name: "near before tiers", media: []spec.Media{hdd, nvme, nvme, nvme}, p: spec.Placement{Tier: spec.TierHigh},
			reqs: func(_ *Cluster, r *Request) { r.Near = "n1" }, want: []string{"n1", "n4"}},
		{name: "the best pool of a node", media: []spec.Media{hdd}, p: spec.Placement{Tier: spec.TierHigh},
			reqs: func(c *Cluster, r *Request) {
				r.Near, r.Volume.Replicas = "n1", 1
				c.Pools = append(c.Pools, Pool{Pool: spec.Pool{ID: "p9", Node: "n1", Media: nvme, Capacity: 100 * gib}, Free: gib})
			}, want: []string{"n1"}, why: "nvme"},

		{name: "apart", p: spec.Placement{Group: "g"}, group: [][]string{{"n4"}, {"n3"}}, want: []string{"n2", "n1"}, why: "apart from group g"},
		{name: "apart as far as it goes", p: spec.Placement{Group: "g"}, group: [][]string{{"n4", "n3"}, {"n3", "n2"}, {"n1", "n3"}}, want: []string{"n4", "n2"}, why: "the fewest (1)"},
		{name: "strictly apart", p: spec.Placement{Group: "g", GroupRule: spec.GroupApart}, group: [][]string{{"n4", "n3"}, {"n2"}},
			fails: []string{"needs 2 replicas but only 1", "node n4: has a copy of another volume of group g, which is to be apart"}},
		{name: "together", p: spec.Placement{Group: "g", GroupRule: spec.GroupPreferTogether}, group: [][]string{{"n1", "n2"}}, want: []string{"n2", "n1"}, why: "together with group g"},
		{name: "together as far as it goes", p: spec.Placement{Group: "g", GroupRule: spec.GroupPreferTogether}, group: [][]string{{"n1"}}, want: []string{"n1", "n4"}},
		{name: "strictly together", p: spec.Placement{Group: "g", GroupRule: spec.GroupTogether}, group: [][]string{{"n1"}},
			fails: []string{"needs 2 replicas but only 1", "node n4: has no copy of another volume of group g, which is to be together"}},
		{name: "the first of a group", p: spec.Placement{Group: "g", GroupRule: spec.GroupTogether}, want: []string{"n4", "n3"}},
		{name: "another group", p: spec.Placement{Group: "other", GroupRule: spec.GroupApart}, group: [][]string{{"n4"}}, want: []string{"n4", "n3"}},
		{name: "only", reqs: func(_ *Cluster, r *Request) { r.Only, r.Volume.Replicas = "n1", 1 }, want: []string{"n1"}},
	} {
		c := four(tc.media...)
		for i, nodes := range tc.group {
			member(&c, fmt.Sprint(i), nodes...)
		}
		req := Request{Volume: volume(2, 1), Column: -1}
		req.Volume.ID, req.Volume.Placement = "self", tc.p
		if tc.reqs != nil {
			tc.reqs(&c, &req)
		}
		got, err := Place(c, req)
		var nodes []string
		for _, g := range got {
			nodes = append(nodes, g.Node)
		}
		if !slices.Equal(nodes, tc.want) {
			t.Errorf("%s: on %v, want %v: %+v, %v", tc.name, nodes, tc.want, got, err)
		} else if len(got) > 0 && !strings.Contains(got[0].Reason, tc.why) {
			t.Errorf("%s: %s", tc.name, got[0].Reason)
		}
		for _, text := range tc.fails {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v doesn't say %q", tc.name, err, text)
			}
		}
	}
}

// TestOwnCopiesAreNoNeighbours: a volume isn't kept from its own nodes by its group, and copies on their way out don't count.
func TestOwnCopiesAreNoNeighbours(t *testing.T) {
	v := volume(1, 1)
	v.ID, v.Placement = "self", spec.Placement{Group: "g", GroupRule: spec.GroupApart}
	v.State.Columns = []spec.Column{{Members: []spec.Member{{Node: "n1"}}}}
	other := v
	other.ID, other.State = "other", spec.State{Columns: []spec.Column{{Members: []spec.Member{{Node: "n4", Removing: true}}}}}
	gone := other
	gone.ID, gone.Deleting, gone.State = "gone", true, spec.State{Columns: []spec.Column{{Members: []spec.Member{{Node: "n4"}}}}}
	c := four()
	c.Groups = GroupsOf(slices.Values([]spec.Volume{v, other, gone}))
	got, err := Place(c, Request{Volume: v, Column: -1})
	if err != nil || got[0].Node != "n4" {
		t.Errorf("%+v, %v", got, err)
	}
	if c.Groups = GroupsOf(slices.Values([]spec.Volume{v})); len(c.Groups["g"]) != 1 {
		t.Error(c.Groups)
	}
}

func TestFollow(t *testing.T) {
	on := func(nodes ...string) spec.Volume {
		v := volume(len(nodes), 1)
		v.State.Columns = make([]spec.Column, 1)
		for i, n := range nodes {
			v.State.Columns[0].Members = append(v.State.Columns[0].Members, spec.Member{Replica: fmt.Sprint(i), Node: n, Pool: "p" + n[1:]})
		}
		return v
	}
	for _, tc := range []struct {
		name   string
		v      spec.Volume
		change func(*Cluster, *spec.Volume)
		leaves int
		fails  string
	}{
		{"the fullest pool gives", on("n2", "n3"), nil, 0, ""},
		{"another one is fuller", on("n2", "n3"), func(c *Cluster, _ *spec.Volume) { c.Pools[2].Free = gib }, 1, ""},
		{"zone spread decides", on("n2", "n3"), func(c *Cluster, v *spec.Volume) { v.ZoneSpread, c.Nodes[0].Zone = true, "z3" }, 1, ""},
		{"zone spread forbids", on("n2", "n3"), func(c *Cluster, v *spec.Volume) { v.ZoneSpread, c.Nodes[0].Zone = true, "" }, 0, "has no zone"},
		{"a copy is missing anyway", on("n2"), func(_ *Cluster, v *spec.Volume) { v.Replicas = 2 }, -1, ""},
		{"cordoned", on("n2", "n3"), func(c *Cluster, _ *spec.Volume) { c.Nodes[0].Cordoned = true }, 0, "node n1: is cordoned"},
		{"in Kubernetes", on("n2", "n3"), func(c *Cluster, _ *spec.Volume) { c.Nodes[0].Unschedulable = true }, 0, "node n1: is cordoned in Kubernetes"},
		{"full", on("n2", "n3"), func(c *Cluster, _ *spec.Volume) { c.Pools[0].Free = 0 }, 0, "pool p1: is full"},
		{"no pool", on("n2", "n3"), func(c *Cluster, _ *spec.Volume) { c.Pools = c.Pools[1:] }, 0, "node n1: has no pool"},
		{"it is there", on("n1"), nil, 0, "has a copy already"},
	} {
		c := four()
		if tc.change != nil {
			tc.change(&c, &tc.v)
		}
		choice, leaves, err := Follow(c, tc.v, 0, "n1")
		if tc.fails != "" {
			var impossible *ImpossibleError
			if !errors.As(err, &impossible) || !strings.Contains(err.Error(), tc.fails) {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		if err != nil || leaves != tc.leaves || choice.Node != "n1" || choice.Pool != "p1" {
			t.Errorf("%s: %+v, %d, %v", tc.name, choice, leaves, err)
		}
		for _, m := range tc.v.State.Columns[0].Members {
			if m.Removing {
				t.Errorf("%s: the volume was changed", tc.name)
			}
		}
	}
}
