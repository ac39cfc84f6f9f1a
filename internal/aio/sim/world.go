// Package sim is the simulated implementation of aio: a world of nodes with disks,
// a network and clocks, driven by one seed, in virtual time and on one goroutine. The
// engine runs in it unchanged, thousands of times faster than it would on machines,
// and everything that can go wrong does, in an order that the seed decides and that can
// be repeated.
//
// A World holds a heap of events; Step runs the next one, and counts it. Whatever a node does is
// an event: a callback of a file operation, of a timer, of a connection. Between two
// events the test may look at everything, crash a process, take a machine's power, cut
// the network.
//
// The network is made of streams, as TCP is: what a stream loses, reorders or doubles inside, it repairs before
// anybody sees it. What does show is here: delay, delivery in parts, a way that is cut in one direction or both, a stalled
// connection that goes on or times out, a reset with any suffix lost, a half-open connection whose other side lost its
// power, and on a new connection the same requests once more, before or after the old connection's late effects.
//
// Invariants: the order of events depends on the seed and on what the test and the
// engine do, never on real time, addresses or map order; the same seed gives the same
// TraceHash. No callback of a process runs after it was killed. What a disk
// acknowledged as durable is never lost; what it did not may be lost, kept or torn in
// sectors of 512 bytes.
//
// The rules of package aio are checked: memory that changes while an operation has it,
// blocking calls on the loop, loop calls from a worker, busy Ops and buffers given back
// twice all panic.
//
// The package owns no goroutine, and nothing in it is safe for concurrent use.
package sim

import (
	"fmt"
	"io"
	"math/rand/v2"
	"time"
)

// Latency describes how long something takes: evenly spread over [Min, Typical], and
// with probability Tail over [Typical, Max] instead.
type Latency struct {
	Min, Typical, Max time.Duration
	Tail              float64
}

// Config describes a world. The zero value of a field means its default.
type Config struct {
	Seed uint64
	// Trace, if not nil, gets a line for every event and every Tracef.
	Trace io.Writer
	// Disk, Net and Work are the latencies of a file operation, of a message's way
	// to another node, and of what is handed to a worker.
	Disk, Net, Work Latency
	// DialTimeout is how long dialling a node that does not answer takes; ConnTimeout how
	// long bytes may be under way before a connection breaks by itself.
	DialTimeout, ConnTimeout time.Duration
	// BufferMemory bounds what a loop's Buffers hand out, in bytes.
	BufferMemory int
}

// World is everything there is. Make it with New.
type World struct {
	cfg   Config
	rng   *rand.Rand
	now   time.Duration
	seq   uint64
	heap  []event
	nodes []*Node
	cut   map[[2]int]bool // from, to
	conns []*conn         // all that are not closed on both sides
	pages []*page         // free
	hash  uint64
	steps int
	stats Stats
	ctx   context // what kind of call is running
}

// context says who is calling.
type context uint8

const (
	outside  context = iota // the test
	onLoop                  // a callback of a loop
	onWorker                // a function given to Work
)

// event is something that happens at a moment. If loop is set it only happens
// while that process lives.
type event struct {
	at   time.Duration
	seq  uint64
	loop *Loop
	what string
	fn   func()
}

// New makes a world without nodes, at time 0.
func New(cfg Config) *World {
	def := func(l *Latency, d Latency) {
		if *l == (Latency{}) {
			*l = d
		}
	}
	def(&cfg.Disk, Latency{30 * time.Microsecond, 150 * time.Microsecond, 10 * time.Millisecond, 0.02})
	def(&cfg.Net, Latency{20 * time.Microsecond, 200 * time.Microsecond, 5 * time.Millisecond, 0.02})
	def(&cfg.Work, Latency{20 * time.Microsecond, 200 * time.Microsecond, 5 * time.Millisecond, 0.02})
	if cfg.DialTimeout == 0 {
		cfg.DialTimeout = 3 * time.Second
	}
	if cfg.ConnTimeout == 0 {
		cfg.ConnTimeout = 20 * time.Second
	}
	if cfg.BufferMemory == 0 {
		cfg.BufferMemory = 64 << 20
	}
	return &World{
		cfg:  cfg,
		rng:  rand.New(rand.NewPCG(cfg.Seed, 0x6b65656c736f6e)),
		cut:  make(map[[2]int]bool),
		hash: 14695981039346656037,
	}
}

// Now is the time in the world, which no node knows exactly.
func (w *World) Now() time.Duration { return w.now }

// Rand is the world's source of chance. A test that draws from it stays repeatable.
func (w *World) Rand() *rand.Rand { return w.rng }

// Steps is the number of events that have happened.
func (w *World) Steps() int { return w.steps }

