package volume

import (
	"strings"

	"keelson.io/keelson/internal/repl"
)

// Status is a snapshot of an attachment for people and metrics.
type Status struct {
	Term    uint64
	Serving bool
	// Condition says what the volume waits for; "" if nothing.
	Condition string
	// Unreconciled is the number of chunks that are still to be made identical after a failover.
	Unreconciled int
	Members      []MemberStatus
	Stats        Stats
	// InSync reports whether every member of every column is in sync.
	InSync bool
	// Scrub is the progress of the scrub that is active; nil if none is.
	Scrub *ScrubStatus
	// SnapshotUsage is what each snapshot occupies on disk in one copy, by its period, as of some seconds ago.
	SnapshotUsage map[uint64]int64
}

// MemberStatus is one member as the coordinator sees it.
type MemberStatus struct {
	Column  int
	Replica string
	Node    string
	Role    string
	// Chunks that are to be compared, that were, and the bytes moved, while it catches up.
	Todo, Done int
	Moved      int64
}

// Status returns the attachment's status. It must be called on the loop.
func (v *Volume) Status() Status {
	s := Status{Term: v.term, Serving: v.phase == serving || v.phase == detaching, Stats: v.Stats, InSync: true}
	var conditions []string
	for _, c := range v.columns {
		if text := c.rc.Condition(v.loop.Now()); text != "" && v.phase != lost && v.phase != detached {
			conditions = append(conditions, text)
		}
		s.Unreconciled += len(c.unreconciled)
		for m := 0; m < repl.MaxMembers; m++ {
			mb := c.rc.Member(m)
			if mb == nil {
				continue
			}
			ms := MemberStatus{Column: c.idx, Replica: mb.Replica, Node: mb.Node, Role: mb.Role.String()}
			if r := c.resyncs[m]; r != nil {
				ms.Todo, ms.Done, ms.Moved = len(r.todo), r.done, r.moved
			}
			s.InSync = s.InSync && mb.Role == repl.In
			s.Members = append(s.Members, ms)
		}
	}
	if v.committing {
		conditions = append(conditions, "waiting for the metadata store")
	}
	if v.phase == lost {
		conditions = append(conditions, v.lostErr.Error())
	}
	s.Scrub = v.scrub.status()
	s.SnapshotUsage = v.snaps.usageNow()
	s.Condition = strings.Join(conditions, "; ")
	return s
}
