// Package frontendtest is the suite that every frontend must pass, with what it
// needs: a device in memory, a loop that counts buffers, and the Client that a
// frontend's tests provide. It is imported by tests only.
package frontendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
)

// Client uses a volume through a frontend. Its methods may be called by several
// goroutines at once. Buffers are page-aligned. Errors are or wrap syscall.Errno.
type Client interface {
	Size() int64
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64, fua bool) error
	Flush() error
	Trim(off, n int64) error
	Zero(off, n int64) error
	Close() error
}

// Factory makes what is tested.
type Factory struct {
	// Make returns an open frontend for the device. The suite closes it.
	Make func(t *testing.T, loop aio.Loop, dev frontend.Device, volume string) frontend.Frontend
	// Dial returns a client of the frontend.
	Dial func(t *testing.T, f frontend.Frontend) Client
	// Gone checks that nothing of an ended frontend is left on the host.
	Gone func(t *testing.T, f frontend.Frontend, path string)
}

const size = 64 << 20

// Run runs the suite.
func Run(t *testing.T, f Factory) {
	tests := []struct {
		name string
		run  func(*testing.T, *fixture)
	}{
		{"Size", testSize},
		{"ReadWrite", testReadWrite},
		{"Flush", testFlush},
		{"FUA", testFUA},
		{"TrimZero", testTrimZero},
		{"OutOfRange", testOutOfRange},
		{"Large", testLarge},
		{"RandomVerify", testRandomVerify},
		{"Errors", testErrors},
		{"FewBuffers", testFewBuffers},
		{"CloseInFlight", testCloseInFlight},
		{"BusyDetach", testBusyDetach},
		{"DetachLeavesNothing", testDetachLeavesNothing},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			loop := NewLoop(t)
			x := &fixture{Factory: f, loop: loop, dev: NewDevice(loop, size)}
			x.front = f.Make(t, loop, x.dev, "vol")
			t.Cleanup(func() {
				if err := x.front.Close(); err != nil {
					t.Errorf("close: %v", err)
				}
				if n := x.dev.Wrong(); n > 0 {
					t.Errorf("%d requests broke the rules of block.Request", n)
				}
			})
			tc.run(t, x)
		})
	}
}

// fixture is a frontend over a device in memory.
type fixture struct {
	Factory
	loop  *Loop
	dev   *Device
	front frontend.Frontend
}

func (x *fixture) dial(t *testing.T) Client {
	t.Helper()
	c := x.Dial(t, x.front)
	t.Cleanup(func() { c.Close() })
	return c
}

// Aligned returns n bytes that begin at a page.
func Aligned(n int) []byte {
	b := make([]byte, n+4096)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & 4095
	return b[skip : skip+n : skip+n]
}

// pattern returns n bytes that differ from block to block and from seed to seed.
func pattern(n int, seed uint64) []byte {
	b := Aligned(n)
	r := rand.NewPCG(seed, 1)
	for i := 0; i < n; i += 8 {
		v := r.Uint64()
		for k := range 8 {
			b[i+k] = byte(v >> (8 * k))
		}
	}
	return b
}

func must(t *testing.T, err error, what string) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func testSize(t *testing.T, x *fixture) {
	if got := x.dial(t).Size(); got != size {
		t.Errorf("size is %d, want %d", got, size)
	}
}

func testReadWrite(t *testing.T, x *fixture) {
	c := x.dial(t)
	for i, at := range []struct{ off, n int64 }{
		{0, 4096}, {4096, 8192}, {size - 4096, 4096}, {1 << 20, 65536}, {3 << 20, 1 << 20}, {12288, 128 << 10}, {5<<20 + 4096, 20480},
	} {
		want := pattern(int(at.n), uint64(i))
		must(t, c.WriteAt(want, at.off, false), "write")
		if !x.dev.Contains(want, at.off) {
			t.Fatalf("[%d, +%d) isn't on the device after it was written", at.off, at.n)
		}
		got := Aligned(int(at.n))
		must(t, c.ReadAt(got, at.off), "read")
		if !bytes.Equal(got, want) {
			t.Fatalf("[%d, +%d) reads as something else than was written", at.off, at.n)
		}
	}
	got := Aligned(65536)
	must(t, c.ReadAt(got, 32<<20), "read what was never written")
	if !block.IsZero(got) {
		t.Error("what was never written doesn't read as zeros")
	}
}

func testFlush(t *testing.T, x *fixture) {
	c := x.dial(t)
	for i := range int64(16) {
		must(t, c.WriteAt(pattern(8192, uint64(i)), i*65536, false), "write")
	}
	must(t, c.Flush(), "flush")
	if n := x.dev.Dirty(); n != 0 {
		t.Errorf("%d blocks aren't durable after a flush", n)
	}
}

