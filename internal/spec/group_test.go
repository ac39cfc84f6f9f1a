package spec

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// groupRig plays the coordinators of a group's volumes by hand.
type groupRig struct {
	t    *testing.T
	g    Group
	vols map[string]*Volume
	gone bool
}

func newGroupRig(t *testing.T) *groupRig {
	r := &groupRig{t: t, vols: map[string]*Volume{}, g: Group{ID: "g", Name: "cut", Phase: GroupPreparing, Attempt: 1}}
	for _, id := range []string{"a", "b"} {
		v := &Volume{ID: id, Name: "vol-" + id, Size: 1 << 30}
		v.State.Term, v.State.Node = 7, "n1"
		r.vols[id] = v
		r.g.Volumes = append(r.g.Volumes, id)
	}
	return r
}

// step takes steps until there is nothing to do, and checks the phase.
func (r *groupRig) step(want GroupPhase, overdue bool) {
	r.t.Helper()
	for range 10 {
		s := r.g.Step(func(id string) *Volume { return r.vols[id] }, 64, time.Unix(1000, 0), overdue)
		for i := range s.Volumes {
			r.vols[s.Volumes[i].ID] = &s.Volumes[i]
		}
		if s.Group != nil {
			r.g = *s.Group
		}
		r.gone = r.gone || s.Drop
		if s.Group == nil && len(s.Volumes) == 0 || s.Drop {
			break
		}
	}
	if r.g.Phase != want {
		r.t.Fatalf("phase %s (%s), want %s", r.g.Phase, r.g.Reason, want)
	}
}

// says has a volume's coordinator say how far it is.
func (r *groupRig) says(id string, s PartState) {
	x := r.vols[id].InGroup("g")
	x.Part = GroupPart{Attempt: r.g.Attempt, Term: r.vols[id].State.Term, State: s, Reason: "late"}
}

func (r *groupRig) cut(id string) { r.vols[id].InGroup("g").State = SnapshotCut }

func (r *groupRig) states() (out string) {
	for _, id := range r.g.Volumes {
		if v := r.vols[id]; v != nil && v.InGroup("g") != nil {
			out += string(v.InGroup("g").State) + " "
		}
	}
	return strings.TrimSpace(out)
}

// to brings a group to a phase.
func (r *groupRig) to(p GroupPhase) *groupRig {
	r.step(GroupPreparing, false)
	for _, x := range []struct {
		part  PartState
		phase GroupPhase
	}{{PartPrepared, GroupFreezing}, {PartFrozen, GroupCutting}} {
		if r.g.Phase == p {
			return r
		}
		r.says("a", x.part)
		r.step(r.g.Phase, false)
		r.says("b", x.part)
		r.step(x.phase, false)
	}
	return r
}

func TestGroupIsTaken(t *testing.T) {
	r := newGroupRig(t).to(GroupCutting)
	r.cut("a")
	r.step(GroupCutting, false)
	if r.states() != "Cut Taking" {
		t.Errorf("%s", r.states())
	}
	r.cut("b")
	r.step(GroupDone, false)
	if r.states() != "Ready Ready" || !r.gone {
		t.Errorf("%s, gone %v", r.states(), r.gone)
	}
}

// What goes wrong leaves all of a group, or nothing.
func TestGroupFailures(t *testing.T) {
	for _, x := range []struct {
		name    string
		at      GroupPhase
		what    func(r *groupRig)
		overdue bool
		want    GroupPhase
		reason  string
	}{
		{"a volume misses its freeze", GroupFreezing, func(r *groupRig) { r.says("b", PartMissed) }, false, GroupPreparing, ""},
		{"a volume misses it for the last time", GroupFreezing, func(r *groupRig) { r.g.Attempt = groupAttempts; r.says("b", PartMissed) }, false, GroupFailed, "vol-b: late"},
		{"a volume goes to another node", GroupFreezing, func(r *groupRig) { r.vols["a"].State.Term++ }, false, GroupPreparing, ""},
		{"it does when others may be cut", GroupCutting, func(r *groupRig) { r.cut("b"); r.vols["a"].State.Term++ }, false, GroupFailed, "another coordinator"},
		{"a freeze ended before the cut", GroupCutting, func(r *groupRig) { r.cut("b"); r.says("a", PartMissed) }, false, GroupFailed, "vol-a: late"},
		{"nobody serves a volume", GroupPreparing, func(r *groupRig) { r.says("a", PartPrepared) }, true, GroupFailed, "vol-b isn't prepared"},
		{"a volume is deleted", GroupPreparing, func(r *groupRig) { delete(r.vols, "b") }, false, GroupFailed, "deleted"},
		{"a snapshot is deleted", GroupCutting, func(r *groupRig) { r.vols["b"].InGroup("g").State = SnapshotDeleting }, false, GroupFailed, "vol-b was deleted"},
		{"one is in use while the group goes", GroupDeleting, func(r *groupRig) { r.vols["a"].Clones = []CloneJob{{Snapshot: r.vols["a"].InGroup("g").ID}} }, false, GroupDeleting, ""},
	} {
		r := newGroupRig(t).to(x.at)
		if x.at == GroupDeleting {
			r.cut("a")
			r.cut("b")
			r.step(GroupDone, false)
			r.g.Phase, r.gone = GroupDeleting, false
		}
		x.what(r)
		r.step(x.want, x.overdue)
		if !strings.Contains(r.g.Reason, x.reason) {
			t.Errorf("%s: the reason is %q", x.name, r.g.Reason)
		}
		if x.want == GroupFailed && strings.TrimSpace(strings.ReplaceAll(r.states(), "Deleting", "")) != "" {
			t.Errorf("%s: there are snapshots left: %s", x.name, r.states())
		}
		if x.want == GroupDeleting && (r.states() != "Ready Deleting" || r.gone) {
			t.Errorf("%s: %s, gone %v", x.name, r.states(), r.gone)
		}
	}
	// One volume has as many snapshots as it may have: no record is changed.
	r := newGroupRig(t)
	for i := range 64 {
		if err := r.vols["b"].AddSnapshot(Snapshot{ID: NewID(), Name: fmt.Sprintf("s%d", i)}, 64); err != nil {
			t.Fatal(err)
		}
	}
	r.step(GroupFailed, false)
	if r.states() != "" || !strings.Contains(r.g.Reason, "vol-b") {
		t.Errorf("%s, %s", r.states(), r.g.Reason)
	}
}
