package volume_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// load keeps a number of requests of one kind in flight, and counts those that are answered.
type load struct {
	n     *node
	op    block.Op
	bytes int64
	done  int
	errs  int
	stop  bool
}

func (n *node) load(op block.Op, length int64, depth int) *load {
	l := &load{n: n, op: op}
	for i := range depth {
		r := &block.Request{Op: op, Off: int64(i) * length % size, Len: length}
		if op == block.OpRead || op == block.OpWrite {
			r.Data = n.loop.Buffers().Get(int(length))
		}
		r.Done = func(r *block.Request) {
			l.done++
			l.bytes += r.Len
			if r.Err != nil {
				l.errs++
			} else if !l.stop {
				n.vol.Submit(r)
			}
		}
		n.vol.Submit(r)
	}
	return l
}

func (n *node) limit(l spec.Limits) {
	rec := clone(n.c.rec)
	rec.Limits = l
	n.c.rev++
	n.c.rec = rec
	n.vol.Update(clone(rec), n.c.rev)
}

// near checks a rate against a limit. At the beginning a burst passes, and one request, of n units, on credit.
func near(t *testing.T, what string, got, limit, n int64, d time.Duration) {
	t.Helper()
	want := float64(limit) * d.Seconds()
	if got := float64(got); math.Abs(got-want) > 0.01*want+0.1*float64(limit)+float64(n) {
		t.Errorf("%s: %.0f in %v, the limit is %.0f", what, got, d, want)
	}
}

func TestLimits(t *testing.T) {
	const d = 10 * time.Second
	for _, x := range []struct {
		limits  spec.Limits
		op      block.Op
		length  int64
		depth   int
		perSec  int64
		inBytes bool
	}{
		{spec.Limits{IOPS: 100}, block.OpWrite, 4096, 32, 100, false},
		{spec.Limits{IOPS: 100}, block.OpRead, 4096, 1, 100, false},
		{spec.Limits{IOPS: 1500}, block.OpRead, 4096, 64, 1500, false},
		{spec.Limits{IOPS: 200}, block.OpTrim, 4 << 20, 4, 200, false},
		{spec.Limits{Bandwidth: 1 << 20}, block.OpWrite, 64 << 10, 16, 1 << 20, true},
		{spec.Limits{Bandwidth: 8 << 20}, block.OpRead, 1 << 20, 4, 8 << 20, true},
		{spec.Limits{ReadIOPS: 100}, block.OpRead, 4096, 8, 100, false},
		{spec.Limits{WriteBandwidth: 2 << 20}, block.OpWrite, 1 << 20, 3, 2 << 20, true},
		{spec.Limits{IOPS: 1000, WriteIOPS: 300}, block.OpWrite, 4096, 8, 300, false},
	} {
		t.Run(fmt.Sprintf("%v %v %d", x.limits, x.op, x.length), func(t *testing.T) {
			c := newCluster(t, 3, 2, 1)
			n1 := c.nodes["n1"]
			c.rec.Limits = x.limits
			n1.attach(repl.PrevDetached)
			l := n1.load(x.op, x.length, x.depth)
			c.w.RunFor(d)
			got, n := int64(l.done), int64(1)
			if x.inBytes {
				got, n = l.bytes, x.length
			}
			near(t, "rate", got, x.perSec, n, d)
			if l.errs > 0 {
				t.Errorf("%d errors", l.errs)
			}
			l.stop = true
			n1.limit(spec.Limits{})
			c.w.RunFor(time.Second)
			n1.detach()
		})
	}
}

// TestLimitsApart: a limit of writes doesn't hold reads, flushes are never held, and a limit of both is shared.
func TestLimitsApart(t *testing.T) {
	const d = 5 * time.Second
	c := newCluster(t, 4, 2, 1)
	n1 := c.nodes["n1"]
	c.rec.Limits = spec.Limits{WriteIOPS: 100}
	n1.attach(repl.PrevDetached)
	writes, reads, flushes := n1.load(block.OpWrite, 4096, 32), n1.load(block.OpRead, 4096, 1), n1.load(block.OpFlush, 0, 1)
	c.w.RunFor(d)
	near(t, "writes", int64(writes.done), 100, 1, d)
	if reads.done < 10*writes.done || flushes.done < 2*writes.done {
		t.Errorf("in the time of %d writes: %d reads, %d flushes", writes.done, reads.done, flushes.done)
	}

	// Limits change for what is held already, too.
	n1.limit(spec.Limits{IOPS: 100})
	writes.done, reads.done = 0, 0
	c.w.RunFor(d)
	near(t, "both", int64(writes.done+reads.done), 100, 1, d)
	if reads.done < 2*writes.done/3 || writes.done < 2*reads.done/3 {
		t.Errorf("%d reads and %d writes don't take turns", reads.done, writes.done)
	}
	n1.limit(spec.Limits{})
	writes.done = 0
	c.w.RunFor(d)
	if writes.done < 2000 {
		t.Errorf("%d writes without a limit", writes.done)
	}
	if writes.errs+reads.errs+flushes.errs > 0 {
		t.Error("requests failed")
	}
}

// TestLimitBurst: after a quiet time no more passes at once than in the burst's time.
func TestLimitBurst(t *testing.T) {
	c := newCluster(t, 5, 1, 1)
	n1 := c.nodes["n1"]
	c.rec.Limits = spec.Limits{IOPS: 1000}
	n1.attach(repl.PrevDetached)
	c.w.RunFor(time.Minute)
	l := n1.load(block.OpRead, 4096, 64)
	c.w.RunFor(time.Second)
	if l.done < 1000 || l.done > 1120 {
		t.Errorf("%d in the first second", l.done)
	}
}

// TestLimitsHoldNothing: what is held ends when the volume is detached, and when it is lost; what an engine before had begun isn't held.
func TestLimitsHoldNothing(t *testing.T) {
	for _, end := range []string{"detach", "lost"} {
		t.Run(end, func(t *testing.T) {
			c := newCluster(t, 6, 2, 1)
			n1 := c.nodes["n1"]
			c.rec.Limits = spec.Limits{Bandwidth: 1 << 20}
			n1.attach(repl.PrevDetached)
			l := n1.load(block.OpWrite, 1<<20, 16)
			l.stop = true
			c.w.RunFor(100 * time.Millisecond)
			if l.done > 2 {
				t.Fatalf("%d have passed", l.done)
			}
			if !n1.vol.Full() {
				t.Error("14 MiB are held, and it takes more")
			}
			ended := false
			r := &block.Request{Op: block.OpWrite, Len: 4096, Resent: true, Data: n1.loop.Buffers().Get(4096), Done: func(*block.Request) { ended = true }}
			n1.vol.Submit(r)
			c.w.RunFor(100 * time.Millisecond)
			if !ended || r.Err != nil {
				t.Error("a change that is executed again was held")
			}
			before := c.w.Now()
			if end == "lost" {
				n1.vol.Stop()
				c.w.RunFor(100 * time.Millisecond)
				if n1.vol.Full() || l.done != 16 || l.errs < 14 {
					t.Errorf("%d were answered, %d failed", l.done, l.errs)
				}
				return
			}
			n1.detach()
			if took := c.w.Now() - before; n1.vol.Full() || l.done != 16 || l.errs > 0 || took > 2*time.Second {
				t.Errorf("%d were answered, %d failed, in %v", l.done, l.errs, took)
			}
		})
	}
}
