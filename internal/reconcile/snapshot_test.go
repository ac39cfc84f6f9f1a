package reconcile

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

func snapView(vols ...spec.Volume) *View {
	v := newView()
	for _, x := range vols {
		v.Volumes[x.ID] = meta.Versioned[spec.Volume]{Value: x, Rev: 1}
	}
	return v
}

// TestCloneSteps goes the way of a clone, with the origin's replica moved to another pool in between.
func TestCloneSteps(t *testing.T) {
	member := func(replica, pool string) spec.Member {
		return spec.Member{Replica: replica, Pool: pool, Node: "n-" + pool, State: spec.InSync}
	}
	origin := spec.Volume{ID: "a", Name: "a", Snapshots: []spec.Snapshot{{ID: "s", Name: "clone-b", For: "b", State: spec.SnapshotTaking}}}
	origin.State.Columns = []spec.Column{{Members: []spec.Member{member("1", "p1")}}}
	clone := spec.Volume{ID: "b", Name: "b", Source: &spec.Source{Volume: "a", Snapshot: "s", Pending: true}}
	clone.State.Columns = []spec.Column{{Members: []spec.Member{member("2", "p1")}}}
	step := func(want string) change {
		t.Helper()
		v := snapView(origin, clone)
		ch, ok := v.cloneStep(v.Volumes["b"])
		if ok != (want != "") || ok && ch.new.ID != want {
			t.Fatalf("step %v changes %q, want %q", ok, ch.new.ID, want)
		}
		if ok && want == "a" {
			origin = ch.new
		} else if ok {
			clone = ch.new
		}
		return ch
	}
	step("") // the snapshot isn't there yet
	origin.Snapshots[0].State = spec.SnapshotReady
	step("a")
	if len(origin.Clones) != 1 || origin.Clones[0].Members[0] != (spec.CloneMember{From: "1", Replica: "2"}) {
		t.Fatalf("job %+v", origin.Clones)
	}
	step("") // the coordinator is at it
	origin.State.Columns = []spec.Column{{Members: []spec.Member{member("7", "p7")}}}
	step("b")
	if m := clone.State.Columns[0].Members; len(m) != 1 || m[0].Pool != "p7" || m[0].Replica == "7" || m[0].Replica == "2" {
		t.Fatalf("members %+v", m)
	}
	step("a")
	if m := origin.Clones[0].Members; len(m) != 1 || m[0].From != "7" {
		t.Fatalf("job %+v", m)
	}
	origin.Clones[0].Done = true
	origin.Clones[0].Members[0].Made = true
	step("b")
	if clone.Cloning() || clone.State.Columns[0].Members[0].State != spec.InSync {
		t.Fatalf("clone %+v", clone)
	}
	v := snapView(origin, clone)
	ch, ok := v.cleanClones(v.Volumes["a"])
	if !ok || len(ch.new.Clones) != 0 || ch.new.Snapshots[0].State != spec.SnapshotDeleting {
		t.Fatalf("left %+v", ch.new)
	}
}

// TestScheduleStep asks for a snapshot when its time has come, and says when that is.
func TestScheduleStep(t *testing.T) {
	now := time.Date(2026, 2, 27, 13, 0, 0, 0, time.UTC)
	x := spec.Volume{ID: "a", Name: "a", Size: spec.MinVolumeSize, Schedules: []spec.Schedule{{Kind: spec.ScheduleDaily, At: 14 * time.Hour, Keep: 1, Since: now}}}
	vol := meta.Versioned[spec.Volume]{Value: x}
	if _, due, ok := scheduleStep(vol, 0, now); ok || !due.Equal(now.Add(time.Hour)) {
		t.Fatalf("%v, due %v", ok, due)
	}
	ch, _, ok := scheduleStep(vol, 0, now.Add(61*time.Minute))
	if !ok || len(ch.new.Snapshots) != 1 || ch.new.Snapshots[0].Schedule != "daily" || len(x.Snapshots) != 0 {
		t.Fatalf("%v: %+v", ok, ch.new.Snapshots)
	}
}
