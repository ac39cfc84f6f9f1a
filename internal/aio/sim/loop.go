package sim

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/aio"
)

// Loop is one process of a node: an aio.Loop. It lives until its node crashes.
type Loop struct {
	w       *World
	node    *Node
	dead    bool
	paused  bool
	held    []event // what happened while it is paused
	buffers buffers
	fs      procFS
	flying  []*ioOp // operations in flight
	accept  func(aio.Conn) aio.ConnHandler
	posted  time.Duration // when the last posted function will run
	crashAt int           // FS calls until the process is to die; 0: not planned
}

var _ aio.Loop = (*Loop)(nil)

func newLoop(n *Node) *Loop {
	l := &Loop{w: n.w, node: n}
	l.buffers.init(l, n.w.cfg.BufferMemory)
	l.fs.l = l
	return l
}

// killed is what unwinds a worker's function when the process dies inside it.
type killed struct{ l *Loop }

// call runs fn as a part of the process.
func (l *Loop) call(ctx context, fn func()) {
	was := l.w.ctx
	l.w.ctx = ctx
	defer func() {
		l.w.ctx = was
		if l.dead {
			if r := recover(); r != nil {
				if k, ok := r.(killed); !ok || k.l != l {
					panic(r)
				}
			}
		}
	}()
	fn()
}

// check panics if a loop method is called on a worker.
func (l *Loop) check(method string) {
	if l.w.ctx == onWorker {
		panic(fmt.Sprintf("sim: %s called inside Work; only Post may be", method))
	}
}

// Node is the node that the process runs on.
func (l *Loop) Node() *Node { return l.node }

// Dead reports whether the process was killed.
func (l *Loop) Dead() bool { return l.dead }

// Now implements aio.Loop by the node's own clock.
func (l *Loop) Now() time.Duration {
	l.check("Now")
	return l.node.clock()
}

// real is how long d of the node's clock takes in the world.
func (l *Loop) real(d time.Duration) time.Duration {
	return time.Duration(float64(d) / l.node.rate)
}

type timer struct {
	l   *Loop
	fn  func()
	gen uint64
}

// NewTimer implements aio.Loop.
func (l *Loop) NewTimer(fn func()) aio.Timer {
	l.check("NewTimer")
	return &timer{l: l, fn: fn}
}

// Reset implements aio.Timer. A timer may fire a little late.
func (t *timer) Reset(d time.Duration) {
	t.l.check("Timer.Reset")
	t.gen++
	gen := t.gen
	late := time.Duration(t.l.w.rng.IntN(50)) * time.Microsecond
	t.l.w.schedule(t.l.real(max(d, 0))+late, t.l, "timer", func() {
		if t.gen == gen {
			t.fn()
		}
	})
}

// Stop implements aio.Timer.
func (t *timer) Stop() {
	t.l.check("Timer.Stop")
	t.gen++
}

// Post implements aio.Loop. Posted functions run in the order of posting.
func (l *Loop) Post(fn func()) {
	at := max(l.posted, l.w.now+time.Duration(l.w.rng.IntN(5000)))
	l.posted = at
	l.w.schedule(at-l.w.now, l, "post", fn)
}

// Work implements aio.Loop. What is given to it runs in any order.
func (l *Loop) Work(fn func(), done func()) {
	l.check("Work")
	if l.dead {
		return
	}
	l.node.disk.later(l.w.draw(l.w.cfg.Work), l, "work", func() {
		l.call(onWorker, fn)
		if l.dead {
			return
		}
		l.w.schedule(time.Duration(l.w.rng.IntN(20000)), l, "work done", done)
	})
}

// Buffers implements aio.Loop.
func (l *Loop) Buffers() aio.Buffers { return &l.buffers }

// FS implements aio.Loop.
func (l *Loop) FS() aio.FS { return &l.fs }

// Adopt implements aio.Loop: there are no descriptors here.
func (l *Loop) Adopt(int) (aio.FD, error) { return nil, aio.ErrUnsupported }
