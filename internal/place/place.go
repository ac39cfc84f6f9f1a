// Package place decides where the replicas of a volume go, and says why. It is pure: a view of the cluster and
// a request give a decision, always the same one for the same input in whatever order, with a reason for each replica; a
// request that can't be met gives an error that says which rule failed on which node.
//
// The rules, in order: hard ones exclude pools (the node is alive, not cordoned, has the storage role, matches the
// selector and the topology, and a hard rule of the volume's group; the pool has the media and the room; a column never has two
// copies on a node, nor in a zone when zone spread is asked for). Among what is left, the node that is asked for comes first, copies
// of a column go to zones that have none, then to nodes as the group prefers, then to the media that the tier prefers, then the
// columns of a volume go to different pools, then the pool with the most free space is taken; names break ties.
package place

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"keelson.io/keelson/internal/spec"
)

// Node is a node as placement sees it.
type Node struct {
	spec.Node
	Alive bool
}

// Pool is a pool as placement sees it.
type Pool struct {
	spec.Pool
	// Provisioned is the sum of the sizes of the replicas that are in it, in bytes.
	Provisioned int64
	// Free is what the file system has free, in bytes; negative if it isn't known.
	Free int64
}

// Cluster is the view on which a decision is made.
type Cluster struct {
	Nodes []Node
	Pools []Pool
	// Overcommit is how many times a pool's capacity may be promised to volumes.
	Overcommit float64
	// Groups are the copies of the volumes that are in groups: see GroupsOf.
	Groups map[string][]Copy
}

// Request asks for replicas of a volume.
type Request struct {
	Volume spec.Volume // Size, Replicas, Columns, ZoneSpread, NodeSelector, Media; and the members that exist
	// Column, if ≥ 0, asks for one more replica of that column only. Otherwise all are placed anew.
	Column int
	// Exclude are nodes that must not be taken.
	Exclude []string
	// Replacing is a member of Column that is going to leave; "" is none. Its node may get the new one, in another pool.
	Replacing string
	// Pools, if not empty, are those of which one is to be taken.
	Pools []string
	// Near is a node that gets a copy if the hard rules let it; "" is none.
	Near string
	// Only, if not "", is the one node that may be taken.
	Only string
}

// Choice is where one replica goes.
type Choice struct {
	Column int
	Node   string
	Pool   string
	Reason string
}

// Rejection says why a node, or one of its pools, can't take a replica.
type Rejection struct {
	Node, Pool string // Pool is "" when the rule failed for the whole node
	Rule       string
}

// ImpossibleError is returned when the rules leave too few pools.
type ImpossibleError struct {
	Volume     string
	Column     int
	Want, Have int
	Nodes      int // with the storage role, whatever else speaks against them
	Rejected   []Rejection
}

// Error says what is missing, and for each node why.
func (e *ImpossibleError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "volume %s needs %d replicas but only %d can be placed", e.Volume, e.Want, e.Have)
	if e.Nodes > 0 && e.Nodes < e.Want {
		fmt.Fprintf(&b, " (a node takes one of them, and the cluster has %d with the storage role)", e.Nodes)
	}
	if len(e.Rejected) == 0 {
		b.WriteString(": the cluster has no pools; add one with 'keelson pool add'")
	}
	for i, r := range e.Rejected {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		where := "node " + r.Node
		if r.Pool != "" {
			where += " pool " + r.Pool
		}
		fmt.Fprintf(&b, "%s%s: %s", sep, where, r.Rule)
	}
	return b.String()
}

// state is what has been decided so far.
type state struct {
	c     Cluster
	req   Request
	size  int64 // of one replica
	nodes map[string]Node
	// added is what this decision puts into each pool.
	added map[string]int64
	used  map[string]int // pools and how many replicas of this volume they hold
	group map[string]int // nodes and how many copies of the others of its group they hold
}

// Place decides. The error is an *ImpossibleError, or nil.
func Place(c Cluster, req Request) ([]Choice, error) {
	s := newState(c, req)
	if req.Column >= 0 {
		return s.column(req.Column, 1)
	}
	var all []Choice
	for col := range req.Volume.Columns {
		choices, err := s.column(col, req.Volume.Replicas)
		if err != nil {
			return nil, err
		}
		all = append(all, choices...)
	}
	return all, nil
}

