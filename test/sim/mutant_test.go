//go:build mutant

package sim_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keelson.io/keelson/internal/invariant"
)

var (
	mutantOnly  = flag.String("mutant", "", "TestMutants plants only those whose name matches this regular expression")
	mutantQuick = flag.Bool("mutant-quick", false, "TestMutants plants only a few that are found at once")
	mutantSeeds = flag.Int("mutant-seeds", 5000, "how many seeds TestMutants tries before a planted mistake counts as not found")
	mutantTable = flag.String("mutant-table", "", "file for TestMutants' table")
)

// found is how a planted mistake came to light.
type found struct {
	Seeds int    // that were played; of the others the outcome isn't known
	Seed  uint64 // that found it
	By    string // the check
	Err   string
}

// TestMutants checks that the simulation finds every planted mistake: a check that can't fail checks nothing. Each is
// planted in a process of its own, which plays seeds until a check fails. See docs/design/mutants.md.
func TestMutants(t *testing.T) {
	only := regexp.MustCompile(*mutantOnly)
	var table strings.Builder
	row := func(format string, args ...any) {
		fmt.Fprintf(&table, format+"\n", args...)
		fmt.Printf(format+"\n", args...)
	}
	row("%-32s %-6s %6s %6s  %-24s %s", "planted mistake", "rule", "played", "seed", "found by", "what it breaks")
	planted, survived := 0, 0
	for _, m := range mutants {
		if !only.MatchString(m.name) || *mutantQuick && !m.quick {
			continue
		}
		planted++
		f, err := search(m)
		switch {
		case err != nil:
			t.Errorf("%s: %v", m.name, err)
			row("%-32s %-6s %6s %6s  %-24s %s", m.name, m.rule, "?", "", "the search failed", m.breaks)
		case f.Err != "":
			row("%-32s %-6s %6d %6d  %-24s %s", m.name, m.rule, f.Seeds, f.Seed, f.By, m.breaks)
			if testing.Verbose() {
				t.Logf("%s: seed %d: %.700s", m.name, f.Seed, f.Err)
			}
		case m.explained != "":
			survived++
			row("%-32s %-6s %6d %6s  %-24s %s", m.name, m.rule, f.Seeds, "", "none, as explained", m.explained)
		default:
			row("%-32s %-6s %6d %6s  %-24s %s", m.name, m.rule, f.Seeds, "", "NONE", m.breaks)
			t.Errorf("%s: not found by %d seeds", m.name, f.Seeds)
		}
	}
	row("%d planted, %d not found", planted, survived)
	if *mutantTable != "" {
		if err := os.WriteFile(*mutantTable, []byte(table.String()), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// TestMutantNames checks that the table has every mistake that the sources can plant, and no other.
func TestMutantNames(t *testing.T) {
	planted := map[string]bool{}
	name := regexp.MustCompile(`invariant\.Mutant\("([^"]+)"\)`)
	for _, dir := range []string{"../../internal", "."} {
		err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" {
				return err
			}
			b, err := os.ReadFile(path)
			for _, m := range name.FindAllSubmatch(b, -1) {
				planted[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range mutants {
		if !planted[m.name] {
			t.Errorf("no place plants %q", m.name)
		}
		delete(planted, m.name)
	}
	for name := range planted {
		t.Errorf("the table lacks %q", name)
	}
}

// search plants one mistake in a process of its own.
func search(m mutant) (f found, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	seeds := *mutantSeeds
	if m.explained != "" {
		seeds = min(seeds, 500)
	}
	if m.test != "" {
		return byTest(ctx, m)
	}
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run", "^TestMutantSearch$", "-test.timeout", "0",
		"-base", fmt.Sprint(cmp.Or(m.from, *seedBase)), "-mutant-seeds", fmt.Sprint(seeds))
	cmd.Env = append(os.Environ(), "KEELSON_MUTANT="+m.name)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return f, fmt.Errorf("%w\n%.4000s", err, stderr.String())
	}
	line, _, _ := bytes.Cut(stdout.Bytes(), []byte("\n"))
	return f, json.Unmarshal(line, &f)
}

// byTest runs the one test that must fail with the mistake.
func byTest(ctx context.Context, m mutant) (f found, err error) {
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.v", "-test.run", "^"+m.test+"$")
	if m.dir != "" {
		cmd = exec.CommandContext(ctx, "go", "test", "-tags", "mutant", "-count=1", "-v", "-run", "^"+m.test+"$", m.dir)
	}
	cmd.Env = append(os.Environ(), "KEELSON_MUTANT="+m.name)
	out, err := cmd.CombinedOutput()
	if !bytes.Contains(out, []byte("=== RUN   "+m.test+"\n")) {
		return f, fmt.Errorf("there is no %s: %w\n%.4000s", m.test, err, out)
	}
	if err == nil {
		return f, nil
	}
	if !bytes.Contains(out, []byte("--- FAIL: "+m.test)) {
		return f, fmt.Errorf("%w\n%.4000s", err, out)
	}
	return found{By: m.test, Err: string(out)}, nil
}

// TestMutantSearch plays seeds with the mistake that the environment names, until a check fails that without it doesn't, and
// prints a found.
func TestMutantSearch(t *testing.T) {
	name := os.Getenv("KEELSON_MUTANT")
	if !slices.ContainsFunc(mutants, func(m mutant) bool { return m.name == name }) {
		t.Skip("KEELSON_MUTANT names no planted mistake: TestMutants runs this test")
	}
	s := hunt{m: mutants[slices.IndexFunc(mutants, func(m mutant) bool { return m.name == name })], last: *seedBase + uint64(*mutantSeeds) - 1}
	s.next = *seedBase
	for s.Err == "" && s.next <= s.last {
		invariant.Plant(name)
		s.play()
		invariant.Plant("")
		if s.Err != "" && newCluster(s.Seed, nil).run() != nil {
			s.Err = "" // not this mistake's doing
		}
	}
	s.Seeds = int(s.played.Load())
	b, err := json.Marshal(s.found)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s\n", b)
}

// hunt is the search for one planted mistake.
type hunt struct {
	found
	m      mutant
	last   uint64 // seed
	mu     sync.Mutex
	next   uint64 // seed
	played atomic.Int64
}

// draw returns the next seed of the sort that is played; false if there is none, or need not be.
func (s *hunt) draw() (seed uint64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.Err == "" && s.next <= s.last {
		seed = s.next
		s.next++
		if s.m.directed == "" || directedBy(seed).name == s.m.directed {
			return seed, true
		}
	}
	return 0, false
}

// play plays seeds on all processors, until one fails or none is left.
func (s *hunt) play() {
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for seed, ok := s.draw(); ok; seed, ok = s.draw() {
				err := newCluster(seed, nil).run()
				s.played.Add(1)
				if err == nil {
					continue
				}
				by := checkOf(err)
				s.mu.Lock()
				if s.Err == "" && (by != "liveness" || s.m.stalls) {
					s.Seed, s.Err, s.By = seed, err.Error(), by
				}
				s.mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// checks tells which check failed by what it says.
var checks = []struct{ says, name string }{
	{"invariant violated", "assertion"},
	{"panic:", "panic"},
	{"invariant 1", "invariant 1"},
	{"invariant 2", "invariant 2"},
	{"invariant 3", "invariant 3"},
	{"invariant 4", "invariant 4"},
	{"invariant 5", "invariant 5"},
	{"no in-sync member", "invariant 5"},
	{"terms go wrong", "terms"},
	{"not linearizable", "history"},
	{"before it was submitted", "history"},
	{"torn:", "torn block"},
	{"holds what nobody wrote", "alien block"},
	{"answered twice", "answered twice"},
	{" differ in block ", "copies differ"},
	{"has data and no gen", "gens"},
	{"after everything healed", "sums"},
	{"isn't there", "answered write missing"},
	{"its journal doesn't have it", "journal incomplete"},
	{"doesn't open", "replica doesn't open"},
	{"can't be read", "read error"},
	{"snapshot ", "snapshot"},
	{"liveness", "liveness"},
}

func checkOf(err error) string {
	for _, c := range checks {
		if strings.Contains(err.Error(), c.says) {
			return c.name
		}
	}
	return "?"
}
