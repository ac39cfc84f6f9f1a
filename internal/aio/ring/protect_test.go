package ring_test

import (
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"keelson.io/keelson/internal/aio/ring"
)

// TestProtectMemory runs in a process of its own, as what it does can't be undone.
func TestProtectMemory(t *testing.T) {
	if os.Getenv("RING_PROTECT") != "" {
		ring.ProtectMemory(slog.New(slog.NewTextHandler(os.Stdout, nil)))
		fileRunner(t, newLoop(t, ring.Config{}), 8)(1000)
		status, _ := os.ReadFile("/proc/self/status")
		os.Stdout.Write(status)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestProtectMemory$")
	cmd.Env = append(os.Environ(), "RING_PROTECT=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	warned := regexp.MustCompile("isn't locked").Match(out)
	locked := regexp.MustCompile(`VmLck:\s+[1-9]`).Match(out)
	if warned == locked {
		t.Errorf("memory is locked: %v; a warning was given: %v\n%s", locked, warned, out)
	}
}
