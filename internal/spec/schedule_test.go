package spec

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestSchedules(t *testing.T) {
	now := time.Date(2026, 2, 27, 13, 0, 0, 0, time.UTC) // a Friday
	for text, want := range map[string]string{
		"periodic=60,10":          "2026-02-27 14:00",
		"daily=12:00,4":           "2026-02-28 12:00",
		"daily=13:01":             "2026-02-27 13:01",
		"weekly=Sunday@03:00,2":   "2026-03-01 03:00",
		"weekly=fri@12:59,2":      "2026-03-06 12:59",
		"monthly=28@00:00,k=12":   "2026-02-28 00:00",
		" monthly=1@04:30 , 12 ;": "2026-03-01 04:30",
	} {
		list, err := ParseSchedules("schedule", text, now)
		if err != nil || len(list) != 1 {
			t.Errorf("%q: %v, %v", text, list, err)
			continue
		}
		if got := list[0].Next(now).Format("2006-01-02 15:04"); got != want {
			t.Errorf("%q is due %s, want %s", text, got, want)
		}
		again, err := ParseSchedules("schedule", FormatSchedules(list), now)
		if err != nil || again[0] != list[0] {
			t.Errorf("%q is written %q: %v", text, FormatSchedules(list), err)
		}
	}
	for _, text := range []string{"hourly=1", "periodic=0", "periodic=x", "periodic=60,0", "periodic=60,65", "daily=24:00", "daily=1200", "weekly=03:00",
		"weekly=someday@03:00", "monthly=29@00:00", "monthly=0@00:00", "daily=01:00;daily=02:00", ";", "periodic", "periodic=60,10,3"} {
		_, err := ParseSchedules("schedule", text, now)
		var bad *InvalidError
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "periodic=MINUTES") {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{"", "none"} {
		if list, err := ParseSchedules("schedule", text, now); err != nil || list != nil {
			t.Errorf("%q: %v, %v", text, list, err)
		}
	}
}

func TestScheduledSnapshots(t *testing.T) {
	now := time.Date(2026, 2, 27, 13, 0, 0, 0, time.UTC)
	v := Volume{Name: "v", Size: MinVolumeSize}
	s := Schedule{Kind: SchedulePeriodic, Every: time.Hour, Keep: 2, Since: now}
	for range 4 {
		if due := s.Next(v.LastScheduled(s)); !due.Equal(v.LastScheduled(s).Add(time.Hour)) {
			t.Fatalf("due %v", due)
		}
		now = now.Add(time.Hour)
		if !v.AddScheduled(s, now, 0) {
			t.Fatal("it asks for none")
		}
		v.Snapshots[len(v.Snapshots)-1].State = SnapshotReady
		v.Retain(s)
	}
	ready := 0
	for _, x := range v.Snapshots {
		if x.State == SnapshotReady {
			ready++
		}
	}
	if ready != 2 || v.Snapshots[3].State != SnapshotReady {
		t.Fatalf("%d are kept: %+v", ready, v.Snapshots)
	}
}

func TestAddSnapshot(t *testing.T) {
	v := Volume{Name: "v", Size: MinVolumeSize}
	for name, text := range map[string]string{"A b": "DNS label", "": "DNS label"} {
		if err := v.AddSnapshot(Snapshot{Name: name}, 0); err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := v.AddSnapshot(Snapshot{Name: "a"}, 2); err != nil {
		t.Fatal(err)
	}
	if err := v.AddSnapshot(Snapshot{Name: "a"}, 2); err == nil || !strings.Contains(err.Error(), "doesn't use yet") {
		t.Errorf("the name twice: %v", err)
	}
	if err := v.AddSnapshot(Snapshot{Name: "b"}, 1); err == nil || !strings.Contains(err.Error(), "at most 1 snapshots") {
		t.Errorf("one too many: %v", err)
	}
	if !v.SnapshotWork() || v.Snapshots[0].State != SnapshotTaking {
		t.Errorf("%+v", v.Snapshots)
	}
}
