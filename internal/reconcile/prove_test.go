package reconcile

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// unproven is a volume with copies r1 on n1 and r2 on n2, as a recovery left it: in that term, attached to that node.
func unproven(term uint64, node string, claims ...spec.Claim) spec.Volume {
	member := func(i int) spec.Member {
		return spec.Member{Replica: fmt.Sprintf("r%d", i), Node: fmt.Sprintf("n%d", i), Pool: fmt.Sprintf("p%d", i), State: spec.InSync, Run: "run"}
	}
	return spec.Volume{
		ID: "v", Name: "v", Replicas: 2, Columns: 1, Unproven: &spec.Unproven{Rev: 7, Claims: claims},
		State: spec.State{Term: term, Fenced: term, Node: node, Frontend: spec.FrontendFUSE,
			Columns: []spec.Column{{Members: []spec.Member{member(1), member(2)}}}},
	}
}

// has is the claim of a node: its copy, if fence isn't 0, and its attachment, if there is one.
func has(node string, fence, checkpoint uint64, attached ...uint64) spec.Claim {
	c := spec.Claim{Node: node}
	if fence > 0 {
		c.Copies = []spec.ClaimedCopy{{Replica: "r" + node[1:], Pool: "p" + node[1:], Fence: fence, Checkpoint: checkpoint, Run: "now"}}
	}
	if len(attached) > 0 {
		c.Term, c.Serving = attached[0], true
	}
	return c
}

// attaching is the claim of a node that had taken a term, and doesn't serve in it.
func attaching(c spec.Claim, term uint64) spec.Claim {
	c.Term, c.Serving = term, false
	return c
}

func states(v spec.Volume) string {
	var out []string
	for _, m := range v.State.Columns[0].Members {
		out = append(out, fmt.Sprintf("%s %s", m.Replica, m.State))
	}
	return strings.Join(out, ", ")
}

// unattached is a volume of which there are only copies, r2 and so on, from before the first attachment; made says which have a snapshot's data.
func unattached(made ...bool) spec.Volume {
	v := unproven(0, "")
	v.State.Columns[0].Members, v.Unproven.Rev = nil, 0
	for i, m := range made {
		id := fmt.Sprint(i + 2)
		v.Unproven.Claims = append(v.Unproven.Claims, spec.Claim{Node: "n" + id, Copies: []spec.ClaimedCopy{{Replica: "r" + id, Pool: "p" + id, Run: "now", Clone: m}}})
	}
	return v
}