// Stats counts what faults have come to, besides what the test did on purpose.
type Stats struct {
	Unsynced, Kept, Torn int // changes not durable at a power loss; of those, kept whole, and torn
	LateIO               int // disk operations of a dead process that took effect
	Resets               int // connections that broke with bytes under way, or with the process at an end
	Stalls, Timeouts     int // connections that hung because the way was cut or the machine off; that broke of it
	HalfOpen             int // connections of which one side had no power, and the other wasn't told
	Split                int // deliveries of which only a part came at once
	IOErrors             int // disk operations that failed with EIO
	NoSpace              int // disk operations that failed with ENOSPC
}

// Stats returns what was counted so far.
func (w *World) Stats() Stats { return w.stats }

// TraceHash is a hash of everything that has happened.
func (w *World) TraceHash() uint64 { return w.hash }

// Chance is true with probability p.
func (w *World) Chance(p float64) bool { return w.rng.Float64() < p }

// Tracef adds a line to the trace. It costs little when nobody reads the trace, but
// its arguments are not part of the hash.
func (w *World) Tracef(format string, args ...any) {
	if w.cfg.Trace != nil {
		fmt.Fprintf(w.cfg.Trace, "%12.6f #%d %s\n", w.now.Seconds(), w.steps, fmt.Sprintf(format, args...))
	}
}

// SetNet changes how long a message is on its way.
func (w *World) SetNet(l Latency) { w.cfg.Net = l }

// SetDisk changes how long an operation of a disk takes.
func (w *World) SetDisk(l Latency) { w.cfg.Disk = l }

// Tracing reports whether somebody reads the trace.
func (w *World) Tracing() bool { return w.cfg.Trace != nil }

// After has fn called d from now, whatever becomes of the nodes.
func (w *World) After(d time.Duration, what string, fn func()) { w.schedule(d, nil, what, fn) }

// Step lets the next event happen; false if there is none.
func (w *World) Step() bool {
	for len(w.heap) > 0 {
		e := w.pop()
		if e.loop != nil && e.loop.dead {
			continue
		}
		w.now = max(w.now, e.at)
		if e.loop != nil && e.loop.paused {
			e.loop.held = append(e.loop.held, e)
			continue
		}
		w.steps++
		w.mix(uint64(e.at))
		w.mix(e.seq)
		w.mixString(e.what)
		if w.cfg.Trace != nil {
			where := "world"
			if e.loop != nil {
				where = e.loop.node.name
			}
			fmt.Fprintf(w.cfg.Trace, "%12.6f #%d %s: %s\n", w.now.Seconds(), w.steps, where, e.what)
		}
		if e.loop != nil {
			e.loop.call(onLoop, e.fn)
		} else {
			e.fn()
		}
		return true
	}
	return false
}

// Run steps until the condition holds, and reports whether it came to hold before
// maxSteps were done and events ran out.
func (w *World) Run(until func() bool, maxSteps int) bool {
	for range maxSteps {
		if until() {
			return true
		}
		if !w.Step() {
			break
		}
	}
	return until()
}

// RunFor steps until d has gone by.
func (w *World) RunFor(d time.Duration) {
	end := w.now + d
	for len(w.heap) > 0 && w.heap[0].at <= end {
		w.Step()
	}
	w.now = max(w.now, end)
}

// draw returns a duration as l describes.
func (w *World) draw(l Latency) time.Duration {
	lo, hi := l.Min, l.Typical
	if l.Tail > 0 && w.rng.Float64() < l.Tail {
		lo, hi = l.Typical, l.Max
	}
	if hi <= lo {
		return lo
	}
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)))
}

func (w *World) mix(x uint64) {
	w.hash = (w.hash ^ x) * 1099511628211
	w.hash ^= w.hash >> 29
}

func (w *World) mixString(s string) {
	for i := 0; i < len(s); i++ {
		w.hash = (w.hash ^ uint64(s[i])) * 1099511628211
	}
}

// schedule adds an event. The heap is binary, ordered by time and then by the order of
// scheduling.
func (w *World) schedule(d time.Duration, l *Loop, what string, fn func()) {
	w.seq++
	w.heap = append(w.heap, event{at: w.now + max(d, 0), seq: w.seq, loop: l, what: what, fn: fn})
	i := len(w.heap) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !w.heap[i].before(&w.heap[up]) {
			break
		}
		w.heap[i], w.heap[up] = w.heap[up], w.heap[i]
		i = up
	}
}

func (e *event) before(o *event) bool { return e.at < o.at || e.at == o.at && e.seq < o.seq }

func (w *World) pop() event {
	top := w.heap[0]
	n := len(w.heap) - 1
	w.heap[0] = w.heap[n]
	w.heap[n] = event{}
	w.heap = w.heap[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && w.heap[c+1].before(&w.heap[c]) {
			c++
		}
		if !w.heap[c].before(&w.heap[i]) {
			break
		}
		w.heap[i], w.heap[c] = w.heap[c], w.heap[i]
		i = c
	}
	return top
}
