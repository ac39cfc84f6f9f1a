package place

import (
	"cmp"
	"fmt"
	"iter"
	"slices"

	"keelson.io/keelson/internal/spec"
)

// Copy is a replica of a volume of a group.
type Copy struct {
	Volume string // id
	Node   string
}

// GroupsOf returns the copies of all groups, by the group's name. Those that are on their way out don't count.
func GroupsOf(volumes iter.Seq[spec.Volume]) map[string][]Copy {
	out := map[string][]Copy{}
	for v := range volumes {
		g := v.Placement.Group
		if g == "" || v.Deleting {
			continue
		}
		for _, c := range v.State.Columns {
			for _, m := range c.Members {
				if !m.Removing {
					out[g] = append(out[g], Copy{Volume: v.ID, Node: m.Node})
				}
			}
		}
	}
	return out
}

// neighbours counts, by node, the copies of the other volumes of the volume's group.
func (s *state) neighbours() map[string]int {
	out := map[string]int{}
	for _, c := range s.c.Groups[s.req.Volume.Placement.Group] {
		if c.Volume != s.req.Volume.ID {
			out[c.Node]++
		}
	}
	return out
}

// groupRule applies the hard rules of groups to a node.
func (s *state) groupRule(node string) string {
	p := &s.req.Volume.Placement
	switch {
	case p.Group == "":
	case p.GroupRule == spec.GroupApart && s.group[node] > 0:
		return fmt.Sprintf("has a copy of another volume of group %s, which is to be apart", p.Group)
	case p.GroupRule == spec.GroupTogether && len(s.group) > 0 && s.group[node] == 0:
		return fmt.Sprintf("has no copy of another volume of group %s, which is to be together", p.Group)
	}
	return ""
}

// together reports whether the volume's group should be together; otherwise apart.
func (s *state) together() bool {
	r := s.req.Volume.Placement.GroupRule
	return r == spec.GroupTogether || r == spec.GroupPreferTogether
}

// compareGroup orders nodes by what the volume's group prefers.
func (s *state) compareGroup(a, b string) int {
	if s.together() {
		return cmp.Compare(min(s.group[b], 1), min(s.group[a], 1))
	}
	return cmp.Compare(s.group[a], s.group[b])
}

// compareTier orders pools by the media that the volume's tier prefers.
func (s *state) compareTier(a, b Pool) int {
	t := s.req.Volume.Placement.Tier
	return cmp.Compare(t.Rank(a.Media), t.Rank(b.Media))
}

// affinityReasons says what group and tier had to do with the choice of a pool.
func (s *state) affinityReasons(p Pool) (why []string) {
	if g := s.req.Volume.Placement.Group; g != "" && len(s.group) > 0 {
		switch n := s.group[p.Node]; {
		case s.together() && n > 0:
			why = append(why, "together with group "+g)
		case s.together():
			why = append(why, "no usable node has a copy of group "+g)
		case n == 0:
			why = append(why, "apart from group "+g)
		default:
			why = append(why, fmt.Sprintf("every usable node has copies of group %s, this one the fewest (%d)", g, n))
		}
	}
	if t := s.req.Volume.Placement.Tier; t != "" {
		if t.Rank(p.Media) == 0 {
			why = append(why, fmt.Sprintf("%s is what io-priority %s prefers", p.Media, t))
		} else {
			why = append(why, fmt.Sprintf("%s is the nearest to io-priority %s", p.Media, t))
		}
	}
	return why
}

// HasCopy reports whether a column has a member on a node that isn't on its way out.
func HasCopy(c spec.Column, node string) bool {
	return slices.ContainsFunc(c.Members, func(m spec.Member) bool { return m.Node == node && !m.Removing })
}

// Follow decides how a copy of column col comes to a node that has none: where on the node it goes, and which member it replaces; -1
// if the column has fewer members than it should, so that none has to go. The hard rules hold for the column as it is then. Of several members that could go, the
// one in the fullest pool does. The error is an *ImpossibleError.
func Follow(c Cluster, v spec.Volume, col int, node string) (choice Choice, leaves int, err error) {
	members := v.State.Columns[col].Members
	if len(members) < v.Replicas {
		choices, err := Place(c, Request{Volume: v, Column: col, Only: node})
		if err != nil {
			return Choice{}, -1, err
		}
		return choices[0], -1, nil
	}
	var order []int
	for i, m := range members {
		if !m.Removing && m.Node != node {
			order = append(order, i)
		}
	}
	free := map[string]int64{}
	for _, p := range c.Pools {
		free[p.ID] = p.Free
		if p.Free < 0 {
			free[p.ID] = p.Capacity - p.Provisioned
		}
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(free[members[a].Pool], free[members[b].Pool]), cmp.Compare(members[a].Node, members[b].Node))
	})
	err = &ImpossibleError{Volume: v.Name, Column: col, Want: 1, Rejected: []Rejection{{Node: node, Rule: "has a copy already, or no copy could go for it"}}}
	for _, i := range order {
		next := v
		next.State.Columns = slices.Clone(v.State.Columns)
		next.State.Columns[col].Members = slices.Clone(members)
		next.State.Columns[col].Members[i].Removing = true
		var choices []Choice
		if choices, err = Place(c, Request{Volume: next, Column: col, Only: node}); err == nil {
			return choices[0], i, nil
		}
	}
	return Choice{}, -1, err
}
