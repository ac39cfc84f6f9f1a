package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// How often the leader looks at the members of the metadata: more often for some time after it has changed something, as the next step follows.
const (
	membersEvery = 5 * time.Second
	membersSoon  = time.Second
	membersAfter = 15 * time.Second
)

// keepMembers replaces members of the metadata that are gone for good, or about to go, while this node leads. What it decides is in
// the records of the nodes, and in the list of members itself: a step that is repeated changes nothing.
func (c *control) keepMembers(ctx context.Context) {
	if c.st.External {
		return
	}
	gone := map[string]time.Time{}
	said := ""
	var changed time.Time
	for {
		pause := membersEvery
		if time.Since(changed) < membersAfter {
			pause = membersSoon
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		did, err := c.keepMembersOnce(ctx, gone, time.Now())
		if ctx.Err() != nil {
			return
		}
		if did {
			changed = time.Now()
		}
		if text := fmt.Sprint(err); err != nil && text != said {
			said = text
			c.log.Warn("the members of the metadata can't be kept complete; trying again", "err", err)
		} else if err == nil {
			said = ""
		}
	}
}

func (c *control) keepMembersOnce(ctx context.Context, gone map[string]time.Time, now time.Time) (changed bool, err error) {
	list, err := members{c.store.Client()}.known(ctx)
	if err != nil {
		return false, err
	}
	nodes, err := c.store.Nodes(ctx)
	if err != nil {
		return false, err
	}
	alive, err := c.store.Alive(ctx)
	if err != nil {
		return false, err
	}
	cluster, err := c.store.Cluster(ctx)
	if err != nil {
		return false, err
	}
	m := membership{members: list, nodes: nodes, alive: alive, gone: gone, after: cluster.Value.Settings.RebuildAfter}
	m.count(now)
	step := m.decide(now)
	switch {
	case step.call != "":
		if err := c.setCalling(ctx, step.call, spec.Called); err != nil {
			return false, err
		}
		return true, c.tellMembers(ctx, "metadata-member-called", step.call, fmt.Sprintf("node %s is to hold the metadata in the place of %s", step.call, cmp.Or(step.instead, "one that is missing")))
	case step.remove != "":
		node := m.nodeOf(step.remove)
		if err := c.setCalling(ctx, node, spec.Resting); err != nil && !errors.Is(err, meta.ErrNotFound) {
			return false, err
		}
		if err := (members{c.store.Client()}).Remove(ctx, step.remove); err != nil {
			return false, err
		}
		return true, c.tellMembers(ctx, "metadata-member-replaced", node, fmt.Sprintf("node %s holds the metadata no longer: another one takes its place", cmp.Or(node, step.remove)))
	}
	return false, nil
}

func (c *control) setCalling(ctx context.Context, node string, what spec.Calling) error {
	for {
		n, err := c.store.Node(ctx, node)
		if err != nil || n.Value.Member == what {
			return err
		}
		n.Value.Member = what
		if _, err = c.store.PutNode(ctx, n.Value, n.Rev); !errors.Is(err, meta.ErrConflict) {
			return err
		}
	}
}

func (c *control) tellMembers(ctx context.Context, what, node, message string) error {
	c.log.Warn(message)
	return meta.AddEvent(ctx, c.store, spec.Event{Time: time.Now().UTC(), What: what, Warning: true, Node: node, Message: message})
}

// membership is what is decided on.
type membership struct {
	members []*pb.MetadataMember
	nodes   []meta.Versioned[spec.Node]
	alive   map[string]bool
	gone    map[string]time.Time // since when nodes are, as far as this leader has seen
	after   time.Duration        // from when on one is gone for good
}

// missing is the key in gone of a member that never was, or whose node was removed.
const missing = ""

// memberStep is the next thing to do: at most one of call and remove is set.
type memberStep struct {
	call, instead string // a node is to become a member
	remove        string // a member goes, because others are enough
}

// count notes since when nodes are gone. A learner that hasn't begun, and is of no node that is known, is gone since it was first seen.
func (m *membership) count(now time.Time) {
	maps.DeleteFunc(m.gone, func(name string, _ time.Time) bool { return strings.Contains(name, "://") && !m.isMember(name) })
	for _, x := range m.members {
		if _, known := m.gone[x.Name]; !known && m.nodeOf(x.Name) == "" {
			m.gone[x.Name] = now
		}
	}
	for _, n := range m.nodes {
		if m.alive[n.Value.Name] {
			delete(m.gone, n.Value.Name)
		} else if _, known := m.gone[n.Value.Name]; !known {
			m.gone[n.Value.Name] = now
		}
	}
}

// nodeOf is the node of a member; "" if it isn't known. A learner that hasn't begun has the URL for a name at which it is to listen.
func (m *membership) nodeOf(member string) string {
	if !strings.Contains(member, "://") {
		return member
	}
	for _, n := range m.nodes {
		host, _, err := net.SplitHostPort(n.Value.APIAddr)
		if err != nil {
			continue
		}
		for one := range strings.SplitSeq(member, ",") {
			if u, err := url.Parse(one); err == nil && u.Hostname() == host {
				return n.Value.Name
			}
		}
	}
	return ""
}

// leaves reports whether a member's node is gone for good (dead), or is to leave and may be there still.
func (m *membership) leaves(name string, now time.Time) (leaves, dead bool) {
	for _, n := range m.nodes {
		if n.Value.Name == name {
			since, gone := m.gone[name]
			dead = gone && now.Sub(since) >= m.after
			return dead || n.Value.Upkeep == spec.Decommission, dead
		}
	}
	return true, true // its node was removed
}

// decide keeps as many members as there were, but an odd number, and three where there was more than one. A new member is called, comes as
// a learner, and votes; then the one that it replaces goes. One that is dead goes as soon as the new one asks to be let in: etcd takes
// no member in while another can't be reached. One at a time.
func (m *membership) decide(now time.Time) (s memberStep) {
	var leaving, dead []string
	staying, zones := 0, map[string]int{}
	for _, x := range m.members {
		node := m.nodeOf(x.Name)
		out, gone := m.leaves(node, now)
		if node == "" {
			// It may have been let in before its node's record was seen.
			out = now.Sub(m.gone[x.Name]) >= m.after
		}
		switch {
		case x.Learner:
			if !out {
				return s // one is on its way
			}
			// It will never be a voting one. Its place has been empty for as long as its node was gone.
			m.gone[missing] = now.Add(-m.after)
			return memberStep{remove: x.Name}
		case out:
			leaving = append(leaving, x.Name)
			if gone {
				dead = append(dead, x.Name)
			}
		default:
			staying++
			zones[m.zone(x.Name)]++
		}
	}
	want := min(len(m.members)-(len(m.members)+1)%2, maxMembers)
	if len(m.members) > 1 {
		want = max(want, 3)
	}
	switch {
	case staying >= want && len(leaving) > 0:
		return memberStep{remove: leaving[0]}
	case staying >= want || staying == 0:
		delete(m.gone, missing)
		return s
	case len(leaving) == 0:
		// Nobody leaves, and yet there are too few: other nodes may be about to join, as when a cluster is new.
		if _, known := m.gone[missing]; !known {
			m.gone[missing] = now
		}
		if now.Sub(m.gone[missing]) < m.after {
			return s
		}
	}
	for _, n := range m.nodes {
		// Who is called and alive, or has the role and isn't let in yet, is on its way: nobody else is called meanwhile.
		has := slices.Contains(n.Value.Roles, spec.RoleMetadata)
		waits := n.Value.Member == spec.Called || has && n.Value.Member != spec.Resting
		if waits && !m.isMember(n.Value.Name) && m.alive[n.Value.Name] && !n.Value.Closed() {
			if len(dead) > 0 && has {
				s.remove = dead[0]
			}
			return s
		}
	}
	if s.call = m.candidate(zones); s.call != "" && len(leaving) > 0 {
		s.instead = leaving[0]
	}
	return s
}

// candidate is the node that becomes a member next; "" if there is none: of the zone with the fewest members, then the first by name.
func (m *membership) candidate(zones map[string]int) string {
	var list []spec.Node
	for _, n := range m.nodes {
		if m.alive[n.Value.Name] && !n.Value.Closed() && !m.isMember(n.Value.Name) {
			list = append(list, n.Value)
		}
	}
	if len(list) == 0 {
		return ""
	}
	return slices.MinFunc(list, func(a, b spec.Node) int {
		return cmp.Or(cmp.Compare(zones[a.Zone], zones[b.Zone]), strings.Compare(a.Name, b.Name))
	}).Name
}

func (m *membership) isMember(name string) bool {
	return slices.ContainsFunc(m.members, func(x *pb.MetadataMember) bool { return x.Name == name })
}

func (m *membership) zone(name string) string {
	for _, n := range m.nodes {
		if n.Value.Name == name {
			return n.Value.Zone
		}
	}
	return ""
}
