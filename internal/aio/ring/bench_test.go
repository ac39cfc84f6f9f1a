package ring_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
)

// cpu is the processor time that the process has used.
func cpu() time.Duration {
	var ru unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &ru)
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// measured runs n operations by run and reports processor time an operation.
func measured(b *testing.B, run func(n int)) {
	run(500) // warm up
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu()
	run(b.N)
	b.StopTimer()
	b.ReportMetric(float64(cpu()-before)/float64(b.N)/1000, "cpu-µs/op")
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
}

// allocations is the number of heap allocations an operation, n being done by run.
func allocations(run func(n int)) float64 {
	const n = 20000
	run(2000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	run(n)
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / n
}

// fileRunner writes 4 KiB blocks, depth in flight, n in all.
func fileRunner(tb testing.TB, l *ring.Loop, depth int) func(n int) {
	f, err := l.FS().OpenFile(tb.TempDir()+"/f", os.O_CREATE)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close(); f.Close() })
	const blocks = 4096
	fill := make(chan struct{})
	l.Post(func() {
		op, b, at := &aio.Op{}, l.Buffers().Get(1<<20), int64(0)
		op.Done = func(int, error) {
			if at += 1 << 20; at == blocks*4096 {
				l.Buffers().Put(b)
				close(fill)
				return
			}
			f.WriteAt(op, b, at)
		}
		f.WriteAt(op, b, at)
	})
	wait(tb, fill, "the file")
	left, flying, at := 0, 0, uint32(1)
	var done chan struct{}
	var ops []*aio.Op
	var bufs [][]byte
	next := func(i int) {
		left--
		flying++
		at = at*1664525 + 1013904223
		f.WriteAt(ops[i], bufs[i], int64(at>>8%blocks)*4096)
	}
	for i := range depth {
		ops = append(ops, &aio.Op{Done: func(_ int, err error) {
			if err != nil {
				tb.Error(err)
			}
			flying--
			if left > 0 {
				next(i)
			} else if flying == 0 {
				close(done)
			}
		}})
	}
	on(tb, l, func() {
		for range depth {
			bufs = append(bufs, l.Buffers().Get(4096))
		}
	})
	return func(n int) {
		done = make(chan struct{})
		l.Post(func() {
			left = n
			for i := 0; i < depth && left > 0; i++ {
				next(i)
			}
		})
		<-done
	}
}

const frameHead = 64

// answerer consumes frames of its size and answers each with its header.
type answerer int

func (answerer) Opened(aio.Conn)        {}
func (answerer) Closed(aio.Conn, error) {}
func (size answerer) Data(c aio.Conn, p []byte) int {
	n := 0
	for ; len(p)-n >= int(size); n += int(size) {
		c.Write(p[n : n+frameHead])
	}
	return n
}

// asker keeps frames in flight.
type asker struct {
	tb           testing.TB
	c            aio.Conn
	frame        []byte
	left, flying int
	opened, done chan struct{}
}

func (a *asker) Opened(c aio.Conn)      { a.c = c; close(a.opened) }
func (a *asker) Closed(aio.Conn, error) {}
func (a *asker) Data(c aio.Conn, p []byte) int {
	n := 0
	for ; len(p)-n >= frameHead; n += frameHead {
		a.flying--
		if a.left > 0 {
			a.send()
		} else if a.flying == 0 {
			close(a.done)
		}
	}
	return n
}

func (a *asker) send() {
	a.left--
	a.flying++
	binary.LittleEndian.PutUint64(a.frame, uint64(a.left))
	a.c.Write(a.frame)
}

// connRunner sends frames of data bytes and a header from one loop to another, depth in
// flight, and gets a header back for each.
func connRunner(tb testing.TB, secure bool, data, depth int) func(n int) {
	auth := newAuthority(tb)
	loops := [2]*ring.Loop{}
	for i := range loops {
		cfg := ring.Config{Node: fmt.Sprintf("node-%d", i)}
		if secure {
			auth.secure(&cfg)
		}
		loops[i] = newLoop(tb, cfg)
	}
	on(tb, loops[1], func() { loops[1].OnAccept(func(aio.Conn) aio.ConnHandler { return answerer(frameHead + data) }) })
	a := &asker{tb: tb, frame: make([]byte, frameHead+data), opened: make(chan struct{})}
	addr := listen(tb, loops[1]).Addr().String()
	loops[0].Post(func() { loops[0].Dial("node-1", addr, 0, a) })
	wait(tb, a.opened, "the connection")
	return func(n int) {
		a.done = make(chan struct{})
		loops[0].Post(func() {
			a.left = n
			for i := 0; i < depth && a.left > 0; i++ {
				a.send()
			}
		})
		<-a.done
	}
}

func BenchmarkFileWrite(b *testing.B) {
	for _, depth := range []int{1, 32} {
		for _, spin := range []time.Duration{0, 60 * time.Microsecond} {
			b.Run(fmt.Sprintf("depth=%d/spin=%v", depth, spin), func(b *testing.B) {
				measured(b, fileRunner(b, newLoop(b, ring.Config{Spin: spin}), depth))
			})
		}
	}
}

func BenchmarkConn(b *testing.B) {
	for _, c := range []struct{ data, depth int }{{4 << 10, 1}, {4 << 10, 32}, {1 << 20, 8}} {
		for _, mode := range []string{"plain", "tls"} {
			b.Run(fmt.Sprintf("%s/data=%dk/depth=%d", mode, c.data>>10, c.depth), func(b *testing.B) {
				measured(b, connRunner(b, mode == "tls", c.data, c.depth))
			})
		}
	}
}

// TestNoAllocations: I/O in the steady state doesn't touch the heap.
func TestNoAllocations(t *testing.T) {
	for _, c := range []struct {
		name string
		most float64
		run  func(n int)
	}{
		{"file", 0.02, fileRunner(t, newLoop(t, ring.Config{}), 16)},
		{"plain connection", 0.02, connRunner(t, false, 4096, 16)},
		{"TLS connection", 0.02, connRunner(t, true, 4096, 16)},
	} {
		if a := allocations(c.run); a > c.most {
			t.Errorf("%s: %.3f allocations an operation", c.name, a)
		}
	}
	l := newLoop(t, ring.Config{})
	timers := func(n int) {
		done := make(chan struct{})
		l.Post(func() {
			var tm aio.Timer
			tm = l.NewTimer(func() {
				if n--; n == 0 {
					close(done)
					return
				}
				tm.Reset(0)
			})
			tm.Reset(0)
		})
		<-done
	}
	if a := allocations(timers); a > 0.02 {
		t.Errorf("timers: %.3f allocations an operation", a)
	}
}
