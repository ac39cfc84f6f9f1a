package repl

import (
	"testing"

	"pgregory.net/rapid"
)

// TestRangeLock locks and unlocks at random and checks that no two holders conflict, that nothing waits without
// a reason, and that a waiter isn't overtaken by a later one that overlaps it.
func TestRangeLock(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l RangeLock
		type holder struct {
			Range
			held    bool
			arrival int
		}
		var all []*holder
		arrivals := 0
		check := func() {
			for i, a := range all {
				blocked := false
				for _, b := range all {
					if a == b || !a.conflicts(&b.Range) {
						continue
					}
					if a.held && b.held {
						t.Fatalf("[%d,%d) and [%d,%d) are held together", a.start, a.end, b.start, b.end)
					}
					if a.held && !b.held && b.arrival < a.arrival {
						t.Fatalf("holder %d overtook an earlier waiter", i)
					}
					blocked = blocked || b.held || b.arrival < a.arrival
				}
				if !a.held && !blocked {
					t.Fatalf("[%d,%d) waits for nothing", a.start, a.end)
				}
			}
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(all) == 0 || rapid.Bool().Draw(t, "lock") {
				h := &holder{arrival: arrivals}
				arrivals++
				h.Granted = func() { h.held = true }
				off := rapid.Int64Range(0, 20).Draw(t, "off")
				h.held = l.Lock(&h.Range, off, rapid.Int64Range(1, 8).Draw(t, "n"), rapid.Bool().Draw(t, "shared"))
				all = append(all, h)
			} else if i := rapid.IntRange(0, len(all)-1).Draw(t, "i"); all[i].held {
				h := all[i]
				all = append(all[:i], all[i+1:]...)
				l.Unlock(&h.Range)
			}
			check()
		}
	})
}
