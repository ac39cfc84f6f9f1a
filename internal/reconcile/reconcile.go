// Package reconcile has the loops that bring the cluster to what was asked for, on whichever node leads: replicas whose
// nodes stay away are rebuilt elsewhere (rebuild.go), what deleted volumes leave behind is cleared (gc.go), volumes are
// scrubbed when their time has come (scrub.go), copies leave pools and nodes that are being emptied (drain.go), and growth is
// admitted when every copy is large enough (resize.go); copies move to where they are asked for (resettle.go); snapshots of several volumes go from phase to phase (group.go).
//
// A loop is a function from a View to the transactions that are due, so it can be read and tested as a table.
//
// Invariants: nothing is decided on a View that isn't whole; every change compares the revision of the record that it
// was decided on, so a leader that has been replaced without knowing it does no harm. How long a node has been
// gone is counted by the leader: a new leader counts from when it first looks.
//
// The Runner owns one goroutine that watches the metadata, keeps the View, and runs the loops when something changed or a
// deadline has come; it doesn't poll. It also starts a goroutine for each detached volume that it asks a node to serve.
package reconcile

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Limits of the loops.
const (
	// MaxRebuilds is how many volumes have a replica replaced at once.
	MaxRebuilds = 4
	// MaxServed is how many detached volumes are served at once to bring replicas up to date.
	MaxServed = 4
	settle    = 100 * time.Millisecond // lets a burst of changes end before the loops run
	retry     = 5 * time.Second
	retryMax  = time.Minute
	forever   = time.Hour
)

// Config is what a Runner is made from. All fields are required.
type Config struct {
	Store meta.Store
	Log   *slog.Logger
	// Serve attaches a detached volume on a node, without a frontend, until all its members are in sync and no scrub runs. It
	// blocks until that node has taken the work over, or says why it can't.
	Serve func(ctx context.Context, volume, node string) error
}

// Runner runs the loops.
type Runner struct {
	cfg  Config
	view *View
	told map[string]string // by volume, what was logged last, so that it's logged once
	// attached are the volumes whose copies are to follow them, by id.
	attached map[string]attachedSince
	since    groupWatch
	// idle are the volumes that are to show a snapshot and that nobody has attached, by id: since when.
	idle map[string]time.Time
	serving
	// unprovenSince is when this leader first saw volumes that aren't proven; zero while there are none.
	unprovenSince time.Time
}

// New makes a Runner. Run runs it.
func New(cfg Config) *Runner {
	return &Runner{cfg: cfg, view: newView(), told: map[string]string{}, attached: map[string]attachedSince{}}
}

// Run runs the loops until ctx ends, or the metadata can't be watched: pass it to meta.Store.Lead. It returns when all
// its goroutines have ended.
func (r *Runner) Run(ctx context.Context) {
	r.view = newView()
	r.serving.reset()
	events := make(chan meta.Event, 256)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer close(events)
		err := r.cfg.Store.Watch(ctx, func(e meta.Event) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil && ctx.Err() == nil {
			r.cfg.Log.Error("the reconcilers can't watch the metadata", "err", err)
			select { // not to lead again at once
			case <-ctx.Done():
			case <-time.After(retry):
			}
		}
	})
	r.loop(ctx, events, &wg)
}

// loop applies events, and runs a pass soon after them or when the last pass said so.
func (r *Runner) loop(ctx context.Context, events <-chan meta.Event, wg *sync.WaitGroup) {
	next := time.Now().Add(forever)
	timer := time.NewTimer(forever)
	defer timer.Stop()
	for {
		select {
		case e, ok := <-events:
			if !ok {
				return
			}
			now := time.Now()
			r.view.apply(e, now)
			if r.view.concerns(e) {
				r.groups(ctx, now)
			}
			// Only ever brought forward, or a stream of events would put the pass off for ever.
			if soon := now.Add(settle); soon.Before(next) {
				next = soon
				timer.Reset(settle)
			}
		case <-timer.C:
			now := time.Now()
			wait := time.Duration(forever)
			if r.view.synced {
				wait = r.pass(ctx, now, wg)
			}
			next = now.Add(wait)
			timer.Reset(wait)
		}
	}
}

// pass runs every loop once and returns when to run again at the latest.
func (r *Runner) pass(ctx context.Context, now time.Time, wg *sync.WaitGroup) time.Duration {
	var due []meta.Versioned[spec.Volume]
	for _, vol := range r.view.Volumes {
		if !r.view.settled(&vol.Value) {
			due = append(due, vol)
		}
	}
	// In the order of the names, so that every leader decides alike.
	slices.SortFunc(due, func(a, b meta.Versioned[spec.Volume]) int { return strings.Compare(a.Value.Name, b.Value.Name) })
	plan := r.rebuild(due, now)
	plan.merge(gc(r.view, due, now))
	plan.merge(r.scrub(now))
	plan.merge(r.snapshots(now))
	plan.merge(r.resize(now))
	plan.merge(r.rebalance(now))
	plan.merge(r.follow(now))
	plan.merge(r.resettle(now))
	plan.merge(r.prove(now))
	plan.merge(r.devices(now))
	plan.deadline(r.groups(ctx, now))
	for _, ch := range plan.changes {
		if err := r.commit(ctx, ch); err != nil && ctx.Err() == nil {
			r.cfg.Log.Warn("a reconciler's change wasn't made; it is decided again", "volume", ch.old.Value.Name, "err", err)
			plan.deadline(now.Add(retry))
		}
	}
	plan.deadline(r.serve(ctx, plan.serve, now, wg))
	if plan.due.IsZero() {
		return forever
	}
	return min(forever, max(settle, plan.due.Sub(now)))
}

func (r *Runner) commit(ctx context.Context, ch change) error {
	err := r.leaveBehind(ctx, ch.leftovers)
	if err != nil {
		return err
	}
	if ch.remove {
		err = r.cfg.Store.DeleteVolume(ctx, ch.old.Value.ID, ch.old.Rev)
	} else {
		_, err = r.cfg.Store.PutVolume(ctx, ch.new, ch.old.Rev, ch.cond)
	}
	switch {
	case err == nil:
		r.cfg.Log.Info(ch.what, "volume", ch.old.Value.Name)
		if ch.event != nil {
			return meta.AddEvent(ctx, r.cfg.Store, *ch.event)
		}
		return nil
	case errors.Is(err, meta.ErrConflict), errors.Is(err, meta.ErrNotFound):
		return nil // somebody changed it: their event brings us back
	}
	return err
}

// tell logs something about a volume unless it was the last thing told about it.
func (r *Runner) tell(volume, what string) {
	if r.told[volume] == what {
		return
	}
	if what == "" {
		delete(r.told, volume)
		return
	}
	r.told[volume] = what
	r.cfg.Log.Warn(what, "volume", volume)
}

// plan is what a pass decided.
type plan struct {
	changes []change
	serve   []service
	due     time.Time // the next deadline, if any
}

// change is one transaction on one volume.
type change struct {
	old    meta.Versioned[spec.Volume]
	new    spec.Volume
	remove bool
	cond   meta.Cond
	what   string
	// event is recorded once the change is made.
	event *spec.Event
	// leftovers are replicas, by pool, that are dropped although their directories may still be there.
	leftovers map[string][]string
}

func (p *plan) merge(o plan) {
	p.changes = append(p.changes, o.changes...)
	p.serve = append(p.serve, o.serve...)
	p.deadline(o.due)
}

func (p *plan) deadline(t time.Time) {
	if !t.IsZero() && (p.due.IsZero() || t.Before(p.due)) {
		p.due = t
	}
}
