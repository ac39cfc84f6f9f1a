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
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

// params are what a seed decides about a run before it begins.
type params struct {
	nodes, replicas, columns int
	size                     int64
	clients, readers         int     // readers only read
	readShare                float64 // of the other clients' requests
	checkpointEvery          time.Duration
	diskless                 bool // the volume is attached first where it has no copy
	seam                     bool // every request is at the seam between two columns
	think                    time.Duration
	lasts                    time.Duration // the time of faults
	faultEvery               time.Duration
	faults                   []faultKind
	lostAnswers              float64
	drift                    float64
	ioLatency                sim.Latency
}

// cluster is a world with nodes, a volume on them, its clients, and the record of what happened.
type cluster struct {
	seed  uint64
	p     params
	w     *sim.World
	s     *store
	nodes []*node
	hist  *history
	hot   []int64 // blocks that are used most
	log   *slog.Logger

	desired   int    // where the volume shall be attached
	moving    bool   // it is being detached there
	faulty    bool   // faults are under way
	nextRep   uint64 // the next replica's id
	replaces  int
	attaches  int
	servedNow uint64          // the newest term that served
	readOnly  bool            // clients don't write any more
	made      map[string]bool // replicas that were created
	tainted   map[int64]bool  // blocks with a copy that was damaged
	blesses   bool            // engines die: sums are recomputed from damaged data where no other copy is left
	counts    map[string]int
	err       error // the first violation
}

const epoch = 1_700_000_000

func (c *cluster) wall() time.Time { return time.Unix(epoch, 0).Add(c.w.Now()).UTC() }

// drawParams makes up a run. Each seed has some sorts of faults only, so that rare
// combinations get their chance.
func drawParams(rng *rand.Rand) params {
	p := params{
		nodes:       3,
		replicas:    []int{1, 2, 2, 2, 3, 3}[rng.IntN(6)],
		columns:     []int{1, 1, 1, 2}[rng.IntN(4)],
		size:        []int64{8, 8, 16, 32}[rng.IntN(4)] << 20,
		clients:     1 + rng.IntN(6),
		readers:     rng.IntN(3),
		readShare:   []float64{0.1, 0.4, 0.4, 0.9}[rng.IntN(4)],
		think:       []time.Duration{5, 20, 60}[rng.IntN(3)] * time.Millisecond,
		lasts:       time.Duration(10+rng.IntN(30)) * time.Second,
		faultEvery:  time.Duration(200+rng.IntN(3000)) * time.Millisecond,
		lostAnswers: []float64{0, 0.05, 0.2}[rng.IntN(3)],
		drift:       []float64{0, 200, 20000}[rng.IntN(3)],
		ioLatency: sim.Latency{
			Min: 30 * time.Microsecond, Typical: 300 * time.Microsecond,
			Max:  []time.Duration{5, 50, 500, 2000}[rng.IntN(4)] * time.Millisecond,
			Tail: []float64{0.01, 0.05}[rng.IntN(2)],
		},
		checkpointEvery: []time.Duration{300, 1000, 3000, 30000}[rng.IntN(4)] * time.Millisecond,
	}
	if rng.IntN(4) == 0 {
		p.nodes = 4
	}
	for f := range faultKinds {
		if rng.IntN(5) < 2 {
			p.faults = append(p.faults, f)
		}
	}
	return p
}

func (p params) String() string {
	var f []string
	for _, k := range p.faults {
		f = append(f, k.String())
	}
	return fmt.Sprintf("%d nodes, %d replicas, %d columns, %d MiB, %d clients and %d readers thinking %v, checkpoints every %v, faults every %v for %v: %s",
		p.nodes, p.replicas, p.columns, p.size>>20, p.clients, p.readers, p.think, p.checkpointEvery, p.faultEvery, p.lasts, strings.Join(f, " "))
}

// newCluster makes the world of a seed, with the replicas created and all nodes up.
func newCluster(seed uint64, trace io.Writer) *cluster {
	return newClusterWith(seed, trace, func(*params) {})
}

