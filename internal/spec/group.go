package spec

import (
	"fmt"
	"slices"
	"time"
)

// Group is a snapshot of several volumes at one moment, from when it is asked for until all of its snapshots can be used, or are on
// their way out. After that it is nothing but what its snapshots share: their group and their name.
//
//	Preparing: each volume's record asks for its snapshot; its coordinator has the members make it, empty, and says Prepared
//	-> Freezing: each coordinator begins no change, and says Frozen when those under way have ended
//	-> Cutting: each coordinator that is still frozen cuts, lets changes go on, and says Cut
//	-> Done: each snapshot becomes Ready -> the group leaves the list
//
// Each arrow is one transaction of the leader. A coordinator thaws by itself when it isn't told to cut in time, and refuses to cut then:
// so at the moment when the last one was frozen all were, and what any of them cuts is what its volume held at that moment.
type Group struct {
	ID      string     `json:"id"`      // 16 hex digits
	Name    string     `json:"name"`    // of the group, and of each of its snapshots
	Volumes []string   `json:"volumes"` // ids
	Asked   time.Time  `json:"asked"`
	Phase   GroupPhase `json:"phase"`
	// Attempt counts how often the volumes were to be frozen, from 1. With the id it is the token of a freeze.
	Attempt int       `json:"attempt"`
	Taken   time.Time `json:"taken,omitzero"`
	Reason  string    `json:"reason,omitempty"` // why it failed
}

// GroupPhase is how far a group is.
type GroupPhase string

// The phases of a group.
const (
	GroupPreparing GroupPhase = "Preparing"
	GroupFreezing  GroupPhase = "Freezing"
	GroupCutting   GroupPhase = "Cutting"
	GroupDone      GroupPhase = "Done"
	GroupFailing   GroupPhase = "Failing"  // what there is of it is being deleted
	GroupFailed    GroupPhase = "Failed"   // kept for a while for who asked for it
	GroupDeleting  GroupPhase = "Deleting" // it was there, and goes
)

// GroupPart is what a volume's coordinator says of its part in a group.
type GroupPart struct {
	Attempt int       `json:"attempt"`
	Term    uint64    `json:"term"` // of the coordinator
	State   PartState `json:"state"`
	Reason  string    `json:"reason,omitempty"` // of Missed
}

// PartState is how far a part is.
type PartState string

// The states of a part.
const (
	PartPrepared PartState = "Prepared"
	PartFrozen   PartState = "Frozen"
	PartMissed   PartState = "Missed" // it won't be cut in this attempt
)

// Limits of groups.
const (
	MaxGroupVolumes = 64
	MaxGroups       = 16 // under way at once
	groupAttempts   = 3
)

// Grouped reports whether a snapshot is one of a group that isn't complete.
func (s *Snapshot) Grouped() bool {
	return s.Group != "" && (s.State == SnapshotTaking || s.State == SnapshotCut)
}

// InGroup returns the volume's snapshot of a group.
func (v *Volume) InGroup(group string) *Snapshot {
	for i := range v.Snapshots {
		if v.Snapshots[i].Group == group {
			return &v.Snapshots[i]
		}
	}
	return nil
}

// CheckGroup checks what a person may ask for: a name, and the names of volumes. The error is an *InvalidError.
func CheckGroup(name string, volumes []string) error {
	if err := CheckName("group name", name); err != nil {
		return err
	}
	if n := len(volumes); n < 1 || n > MaxGroupVolumes {
		return &InvalidError{"volumes of a group", fmt.Sprint(n), fmt.Sprintf("1 to %d volumes", MaxGroupVolumes)}
	}
	for i, v := range volumes {
		if slices.Contains(volumes[:i], v) {
			return &InvalidError{"volumes of a group", v, "named once each"}
		}
	}
	return nil
}

// Under reports whether the coordinators of the group's volumes are concerned with it.
func (g *Group) Under() bool {
	return g.Phase == GroupPreparing || g.Phase == GroupFreezing || g.Phase == GroupCutting
}

// GroupStep is what is to be done next for a group: the records that change, or else the group's own.
type GroupStep struct {
	Volumes []Volume
	Group   *Group // as it becomes
	Drop    bool   // it leaves the list
	Waits   string // what it waits for, if nothing is to be done
}

