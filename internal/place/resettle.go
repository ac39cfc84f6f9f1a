package place

import (
	"cmp"
	"fmt"
	"slices"

	"keelson.io/keelson/internal/spec"
)

// Move is a copy that leaves for another place.
type Move struct {
	Choice
	Leaves int    // the member's place in its column
	Why    string // what speaks against where it is
}

// Resettle decides which copy of column col moves next, so that in the end all lie where the volume's own rules let them be: the hard
// ones, and then what its tier prefers, as far as there is room. Copies on nodes and pools that aren't known stay; what speaks only
// against new copies, such as a cordon or a full pool, moves none. No move undoes another. ok is false if none has to be made. The error is an
// *ImpossibleError: a copy has to leave, and there is no place for it.
func Resettle(c Cluster, v spec.Volume, col int) (m Move, ok bool, err error) {
	members := v.State.Columns[col].Members
	for i, why := range Unfit(c, v, col) {
		if why == "" {
			continue
		}
		choice, e := Place(c, Request{Volume: v, Column: col, Replacing: members[i].Replica})
		if e == nil {
			return Move{choice[0], i, why}, true, nil
		}
		err = cmp.Or(err, e)
	}
	if err != nil {
		return Move{}, false, err
	}
	media := map[string]spec.Media{}
	for _, p := range c.Pools {
		media[p.ID] = p.Media
	}
	t := v.Placement.Tier
	for i, x := range members {
		if x.Removing || t.Rank(media[x.Pool]) == 0 {
			continue
		}
		choice, err := Place(c, Request{Volume: v, Column: col, Replacing: x.Replica})
		if err == nil && t.Rank(media[choice[0].Pool]) < t.Rank(media[x.Pool]) {
			return Move{choice[0], i, fmt.Sprintf("media is %s, and io-priority %s prefers %s", media[x.Pool], t, media[choice[0].Pool])}, true, nil
		}
	}
	return Move{}, false, nil
}

// Unfit says of each member of column col which of the volume's own hard rules its place breaks; "" is none.
func Unfit(c Cluster, v spec.Volume, col int) []string {
	s := newState(c, Request{Volume: v, Column: col})
	zones := map[string]int{}
	out := make([]string, len(v.State.Columns[col].Members))
	for i, m := range v.State.Columns[col].Members {
		n, known := s.nodes[m.Node]
		p := slices.IndexFunc(c.Pools, func(p Pool) bool { return p.ID == m.Pool })
		if m.Removing || !known || p < 0 {
			continue
		}
		if out[i] = cmp.Or(s.volumeRule(n, zones), s.mediaRule(c.Pools[p])); out[i] == "" {
			zones[n.Zone]++
		}
	}
	return out
}

// Settle follows Resettle to its end, and makes up for copies that are missing: it reports how many copies have to be made, or why that
// is impossible. Nothing is changed.
func Settle(c Cluster, v spec.Volume) (copies int, err error) {
	c.Pools = slices.Clone(c.Pools)
	size := spec.ColumnSize(v.Planned(), v.Columns)
	v.State.Columns = slices.Clone(v.State.Columns)
	put := func(to Choice, members []spec.Member) []spec.Member {
		copies++
		for i := range c.Pools {
			if c.Pools[i].ID == to.Pool {
				c.Pools[i].Provisioned += size
			}
		}
		return append(members, spec.Member{Replica: fmt.Sprint("new-", copies), Node: to.Node, Pool: to.Pool, State: spec.InSync})
	}
	for col := range v.State.Columns {
		x := &v.State.Columns[col]
		x.Members = slices.Clone(x.Members)
		for x.Staying() < v.Replicas {
			choice, err := Place(c, Request{Volume: v, Column: col})
			if err != nil {
				return copies, err
			}
			x.Members = put(choice[0], x.Members)
		}
		for range spec.MaxReplicas * 4 { // of which none is needed twice
			m, ok, err := Resettle(c, v, col)
			if err != nil {
				return copies, err
			}
			if !ok {
				break
			}
			x.Members = put(m.Choice, slices.Delete(x.Members, m.Leaves, m.Leaves+1))
		}
	}
	return copies, nil
}
