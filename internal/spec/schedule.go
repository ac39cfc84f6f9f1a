package spec

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Schedule says when snapshots of a volume are taken by themselves, and how many of them are kept. Times are UTC.
type Schedule struct {
	Kind  ScheduleKind  `json:"kind"`
	Every time.Duration `json:"every,omitempty"` // periodic
	// At is the time of the day, from midnight.
	At      time.Duration `json:"at,omitempty"`
	Weekday time.Weekday  `json:"weekday,omitempty"` // weekly
	Day     int           `json:"day,omitempty"`     // monthly: 1 … 28
	Keep    int           `json:"keep"`
	// Since is when it was set: the first snapshot comes after it.
	Since time.Time `json:"since"`
}

// ScheduleKind is the rhythm of a schedule.
type ScheduleKind string

// The kinds of schedules.
const (
	SchedulePeriodic ScheduleKind = "periodic"
	ScheduleDaily    ScheduleKind = "daily"
	ScheduleWeekly   ScheduleKind = "weekly"
	ScheduleMonthly  ScheduleKind = "monthly"
)

// Limits of schedules.
const (
	MaxSchedules       = 8
	MinSchedulePeriod  = time.Minute
	MaxSchedulePeriod  = 366 * 24 * time.Hour
	DefaultScheduleFor = 5 // snapshots that are kept
)

const scheduleLegal = "none, or schedules divided by ';': periodic=MINUTES,KEEP (from 1 minute), daily=HH:MM,KEEP, weekly=WEEKDAY@HH:MM,KEEP or monthly=DAY@HH:MM,KEEP (day 1 to 28), each kind once, KEEP from 1 to 64 snapshots, 5 without it"

// ParseSchedules reads what String writes, as in "periodic=60,10;daily=12:00,4". since is when they are set. The error is an
// *InvalidError.
func ParseSchedules(field, text string, since time.Time) ([]Schedule, error) {
	bad := &InvalidError{field, text, scheduleLegal}
	if text == "" || text == "none" {
		return nil, nil
	}
	var list []Schedule
	for part := range strings.SplitSeq(text, ";") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		s, ok := parseSchedule(part)
		if !ok || slices.ContainsFunc(list, func(o Schedule) bool { return o.Kind == s.Kind }) {
			return nil, bad
		}
		s.Since = since
		list = append(list, s)
	}
	if len(list) == 0 || len(list) > MaxSchedules {
		return nil, bad
	}
	return list, nil
}

func parseSchedule(text string) (s Schedule, ok bool) {
	kind, rest, ok := strings.Cut(text, "=")
	if !ok {
		return s, false
	}
	s.Kind, s.Keep = ScheduleKind(strings.ToLower(strings.TrimSpace(kind))), DefaultScheduleFor
	when, keep, some := strings.Cut(rest, ",")
	if some {
		n, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(keep), "k="))
		if err != nil || n < 1 || n > DefaultMaxSnapshots {
			return s, false
		}
		s.Keep = n
	}
	when = strings.TrimSpace(when)
	switch s.Kind {
	case SchedulePeriodic:
		n, err := strconv.Atoi(when)
		s.Every = time.Duration(n) * time.Minute
		return s, err == nil && n > 0 && s.Every >= MinSchedulePeriod && s.Every <= MaxSchedulePeriod
	case ScheduleDaily:
		s.At, ok = parseClock(when)
		return s, ok
	case ScheduleWeekly, ScheduleMonthly:
		day, clock, ok := strings.Cut(when, "@")
		if !ok {
			return s, false
		}
		if s.At, ok = parseClock(clock); !ok {
			return s, false
		}
		if s.Kind == ScheduleMonthly {
			n, err := strconv.Atoi(day)
			s.Day = n
			return s, err == nil && n >= 1 && n <= 28
		}
		for d := time.Sunday; d <= time.Saturday; d++ {
			if name := strings.ToLower(d.String()); strings.ToLower(day) == name || strings.ToLower(day) == name[:3] {
				s.Weekday = d
				return s, true
			}
		}
	}
	return s, false
}

func parseClock(text string) (time.Duration, bool) {
	t, err := time.Parse("15:04", strings.TrimSpace(text))
	return time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute, err == nil
}

// String writes a schedule as ParseSchedules reads it.
func (s Schedule) String() string {
	clock := fmt.Sprintf("%02d:%02d", s.At/time.Hour, s.At%time.Hour/time.Minute)
	when := clock
	switch s.Kind {
	case SchedulePeriodic:
		when = strconv.Itoa(int(s.Every / time.Minute))
	case ScheduleWeekly:
		when = strings.ToLower(s.Weekday.String()) + "@" + clock
	case ScheduleMonthly:
		when = strconv.Itoa(s.Day) + "@" + clock
	}
	return fmt.Sprintf("%s=%s,%d", s.Kind, when, s.Keep)
}

// FormatSchedules writes schedules as ParseSchedules reads them.
func FormatSchedules(list []Schedule) string {
	if len(list) == 0 {
		return "none"
	}
	parts := make([]string, len(list))
	for i, s := range list {
		parts[i] = s.String()
	}
	return strings.Join(parts, ";")
}

// Next is the first time after last at which a snapshot is due.
func (s Schedule) Next(last time.Time) time.Time {
	last = last.UTC()
	if s.Kind == SchedulePeriodic {
		return last.Add(s.Every)
	}
	day := time.Date(last.Year(), last.Month(), last.Day(), 0, 0, 0, 0, time.UTC)
	for {
		at := day.Add(s.At)
		fits := s.Kind == ScheduleDaily || s.Kind == ScheduleWeekly && day.Weekday() == s.Weekday || s.Kind == ScheduleMonthly && day.Day() == s.Day
		if fits && at.After(last) {
			return at
		}
		day = day.AddDate(0, 0, 1)
	}
}

// LastScheduled is when the schedule asked for a snapshot last, or when it was set.
func (v *Volume) LastScheduled(s Schedule) time.Time {
	last := s.Since
	for _, x := range v.Snapshots {
		if x.Schedule == string(s.Kind) && x.Asked.After(last) {
			last = x.Asked
		}
	}
	return last
}

// AddScheduled asks for the snapshot that is due. If there are too many snapshots, the schedule's oldest gives way; it reports whether
// anything was changed.
func (v *Volume) AddScheduled(s Schedule, now time.Time, limit int) bool {
	now = now.UTC().Truncate(time.Second)
	x := Snapshot{ID: NewID(), Name: fmt.Sprintf("%s-%s", s.Kind, now.Format("20060102-150405")), Asked: now, Schedule: string(s.Kind)}
	if v.AddSnapshot(x, limit) == nil {
		return true
	}
	return v.dropOldest(s)
}

// Retain has the schedule's oldest snapshot deleted if it has more than it keeps; it reports whether it did.
func (v *Volume) Retain(s Schedule) bool {
	n := 0
	for _, x := range v.Snapshots {
		if x.Schedule == string(s.Kind) && x.State == SnapshotReady {
			n++
		}
	}
	return n > s.Keep && v.dropOldest(s)
}

func (v *Volume) dropOldest(s Schedule) bool {
	for i := range v.Snapshots {
		if x := &v.Snapshots[i]; x.Schedule == string(s.Kind) && x.State == SnapshotReady && v.SnapshotInUse(x.ID) == "" {
			x.State = SnapshotDeleting
			return true
		}
	}
	return false
}
