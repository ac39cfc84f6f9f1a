package reconcile

import (
	"context"
	"sync"
	"time"

	"keelson.io/keelson/internal/spec"
)

// service is a detached volume that a node should bring up to date, or scrub.
type service struct {
	volume, name, node string
	scrub              bool
	group              bool // all of a group must be served at once
}

// serving is what was asked for lately.
type serving struct {
	mu    sync.Mutex
	asked map[string]ask // by volume; guarded by mu
}

// ask is one volume's: busy while a node is being asked, then not again before until.
type ask struct {
	busy  bool
	scrub bool
	until time.Time
	pause time.Duration
}

func (s *serving) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = map[string]ask{}
}

// needsService reports whether a volume that nobody serves has a member that could be brought up to date, and which
// node should do it: one that has a copy in sync.
func (v *View) needsService(vol *spec.Volume, now time.Time) (service, bool) {
	s, behind, ok := v.server(vol, now)
	return s, ok && behind
}

// server returns which node should serve a volume that nobody serves; behind is set if a member could be brought up to date.
func (v *View) server(vol *spec.Volume, now time.Time) (s service, behind, ok bool) {
	if holder := vol.State.Node; holder != "" {
		// One that only serves gives way at once; one that had it attached may come back.
		away, _ := v.Away(holder, now)
		if v.Alive(holder) || vol.State.Frontend != spec.FrontendNone && !away {
			return service{}, false, false
		}
	}
	node := ""
	for _, col := range vol.State.Columns {
		source := false
		for _, m := range col.Members {
			_, pool := v.Pools[m.Pool]
			if m.State != spec.InSync && v.Alive(m.Node) && pool {
				behind = true
			}
			if v.usable(m) {
				source = true
				if node == "" {
					node = m.Node
				}
			}
		}
		if !source {
			return service{}, false, false
		}
	}
	return service{volume: vol.ID, name: vol.Name, node: node}, behind, node != ""
}

// serve asks nodes to serve volumes, each in the background, and returns when to look again.
func (r *Runner) serve(ctx context.Context, list []service, now time.Time, wg *sync.WaitGroup) (due time.Time) {
	// Scrubs take long: they have places of their own.
	places := map[bool]int{false: MaxServed, true: MaxScrubbed}
	busy := map[string]bool{}
	taken := func(id string, scrub bool) {
		if !busy[id] {
			busy[id] = true
			places[scrub]--
		}
	}
	for id, vol := range r.view.Volumes {
		if vol.Value.State.Frontend == spec.FrontendNone && r.view.Alive(vol.Value.State.Node) {
			taken(id, vol.Value.Scrub.Running() && r.view.settled(&vol.Value))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, a := range r.asked {
		if a.busy {
			taken(id, a.scrub)
		} else if now.Sub(a.until) > retryMax {
			delete(r.asked, id)
		}
	}
	for _, s := range list {
		a := r.asked[s.volume]
		switch {
		case a.busy, now.Before(a.until) && !(s.group && a.pause <= retry), places[s.scrub] <= 0 && !busy[s.volume] && !s.group:
		default:
			taken(s.volume, s.scrub)
			a.busy, a.scrub = true, s.scrub
			r.asked[s.volume] = a
			wg.Go(func() { r.ask(ctx, s) })
		}
	}
	if len(list) > 0 {
		due = now.Add(retry)
	}
	return due
}

// ask asks one node.
func (r *Runner) ask(ctx context.Context, s service) {
	err := r.cfg.Serve(ctx, s.volume, s.node)
	r.mu.Lock()
	defer r.mu.Unlock()
	a := r.asked[s.volume]
	a.busy = false
	if err != nil {
		a.pause = min(max(2*a.pause, retry), retryMax)
	} else {
		a.pause = retry
	}
	a.until = time.Now().Add(a.pause)
	r.asked[s.volume] = a
	if err != nil && ctx.Err() == nil {
		r.cfg.Log.Warn("a detached volume can't be brought up to date; it is tried again", "volume", s.name, "node", s.node, "pause", a.pause, "err", err)
	}
}
