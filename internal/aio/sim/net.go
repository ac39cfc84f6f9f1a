package sim

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/aio"
)

// sendBuffer is how much a connection takes before Queued begins to grow.
const sendBuffer = 1 << 20

// maxUnconsumed is how much a handler is shown at once and may leave unconsumed.
const maxUnconsumed = 2 << 20

// conn is one side of a connection. What it sends goes through out (not handed to the
// network yet) and wire (under way) to the received bytes of its peer.
type conn struct {
	l      *Loop
	peer   *conn
	h      aio.ConnHandler
	opened bool // the handler knows the connection
	closed bool // by the application, or about to be told; nothing goes in or out
	told   bool // Closed was called or never will be

	out     []byte
	sending bool // an event will move out to wire
	wire    []byte
	due     int           // bytes of wire that have arrived, as far as time goes
	last    time.Duration // when the last of wire arrives
	stalled bool          // the way is cut, or the machine off
	epoch   int           // counts stalls
	ended   bool          // nothing goes out any more; the peer is told behind wire

	in     []byte // received, not consumed
	fill   []byte // where what comes next goes
	filled int
}

var _ aio.Conn = (*conn)(nil)

// Cut cuts the network from one node to another, one way. Bytes under way wait, and
// connections break when that takes too long.
func (w *World) Cut(from, to *Node) {
	if from != to && !w.cut[[2]int{from.index, to.index}] {
		w.Tracef("network cut from %s to %s", from.name, to.name)
		w.cut[[2]int{from.index, to.index}] = true
	}
}

// Heal undoes Cut. Some connections break at that moment.
func (w *World) Heal(from, to *Node) {
	if !w.cut[[2]int{from.index, to.index}] {
		return
	}
	w.Tracef("network healed from %s to %s", from.name, to.name)
	delete(w.cut, [2]int{from.index, to.index})
	for _, c := range w.conns {
		if c.stalled && c.l.node == from && c.peer.l.node == to {
			c.stalled = false
			if w.rng.IntN(4) == 0 {
				c.abort()
			} else {
				c.deliverLater(w.draw(w.cfg.Net))
			}
		}
	}
}

// IsCut reports whether the way from one node to another is cut.
func (w *World) IsCut(from, to *Node) bool { return w.cut[[2]int{from.index, to.index}] }

// HealAll undoes every Cut.
func (w *World) HealAll() {
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			w.Heal(a, b)
		}
	}
}

// BreakConns breaks every connection between two nodes: of what was under way, any
// suffix is lost.
func (w *World) BreakConns(a, b *Node) {
	for _, c := range w.conns {
		if c.l.node == a && c.peer.l.node == b {
			c.abort()
		}
	}
}

// reachable reports whether bytes get from one machine to another now.
func (w *World) reachable(from, to *Node) bool {
	return from.on && to.on && !w.cut[[2]int{from.index, to.index}]
}

// OnAccept implements aio.Loop.
func (l *Loop) OnAccept(fn func(aio.Conn) aio.ConnHandler) {
	l.check("OnAccept")
	l.accept = fn
}

// Dial implements aio.Loop. A node has one loop here, so shard doesn't matter.
func (l *Loop) Dial(node, addr string, shard int, h aio.ConnHandler) {
	l.check("Dial")
	if l.dead {
		return
	}
	w := l.w
	fail := func(after time.Duration, why string) {
		w.schedule(after, l, "dial failed", func() {
			h.Closed(nil, fmt.Errorf("dialling %s (%s): %s: %w", node, addr, why, aio.ErrConnLost))
		})
	}
	var to *Node
	for _, n := range w.nodes {
		if n.name == node {
			to = n
		}
	}
	if to == nil {
		fail(w.draw(w.cfg.Net), "no such node")
		return
	}
	deadline := w.now + w.cfg.DialTimeout
	var arrive func()
	arrive = func() {
		switch {
		case l.dead:
		case !w.reachable(l.node, to) || !w.reachable(to, l.node):
			fail(w.cfg.DialTimeout, "no answer")
		case to.loop == nil || to.loop.accept == nil:
			fail(w.draw(w.cfg.Net), "refused")
		case to.loop.paused && w.now > deadline:
			fail(0, "no answer")
		case to.loop.paused:
			w.schedule(10*time.Millisecond, nil, "dial", arrive)
		default:
			l.connect(to.loop, h, fail)
		}
	}
	w.schedule(w.draw(w.cfg.Net), nil, "dial", arrive)
}