func newState(c Cluster, req Request) *state {
	s := &state{c: c, req: req, size: spec.ColumnSize(req.Volume.Planned(), req.Volume.Columns),
		nodes: map[string]Node{}, added: map[string]int64{}, used: map[string]int{}}
	s.c.Pools = slices.Clone(c.Pools)
	slices.SortFunc(s.c.Pools, func(a, b Pool) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
	})
	for _, n := range c.Nodes {
		s.nodes[n.Name] = n
	}
	s.group = s.neighbours()
	for _, col := range req.Volume.State.Columns {
		for _, m := range col.Members {
			s.used[m.Pool]++
		}
	}
	return s
}

// column places n replicas of one column.
func (s *state) column(col, n int) ([]Choice, error) {
	taken := map[string]bool{}
	zones := map[string]int{}
	have := 0
	if s.req.Column >= 0 && col < len(s.req.Volume.State.Columns) {
		for _, m := range s.req.Volume.State.Columns[col].Members {
			if m.Replica == s.req.Replacing {
				continue
			}
			taken[m.Node] = true
			if !m.Removing {
				zones[s.nodes[m.Node].Zone]++
			}
		}
	}
	var out []Choice
	for range n {
		fit, rejected := s.candidates(taken, zones)
		if len(fit) == 0 {
			return nil, &ImpossibleError{Volume: s.req.Volume.Name, Column: col, Want: n, Have: have, Nodes: s.storageNodes(), Rejected: rejected}
		}
		best := slices.MinFunc(fit, func(a, b Pool) int { return s.compare(a, b, zones) })
		out = append(out, Choice{Column: col, Node: best.Node, Pool: best.ID, Reason: s.reason(best, fit, zones)})
		have++
		taken[best.Node] = true
		zones[s.nodes[best.Node].Zone]++
		s.added[best.ID] += s.size
		s.used[best.ID]++
	}
	return out, nil
}

func (s *state) storageNodes() int {
	n := 0
	for _, node := range s.nodes {
		if slices.Contains(node.Roles, spec.RoleStorage) {
			n++
		}
	}
	return n
}

// free is how much room a pool has for data, in bytes. Where the file system wasn't asked, what was promised counts
// as used; as volumes are thin, that may be below zero.
func (s *state) free(p Pool) int64 {
	f := p.Free
	if f < 0 {
		f = p.Capacity - p.Provisioned
	}
	return f - p.Reserve - s.added[p.ID]
}

// compare orders pools by preference: near, a zone without a copy, what group and tier prefer, a pool without another column, free
// space, name.
func (s *state) compare(a, b Pool, zones map[string]int) int {
	far := func(p Pool) int {
		if s.req.Near != "" && p.Node == s.req.Near {
			return 0
		}
		return 1
	}
	return cmp.Or(
		cmp.Compare(far(a), far(b)),
		cmp.Compare(zones[s.nodes[a.Node].Zone], zones[s.nodes[b.Node].Zone]),
		s.compareGroup(a.Node, b.Node),
		s.compareTier(a, b),
		cmp.Compare(s.used[a.ID], s.used[b.ID]),
		cmp.Compare(s.free(b), s.free(a)),
		cmp.Compare(a.Node, b.Node),
		cmp.Compare(a.ID, b.ID),
	)
}

// candidates applies the hard rules.
func (s *state) candidates(taken map[string]bool, zones map[string]int) (fit []Pool, rejected []Rejection) {
	pools := map[string]int{}
	for _, p := range s.c.Pools {
		pools[p.Node]++
	}
	names := make([]string, 0, len(s.nodes))
	for name := range s.nodes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if s.req.Only != "" && name != s.req.Only {
			continue
		}
		rule := s.nodeRule(s.nodes[name], taken, zones)
		if rule == "" && pools[name] == 0 {
			rule = "has no pool"
		}
		if rule != "" {
			rejected = append(rejected, Rejection{Node: name, Rule: rule})
			continue
		}
		for _, p := range s.c.Pools {
			if p.Node != name {
				continue
			}
			if rule := s.poolRule(p); rule != "" {
				rejected = append(rejected, Rejection{Node: name, Pool: p.ID, Rule: rule})
				continue
			}
			fit = append(fit, p)
		}
	}
	return fit, rejected
}

