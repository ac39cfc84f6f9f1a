package frontendtest

import (
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"unsafe"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
)

// Loop is a real loop whose buffers are counted, and can be made scarce.
type Loop struct {
	aio.Loop
	buffers counted
}

// NewLoop starts a loop that ends with the test. At that time no buffer may be out.
func NewLoop(t testing.TB) *Loop {
	t.Helper()
	r, err := ring.New(ring.Config{Node: "test", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatalf("make a loop: %v", err)
	}
	r.Start()
	l := &Loop{Loop: r}
	l.buffers.Buffers = r.Buffers()
	l.buffers.limit.Store(1 << 40)
	t.Cleanup(func() {
		if n := l.buffers.out.Load(); n != 0 {
			t.Errorf("%d bytes of buffers were not given back", n)
		}
		if err := r.Close(); err != nil {
			t.Errorf("close the loop: %v", err)
		}
	})
	return l
}

// Buffers implements aio.Loop.
func (l *Loop) Buffers() aio.Buffers { return &l.buffers }

// Limit makes Get return nil when n bytes are out. Any goroutine.
func (l *Loop) Limit(n int64) { l.buffers.limit.Store(n) }

type counted struct {
	aio.Buffers
	out, limit atomic.Int64
}

func (c *counted) Get(n int) []byte {
	if c.out.Load()+int64(n) > c.limit.Load() {
		return nil
	}
	b := c.Buffers.Get(n)
	if b != nil {
		c.out.Add(int64(cap(b)))
	}
	return b
}

func (c *counted) Put(b []byte) {
	c.out.Add(-int64(cap(b)))
	c.Buffers.Put(b)
}

func aligned(b []byte) bool { return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%4096 == 0 }