// connect makes the two sides of a connection, and tells the accepting side first.
func (l *Loop) connect(to *Loop, h aio.ConnHandler, fail func(time.Duration, string)) {
	w := l.w
	a, b := &conn{l: l, h: h}, &conn{l: to, opened: true}
	a.peer, b.peer = b, a
	w.conns = append(w.conns, a, b)
	to.call(onLoop, func() { b.h = to.accept(b) })
	if b.h == nil {
		a.closed, a.told, b.closed, b.told = true, true, true, true
		w.forgetConns()
		fail(w.draw(w.cfg.Net), "refused")
		return
	}
	// What the accepting side sends at once comes behind the opening.
	d := w.draw(w.cfg.Net)
	b.last = w.now + d
	w.schedule(d, l, "opened", func() {
		if a.closed {
			return
		}
		a.opened = true
		a.h.Opened(a)
	})
}

// Peer implements aio.Conn.
func (c *conn) Peer() string { return c.peer.l.node.name }

// Fill implements aio.Conn.
func (c *conn) Fill(p []byte) { c.fill, c.filled = p, 0 }

// Queued implements aio.Conn.
func (c *conn) Queued() int { return len(c.out) + max(len(c.wire)-sendBuffer, 0) }

// Write implements aio.Conn.
func (c *conn) Write(p []byte) {
	c.l.check("Conn.Write")
	if c.closed || c.ended || c.l.dead || len(p) == 0 {
		return
	}
	c.out = append(c.out, p...)
	if !c.sending {
		c.sending = true
		c.l.w.schedule(0, c.l, "send", c.send)
	}
}

// send hands what a turn has written to the network.
func (c *conn) send() {
	c.sending = false
	if c.ended {
		return
	}
	w := c.l.w
	n := len(c.out)
	c.wire = append(c.wire, c.out...)
	c.out = c.out[:0]
	c.last = max(c.last, w.now+w.draw(w.cfg.Net))
	w.schedule(c.last-w.now, nil, "deliver", func() {
		c.due = min(c.due+n, len(c.wire))
		c.deliver()
	})
}

func (c *conn) deliverLater(d time.Duration) {
	c.l.w.schedule(d, nil, "deliver", c.deliver)
}

// deliver shows the peer what has arrived, or a part of it.
func (c *conn) deliver() {
	w, to := c.l.w, c.peer
	if len(c.wire) == 0 && !c.ended || to.told && !to.l.dead {
		return
	}
	if !w.reachable(c.l.node, to.l.node) {
		c.stall()
		return
	}
	if to.l.dead {
		// The machine answers for a process that is gone.
		w.schedule(w.draw(w.cfg.Net), nil, "reset", func() { c.lose() })
		return
	}
	c.due = min(c.due, len(c.wire)) // a break may have shortened it
	n := c.due
	if n > 1 && w.rng.IntN(4) == 0 {
		n = 1 + w.rng.IntN(n)
		w.stats.Split++
	}
	if n > 0 && !to.closed {
		to.in = append(to.in, c.wire[:n]...)
	}
	c.wire = c.wire[:copy(c.wire, c.wire[n:])]
	c.due -= n
	w.mix(uint64(n))
	if c.due > 0 {
		c.deliverLater(time.Duration(w.rng.IntN(50000)))
	}
	if n > 0 {
		to.show()
	}
	if c.ended && len(c.wire) == 0 {
		to.lose()
	}
}

// show calls the handler with what was received.
func (c *conn) show() {
	if c.closed || c.l.dead || len(c.in) == 0 {
		return
	}
	if c.l.paused {
		c.l.w.schedule(0, c.l, "data", c.show)
		return
	}
	if !c.opened {
		panic("sim: data before the connection opened")
	}
	left := 0
	for !c.closed && !c.l.dead {
		if c.fill != nil {
			n := copy(c.fill[c.filled:], c.in)
			c.consume(n)
			if c.filled += n; c.filled < len(c.fill) {
				break
			}
			c.fill, c.filled = nil, 0
		}
		used := 0
		c.l.call(onLoop, func() { used = c.h.Data(c, c.in) })
		if used < 0 || used > len(c.in) {
			panic(fmt.Sprintf("sim: handler consumed %d of %d bytes", used, len(c.in)))
		}
		left = c.consume(used)
		if c.fill == nil {
			break
		}
	}
	if left > maxUnconsumed {
		panic(fmt.Sprintf("sim: handler leaves %d bytes unconsumed", left))
	}
}