// newClusterWith is newCluster with something fixed that the seed would have drawn.
func newClusterWith(seed uint64, trace io.Writer, fix func(*params)) *cluster {
	rng := rand.New(rand.NewPCG(seed, 0x70617261))
	c := &cluster{seed: seed, p: drawParams(rng), nextRep: 1, made: map[string]bool{}, tainted: map[int64]bool{}, counts: map[string]int{}}
	fix(&c.p)
	for _, f := range c.p.faults {
		switch f {
		case faultCrash, faultCrashInWork, faultPower, faultBlackout, faultPair:
			c.blesses = true
		}
	}
	c.w = sim.New(sim.Config{Seed: seed, Trace: trace, Disk: c.p.ioLatency})
	c.log = slog.New(slog.DiscardHandler)
	if trace != nil {
		c.log = slog.New(slog.NewTextHandler(traceWriter{c.w}, &slog.HandlerOptions{
			Level: slog.LevelDebug,
			ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
				if a.Key == slog.TimeKey {
					return slog.Attr{}
				}
				return a
			},
		}))
	}
	for i := range c.p.nodes {
		n := &node{c: c, idx: i, name: fmt.Sprintf("n%d", i), sees: make([]bool, c.p.nodes)}
		n.sn = c.w.NewNode(n.name)
		n.sn.SetClock((rng.Float64()*2 - 1) * c.p.drift)
		c.nodes = append(c.nodes, n)
	}
	c.hist = newHistory(int(c.p.size / block.Size))
	for range 12 {
		c.hot = append(c.hot, rng.Int64N(c.p.size/block.Size))
	}
	c.hot = append(c.hot, block.PerChunk, spec.StripeUnit/block.Size)
	if c.p.seam {
		c.hot = []int64{spec.StripeUnit / block.Size}
	}
	c.s = &store{c: c, rev: 1, loss: map[int]bool{}, rec: c.newRecord(rng)}
	for _, n := range c.nodes {
		n.leaseUntil = 5 * time.Second
		n.start()
	}
	c.s.tick()
	for i, n := range c.nodes {
		if c.p.diskless && !slices.ContainsFunc(c.s.rec.State.Columns[0].Members, func(m spec.Member) bool { return m.Node == n.name }) {
			c.desired = i
		}
	}
	return c
}

func (c *cluster) newRecord(rng *rand.Rand) spec.Volume {
	v := spec.Volume{
		ID: "00000000000000aa", Name: "vol", Size: c.p.size, Replicas: c.p.replicas, Columns: c.p.columns,
	}
	for range c.p.columns {
		var col spec.Column
		for i, at := range rng.Perm(c.p.nodes)[:c.p.replicas] {
			_ = i
			col.Members = append(col.Members, c.newMember(at, spec.InSync))
		}
		v.State.Columns = append(v.State.Columns, col)
	}
	return v
}

func (c *cluster) newMember(at int, st spec.MemberState) spec.Member {
	m := spec.Member{Replica: fmt.Sprintf("%016x", c.nextRep), Node: c.nodes[at].name, Pool: "pool", State: st, Since: c.wall()}
	c.nextRep++
	return m
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

// traceWriter puts log lines into the trace.
type traceWriter struct{ w *sim.World }

func (t traceWriter) Write(p []byte) (int, error) {
	t.w.Tracef("  %s", strings.TrimSpace(string(p)))
	return len(p), nil
}

// describe prints a record in one line.
func describe(v spec.Volume) string {
	var b strings.Builder
	fmt.Fprintf(&b, "term %d at %q, fenced %d", v.State.Term, v.State.Node, v.State.Fenced)
	for i, col := range v.State.Columns {
		fmt.Fprintf(&b, "; column %d:", i)
		for _, m := range col.Members {
			fmt.Fprintf(&b, " %s@%s=%s(%s)", strings.TrimLeft(m.Replica, "0"), m.Node, m.State, m.Run)
			if m.Removing {
				b.WriteString("-")
			}
		}
	}
	return b.String()
}
