package sim_test

import (
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"keelson.io/keelson/internal/aio/sim"
)

// params are what a seed decides about a run before it begins.
type params struct {
	nodes       int
	vols        []volParams
	lasts       time.Duration // the time of faults, or longer: until the run has minSteps
	steps       int           // at least so many
	faultEvery  time.Duration
	faults      []faultKind
	directed    string  // what sort of directed run it is; ""
	ambush      float64 // the share of faults that wait for a phase
	lostAnswers float64
	drift       float64
	ioLatency   sim.Latency
	snapAlways  bool // whatever the seed says, snapshots are taken
	groupAlways bool // and of several volumes at one moment
	growAlways  bool // whatever the seed says, volumes grow
}

// volParams are those of one volume.
type volParams struct {
	replicas, columns int
	size              int64
	clients, readers  int     // readers only read
	readShare         float64 // of the other clients' requests
	checkpointEvery   time.Duration
	think             time.Duration
	diskless          bool // the volume is attached first where it has no copy
	seam              bool // every request is at the seam between two columns
}

// cluster is a world with nodes, the volumes on them, their clients, and the record of what happened.
type cluster struct {
	seed  uint64
	p     params
	w     *sim.World
	s     *store
	nodes []*node
	vols  []*vol
	log   *slog.Logger

	faulty  bool   // faults are under way
	nextRep uint64 // the next replica's id
	copies  map[string]*replicaCopy
	blesses bool // engines die: sums are recomputed from damaged data where no other copy is left

	scrubAlways bool // whatever the seed says

	ambushes []ambush
	script   func(c *cluster) // a directed run's faults
	counts   map[string]int
	clock    int64 // of the histories
	groups   groups
	matrix   [faultKinds][phases]int // what went wrong when
	err      error                   // the first violation
}

const epoch = 1_700_000_000

// drawParams makes up a run. Each seed has some sorts of faults only, so that rare
// combinations get their chance.
func drawParams(rng *rand.Rand) params {
	p := params{
		nodes:       []int{3, 3, 3, 4, 5}[rng.IntN(5)],
		lasts:       time.Duration(8+rng.IntN(20)) * time.Second,
		steps:       minSteps + rng.IntN(minSteps/4),
		faultEvery:  time.Duration(300+rng.IntN(2500)) * time.Millisecond,
		ambush:      []float64{0.1, 0.4, 0.8}[rng.IntN(3)],
		lostAnswers: []float64{0, 0.05, 0.2}[rng.IntN(3)],
		drift:       []float64{0, 200, 20000}[rng.IntN(3)],
		ioLatency: sim.Latency{
			Min: 30 * time.Microsecond, Typical: 300 * time.Microsecond,
			Max:  []time.Duration{5, 50, 500, 2000}[rng.IntN(4)] * time.Millisecond,
			Tail: []float64{0.01, 0.05}[rng.IntN(2)],
		},
	}
	n := []int{1, 1, 1, 2, 3}[rng.IntN(5)]
	for range n {
		p.vols = append(p.vols, drawVolume(rng, n))
	}
	for f := range faultKinds {
		if rng.IntN(3) == 0 {
			p.faults = append(p.faults, f)
		}
	}
	return p
}

// losesPower reports whether machines may lose their power. Then no copy is rolled back too: that and one in a new run are all a column
// has, and an operator must decide.
func (p *params) losesPower() bool {
	return slices.ContainsFunc(p.faults, func(f faultKind) bool { return f == faultPower || f == faultBlackout || f == faultPair })
}