// consume takes n bytes from what was received, and returns how many are left.
func (c *conn) consume(n int) int {
	left := copy(c.in, c.in[n:])
	spoil(c.in[left:])
	c.in = c.in[:left]
	return left
}

// stall waits for the way to become free again, but not for ever.
func (c *conn) stall() {
	if c.stalled {
		return
	}
	c.stalled = true
	c.l.w.stats.Stalls++
	c.epoch++
	epoch := c.epoch
	w := c.l.w
	w.schedule(w.cfg.ConnTimeout, nil, "connection timeout", func() {
		if c.stalled && c.epoch == epoch {
			w.stats.Timeouts++
			c.lose()
			c.peer.lose()
		}
	})
}

// abort breaks the connection for both sides: each gets some more of what was under way.
func (c *conn) abort() {
	w := c.l.w
	for _, s := range []*conn{c, c.peer} {
		if s.ended {
			continue
		}
		s.wire = s.wire[:w.rng.IntN(len(s.wire)+1)]
		s.due = len(s.wire)
		s.out = nil
		w.stats.Resets++
		s.end()
	}
}

// end sends nothing any more; the peer is told when it has what is under way.
func (c *conn) end() {
	if c.ended {
		return
	}
	c.ended = true
	c.due = len(c.wire)
	w := c.l.w
	c.deliverLater(max(c.last-w.now, 0) + w.draw(w.cfg.Net))
}

// lose tells the application that the connection is gone.
func (c *conn) lose() {
	if c.closed {
		return
	}
	c.closed = true
	c.tell(fmt.Errorf("connection to %s: %w", c.Peer(), aio.ErrConnLost))
	c.end()
}

func (c *conn) tell(err error) {
	w := c.l.w
	w.schedule(time.Duration(w.rng.IntN(20000)), c.l, "closed", func() {
		c.told = true
		c.in = nil
		if c.opened {
			c.h.Closed(c, err)
		} else {
			c.h.Closed(nil, err)
		}
		w.forgetConns()
	})
}

// Close implements aio.Conn. Of what was not delivered yet, a part may be lost.
func (c *conn) Close() {
	c.l.check("Conn.Close")
	if c.closed || c.l.dead {
		return
	}
	c.closed = true
	c.out = nil
	c.tell(nil)
	w := c.l.w
	if w.rng.IntN(2) == 0 {
		c.wire = c.wire[:w.rng.IntN(len(c.wire)+1)]
	}
	c.end()
}

// resume lets what waits for a machine go on, now that it is switched on.
func (w *World) resume(n *Node) {
	for _, c := range w.conns {
		if c.stalled && c.peer.l.node == n {
			c.stalled = false
			c.deliverLater(w.draw(w.cfg.Net))
		}
	}
}

// netKilled ends the connections of a process that was killed. If its machine lives, it
// tells the peers.
func (w *World) netKilled(l *Loop, machineLives bool) {
	for _, c := range w.conns {
		if c.l != l {
			continue
		}
		c.closed, c.told, c.out = true, true, nil
		if machineLives {
			w.stats.Resets++
			c.wire = c.wire[:w.rng.IntN(len(c.wire)+1)]
			c.due = len(c.wire)
			c.end()
		} else {
			c.wire, c.due = nil, 0
			if !c.peer.told {
				w.stats.HalfOpen++
			}
		}
	}
	w.forgetConns()
}

// forgetConns drops the connections that nobody uses any more.
func (w *World) forgetConns() {
	kept := w.conns[:0]
	for _, c := range w.conns {
		if !c.told || !c.peer.told {
			kept = append(kept, c)
		}
	}
	clear(w.conns[len(kept):])
	w.conns = kept
}
