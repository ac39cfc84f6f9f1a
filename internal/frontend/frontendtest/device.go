package frontendtest

import (
	"sync/atomic"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
)

// Device is a frontend.Device in memory. All of it is on the loop; the exported functions
// that say so may be used elsewhere.
type Device struct {
	// Delay, if set, says how long a request takes. Set it with OnLoop.
	Delay func(*block.Request) time.Duration
	// Hold keeps every request until it is false again and Release was called. Set it
	// with OnLoop.
	Hold bool

	loop  aio.Loop
	fail  func(*block.Request) error
	data  []byte
	dirty map[int64]bool // blocks that were answered and aren't durable
	held  []*block.Request
	turn  aio.Timer
	head  *block.Request // to be answered in the next turn
	tail  *block.Request

	requests atomic.Int64
	largest  atomic.Int64
	wrong    atomic.Int64
}

// NewDevice returns a device of size bytes of zeros.
func NewDevice(loop aio.Loop, size int64) *Device {
	d := &Device{loop: loop, data: make([]byte, size), dirty: map[int64]bool{}}
	OnLoop(loop, func() { d.turn = loop.NewTimer(d.answer) })
	return d
}

// OnLoop runs fn on the loop and waits for it. Not to be called on the loop.
func OnLoop(loop aio.Loop, fn func()) {
	done := make(chan struct{})
	loop.Post(func() { fn(); close(done) })
	<-done
}

// Loop is the device's loop. Any goroutine.
func (d *Device) Loop() aio.Loop { return d.loop }

// Size implements frontend.Device.
func (d *Device) Size() int64 { return int64(len(d.data)) }

// Requests is how many requests were submitted. Any goroutine.
func (d *Device) Requests() int64 { return d.requests.Load() }

// Largest is the length of the largest read or write. Any goroutine.
func (d *Device) Largest() int64 { return d.largest.Load() }

// Wrong is how many requests broke the rules of block.Request. Any goroutine.
func (d *Device) Wrong() int64 { return d.wrong.Load() }

// FailWith sets what says how a request ends: nil for normally. Any goroutine but the loop's.
func (d *Device) FailWith(fail func(*block.Request) error) {
	OnLoop(d.loop, func() { d.fail = fail })
}

// Dirty is how many blocks were answered and aren't durable. Any goroutine but the loop's.
func (d *Device) Dirty() (n int) {
	OnLoop(d.loop, func() { n = len(d.dirty) })
	return n
}

// Held is how many requests Hold keeps. Any goroutine but the loop's.
func (d *Device) Held() (n int) {
	OnLoop(d.loop, func() { n = len(d.held) })
	return n
}

// Release ends Hold with err for everything that it kept. Any goroutine but the loop's.
func (d *Device) Release(err error) {
	OnLoop(d.loop, func() {
		d.Hold = false
		for _, r := range d.held {
			r.Err = err
			d.queue(r)
		}
		d.held = nil
	})
}

// Contains reports whether the device holds p at off. Any goroutine but the loop's.
func (d *Device) Contains(p []byte, off int64) (same bool) {
	OnLoop(d.loop, func() { same = string(d.data[off:off+int64(len(p))]) == string(p) })
	return same
}

// Submit implements frontend.Device.
func (d *Device) Submit(r *block.Request) {
	d.requests.Add(1)
	d.check(r)
	r.Err = nil
	if d.fail != nil {
		r.Err = d.fail(r)
	}
	if d.Hold {
		d.held = append(d.held, r)
		return
	}
	if d.Delay != nil {
		if t := d.Delay(r); t > 0 {
			d.loop.NewTimer(func() { d.execute(r); r.Done(r) }).Reset(t)
			return
		}
	}
	d.queue(r)
}

// check counts a request that a frontend must not make.
func (d *Device) check(r *block.Request) {
	bad := frontend.Check(r.Op, r.Off, r.Len, d.Size()) != 0
	switch r.Op {
	case block.OpRead, block.OpWrite:
		d.largest.Store(max(d.largest.Load(), r.Len))
		bad = bad || r.Len == 0 || r.Len > block.MaxIO || int64(len(r.Data)) != r.Len || !aligned(r.Data)
	case block.OpTrim, block.OpZero:
		bad = bad || r.Len == 0
	case block.OpFlush:
	default:
		bad = true
	}
	if bad {
		d.wrong.Add(1)
	}
}

func (d *Device) queue(r *block.Request) {
	r.Next = nil
	if d.tail == nil {
		d.head = r
		d.turn.Reset(0)
	} else {
		d.tail.Next = r
	}
	d.tail = r
}

func (d *Device) answer() {
	r := d.head
	d.head, d.tail = nil, nil
	for r != nil {
		next := r.Next
		r.Next = nil
		d.execute(r)
		r.Done(r)
		r = next
	}
}

// execute does what the request asks, unless it is to fail.
func (d *Device) execute(r *block.Request) {
	if r.Err != nil {
		return
	}
	switch r.Op {
	case block.OpRead:
		copy(r.Data, d.data[r.Off:])
		return
	case block.OpFlush:
		clear(d.dirty)
		return
	case block.OpWrite:
		copy(d.data[r.Off:], r.Data)
	case block.OpTrim, block.OpZero:
		clear(d.data[r.Off : r.Off+r.Len])
	}
	for b := r.Off / block.Size; b < (r.Off+r.Len)/block.Size; b++ {
		if r.FUA {
			delete(d.dirty, b)
		} else {
			d.dirty[b] = true
		}
	}
}

// Null is a frontend.Device that does nothing, for measuring frontends.
type Null struct {
	Bytes int64
	turn  aio.Timer
	head  *block.Request
	tail  *block.Request
}

// NewNull returns a device of size bytes that answers every request in the next turn.
func NewNull(loop aio.Loop, size int64) *Null {
	d := &Null{Bytes: size}
	OnLoop(loop, func() { d.turn = loop.NewTimer(d.answer) })
	return d
}

// Size implements frontend.Device.
func (d *Null) Size() int64 { return d.Bytes }

// Submit implements frontend.Device.
func (d *Null) Submit(r *block.Request) {
	r.Err, r.Next = nil, nil
	if d.tail == nil {
		d.head = r
		d.turn.Reset(0)
	} else {
		d.tail.Next = r
	}
	d.tail = r
}

func (d *Null) answer() {
	r := d.head
	d.head, d.tail = nil, nil
	for r != nil {
		next := r.Next
		r.Done(r)
		r = next
	}
}
