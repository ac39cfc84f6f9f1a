package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/lab"
)

// run is one run of chaos.
type run struct {
	cfg    config
	out    io.Writer
	began  time.Time
	dir    string // of ledgers; outside the nodes
	lab    *lab.Lab
	guests []*guest

	nodes      nodes
	ghosts     sync.WaitGroup // loads on nodes that lost their volume
	background sync.WaitGroup // moves
	calm       atomic.Bool    // everything is healed

	fioRuns, fioVerified atomic.Int64

	mu         sync.Mutex // guards what follows
	violations []string
	counts     map[string]*tally
	calmed     chan struct{} // closed when calm
	failovers  []time.Duration
	rounds     int
	blocks     int64 // compared between copies
}

// tally is what became of a kind of fault.
type tally struct {
	done, skipped int
	longest       time.Duration // of one I/O while it lasted
}

// play runs chaos; its error says that something was lost, or that it couldn't be found out.
func play(ctx context.Context, cfg config, out io.Writer) (err error) {
	unlock, err := lockName(cfg.name)
	if err != nil {
		return err
	}
	defer unlock()
	if err := removeLab(cfg.name); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "keelson-chaos-")
	if err != nil {
		return err
	}
	r := &run{cfg: cfg, out: out, began: time.Now(), dir: dir, counts: map[string]*tally{}, calmed: make(chan struct{})}
	defer func() {
		bad := err != nil || len(r.violations) > 0
		if bad && cfg.logsDir != "" && r.lab != nil {
			r.keepLogs()
		}
		if bad && cfg.keep {
			fmt.Fprintf(out, "The lab is left: keelson lab --name %s status; ledgers: %s\n", cfg.name, dir)
			return
		}
		err = errors.Join(err, removeLab(cfg.name))
		os.RemoveAll(dir)
	}()
	fmt.Fprintf(out, "chaos: seed %d, %d nodes, %v; CHAOS_SEED=%d repeats the plan\n", cfg.seed, cfg.nodes, cfg.limit, cfg.seed)
	if err := r.setUp(ctx); err != nil {
		return err
	}
	err = r.allRounds(ctx)
	r.report()
	if len(r.violations) > 0 {
		return errors.Join(err, fmt.Errorf("%d violations; the first: %s", len(r.violations), r.violations[0]))
	}
	return err
}

// lockName keeps a second run from removing the lab of the first.
func lockName(name string) (unlock func(), err error) {
	f, err := os.OpenFile("/run/keelson-"+name+"-run.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another run uses the lab %q: give another -name, or wait: %w", name, err)
	}
	return func() { f.Close() }, nil
}

func removeLab(name string) error {
	if err := lab.Down(name, lab.Dir(name)); err != nil && !errors.Is(err, lab.ErrNoLab) {
		return err
	}
	return nil
}

// keepLogs copies the logs of all nodes.
func (r *run) keepLogs() {
	if err := os.MkdirAll(r.cfg.logsDir, 0o700); err != nil {
		r.say("logs: %v", err)
		return
	}
	for _, n := range r.lab.Nodes() {
		for _, name := range []string{"server.log", "keeper.log"} {
			if b, err := os.ReadFile(filepath.Join(r.lab.NodeDir(n), name)); err == nil {
				_ = os.WriteFile(filepath.Join(r.cfg.logsDir, n+"-"+name), b, 0o600)
			}
		}
	}
}

// say prints a line of the timeline.
func (r *run) say(format string, a ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, "%s %7.1fs  %s\n", time.Now().UTC().Format("15:04:05"), time.Since(r.began).Seconds(), fmt.Sprintf(format, a...))
}

// violation notes what must not happen.
func (r *run) violation(format string, a ...any) {
	s := fmt.Sprintf(format, a...)
	r.say("VIOLATION: %s", s)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.violations = append(r.violations, s)
}

func (r *run) failover(took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failovers = append(r.failovers, took)
}

// healed is closed once everything is healed after the faults of the present round.
func (r *run) healed() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calmed
}

