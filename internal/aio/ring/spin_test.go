package ring

import (
	"testing"
	"time"
)

// TestSpinnerSwitchesOff: spins that don't pay become rare, and come back when one does.
func TestSpinnerSwitchesOff(t *testing.T) {
	s := spinner{limit: time.Microsecond, look: 1 << 62}
	spins := 0
	for range 10000 {
		if s.worthwhile(0) {
			spins++
			s.failed()
		}
	}
	if spins > 25 {
		t.Errorf("%d spins in vain before 10,000 sleeps", spins)
	}
	s.skip = 0
	for i := range 100 {
		if !s.worthwhile(0) {
			t.Fatalf("no spin after %d that paid", i)
		}
		s.paid()
	}
	s.crowded = true
	if s.worthwhile(0) {
		t.Error("a spin when others want the CPU")
	}
}

func TestRunnable(t *testing.T) {
	for text, want := range map[string]int{
		"0.00 0.01 0.05 3/412 9173\n": 3, "12.10 8.00 7.31 117/2000 1\n": 117, "": 0, "x": 0,
	} {
		if got := runnable([]byte(text)); got != want {
			t.Errorf("%q: %d, not %d", text, got, want)
		}
	}
}
