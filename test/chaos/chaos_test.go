package main

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
)

func TestMain(m *testing.M) {
	if os.Getenv(writerEnv) != "" {
		os.Exit(writeFiles(os.Args[1:]))
	}
	os.Exit(m.Run())
}

// One round of faults, each time with the same plan; `make chaos` makes more of them.
func TestShortRun(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs daemons in namespaces")
	}
	binary := os.Getenv("KEELSON_BIN")
	if binary == "" {
		binary = filepath.Join(t.TempDir(), "keelson")
		if out, err := exec.Command("go", "build", "-trimpath", "-o", binary, "../../cmd/keelson").CombinedOutput(); err != nil {
			t.Fatalf("build: %v: %s", err, out)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cfg := config{binary: binary, name: "chaos-test", seed: 1, nodes: 3, rounds: 1, faults: 12, pace: 4 * time.Millisecond}
	if err := play(ctx, cfg, testLog{t}); err != nil {
		t.Fatal(err)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Logf("%s", b)
	return len(b), nil
}

// What chaos checks with must notice what it is there for.
func TestLedgerNotices(t *testing.T) {
	l, err := openLedger(filepath.Join(t.TempDir(), "ledger"), 8)
	if err != nil {
		t.Fatal(err)
	}
	epoch := l.nextEpoch()
	buf := aligned(block.Size)
	seq := l.begin(3)
	stamp("v", buf, 3, seq, 0)
	l.ack(epoch, 3, seq, time.Now())
	if err := l.check("v", buf, 3); err != nil {
		t.Errorf("what was written: %v", err)
	}
	old := append([]byte(nil), buf...)
	l.ack(epoch, 3, l.begin(3), time.Now())
	flipped := append([]byte(nil), buf...)
	flipped[100] ^= 1
	for what, bad := range map[string][]byte{"a lost write": old, "zeros": make([]byte, block.Size), "a flipped bit": flipped} {
		if l.check("v", bad, 3) == nil {
			t.Errorf("%s was not noticed", what)
		}
	}
	stamp("v", buf, 3, 9, 0)
	if l.check("v", buf, 3) == nil {
		t.Error("a write that was never made was not noticed")
	}
	if l.check("w", old, 3) == nil || l.check("v", old, 4) == nil {
		t.Error("a block in the wrong place was not noticed")
	}
	l.nextEpoch()
	began := time.Now()
	l.ack(epoch, 3, l.begin(3), began)
	if l.h.late.Load() != 1 {
		t.Error("an answer to a writer that was shut out before was not noticed")
	}
}

// A seed means the same plan, always.
func TestPlanFollowsFromTheSeed(t *testing.T) {
	cfg := config{faults: 200}
	a, _ := newPlan(7).round(6, 4, cfg)
	b, _ := newPlan(7).round(6, 4, cfg)
	seen := map[string]int{}
	for i := range a {
		if a[i] != b[i] {
			t.Fatalf("fault %d: %v and %v", i, a[i], b[i])
		}
		seen[a[i].kind]++
	}
	for _, name := range kindNames {
		if seen[name] == 0 && kinds[name].weight > 1 {
			t.Errorf("no %q among %d faults", name, len(a))
		}
	}
}
