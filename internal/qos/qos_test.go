package qos

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestTake(t *testing.T) {
	const mib = 1 << 20
	b := NewBucket(10*mib, 2*mib)
	for i, step := range []struct {
		at   time.Duration
		n    int64
		want time.Duration
	}{
		{0, mib, 0}, {0, mib, 0}, // the burst
		{0, mib, 100 * time.Millisecond},       // in debt
		{0, 2 * mib, 300 * time.Millisecond},   // debts add up
		{300 * time.Millisecond, 0, 0},         // nothing costs nothing
		{300 * time.Millisecond, mib, 1e8},     // just paid, empty
		{500 * time.Millisecond, mib, 0},       // earned since
		{time.Hour, 2 * mib, 0},                // never fuller than the burst
		{time.Hour, 20 * mib, 2 * time.Second}, // larger than the burst
		{time.Hour - time.Second, mib, 31e8},   // a clock that went back
	} {
		if got := b.Take(step.at, step.n); got != step.want {
			t.Fatalf("step %d: %v, want %v", i, got, step.want)
		}
	}
	for range 3 { // absurd, but no overflow
		if w := b.Take(2*time.Hour, math.MaxInt64); w <= 0 {
			t.Fatal(w)
		}
	}
	var unlimited Bucket
	if w := unlimited.Take(0, math.MaxInt64); w != 0 {
		t.Fatal(w)
	}
}

func TestSet(t *testing.T) {
	b := NewBucket(100, 100)
	b.Take(0, 100)
	b.Take(0, 100) // a second's debt
	b.Set(0, 200, 100)
	if w := b.Take(0, 200); w != 1500*time.Millisecond {
		t.Fatal(w)
	}
	b.Set(0, 0, 0)
	if w := b.Take(0, 1e9); w != 0 {
		t.Fatal(w)
	}
	b.Set(0, 100, 100)
	if w := b.Take(time.Hour, 200); w != time.Second {
		t.Fatal(w)
	}
}

// TestRate: whoever waits as told gets no more than burst plus rate times time, and, while it always asks, no less
// than rate times time.
func TestRate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Int64Range(1, 1<<40).Draw(t, "rate")
		burst := rapid.Int64Range(0, 1<<30).Draw(t, "burst")
		b := NewBucket(rate, burst)
		var now, idle time.Duration
		var passed int64
		for range rapid.IntRange(1, 50).Draw(t, "takes") {
			pause := time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "pause"))
			now += pause
			idle += pause
			n := rapid.Int64Range(1, 4<<20).Draw(t, "n")
			now += b.Take(now, n)
			passed += n
			may := float64(burst) + float64(rate)*(now+1).Seconds()
			if float64(passed) > may*(1+1e-9)+1 {
				t.Fatalf("%d units passed in %v; %g may", passed, now, may)
			}
		}
		if busy := now - idle; float64(passed) < float64(rate)*(busy-1).Seconds()*(1-1e-9)-1 {
			t.Fatalf("%d units passed in %v of waiting at %d a second", passed, busy, rate)
		}
	})
}