func testFUA(t *testing.T, x *fixture) {
	c := x.dial(t)
	for i, n := range []int{4096, 256 << 10} {
		must(t, c.WriteAt(pattern(n, 1), int64(i)<<20, true), "write with FUA")
		if n := x.dev.Dirty(); n != 0 {
			t.Errorf("%d blocks aren't durable after a write with FUA", n)
		}
	}
}

func testTrimZero(t *testing.T, x *fixture) {
	c := x.dial(t)
	want := pattern(4<<20, 7)
	must(t, c.WriteAt(want[:1<<20], 0, false), "write")
	must(t, c.WriteAt(want[1<<20:], 1<<20, false), "write")
	must(t, c.Trim(1<<20, 1<<20), "trim")
	must(t, c.Zero(2<<20+4096, 8192), "zero")
	clear(want[1<<20 : 2<<20])
	clear(want[2<<20+4096:][:8192])
	got := Aligned(1 << 20)
	for off := 0; off < len(want); off += len(got) {
		must(t, c.ReadAt(got, int64(off)), "read")
		if !bytes.Equal(got, want[off:off+len(got)]) {
			t.Errorf("[%d, +%d) is wrong after trim and zero", off, len(got))
		}
	}
	must(t, c.Trim(0, size), "trim everything")
	must(t, c.ReadAt(got, 0), "read")
	if !block.IsZero(got) {
		t.Error("trimmed data doesn't read as zeros")
	}
}

func testOutOfRange(t *testing.T, x *fixture) {
	c := x.dial(t)
	p := pattern(8192, 3)
	if c.WriteAt(p, size, false) == nil {
		t.Error("a write behind the end succeeded")
	}
	if c.Trim(size-4096, 8192) == nil {
		t.Error("a trim over the end succeeded")
	}
	if c.ReadAt(p, size+4096) == nil {
		t.Error("a read behind the end succeeded")
	}
	must(t, c.ReadAt(p[:4096], size-4096), "read of the last block after requests out of range")
}

func testLarge(t *testing.T, x *fixture) {
	c := x.dial(t)
	want := pattern(8<<20+12288, 11)
	must(t, c.WriteAt(want, 4096, false), "large write")
	got := Aligned(len(want))
	must(t, c.ReadAt(got, 4096), "large read")
	if !bytes.Equal(got, want) {
		t.Error("a large transfer was corrupted")
	}
	if n := x.dev.Largest(); n > block.MaxIO {
		t.Errorf("the device saw a request of %d bytes; %d is the limit", n, block.MaxIO)
	}
}

// testRandomVerify has 32 workers, each with a part of the volume of its own, write, trim
// and verify at random.
func testRandomVerify(t *testing.T, x *fixture) { randomVerify(t, x.dial(t), x.dev, 100) }

func randomVerify(t *testing.T, c Client, dev *Device, rounds int) {
	t.Helper()
	OnLoop(dev.loop, func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		dev.Delay = func(*block.Request) time.Duration {
			return time.Duration(rnd.IntN(3)) * 50 * time.Microsecond
		}
	})
	const workers = 32
	const part = size / workers
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range int64(workers) {
		wg.Go(func() { errs <- worker(c, w*part, part, uint64(w), rounds) })
	}
	wg.Wait()
	for range workers {
		must(t, <-errs, "worker")
	}
}

func worker(c Client, base, part int64, seed uint64, rounds int) error {
	r := rand.New(rand.NewPCG(seed, 99))
	want := make([]byte, part)
	buf := Aligned(256 << 10)
	for round := range rounds {
		n := 4096 * (1 + r.Int64N(4))
		if r.IntN(10) == 0 {
			n = 4096 * (1 + r.Int64N(64))
		}
		off := 4096 * r.Int64N((part-n)/4096+1)
		p := buf[:n]
		switch k := r.IntN(10); {
		case k == 0:
			if err := c.Trim(base+off, n); err != nil {
				return fmt.Errorf("trim: %w", err)
			}
			clear(want[off : off+n])
		case k < 6:
			copy(p, pattern(int(n), seed<<32|uint64(round)))
			copy(want[off:], p)
			if err := c.WriteAt(p, base+off, k == 1); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		default:
			if err := c.ReadAt(p, base+off); err != nil {
				return fmt.Errorf("read: %w", err)
			}
			if !bytes.Equal(p, want[off:off+n]) {
				return fmt.Errorf("round %d: [%d, +%d) isn't what was written last", round, base+off, n)
			}
		}
	}
	return nil
}

