// Package sim_test is the simulation: the whole engine (replicas, links, coordinators) of three or
// four nodes in a simulated world, with clients that read and write, and everything going wrong that the
// design says may go wrong. A seed decides all of it; the same seed on the same commit gives the same run.
//
// What is checked: invariants 1 and 2 of the design at every acknowledgement, by looking at the members' disks; invariant
// 5 and the terms at every change of the metadata; the history of every block, which must be
// linearizable (invariants 3 and 4); no loss of flushed data, and of acknowledged data only when every in-sync member had lost its
// run; that the volume serves again once everything healed (invariant 6 the other way round); and that the copies are
// identical then.
package sim_test

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/spec"
)

var (
	seedCount   = flag.Int("seeds", 200, "how many seeds TestSeeds runs")
	maxFailures = flag.Int("failures", 5, "after how many failures TestSeeds stops")
	seedBase    = flag.Uint64("base", 1, "the first seed of TestSeeds")
)

// settleTime bounds how long the cluster may take to be whole again once all faults are over.
const settleTime = 120 * time.Second

// maxSteps bounds a run.
const maxSteps = 20_000_000

// run plays a seed to its end and returns the first violation.
func (c *cluster) run() (err error) {
	defer func() {
		if r := recover(); r != nil {
			c.w.Tracef("PANIC: %v", r)
			err = fmt.Errorf("at %v: panic: %v\n%s", c.w.Now(), r, debug.Stack())
		}
	}()
	if !c.stepUntil(settleTime, c.allReady) {
		return fmt.Errorf("the nodes don't start: %v, %s", c.err, c.condition())
	}
	c.place()
	c.reconcile()
	c.supervise()
	c.faulty = true
	c.w.After(time.Second, "nemesis", c.nemesis)
	c.stepUntil(c.p.lasts, func() bool { return false })
	if c.err != nil {
		return c.err
	}
	c.w.Tracef("faults are over")
	c.heal()
	for try := 0; c.err == nil; try++ {
		if !c.stepUntil(settleTime, c.settledNow) && c.err == nil {
			c.fail("liveness: %v after the last fault the volume isn't whole: %s; %s", settleTime, describe(c.s.rec), c.condition())
		}
		if c.err != nil || c.finish() {
			break
		}
		if try == 5 {
			c.fail("liveness: the volume is lost again and again: %s", c.condition())
		}
	}
	if c.err == nil {
		if err := c.hist.judge(); err != nil {
			c.fail("%v", err)
		}
	}
	return c.err
}

// stepUntil steps until the condition holds, a violation is found, or d has gone by.
func (c *cluster) stepUntil(d time.Duration, cond func() bool) bool {
	end := c.w.Now() + d
	for c.w.Now() < end && c.err == nil && c.w.Steps() < maxSteps {
		if cond() {
			return true
		}
		if !c.w.Step() {
			return cond()
		}
	}
	if c.w.Steps() >= maxSteps {
		c.fail("liveness: %d steps", maxSteps)
	}
	return cond()
}

// settledNow is settled, looked at now and then only, as it takes long.
func (c *cluster) settledNow() bool { return c.w.Steps()%64 == 0 && c.settled() }

// settled reports whether the volume is attached and serves, all its members are in sync, and every node is up.
func (c *cluster) settled() bool {
	if c.moving {
		return false
	}
	n := c.node(c.s.rec.State.Node)
	if n == nil || n.eng == nil || n.eng.vol == nil || n.guest == nil || n.guest.vol == nil || n.guest.stopped {
		return false
	}
	if !c.allReady() {
		return false
	}
	for _, col := range c.s.rec.State.Columns {
		if len(col.Members) != c.p.replicas {
			return false
		}
	}
	st := n.eng.vol.Status()
	return st.Serving && st.InSync && st.Unreconciled == 0
}

func (c *cluster) allReady() bool {
	for _, n := range c.nodes {
		if n.eng == nil || !n.eng.ready {
			return false
		}
	}
	return true
}

func (c *cluster) condition() string {
	var b strings.Builder
	for _, n := range c.nodes {
		switch {
		case n.eng == nil:
			fmt.Fprintf(&b, "%s: no engine; ", n.name)
		case n.eng.vol != nil:
			fmt.Fprintf(&b, "%s: %+v; ", n.name, n.eng.vol.Status())
		default:
			fmt.Fprintf(&b, "%s: engine ready=%v attaching=%v; ", n.name, n.eng.ready, n.eng.attaching)
		}
	}
	return b.String()
}

