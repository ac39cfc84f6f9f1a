// Package alloc bounds, for tests and fuzzing, what a call allocates: a decoder that believes a length before it has seen the
// bytes allocates without bound. It owns no goroutine.
package alloc

import (
	"runtime/metrics"
	"testing"
)

// slack is what the runtime, the log and other goroutines may allocate meanwhile, in bytes. Small allocations are
// counted only when their span is used up.
const slack = 1 << 20

// Bounded fails the test if fn allocates more than limit bytes on the heap, beyond a slack of a mebibyte.
func Bounded(t testing.TB, limit int, fn func()) {
	t.Helper()
	before := allocated()
	fn()
	if n := allocated() - before; n > uint64(limit)+slack {
		t.Fatalf("%d bytes were allocated; the bound is %d", n, limit)
	}
}

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}
