package fuseloop

import (
	"slices"
	"sync"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend/frontendtest"
)

// transferRequest is a READ, or a WRITE of zeros, of one block.
func transferRequest(op uint32, unique uint64, off int64) []byte {
	b := make([]byte, headLen)
	if op == opWrite {
		b = make([]byte, headLen+block.Size)
	}
	order.PutUint32(b, uint32(len(b)))
	order.PutUint32(b[4:], op)
	order.PutUint64(b[8:], unique)
	order.PutUint64(b[16:], fileNode)
	order.PutUint64(b[inHeaderLen+8:], uint64(off))
	order.PutUint32(b[inHeaderLen+16:], block.Size)
	return b
}

// TestResentChangesFirst: what the kernel resends in any order reaches the device with what changes data first, and marked; then come
// reads, and what is new.
func TestResentChangesFirst(t *testing.T) {
	kernel, dev := socketSession(t, true)
	var mu sync.Mutex
	var got []block.Request
	dev.FailWith(func(r *block.Request) error {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, block.Request{Op: r.Op, Off: r.Off, Resent: r.Resent})
		return nil
	})
	// A burst: whoever looks between two requests may take it that all were resent, as of the kernel they come at once.
	frontendtest.OnLoop(dev.Loop(), func() {
		send(t, kernel, transferRequest(opRead, 2|resentBit, 0))
		send(t, kernel, transferRequest(opWrite, 4|resentBit, block.Size))
		send(t, kernel, transferRequest(opRead, 6|resentBit, 2*block.Size))
		send(t, kernel, transferRequest(opWrite, 8|resentBit, 3*block.Size))
		send(t, kernel, transferRequest(opWrite, 10, 4*block.Size))
	})
	for range 5 {
		receive(t, kernel)
	}
	mu.Lock()
	defer mu.Unlock()
	last := slices.IndexFunc(got, func(r block.Request) bool { return r.Op == block.OpRead })
	for i, r := range got {
		if r.Resent != (r.Off != 4*block.Size) {
			t.Errorf("request at %d: resent %v", r.Off, r.Resent)
		}
		if r.Resent && r.Op == block.OpWrite && i > last {
			t.Errorf("the resent write at %d came after a read: %v", r.Off, got)
		}
	}
}

// TestAsManyResentReadsAsThereMayBe: they are answered, although nothing ever comes behind them.
func TestAsManyResentReadsAsThereMayBe(t *testing.T) {
	kernel, _ := socketSession(t, true)
	go func() {
		for i := range uint64(maxInFlight) {
			send(t, kernel, transferRequest(opRead, 2*i|resentBit, 0))
		}
	}()
	seen := map[uint64]bool{}
	for range maxInFlight {
		seen[receive(t, kernel)] = true
	}
	if len(seen) != maxInFlight {
		t.Errorf("%d of %d were answered", len(seen), maxInFlight)
	}
}
