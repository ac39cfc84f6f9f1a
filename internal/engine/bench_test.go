package engine_test

import (
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
)

// benchmark keeps depth requests of n bytes in flight on a written volume with two copies, one of them remote. It reports what
// processor time all of it takes, of both nodes.
func benchmark(b *testing.B, op block.Op, depth int, n int64, fua, encrypted bool) {
	c := newCluster(b, "a", "b")
	const size = 128 << 20
	id := c.volume("bench", size, 1, "a", "b")
	if encrypted {
		c.encrypt(id)
	}
	at, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"})
	if err != nil {
		b.Fatal(err)
	}
	d := c.nodes["a"].disks.get(at.Device)
	d.load(block.OpWrite, 8, mib, size/mib, false, func(i int64) int64 { return i * mib })
	if err := d.do(block.OpFlush, 0, 0, false, nil, nil); err != nil {
		b.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	random := func(int64) int64 { return rnd.Int64N(size/n) * n }
	d.load(op, depth, n, 5000, fua, random)
	b.SetBytes(n)
	b.ReportAllocs()
	before := cpuTime(b)
	b.ResetTimer()
	d.load(op, depth, n, int64(b.N), fua, random)
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(time.Microsecond)/float64(b.N), "cpu-µs/op")
}

// cpuTime is the processor time of this process so far.
func cpuTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// load does count requests with depth in flight.
func (d *disk) load(op block.Op, depth int, n, count int64, fua bool, where func(i int64) int64) {
	done := make(chan struct{})
	l := d.p.Loop
	l.Post(func() {
		next, left := int64(0), count
		for range min(int64(depth), count) {
			r := &block.Request{Op: op, Len: n, FUA: fua, Data: l.Buffers().Get(int(n))}
			pattern(r.Data, next, 1)
			submit := func() {
				r.Off = where(next)
				next++
				d.p.Device.Submit(r)
			}
			r.Done = func(*block.Request) {
				if r.Err != nil {
					panic(r.Err)
				}
				if left--; left == 0 {
					close(done)
				}
				if next < count {
					submit()
				} else {
					l.Buffers().Put(r.Data)
				}
			}
			submit()
		}
	})
	<-done
}

func BenchmarkVolume(b *testing.B) {
	for _, x := range []struct {
		name  string
		op    block.Op
		depth int
		n     int64
		fua   bool
	}{
		{"write/4K/32", block.OpWrite, 32, 4096, false},
		{"write/4K/1", block.OpWrite, 1, 4096, false},
		{"write+fua/4K/1", block.OpWrite, 1, 4096, true},
		{"read/4K/32", block.OpRead, 32, 4096, false},
		{"write/1M/8", block.OpWrite, 8, 1 << 20, false},
		{"read/1M/8", block.OpRead, 8, 1 << 20, false},
	} {
		b.Run(x.name, func(b *testing.B) { benchmark(b, x.op, x.depth, x.n, x.fua, false) })
		b.Run(x.name+"/encrypted", func(b *testing.B) { benchmark(b, x.op, x.depth, x.n, x.fua, true) })
	}
}