func testErrors(t *testing.T, x *fixture) {
	c := x.dial(t)
	p := pattern(65536, 5)
	fail := func(op block.Op, err error) {
		x.dev.FailWith(func(r *block.Request) error {
			if r.Op == op {
				return err
			}
			return nil
		})
	}
	expect := func(what string, got error, want syscall.Errno) {
		t.Helper()
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	fail(block.OpWrite, syscall.EIO)
	expect("failed write", c.WriteAt(p, 0, false), syscall.EIO)
	fail(block.OpWrite, syscall.ENOSPC)
	expect("write without space", c.WriteAt(p, 0, false), syscall.ENOSPC)
	fail(block.OpRead, syscall.EIO)
	expect("failed read", c.ReadAt(p, 0), syscall.EIO)
	fail(block.OpTrim, syscall.EIO)
	expect("failed trim", c.Trim(0, 65536), syscall.EIO)
	fail(block.OpFlush, syscall.EIO)
	expect("failed flush", c.Flush(), syscall.EIO)
	fail(0, nil)
	must(t, c.WriteAt(p, 0, false), "write after errors")
	must(t, c.ReadAt(p, 0), "read after errors")
	must(t, c.Flush(), "flush after errors")
}

// testFewBuffers leaves memory for a few requests only: everything still completes.
func testFewBuffers(t *testing.T, x *fixture) {
	x.loop.Limit(2<<20 + 512<<10)
	c := x.dial(t)
	randomVerify(t, c, x.dev, 30)
	OnLoop(x.loop, func() { x.dev.Delay = nil })
	want := pattern(4<<20, 21)
	must(t, c.WriteAt(want, 0, false), "large write")
	got := Aligned(len(want))
	must(t, c.ReadAt(got, 0), "large read")
	if !bytes.Equal(got, want) {
		t.Error("a large transfer was corrupted")
	}
}

func testCloseInFlight(t *testing.T, x *fixture) {
	c := x.dial(t)
	OnLoop(x.loop, func() { x.dev.Hold = true })
	const n = 8
	results := make(chan error, n)
	for i := range int64(n) {
		go func() {
			if i%2 == 0 {
				results <- c.WriteAt(pattern(4096, 1), i<<20, false)
			} else {
				results <- c.ReadAt(Aligned(4096), i<<20)
			}
		}()
	}
	await(t, "requests at the device", func() bool { return x.dev.Held() == n })
	closed := make(chan error)
	go func() { closed <- x.front.Close() }()
	for range n {
		if err := <-results; err == nil {
			t.Error("a request that the device never answered succeeded")
		}
	}
	select {
	case <-closed:
		t.Error("Close returned while requests were at the device")
		x.dev.Release(syscall.ESHUTDOWN)
	default:
		x.dev.Release(syscall.ESHUTDOWN)
		must(t, <-closed, "close")
	}
	must(t, x.front.Close(), "close again")
}

// await polls for what another process or the kernel does.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func testBusyDetach(t *testing.T, x *fixture) {
	c := x.Dial(t, x.front)
	must(t, c.WriteAt(pattern(4096, 1), 0, false), "write")
	err := x.front.InUse()
	var busy *frontend.BusyError
	if !errors.Is(err, frontend.ErrBusy) || !errors.As(err, &busy) || busy.By == "" || busy.Volume != "vol" {
		t.Errorf("InUse says %v, want a BusyError that says who", err)
	}
	if err := x.front.Detach(); !errors.Is(err, frontend.ErrBusy) {
		t.Errorf("Detach of a volume in use: %v, want ErrBusy", err)
	}
	must(t, c.WriteAt(pattern(4096, 2), 4096, false), "write after a refused detach")
	must(t, c.Close(), "close the client")
	await(t, "the end of the use", func() bool { return x.front.InUse() == nil })
	must(t, x.front.Detach(), "detach")
}

func testDetachLeavesNothing(t *testing.T, x *fixture) {
	c := x.Dial(t, x.front)
	want := pattern(65536, 9)
	must(t, c.WriteAt(want, 8192, false), "write")
	must(t, c.Close(), "close the client")
	path := x.front.Path()
	await(t, "the end of the use", func() bool { return x.front.InUse() == nil })
	must(t, x.front.Detach(), "detach")
	x.Gone(t, x.front, path)
	must(t, x.front.Detach(), "detach again")
	must(t, x.front.Close(), "close after detach")
	if !x.dev.Contains(want, 8192) {
		t.Error("what was written before the detach isn't there")
	}
}
