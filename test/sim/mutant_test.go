//go:build mutant

package sim_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// mutants are mistakes planted in the engine, each against one rule of the protocol or of the disk format, and the tests of
// which one at least must fail then.
var mutants = []struct{ name, tests string }{
	{"no-range-lock", "TestSeeds$"},
	{"no-reconcile", "TestSeeds$"},
	{"run-not-compared", "TestSeeds$"},
	{"no-barrier", "TestSeeds$"},
	{"checkpoint-early", "TestSeeds$"},
	{"no-read-confirm", "TestCutHolder$"},
	{"no-read-wait", "TestLostLease$"},
	{"no-loss-flush", "TestLastCopyLosesPower$"},
	{"restart-not-noticed", "TestMemberRestartsDuringAttach$"},
	{"pieces-unlock", "TestTakeoverOfStriped$"},
	{"flush-without-sync", "TestSeeds$"},
	{"no-journal", "TestSeeds$"},
	{"no-drain", "TestSeeds$"},
	{"resync-ignores-journal", "TestOwnWritesOfLostHolder$"},
}

// TestMutants checks that the simulation finds every planted mistake: a check that can't fail checks nothing. Run it with
// go test -tags mutant ./test/sim -run TestMutants.
func TestMutants(t *testing.T) {
	for _, m := range mutants {
		t.Run(m.name, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run", m.tests, "-test.timeout", "10m", "-seeds", "500", "-failures", "1")
			cmd.Env = append(os.Environ(), "KEELSON_MUTANT="+m.name)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatalf("nothing was found:\n%s", out)
			}
			lines := strings.SplitN(string(out), "\n", 5)
			t.Logf("found: %s", strings.Join(lines[:min(3, len(lines))], "\n"))
		})
	}
}