// drawVolume makes up one of n volumes.
func drawVolume(rng *rand.Rand, n int) volParams {
	p := volParams{
		replicas:        []int{1, 2, 2, 2, 3, 3}[rng.IntN(6)],
		columns:         []int{1, 1, 1, 2, 3}[rng.IntN(5)],
		size:            []int64{6, 12, 24}[rng.IntN(3)] << 20,
		clients:         1 + rng.IntN(6),
		readers:         rng.IntN(3),
		readShare:       []float64{0.1, 0.4, 0.4, 0.9}[rng.IntN(4)],
		think:           []time.Duration{5, 20, 60}[rng.IntN(3)] * time.Millisecond,
		checkpointEvery: []time.Duration{300, 1000, 3000, 30000}[rng.IntN(4)] * time.Millisecond,
		diskless:        rng.IntN(6) == 0,
		seam:            rng.IntN(12) == 0,
	}
	if n > 1 {
		p.size = min(p.size, 12<<20)
		p.clients, p.readers = 1+p.clients/n, p.readers/n
	}
	return p
}

func (p params) String() string {
	var f, v []string
	for _, k := range p.faults {
		f = append(f, k.String())
	}
	for _, k := range p.vols {
		v = append(v, fmt.Sprintf("%d MiB in %d replicas of %d columns, %d clients and %d readers thinking %v, checkpoints every %v",
			k.size>>20, k.replicas, k.columns, k.clients, k.readers, k.think, k.checkpointEvery))
	}
	if p.directed != "" {
		f = append(f, "directed: "+p.directed)
	}
	return fmt.Sprintf("%d nodes; %s; faults every %v for %v: %s", p.nodes, strings.Join(v, "; "), p.faultEvery, p.lasts, strings.Join(f, ", "))
}

// newCluster makes the world of a seed, with the replicas created and all nodes up.
func newCluster(seed uint64, trace io.Writer) *cluster {
	d := directedBy(seed)
	c := newClusterWith(seed, trace, d.prepare)
	c.script = d.script
	c.blesses = c.blesses || d.kills
	return c
}

// newClusterWith is newCluster with something fixed that the seed would have drawn.
func newClusterWith(seed uint64, trace io.Writer, fix func(*params)) *cluster {
	rng := rand.New(rand.NewPCG(seed, 0x70617261))
	c := &cluster{seed: seed, p: drawParams(rng), nextRep: 1, copies: map[string]*replicaCopy{}, counts: map[string]int{}}
	fix(&c.p)
	c.blesses = c.p.ambush > 0 && len(c.p.faults) > 0
	for _, f := range c.p.faults {
		switch f {
		case faultCrash, faultCrashInWork, faultPower, faultBlackout, faultPair, faultRotMeta:
			c.blesses = true
		}
	}
	c.w = sim.New(sim.Config{Seed: seed, Trace: trace, Disk: c.p.ioLatency})
	c.log = c.newLog(trace)
	for i := range c.p.nodes {
		n := &node{c: c, idx: i, name: fmt.Sprintf("n%d", i), sees: make([]bool, c.p.nodes), guests: make([]*guest, len(c.p.vols))}
		n.sn = c.w.NewNode(n.name)
		n.sn.SetClock((rng.Float64()*2 - 1) * c.p.drift)
		n.named()
		c.nodes = append(c.nodes, n)
	}
	c.s = &store{c: c}
	for i, p := range c.p.vols {
		c.vols = append(c.vols, c.newVolume(rng, i, p))
	}
	for _, n := range c.nodes {
		n.leaseUntil = 5 * time.Second
		n.start()
	}
	c.s.tick()
	return c
}

// newLog makes the log of engines: a part of the trace, if there is one.
func (c *cluster) newLog(trace io.Writer) *slog.Logger {
	if trace == nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(traceWriter{c.w}, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		},
	}))
}

func (c *cluster) node(name string) *node {
	for _, n := range c.nodes {
		if n.name == name {
			return n
		}
	}
	return nil
}

// fail records a violation; the first one counts.
func (c *cluster) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("at %v: %s", c.w.Now(), fmt.Sprintf(format, args...))
		c.w.Tracef("VIOLATION: %v", c.err)
	}
}

func (c *cluster) count(what string) { c.counts[what]++ }

// traceWriter puts log lines into the trace.
type traceWriter struct{ w *sim.World }

func (t traceWriter) Write(p []byte) (int, error) {
	t.w.Tracef("  %s", strings.TrimSpace(string(p)))
	return len(p), nil
}