func (s *state) nodeRule(n Node, taken map[string]bool, zones map[string]int) string {
	switch {
	case taken[n.Name]:
		return "has a copy already"
	case slices.Contains(s.req.Exclude, n.Name):
		return "is excluded"
	case !slices.Contains(n.Roles, spec.RoleStorage):
		return "hasn't the storage role"
	case !n.Alive:
		return "isn't alive"
	case n.Cordoned:
		return "is cordoned"
	case n.Unschedulable:
		return "is cordoned in Kubernetes"
	case n.Upkeep == spec.Drain:
		return "is being drained"
	case n.Upkeep != "":
		return "is being decommissioned"
	}
	return s.volumeRule(n, zones)
}

// volumeRule is what the volume itself asks of nodes. zones are those that have copies.
func (s *state) volumeRule(n Node, zones map[string]int) string {
	switch {
	case s.req.Volume.ZoneSpread && n.Zone == "":
		return "has no zone, and zone spread is asked for"
	case s.req.Volume.ZoneSpread && zones[n.Zone] > 0:
		return fmt.Sprintf("zone %s has a copy already, and zone spread is asked for", n.Zone)
	}
	keys := make([]string, 0, len(s.req.Volume.NodeSelector))
	for k := range s.req.Volume.NodeSelector {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		if want := s.req.Volume.NodeSelector[k]; n.Labels[k] != want {
			return fmt.Sprintf("label %s is %q, the node selector wants %q", k, n.Labels[k], want)
		}
	}
	if t := s.req.Volume.Topology; len(t) > 0 && !slices.ContainsFunc(t, n.Meets) {
		return "meets no term of the topology that is asked for"
	}
	return s.groupRule(n.Name)
}

func (s *state) poolRule(p Pool) string {
	if rule := s.upkeepRule(p); rule != "" {
		return rule
	}
	if rule := s.mediaRule(p); rule != "" {
		return rule
	}
	limit := int64(s.c.Overcommit * float64(p.Capacity-p.Reserve))
	if p.Provisioned+s.added[p.ID]+s.size > limit {
		return fmt.Sprintf("%s are promised to volumes already, and %s more would pass the overcommit limit of %s",
			spec.FormatSize(p.Provisioned+s.added[p.ID]), spec.FormatSize(s.size), spec.FormatSize(limit))
	}
	if p.Free >= 0 && s.free(p) <= 0 {
		return fmt.Sprintf("is full: %s are free, its reserve is %s", spec.FormatSize(p.Free), spec.FormatSize(p.Reserve))
	}
	return ""
}

func (s *state) mediaRule(p Pool) string {
	if m := s.req.Volume.Media; m != "" && p.Media != m {
		return fmt.Sprintf("media is %s, %s is asked for", p.Media, m)
	}
	return ""
}

// reason says in words why a pool was taken.
func (s *state) reason(p Pool, fit []Pool, zones map[string]int) string {
	var why []string
	if s.req.Near == p.Node {
		why = append(why, "the node where it will be used")
	}
	if zone := s.nodes[p.Node].Zone; zone != "" {
		if zones[zone] == 0 {
			why = append(why, "zone "+zone+" had no copy")
		} else {
			why = append(why, "every usable zone has a copy already")
		}
	}
	why = append(why, s.affinityReasons(p)...)
	rivals := 0
	for _, q := range fit {
		if q.ID != p.ID && zones[s.nodes[q.Node].Zone] == zones[s.nodes[p.Node].Zone] && s.used[q.ID] == s.used[p.ID] &&
			s.compareGroup(q.Node, p.Node) == 0 && s.compareTier(q, p) == 0 {
			rivals++
		}
	}
	if rivals == 0 {
		why = append(why, "the only candidate")
	} else {
		why = append(why, fmt.Sprintf("most free space (%s) of %d candidates", spec.FormatSize(s.free(p)), rivals+1))
	}
	return strings.Join(why, "; ")
}
