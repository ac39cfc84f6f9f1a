package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// makeFaults begins each fault of a round at its time, and returns when all have ended.
func (r *run) makeFaults(ctx context.Context, faults []fault) {
	var wg sync.WaitGroup
	limit := make(chan struct{}, 3) // faults at a time
	for _, f := range faults {
		time.Sleep(f.gap)
		if ctx.Err() != nil || len(r.violations) > 0 {
			break
		}
		limit <- struct{}{}
		wg.Go(func() {
			defer func() { <-limit }()
			r.makeFault(f)
		})
	}
	wg.Wait()
}

func (r *run) makeFault(f fault) {
	node, err := r.nodeOf(f)
	if err == nil && r.isDown(node) {
		err = errSkip
	}
	var undo func()
	k := kinds[f.kind]
	r.noteSlowest()
	if err == nil {
		undo, err = k.do(r, f, node)
	}
	if err != nil {
		if !errors.Is(err, errSkip) {
			r.say("%v: %v", f, err)
		}
		r.count(f.kind, false, 0)
		return
	}
	way := ""
	if f.kind == "cut" {
		way = " (" + f.way + ")"
	}
	r.say("%s: %s%s, %s of %s, %.1f s", node, f.kind, way, f.role, r.guests[f.guest].name, f.hold.Seconds())
	time.Sleep(f.hold)
	undo()
	time.Sleep(time.Second) // what waited is answered
	var longest time.Duration
	for _, g := range r.guests {
		if g.ledger != nil {
			longest = max(longest, time.Duration(g.ledger.h.slowest.Load()))
		}
	}
	r.count(f.kind, true, longest)
}

// noteSlowest begins to look for the longest I/O anew.
func (r *run) noteSlowest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.guests {
		if g.ledger != nil {
			g.longest = max(g.longest, time.Duration(g.ledger.h.slowest.Swap(0)))
		}
	}
}

func (r *run) count(kind string, done bool, longest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.counts[kind]
	if t == nil {
		t = &tally{}
		r.counts[kind] = t
	}
	if !done {
		t.skipped++
		return
	}
	t.done++
	t.longest = max(t.longest, longest)
}

// report prints the table at the end.
func (r *run) report() {
	r.noteSlowest()
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.out
	fmt.Fprintf(w, "\n%-20s %6s %8s  %-14s %s\n", "fault", "made", "skipped", "longest I/O", "what an application may see besides a pause")
	total := 0
	for _, name := range kindNames {
		t := r.counts[name]
		if t == nil {
			t = &tally{}
		}
		total += t.done
		fmt.Fprintf(w, "%-20s %6d %8d  %-14s %s\n", name, t.done, t.skipped, fmt.Sprintf("%.1f s", t.longest.Seconds()), kinds[name].sees)
	}
	var acks, checked uint64
	fmt.Fprintln(w)
	for _, g := range r.guests {
		if g.ledger == nil {
			fmt.Fprintf(w, "%-6s %d runs of fio written and verified\n", g.name, r.fioVerified.Load())
			continue
		}
		h := g.ledger.h
		acks, checked = acks+h.acks.Load(), checked+h.checked.Load()
		fmt.Fprintf(w, "%-6s %9d writes acknowledged, %10d reads of blocks checked, longest I/O that was answered %.1f s\n",
			g.name, h.acks.Load(), h.checked.Load(), g.longest.Seconds())
	}
	var slowest time.Duration
	for _, d := range r.failovers {
		slowest = max(slowest, d)
	}
	fmt.Fprintf(w, "failovers: %d, the slowest took %.1f s until it was attached elsewhere\n", len(r.failovers), slowest.Seconds())
	fmt.Fprintf(w, "copies: %d blocks compared with their sums and with the other copies, after %d rounds\n", r.blocks, r.rounds)
	verdict := "ok: nothing lost, no copy different"
	if len(r.violations) > 0 {
		verdict = fmt.Sprintf("FAILED: %d violations", len(r.violations))
		for _, v := range r.violations {
			fmt.Fprintf(w, "  - %s\n", v)
		}
	}
	fmt.Fprintf(w, "VERDICT: seed %d: %d faults, %d acknowledged writes, %d reads checked in %.0f s: %s\n",
		r.cfg.seed, total, acks, checked, time.Since(r.began).Seconds(), verdict)
}