// finish ends the clients, reads the whole volume, detaches it and compares the copies. It is false if
// the volume was lost meanwhile, to a takeover that was decided before all was well again.
func (c *cluster) finish() bool {
	n := c.node(c.s.rec.State.Node)
	g := n.guest
	idle := false
	g.stop(func() { idle = true })
	if !c.stepUntil(settleTime, func() bool { return idle || g.dead }) {
		c.fail("liveness: requests are never answered: %v; %s", g.pending, c.condition())
	}
	const step = 256 << 10
	for off := int64(0); off < c.p.size && c.err == nil && !g.dead; off += step {
		done := false
		if !c.stepUntil(settleTime, func() bool { return g.vol != nil || g.dead }) || g.dead {
			break // a late crash, and nobody has come back
		}
		g.submit(&ioreq{g: g, op: block.OpRead, off: off, len: step, then: func() { done = true }})
		if !c.stepUntil(settleTime, func() bool { return done || g.dead }) {
			c.fail("liveness: the last read at %d is not answered", off)
		}
	}
	if c.err != nil || g.dead {
		return false
	}
	ended, detached := false, false
	n.eng.detach(func(err error) {
		detached = err == nil
		ended = true
		if detached {
			c.desired = -1
		}
	})
	if !c.stepUntil(settleTime, func() bool { return ended || g.dead }) {
		c.fail("liveness: the volume doesn't detach: %s", c.condition())
	}
	if !detached || c.err != nil {
		return false
	}
	for _, col := range c.s.rec.State.Columns {
		for _, m := range col.Members {
			if m.State != spec.InSync { // lost at the last moment; it must be brought back first
				c.desired = n.idx
				return false
			}
		}
	}
	c.checkReplicas()
	for _, n := range c.nodes {
		if n.eng != nil && n.eng.l.Outstanding() > 0 {
			c.count("buffers left")
		}
	}
	return true
}

// summary is one line about a run.
func (c *cluster) summary() string {
	var keys []string
	for k := range c.counts {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%d", k, c.counts[k])
	}
	return fmt.Sprintf("%v virtual, %d steps, %d reads, %d writes, %d flushes, %d failed, term %d;%s",
		c.w.Now().Round(time.Millisecond), c.w.Steps(), c.hist.reads, c.hist.writes, c.hist.flushes, c.hist.failures, c.s.rec.State.Term, b.String())
}

// TestSeed plays the seed in the environment variable SEED with its whole trace, which goes to a file.
func TestSeed(t *testing.T) {
	seed, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64)
	if err != nil {
		t.Skip("SEED is not set: this test replays one seed")
	}
	name := filepath.Join(os.TempDir(), fmt.Sprintf("keelson-sim-%d.trace", seed))
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := bufio.NewWriterSize(f, 1<<20)
	c := newCluster(seed, out)
	t.Logf("seed %d: %v", seed, c.p)
	err = c.run()
	out.Flush()
	t.Logf("%s, trace hash %x, trace in %s", c.summary(), c.w.TraceHash(), name)
	if err != nil {
		t.Fatal(err)
	}
}

// TestSeeds plays many seeds, on all processors.
func TestSeeds(t *testing.T) {
	var next atomic.Uint64
	var mu sync.Mutex
	total := map[string]int{}
	failed := 0
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				mu.Lock()
				enough := failed >= *maxFailures
				mu.Unlock()
				if i >= uint64(*seedCount) || enough {
					return
				}
				seed := *seedBase + i
				c := newCluster(seed, nil)
				err := c.run()
				mu.Lock()
				for k, v := range c.counts {
					total[k] += v
				}
				total["reads"] += c.hist.reads
				total["writes"] += c.hist.writes
				total["flushes"] += c.hist.flushes
				total["failed requests"] += c.hist.failures
				total["steps"] += c.w.Steps()
				total["virtual seconds"] += int(c.w.Now().Seconds())
				if err != nil {
					failed++
					t.Errorf("seed %d (%v):\n%v\nreplay: SEED=%d go test ./test/sim -run 'TestSeed$' -v", seed, c.p, err, seed)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	t.Logf("%d seeds: %v", *seedCount, total)
}

// TestReplay checks that a seed gives the same run twice: otherwise nothing found could be reproduced.
func TestReplay(t *testing.T) {
	for seed := *seedBase; seed < *seedBase+4; seed++ {
		a, b := newCluster(seed, nil), newCluster(seed, nil)
		_, _ = a.run(), b.run()
		if a.w.TraceHash() != b.w.TraceHash() {
			t.Errorf("seed %d: two runs differ: %s and %s", seed, a.summary(), b.summary())
		}
	}
}
