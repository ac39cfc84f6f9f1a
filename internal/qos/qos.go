// Package qos limits rates. It is pure: the clock is passed in, and waiting is the caller's work.
package qos

import (
	"math"
	"math/bits"
	"time"
)

// Bucket is a token bucket: on average it lets rate units a second pass, and after a quiet time burst units at
// once. A unit is a byte, or an operation. The zero value, and a rate of 0 or less, limit nothing.
//
// What is taken is taken at once, also when there isn't enough: the bucket is in debt then, and the caller is told
// when the debt will be paid. So one request may be larger than the burst, and nobody starves.
//
// A Bucket isn't safe for concurrent use.
type Bucket struct {
	rate  int64 // units a second
	burst int64 // units
	// paid is the moment at which all that was taken will have been paid for. Invariant: after each Take
	// it is at most the burst's worth of time in the past.
	paid time.Duration
	rest uint64 // of the division that made paid, in units times nanoseconds; < rate
}

// NewBucket returns a full bucket.
func NewBucket(rate, burst int64) *Bucket {
	return &Bucket{rate: rate, burst: burst, paid: math.MinInt64}
}

// Take takes n units at the moment now, and returns how long the caller must wait before it goes on. now is
// read from a monotonic clock; an earlier one than in the last call is allowed and gives a longer wait.
func (b *Bucket) Take(now time.Duration, n int64) (wait time.Duration) {
	if b.rate <= 0 || n <= 0 {
		return 0
	}
	if full := b.full(now); b.paid < full {
		b.paid, b.rest = full, 0
	}
	cost, rest := b.cost(n, b.rest)
	b.rest = rest
	if b.paid > math.MaxInt64-cost {
		b.paid = math.MaxInt64
	} else {
		b.paid += cost
	}
	return b.Wait(now)
}

// Wait returns how long it takes at the moment now until all that was taken is paid for; 0 if it is.
func (b *Bucket) Wait(now time.Duration) time.Duration {
	switch {
	case b.rate <= 0 || b.paid <= now:
		return 0
	case now < 0 && b.paid > math.MaxInt64+now:
		return math.MaxInt64
	}
	return b.paid - now
}

// Set changes the limits from now on. What was taken before is paid for at the new rate.
func (b *Bucket) Set(now time.Duration, rate, burst int64) {
	if rate == b.rate && burst == b.burst {
		return
	}
	old := *b
	b.rate, b.burst, b.rest = rate, burst, 0
	if rate <= 0 || old.rate <= 0 || old.paid <= now {
		b.paid = min(old.paid, now)
		return
	}
	debt := float64(old.paid-now) * float64(old.rate) / float64(rate)
	b.paid = now + time.Duration(min(debt, math.MaxInt64/4))
}

// full is the moment such that a bucket that was paid for by then is full now.
func (b *Bucket) full(now time.Duration) time.Duration {
	worth, _ := b.cost(b.burst, 0)
	if now < math.MinInt64+worth {
		return math.MinInt64
	}
	return now - worth
}

// cost is how long n units take, with what was left over from the last division.
func (b *Bucket) cost(n int64, rest uint64) (time.Duration, uint64) {
	hi, lo := bits.Mul64(uint64(max(n, 0)), uint64(time.Second))
	lo, carry := bits.Add64(lo, rest, 0)
	hi += carry
	if hi >= uint64(b.rate) {
		return math.MaxInt64, 0
	}
	q, r := bits.Div64(hi, lo, uint64(b.rate))
	if q > math.MaxInt64 {
		return math.MaxInt64, 0
	}
	return time.Duration(q), r
}