func TestRecoveredRecords(t *testing.T) {
	for name, x := range map[string]struct {
		vol   spec.Volume
		heard string // the nodes that have said what they have; all others of n1 to n4 are awaited, but those in lost
		lost  string
		// want is "" if nothing may be decided, or the term, the holder and the members.
		want string
		warn bool
	}{
		"who serves it is right at once, if all in-sync copies say so": {
			vol:   unproven(5, "n1", has("n1", 5, 9, 5), has("n2", 5, 9)),
			heard: "n1 n2", want: "5 n1 fuse: r1 InSync, r2 InSync"},
		"one in-sync copy isn't heard of: it may have promised a later term": {
			vol: unproven(5, "n1", has("n1", 5, 9, 5)), heard: "n1"},
		"not even when its node is lost, while others aren't heard": {
			vol: unproven(5, "n1", has("n1", 5, 9, 5)), heard: "n1", lost: "n2 n3"},
		"its node is lost, and nobody else has anything": {
			vol: unproven(5, "n1", has("n1", 5, 9, 5)), heard: "n1 n3 n4", lost: "n2", want: "5 n1 fuse: r1 InSync, r2 InSync"},
		"another node got past it: the old coordinator must end": {
			vol:   unproven(5, "n1", has("n1", 5, 9, 5), attaching(has("n3", 6, 12), 6)),
			heard: "n1 n2 n3 n4", want: "6 n1 none: r1 Stale, r2 Stale, r3 InSync", warn: true},
		"detached, and nobody has promised a later term": {
			vol:   unproven(5, "", has("n1", 5, 9), has("n2", 5, 9)),
			heard: "n1 n2", want: "5  fuse: r1 InSync, r2 InSync"},
		"detached, but a copy has promised a later term: not before all are heard": {
			vol: unproven(5, "", has("n1", 5, 9), has("n2", 8, 12)), heard: "n1 n2 n3"},
		"then the copy that was in the later term counts, and the other doesn't": {
			vol:   unproven(5, "", has("n1", 5, 9), has("n2", 8, 12)),
			heard: "n1 n2 n3 n4", want: "8 n2 none: r1 Stale, r2 InSync", warn: true},
		"a copy that the record doesn't know has come farther": {
			vol:   unproven(5, "n1", has("n1", 5, 9), has("n2", 5, 9), has("n3", 7, 20)),
			heard: "n1 n2 n3 n4", want: "7 n1 none: r1 Stale, r2 Stale, r3 InSync", warn: true},
		"one that is behind becomes a member all the same, so that it isn't removed": {
			vol:   unproven(5, "n1", has("n1", 5, 9), has("n2", 5, 9), has("n3", 4, 3)),
			heard: "n1 n2 n3 n4", want: "5 n1 fuse: r1 InSync, r2 InSync, r3 Stale"},
		"the holder died in the recorded term": {
			vol:   unproven(5, "n4", has("n1", 5, 9), has("n2", 5, 9)),
			heard: "n1 n2 n3", lost: "n4", want: "5 n4 fuse: r1 InSync, r2 InSync"},
		"a copy left the in-sync set in the recorded term": {
			vol:   unproven(5, "n4", has("n1", 5, 9), has("n2", 5, 11)),
			heard: "n1 n2 n3", lost: "n4", want: "5 n4 fuse: r1 Stale, r2 InSync"},
		"only a stale copy is left: that is a person's choice": {
			vol: func() spec.Volume {
				v := unproven(5, "n1", has("n3", 5, 3))
				m := spec.Member{Replica: "r3", Node: "n3", Pool: "p3", State: spec.Stale}
				v.State.Columns[0].Members = append(v.State.Columns[0].Members, m)
				return v
			}(),
			heard: "n3 n4", lost: "n1 n2", want: "5 n1 fuse: r1 InSync, r2 InSync, r3 Stale"},
		"no record, but copies": {
			vol: func() spec.Volume {
				v := unproven(0, "", has("n2", 3, 9), has("n3", 3, 9), has("n4", 3, 8))
				v.State.Columns[0].Members, v.Unproven.Rev = nil, 0
				return v
			}(),
			heard: "n1 n2 n3 n4", want: "3 n2 none: r2 InSync, r3 InSync, r4 Stale", warn: true},
		"no record, but copies that nobody has attached": {
			vol: unattached(false, false), heard: "n1 n2 n3 n4", want: "0  fuse: r2 InSync, r3 InSync"},
		"no record, but a clone's copies, of which one was not made": {
			vol: unattached(false, true), heard: "n1 n2 n3 n4", want: "0  fuse: r2 Stale, r3 InSync"},
	} {
		t.Run(name, func(t *testing.T) {
			r := New(Config{Log: slog.New(slog.DiscardHandler)})
			r.view.Cluster.Value.Recovery = spec.Recovery{Number: 1, Heard: strings.Fields(x.heard), Lost: strings.Fields(x.lost)}
			for i := range 4 {
				n := fmt.Sprintf("n%d", i+1)
				r.view.Nodes[n] = spec.Node{Name: n, Roles: []spec.Role{spec.RoleStorage}}
			}
			r.view.Unproven["v"] = meta.Versioned[spec.Volume]{Value: x.vol, Rev: 9}
			now := time.Now()
			r.prove(now)
			p := r.prove(now.Add(proofSettle))
			if x.want == "" {
				if len(p.changes) > 0 {
					t.Fatalf("decided: %s", states(p.changes[0].new))
				}
				return
			}
			if len(p.changes) != 1 {
				t.Fatalf("%d changes", len(p.changes))
			}
			v := p.changes[0].new
			got := fmt.Sprintf("%d %s %s: %s", v.State.Term, v.State.Node, v.State.Frontend, states(v))
			if got != x.want || v.Unproven != nil || (p.changes[0].event != nil) != x.warn {
				t.Errorf("%s (event %v), want %s", got, p.changes[0].event, x.want)
			}
			if slices.ContainsFunc(x.vol.State.Columns[0].Members, func(m spec.Member) bool { return m.Replica == "r3" && m.State == spec.InSync }) {
				t.Error("the view's own record was changed")
			}
		})
	}
}

// A node that joined since isn't known at first: nothing is decided at once.
func TestProofWaitsForNodesToShowUp(t *testing.T) {
	r := New(Config{Log: slog.New(slog.DiscardHandler)})
	r.view.Cluster.Value.Recovery = spec.Recovery{Number: 1}
	r.view.Unproven["v"] = meta.Versioned[spec.Volume]{Value: unproven(5, "", has("n2", 6, 1)), Rev: 9}
	now := time.Now()
	if p := r.prove(now); len(p.changes) > 0 || p.due != now.Add(proofSettle) {
		t.Fatalf("%+v", p)
	}
}
