package ring

import (
	"testing"
	"time"
)

// Waits are hidden from Go's scheduler while I/O goes on, not after a message now and then.
func TestStreak(t *testing.T) {
	streak := 0
	for range 1000 {
		streak = nextStreak(streak, 200*time.Millisecond, true) // a peer's ping
		for range 4 {
			if streak = nextStreak(streak, 20*time.Microsecond, true); streak == rawAfter {
				t.Fatal("an idle loop hides its waits")
			}
		}
	}
	for range rawAfter {
		streak = nextStreak(streak, 100*time.Microsecond, true)
	}
	if streak != rawAfter {
		t.Errorf("a busy loop doesn't hide its waits: %d", streak)
	}
	if streak = nextStreak(streak, 100*time.Microsecond, false); streak != rawAfter {
		t.Errorf("a signal ends the streak: %d", streak)
	}
}
