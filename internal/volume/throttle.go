package volume

import (
	"syscall"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/qos"
	"keelson.io/keelson/internal/spec"
)

// Times of limits.
const (
	// limitBurst is for how long a volume that was quiet may go without a limit: what it didn't use in that time. It also makes
	// up for timers that are late.
	limitBurst = 100 * time.Millisecond
	// limitGrain is the shortest wait: at high limits, requests are let through in small groups instead of one by one.
	limitGrain = 500 * time.Microsecond
	// heldEnough is how many bytes of data are held at the most before the frontend is to stop taking requests in.
	heldEnough = 8 << 20
)

// throttle holds requests back that the volume's limits don't let pass yet. They wait before anything of theirs has begun: they hold no
// range, no checkpoint, no member and no other volume.
//
// A read or write counts as one request and its bytes; a trim, or zeroing, as one request that writes and no bytes. Flushes are
// neither counted nor held, nor are the coordinator's own requests. Changes that an engine before this one had begun are counted, and go on
// at once.
//
// Reads and changes wait apart, each in order; where both want the same, they take turns. A request passes when all that
// passed before it is paid for, whatever its size: so none waits for ever.
//
// Invariant: if anything waits, the timer is armed.
type throttle struct {
	v       *Volume
	rates   spec.Limits
	buckets [3]buckets  // of both, of reads, of changes
	waiting [2]reqQueue // reads, changes
	held    int         // in both
	bytes   int64       // of data, in both
	turn    int         // which of the two goes first
	timer   aio.Timer
}

// buckets limit one kind of requests.
type buckets struct{ requests, bytes qos.Bucket }

func (t *throttle) init(v *Volume) {
	t.v = v
	t.timer = v.loop.NewTimer(t.run)
	t.follow()
}

// follow takes the limits of the record.
func (t *throttle) follow() {
	l := t.v.rec.Limits
	if l == t.rates {
		return
	}
	t.rates = l
	now := t.v.loop.Now()
	set := func(b *qos.Bucket, rate int64) {
		b.Set(now, rate, max(1, rate*int64(limitBurst/time.Millisecond)/1000))
	}
	for i, r := range [3][2]int64{{l.IOPS, l.Bandwidth}, {l.ReadIOPS, l.ReadBandwidth}, {l.WriteIOPS, l.WriteBandwidth}} {
		set(&t.buckets[i].requests, r[0])
		set(&t.buckets[i].bytes, r[1])
	}
	t.run()
}

// pass begins a request now or when the limits let it.
func (t *throttle) pass(r *block.Request) {
	switch {
	case t.rates == spec.Limits{} || r.Op == block.OpFlush:
		t.v.begin(r)
	case r.Resent || t.v.phase != serving:
		t.charge(r)
		t.v.begin(r)
	default:
		t.waiting[side(r)].push(r)
		t.held++
		t.bytes += int64(len(r.Data))
		t.run()
	}
}

// side is 0 for reads and 1 for changes.
func side(r *block.Request) int {
	if r.Op == block.OpRead {
		return 0
	}
	return 1
}

// run lets pass what may.
func (t *throttle) run() {
	for t.held > 0 {
		wait := time.Duration(-1)
		for i := range 2 {
			s := t.turn ^ i
			if t.waiting[s].head == nil {
				continue
			}
			if w := t.wait(s); w > 0 {
				if wait < 0 || w < wait {
					wait = w
				}
				continue
			}
			r := t.waiting[s].pop()
			t.held--
			t.bytes -= int64(len(r.Data))
			t.turn = s ^ 1
			t.charge(r)
			t.v.begin(r)
			wait = -1
			break
		}
		if wait > 0 {
			t.v.Stats.Held++
			t.timer.Reset(max(wait, limitGrain))
			return
		}
	}
	t.timer.Stop()
}

// wait is how long a request of that side has to wait; 0 if it may pass.
func (t *throttle) wait(side int) time.Duration {
	now := t.v.loop.Now()
	all, own := &t.buckets[0], &t.buckets[1+side]
	return max(all.requests.Wait(now), all.bytes.Wait(now), own.requests.Wait(now), own.bytes.Wait(now))
}

// charge counts a request against the limits.
func (t *throttle) charge(r *block.Request) {
	now := t.v.loop.Now()
	n := r.Len
	if r.Op != block.OpRead && r.Op != block.OpWrite {
		n = 0
	}
	for _, b := range []*buckets{&t.buckets[0], &t.buckets[1+side(r)]} {
		b.requests.Take(now, 1)
		b.bytes.Take(now, n)
	}
}

// Full reports whether the volume's limits hold so much data back that its frontend should take no more requests in for now. It must be called on the loop.
func (v *Volume) Full() bool { return v.limits.bytes >= heldEnough }

// release begins all that is held: the volume is being detached, which waits for them.
func (t *throttle) release() {
	t.timer.Stop()
	for i := range t.waiting {
		for r := t.waiting[i].pop(); r != nil; r = t.waiting[i].pop() {
			t.held--
			t.bytes -= int64(len(r.Data))
			t.v.begin(r)
		}
	}
	invariant.Check(t.held == 0 && t.bytes == 0, "requests are held that are in no queue")
}

// fail ends all that is held: the volume is lost.
func (t *throttle) fail() {
	t.timer.Stop()
	t.held, t.bytes = 0, 0
	for i := range t.waiting {
		for r := t.waiting[i].pop(); r != nil; r = t.waiting[i].pop() {
			r.Err = syscall.EIO
			t.v.loop.Post(func() { r.Done(r) })
		}
	}
}