// theGuests are the volumes of a run, and how each is used.
func (r *run) theGuests() []*guest {
	return []*guest{
		{name: "nbd", kind: kindNBD, size: 64 << 20},
		{name: "raw", kind: kindRaw, size: 64 << 20, args: []string{"--replicas", "3"}},
		{name: "cols", kind: kindRaw, size: 64 << 20, args: []string{"--columns", "2"}},
		{name: "ext4", kind: kindExt4, size: 128 << 20},
		{name: "xfs", kind: kindXFS, size: 320 << 20},
		{name: "fio", kind: kindFio, size: 64 << 20},
	}
}

func (r *run) setUp(ctx context.Context) error {
	began := time.Now()
	l, err := lab.Up(ctx, lab.Config{Name: r.cfg.name, Binary: r.cfg.binary, Nodes: r.cfg.nodes, Zones: r.cfg.nodes, PoolSize: "4Gi"})
	r.lab = l
	if err != nil {
		return err
	}
	r.nodes = nodes{rules: map[string]map[int][][]string{}, down: map[string]int{}}
	r.say("lab up in %.1f s", time.Since(began).Seconds())
	for _, g := range r.theGuests() {
		g.r, g.moves, g.halts = r, make(chan move), make(chan chan error)
		g.ledgerPath = filepath.Join(r.dir, g.name)
		blocks := g.size / block.Size
		if g.mounted() {
			blocks = fileWorkers * fileBlocks
		}
		if g.kind != kindFio {
			if g.ledger, err = openLedger(g.ledgerPath, blocks); err != nil {
				return err
			}
		}
		args := append([]string{"volume", "create", g.name, "--size", fmt.Sprint(g.size), "--zone-spread"}, g.args...)
		if _, err := l.Keelson(ctx, "n1", args...); err != nil {
			return err
		}
		v, err := r.volume(ctx, "n1", g.name)
		if err != nil {
			return err
		}
		g.copies = v.nodes()
		r.guests = append(r.guests, g)
		if g.mounted() {
			if err := r.makeFS(ctx, g); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) makeFS(ctx context.Context, g *guest) error {
	g.set("n1", "", false)
	dev, err := g.attach(ctx, "n1")
	if err != nil {
		return err
	}
	line := "mkfs.ext4 -q -F " + dev
	if g.kind == kindXFS {
		line = "mkfs.xfs -q -f " + dev
	}
	if err := r.shell(ctx, "n1", time.Minute, line); err != nil {
		return err
	}
	_, err = r.lab.Keelson(ctx, "n1", "volume", "detach", g.name)
	return err
}

// allRounds makes rounds until time is over, or something is wrong.
func (r *run) allRounds(ctx context.Context) error {
	p := newPlan(r.cfg.seed)
	for ctx.Err() == nil && len(r.violations) == 0 {
		if r.rounds > 0 && time.Since(r.began) > r.cfg.limit || r.cfg.rounds > 0 && r.rounds >= r.cfg.rounds {
			return nil
		}
		faults, starts := p.round(len(r.guests), len(r.lab.Nodes()), r.cfg)
		if err := r.round(ctx, faults, starts); err != nil {
			return err
		}
		r.rounds++
	}
	return ctx.Err()
}

// round starts all guests, makes the faults, heals everything, and checks everything.
func (r *run) round(ctx context.Context, faults []fault, starts []int) error {
	r.say("round %d", r.rounds+1)
	r.mu.Lock()
	r.calmed = make(chan struct{})
	r.mu.Unlock()
	for i, g := range r.guests {
		r.background.Go(func() { g.live(ctx, r.lab.Nodes()[starts[i]]) })
	}
	r.awaitRunning(ctx, "at the beginning of the round")
	r.calm.Store(false)
	r.makeFaults(ctx, faults)
	r.calm.Store(true)
	r.mu.Lock()
	close(r.calmed)
	r.mu.Unlock()
	r.healAll()
	r.say("healed")
	began := time.Now()
	r.awaitAlive(ctx)
	r.awaitRunning(ctx, "after everything was healed")
	r.awaitHealthy(ctx)
	r.ghosts.Wait()
	r.say("all is in sync %.1f s after it was healed", time.Since(began).Seconds())
	for _, g := range r.guests {
		if err := g.halt(ctx); err != nil {
			r.violation("%s: %v", g.name, err)
		}
	}
	r.background.Wait()
	return r.checkAll(ctx)
}
