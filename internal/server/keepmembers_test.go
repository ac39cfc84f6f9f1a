package server

import (
	"strings"
	"testing"
	"time"

	pb "keelson.io/keelson/internal/api/keelsonv1"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Nodes are "name zone flags": m has the role metadata, c and r are called and resting, a is away since now, A for good, d is being
// decommissioned, o is cordoned. Members are names, learners with a star.
func TestMembersAreReplaced(t *testing.T) {
	for name, x := range map[string]struct{ nodes, members, want string }{
		"all is well":                                        {"n1 z1 m, n2 z2 m, n3 z3 m, n4 z1", "n1 n2 n3", ""},
		"away, but not for long":                             {"n1 z1 m, n2 z2 m, n3 z3 ma, n4 z1", "n1 n2 n3", ""},
		"away for good":                                      {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1", "n1 n2 n3", "call n4 instead of n3"},
		"the zone without a member first":                    {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1, n5 z2, n6 z3", "n1 n2 n3", "call n6 instead of n3"},
		"nobody to call":                                     {"n1 z1 m, n2 z2 m, n3 z3 mA", "n1 n2 n3", ""},
		"not one that is away, leaves or is closed":          {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 a, n5 z1 d, n6 z1 o", "n1 n2 n3", ""},
		"one is called already":                              {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 c, n5 z1", "n1 n2 n3", ""},
		"the called one has died":                            {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 cA, n5 z1", "n1 n2 n3", "call n5 instead of n3"},
		"it asks to be let in: the dead one makes room":      {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 mc, n5 z1", "n1 n2 n3", "remove n3"},
		"no room is made by one that is alive":               {"n1 z1 m, n2 z2 m, n3 z3 md, n4 z1 mc, n5 z1", "n1 n2 n3", ""},
		"too few, but not for long":                          {"n1 z1 m, n2 z2 m, n4 z1", "n1 n2", "soon call n4"},
		"it comes":                                           {"n1 z1 m, n2 z2 m, n3 z3 mrA, n4 z1 mc, n5 z1", "n1 n2", ""},
		"it learns":                                          {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 c, n5 z1", "n1 n2 n3 n4*", ""},
		"it hasn't begun to":                                 {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 c", "n1 n2 n3 https://n4:9503*", ""},
		"it died before it began to":                         {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 mcA, n5 z1", "n1 n2 https://n4:9503*", "remove https://n4:9503"},
		"it is away before it began to, but not for long":    {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 mca, n5 z1", "n1 n2 https://n4:9503*", ""},
		"its place is empty then: another one is called":     {"n1 z1 m, n2 z2 m, n4 z1 mrA, n5 z1", "n1 n2", "call n5"},
		"it hasn't begun, and its node was removed":          {"n1 z1 m, n2 z2 m, n5 z1", "n1 n2 https://n4:9503*", "remove https://n4:9503"},
		"it hasn't begun, and its node isn't seen yet":       {"n1 z1 m, n2 z2 m, n5 z1", "n1 n2 https://n9:9503*", ""},
		"it died while it learnt":                            {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 cA", "n1 n2 n3 n4*", "remove n4"},
		"it votes: the other one goes":                       {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 mc", "n1 n2 n3 n4", "remove n3"},
		"done":                                               {"n1 z1 m, n2 z2 m, n3 z3 mrA, n4 z1 mc", "n1 n2 n4", ""},
		"the old one is back, and rests":                     {"n1 z1 m, n2 z2 m, n3 z3 mr, n4 z1 mc", "n1 n2 n4", ""},
		"and is called when another goes":                    {"n1 z1 m, n2 z2 mA, n3 z3 mr, n4 z1 mc", "n1 n2 n4", "call n3 instead of n2"},
		"its node was removed":                               {"n1 z1 m, n2 z2 m, n4 z1", "n1 n2", "call n4"},
		"a member whose node was removed":                    {"n1 z1 m, n2 z2 m, n4 z1", "n1 n2 n3", "call n4 instead of n3"},
		"a member's node is to be decommissioned":            {"n1 z1 m, n2 z2 m, n3 z3 md, n4 z1", "n1 n2 n3", "call n4 instead of n3"},
		"two at once: one after another":                     {"n1 z1 m, n2 z2 m, n3 z3 m, n4 z1 mA, n5 z1 mA, n6 z1, n7 z2", "n1 n2 n3 n4 n5", "call n6 instead of n4"},
		"four, one of them gone: three are enough":           {"n1 z1 m, n2 z2 m, n3 z3 m, n4 z1 mA, n5 z1", "n1 n2 n3 n4", "remove n4"},
		"one member alone stays alone":                       {"n1 z1 m, n2 z2", "n1", ""},
		"a node with the role takes the place of a dead one": {"n1 z1 m, n2 z2 m, n3 z3 mA, n4 z1 m", "n1 n2 n3", "remove n3"},
	} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			m := membership{alive: map[string]bool{}, gone: map[string]time.Time{missing: now.Add(-time.Minute), "https://n4:9503": now.Add(-time.Minute)}, after: time.Minute}
			if strings.HasPrefix(x.want, "soon ") {
				m.gone, x.want = map[string]time.Time{}, ""
			}
			for _, text := range strings.Split(x.nodes, ", ") {
				f := append(strings.Fields(text), "")
				n := spec.Node{Name: f[0], Zone: f[1], APIAddr: f[0] + ":9500", Roles: []spec.Role{spec.RoleStorage}}
				m.alive[n.Name] = true
				for _, flag := range f[2] {
					switch flag {
					case 'm':
						n.Roles = append(n.Roles, spec.RoleMetadata)
					case 'c':
						n.Member = spec.Called
					case 'r':
						n.Member = spec.Resting
					case 'a', 'A':
						m.alive[n.Name] = false
						if flag == 'A' {
							m.gone[n.Name] = now.Add(-time.Minute)
						}
					case 'd':
						n.Upkeep = spec.Decommission
					case 'o':
						n.Cordoned = true
					}
				}
				m.nodes = append(m.nodes, meta.Versioned[spec.Node]{Value: n})
			}
			for _, name := range strings.Fields(x.members) {
				m.members = append(m.members, &pb.MetadataMember{Name: strings.TrimSuffix(name, "*"), Learner: strings.HasSuffix(name, "*")})
			}
			m.count(now)
			got := ""
			switch s := m.decide(now); {
			case s.call != "" && s.instead != "":
				got = "call " + s.call + " instead of " + s.instead
			case s.call != "":
				got = "call " + s.call
			case s.remove != "":
				got = "remove " + s.remove
			}
			if got != x.want {
				t.Errorf("%q, want %q", got, x.want)
			}
		})
	}
}