// Step decides what is next. volume returns a record, nil if there is none; limit is how many snapshots a volume may have; overdue is
// set when nobody wants to wait any longer.
func (g Group) Step(volume func(id string) *Volume, limit int, now time.Time, overdue bool) GroupStep {
	var s GroupStep
	switch g.Phase {
	case GroupPreparing, GroupFreezing, GroupCutting:
		return g.onward(volume, limit, now, overdue)
	case GroupFailed:
		s.Drop = overdue
		return s
	}
	left := 0
	for _, id := range g.Volumes {
		v := volume(id)
		if v == nil {
			continue
		}
		x := v.InGroup(g.ID)
		if x == nil {
			continue
		}
		to := SnapshotDeleting
		if g.Phase == GroupDone {
			to = SnapshotReady
		}
		switch {
		case x.State == to || g.Phase == GroupDone && x.State != SnapshotCut:
		case to == SnapshotDeleting && v.SnapshotInUse(x.ID) != "":
			left++
			s.Waits = "volume " + v.Name + ": " + v.SnapshotInUse(x.ID)
		default:
			s.Volumes = append(s.Volumes, v.withPart(g.ID, func(x *Snapshot) { x.State, x.Part = to, GroupPart{} }))
		}
	}
	switch {
	case len(s.Volumes) > 0 || left > 0:
	case g.Phase == GroupFailing:
		g.Phase = GroupFailed
		s.Group = &g
	default:
		s.Drop = true
	}
	return s
}

// withPart returns the volume with its snapshot of a group changed.
func (v Volume) withPart(group string, change func(*Snapshot)) Volume {
	v.Snapshots = slices.Clone(v.Snapshots)
	change(v.InGroup(group))
	return v
}

// onward is Step while the snapshots are being taken.
func (g Group) onward(volume func(id string) *Volume, limit int, now time.Time, overdue bool) GroupStep {
	var s GroupStep
	want := map[GroupPhase]PartState{GroupPreparing: PartPrepared, GroupFreezing: PartFrozen}[g.Phase]
	missed := ""
	for _, id := range g.Volumes {
		v := volume(id)
		if v == nil || v.Deleting {
			return g.fail("one of its volumes was deleted")
		}
		x := v.InGroup(g.ID)
		if x == nil && g.Phase == GroupPreparing {
			next := *v
			next.Snapshots = slices.Clone(v.Snapshots)
			if err := next.AddSnapshot(Snapshot{ID: NewID(), Name: g.Name, Asked: g.Asked, Group: g.ID}, limit); err != nil {
				return g.fail(err.Error())
			}
			s.Volumes = append(s.Volumes, next)
			continue
		}
		if x == nil || x.State == SnapshotDeleting {
			return g.fail(fmt.Sprintf("the snapshot of volume %s was deleted", v.Name))
		}
		held := x.Part.Term == v.State.Term && v.State.Node != ""
		switch {
		case x.State == SnapshotCut:
		case x.Part.State == PartMissed && x.Part.Attempt == g.Attempt:
			missed = fmt.Sprintf("volume %s: %s", v.Name, x.Part.Reason)
		case g.Phase != GroupPreparing && !held:
			missed = fmt.Sprintf("volume %s went to another coordinator", v.Name)
		case want == "" || x.Part.State != want || x.Part.Attempt != g.Attempt || !held:
			s.Waits = fmt.Sprintf("volume %s isn't %s", v.Name, map[GroupPhase]string{
				GroupPreparing: "prepared: nobody serves it, or not all of its copies answer", GroupFreezing: "frozen", GroupCutting: "cut"}[g.Phase])
		}
	}
	switch {
	case missed != "" && (g.Phase == GroupCutting || g.Attempt >= groupAttempts):
		return g.fail(missed)
	case missed != "":
		g.Phase, g.Attempt = GroupPreparing, g.Attempt+1
	case overdue:
		return g.fail(s.Waits)
	case s.Waits != "" || len(s.Volumes) > 0:
		return s
	case g.Phase == GroupPreparing:
		g.Phase = GroupFreezing
	case g.Phase == GroupFreezing:
		g.Phase, g.Taken = GroupCutting, now.UTC()
	default:
		g.Phase = GroupDone
	}
	s.Volumes = nil
	s.Group = &g
	return s
}

func (g Group) fail(reason string) GroupStep {
	g.Phase, g.Reason = GroupFailing, reason
	return GroupStep{Group: &g}
}
