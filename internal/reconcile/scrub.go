package reconcile

import (
	"cmp"
	"slices"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

const (
	// MaxScrubs is how many scrubs that the schedule began are under way at once.
	MaxScrubs = 8
	// MaxScrubbed is how many detached volumes are served at once to be scrubbed.
	MaxScrubbed = 2
)

// scrub begins the scrubs whose time has come, the longest overdue first, and finds the detached volumes that have to be served
// for theirs. Where a volume is attached, its coordinator does the rest.
func (r *Runner) scrub(now time.Time) plan {
	v := r.view
	var p plan
	var overdue []meta.Versioned[spec.Volume]
	interval, running := v.Settings.ScrubInterval, 0
	for _, vol := range v.Volumes {
		switch x := &vol.Value; {
		case x.Deleting:
		case x.Scrub.Active:
			if !v.settled(x) || x.Scrub.Paused {
				continue
			}
			if x.Scrub.Scheduled {
				running++
			}
			if s, ok := v.needsScrubber(x, now); ok {
				p.serve = append(p.serve, s)
			}
		case interval <= 0 || !v.settled(x):
		default:
			if due := x.ScrubDue(interval); due.After(now) {
				p.deadline(due)
			} else {
				overdue = append(overdue, vol)
			}
		}
	}
	slices.SortFunc(overdue, func(a, b meta.Versioned[spec.Volume]) int {
		return cmp.Or(a.Value.ScrubDue(interval).Compare(b.Value.ScrubDue(interval)), cmp.Compare(a.Value.Name, b.Value.Name))
	})
	slices.SortFunc(p.serve, func(a, b service) int { return cmp.Compare(a.name, b.name) })
	// What is left over comes when one that runs ends: that changes its record.
	for _, vol := range overdue[:min(len(overdue), max(0, MaxScrubs-running))] {
		ch := change{old: vol, new: cloneVolume(vol.Value), what: "its scheduled scrub begins"}
		ch.new.Scrub.Begin(now, true)
		p.changes = append(p.changes, ch)
	}
	return p
}

// needsScrubber reports whether a volume that nobody holds has a scrub to be done, and which node should do it.
func (v *View) needsScrubber(vol *spec.Volume, now time.Time) (service, bool) {
	if vol.State.Node != "" && vol.State.Frontend != spec.FrontendNone {
		return service{}, false
	}
	s, _, ok := v.server(vol, now)
	s.scrub = true
	return s, ok
}
