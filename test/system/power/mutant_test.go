//go:build mutant

package power

import (
	"testing"
	"time"
)

// Each planted mistake must be seen: `go test -tags mutant -run Planted ./test/system/power`.
func TestPlantedMistakesAreFound(t *testing.T) {
	needMachine(t)
	for _, mutant := range []string{
		"flush-without-sync", "fua-ignored", "journal-not-durable", "no-journal", "journal-first-chunk-only", "journal-keyed-by-chunk",
		"fence-not-durable", "meta-not-durable", "sums-not-synced", "checkpoint-before-sums",
	} {
		t.Run(mutant, func(t *testing.T) {
			if err := runMachine(t, 1, mutant).replay(t, 1, 5*time.Minute); err == nil {
				t.Error("nothing was found")
			} else {
				t.Log(err)
			}
		})
	}
}
