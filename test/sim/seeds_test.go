package sim_test

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedCount   = flag.Int("seeds", 200, "how many seeds TestSeeds runs")
	maxFailures = flag.Int("failures", 5, "after how many failures TestSeeds stops")
	seedBase    = flag.Uint64("base", 1, "the first seed of TestSeeds")
)

// totals is what some runs come to.
type totals struct {
	seeds, steps, minSteps                  int
	virtual                                 time.Duration
	reads, writes, trims, flushes, failures int
	undecided                               int
	counts                                  map[string]int
	matrix                                  [faultKinds][phases]int
}

// add adds a run.
func (t *totals) add(c *cluster) {
	if t.counts == nil {
		t.counts = map[string]int{}
	}
	t.seeds++
	t.steps += c.w.Steps()
	if t.minSteps == 0 || c.w.Steps() < t.minSteps {
		t.minSteps = c.w.Steps()
	}
	t.virtual += c.w.Now()
	for _, v := range c.vols {
		h := v.hist
		t.reads += h.reads
		t.writes += h.writes - h.trims
		t.trims += h.trims
		t.flushes += h.flushes
		t.failures += h.failures
		t.undecided += h.undecided
	}
	for k, v := range c.counts {
		t.counts[k] += v
	}
	s := c.w.Stats()
	for k, v := range map[string]int{"changes not durable at a power loss": s.Unsynced, "of those kept": s.Kept, "of those torn": s.Torn,
		"late disk I/O of dead engines": s.LateIO, "connections reset": s.Resets, "stalls of connections": s.Stalls, "connections timed out": s.Timeouts,
		"half-open connections": s.HalfOpen, "deliveries in parts": s.Split, "EIO": s.IOErrors, "ENOSPC": s.NoSpace} {
		t.counts[k] += v
	}
	for k := range c.matrix {
		for p, n := range c.matrix[k] {
			t.matrix[k][p] += n
		}
	}
}

// named lists the counts whose name begins with prefix.
func (t *totals) named(prefix string) string {
	var parts []string
	for k, n := range t.counts {
		if strings.HasPrefix(k, "fault ") == (prefix == "fault ") && strings.HasPrefix(k, "phase ") == (prefix == "phase ") {
			parts = append(parts, fmt.Sprintf("%s %d", strings.TrimPrefix(k, prefix), n))
		}
	}
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

// String prints the totals for a person.
func (t *totals) String() string {
	return fmt.Sprintf(`%d seeds, %d steps (at least %d a seed, on average %d), %v of virtual time
requests: %d reads, %d writes, %d trims and write-zeroes, %d flushes answered; %d failed
faults: %s
phases: %s
besides: %s
histories too long to be decided: %d`,
		t.seeds, t.steps, t.minSteps, t.steps/max(t.seeds, 1), t.virtual.Round(time.Second),
		t.reads, t.writes, t.trims, t.flushes, t.failures, t.named("fault "), t.named("phase "), t.named(""), t.undecided)
}

// table prints how often each fault hit each phase.
func (t *totals) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s", "")
	for p := range phases {
		fmt.Fprintf(&b, "%12s", p)
	}
	for k := range faultKinds {
		fmt.Fprintf(&b, "\n%-14s", k)
		for p := range phases {
			fmt.Fprintf(&b, "%12d", t.matrix[k][p])
		}
	}
	return b.String()
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
	var sum totals
	sum.add(c)
	t.Logf("%v\ntrace hash %x, trace in %s", &sum, c.w.TraceHash(), name)
	if err != nil {
		t.Fatal(err)
	}
}

// TestSeeds plays many seeds, on all processors.
func TestSeeds(t *testing.T) {
	began := time.Now()
	sum, failed := playSeeds(t, *seedBase, *seedCount)
	fmt.Printf("simulation: %v\n%s\nviolations: %d; %v on %d processors\n", sum, sum.table(), failed, time.Since(began).Round(time.Second), runtime.GOMAXPROCS(0))
	if failed == 0 && sum.minSteps < minSteps {
		t.Errorf("a seed had only %d steps", sum.minSteps)
	}
	if failed == 0 {
		played = sum
	}
}

// played is what TestSeeds came to, if it found nothing.
var played *totals

// coverageSeeds is how many seeds must be enough for everything to happen.
const coverageSeeds = 200

// TestCoverage checks that what TestSeeds played had every sort of fault, in every phase of a volume, and that they had the effects that
// they are for.
func TestCoverage(t *testing.T) {
	if played == nil || played.seeds < coverageSeeds {
		t.Skipf("TestSeeds has not played %d seeds without a violation before this test", coverageSeeds)
	}
	for k := range faultKinds {
		if played.counts["fault "+k.String()] == 0 {
			t.Errorf("no seed had the fault %v", k)
		}
	}
	for p := range phases {
		hits := 0
		for k := range faultKinds {
			hits += played.matrix[k][p]
		}
		if hits == 0 {
			t.Errorf("no fault was in the phase %v", p)
		}
	}
	for _, what := range []string{"of those kept", "of those torn", "late disk I/O of dead engines", "connections reset", "connections timed out",
		"half-open connections", "stalls of connections", "EIO", "ENOSPC", "lost answers of the store", "conflicts in the store", "replaced", "loss", "lost",
		"takeover", "own takeover", "resent requests", "detached", "writes barred by a fence", "copies compared while idle"} {
		if played.counts[what] == 0 {
			t.Errorf("never happened: %s", what)
		}
	}
}

// progressEvery is after how many seeds a long run says how far it is.
const progressEvery = 1000

func playSeeds(t *testing.T, base uint64, n int) (sum *totals, failed int) {
	var next atomic.Uint64
	var mu sync.Mutex
	var wg sync.WaitGroup
	sum = &totals{}
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := next.Add(1) - 1
				mu.Lock()
				enough := failed >= *maxFailures
				mu.Unlock()
				if i >= uint64(n) || enough {
					return
				}
				c := newCluster(base+i, nil)
				err := c.run()
				mu.Lock()
				sum.add(c)
				if sum.seeds%progressEvery == 0 && n > progressEvery {
					fmt.Printf("simulation: %d of %d seeds played, %d violations\n", sum.seeds, n, failed)
				}
				if err != nil {
					failed++
					if n > progressEvery {
						fmt.Printf("simulation: violation at seed %d\n", c.seed)
					}
					t.Errorf("seed %d (%v):\n%v\nreplay with the whole trace: make sim SEED=%d", c.seed, c.p, err, c.seed)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return sum, failed
}

// TestReplay checks that a seed gives the same run twice: otherwise nothing found could be reproduced.
func TestReplay(t *testing.T) {
	for seed := *seedBase; seed < *seedBase+6; seed++ {
		a, b := newCluster(seed, nil), newCluster(seed, nil)
		_, _ = a.run(), b.run()
		if a.w.TraceHash() != b.w.TraceHash() || a.w.Steps() != b.w.Steps() {
			t.Errorf("seed %d: two runs differ, after %d and %d steps", seed, a.w.Steps(), b.w.Steps())
		}
	}
}
