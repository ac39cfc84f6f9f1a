package aiotest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"

	"keelson.io/keelson/internal/aio"
)

// handler is a ConnHandler made of functions; nil ones do nothing.
type handler struct {
	opened func(c aio.Conn)
	data   func(c aio.Conn, p []byte) int
	closed func(c aio.Conn, err error)
}

func (h *handler) Opened(c aio.Conn) {
	if h.opened != nil {
		h.opened(c)
	}
}

func (h *handler) Data(c aio.Conn, p []byte) int {
	if h.data != nil {
		return h.data(c, p)
	}
	return len(p)
}

func (h *handler) Closed(c aio.Conn, err error) {
	if h.closed != nil {
		h.closed(c, err)
	}
}

// accept has the second loop accept with h.
func (s *suite) accept(fn func(c aio.Conn) aio.ConnHandler) {
	s.Helper()
	s.on(1, func(l aio.Loop) { l.OnAccept(fn) })
}

// dial dials the second loop from the first.
func (s *suite) dial(h aio.ConnHandler) {
	t := s.w.Targets[1]
	s.w.Loops[0].Post(func() { s.w.Loops[0].Dial(t.Node, t.Addr, t.Shard, h) })
}

// source writes a stream of n patterned bytes in pieces of random size, and keeps
// what is queued within a bound.
type source struct {
	l     aio.Loop
	rng   *rand.Rand
	rest  []byte
	timer aio.Timer
}

func (w *source) pump(c aio.Conn) {
	for len(w.rest) > 0 {
		if c.Queued() > 1<<20 {
			if w.timer == nil {
				w.timer = w.l.NewTimer(func() { w.pump(c) })
			}
			w.timer.Reset(0)
			return
		}
		n := min(1+w.rng.IntN(64<<10), len(w.rest))
		piece := slices.Clone(w.rest[:n])
		c.Write(piece)
		clear(piece) // Write made a copy
		w.rest = w.rest[n:]
	}
}

// sink consumes random parts of what it is shown, and compares.
type sink struct {
	s    *suite
	rng  *rand.Rand
	want []byte
	left int // of the last call
	done func()
}

func (r *sink) take(p []byte) int {
	if len(p) <= r.left {
		r.s.Errorf("shown %d bytes when %d had been left: nothing more", len(p), r.left)
	}
	if len(p) > len(r.want) || string(p) != string(r.want[:len(p)]) {
		r.s.Errorf("the stream broke %d bytes before its end", len(r.want))
		r.want = nil
		return len(p)
	}
	n := len(p)
	if n < len(r.want) && r.rng.IntN(3) > 0 {
		n = r.rng.IntN(n + 1)
	}
	r.want = r.want[n:]
	r.left = len(p) - n
	if len(r.want) == 0 {
		r.done()
	}
	return n
}

// testConnStream sends megabytes both ways at once.
func testConnStream(s *suite) {
	const size = 6 << 20
	there, back := patterned(size, 1), patterned(size, 2)
	done := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	rng := func(n uint64) *rand.Rand { return rand.New(rand.NewPCG(n, 7)) }

	s.accept(func(c aio.Conn) aio.ConnHandler {
		if c.Peer() != s.w.Targets[0].Node {
			s.Errorf("accepted from node %q, not %q", c.Peer(), s.w.Targets[0].Node)
		}
		r := &sink{s: s, rng: rng(1), want: there, done: func() { close(done[1]) }}
		w := &source{l: s.w.Loops[1], rng: rng(2), rest: back}
		w.pump(c)
		return &handler{data: func(_ aio.Conn, p []byte) int { return r.take(p) }}
	})
	r := &sink{s: s, rng: rng(3), want: back, done: func() { close(done[0]) }}
	s.dial(&handler{
		opened: func(c aio.Conn) {
			if c.Peer() != s.w.Targets[1].Node {
				s.Errorf("dialled node %q, not %q", c.Peer(), s.w.Targets[1].Node)
			}
			(&source{l: s.w.Loops[0], rng: rng(4), rest: there}).pump(c)
		},
		data:   func(_ aio.Conn, p []byte) int { return r.take(p) },
		closed: func(_ aio.Conn, err error) { s.Logf("closed: %v", err) },
	})
	s.await(done[0], "the stream from the accepting side")
	s.await(done[1], "the stream from the dialling side")
}

// testConnLargeFrames consumes nothing before a frame of 2 MiB is there, whole.
func testConnLargeFrames(s *suite) {
	const frame, frames = 2 << 20, 5
	got, done := 0, make(chan struct{})
	s.accept(func(aio.Conn) aio.ConnHandler {
		return &handler{data: func(_ aio.Conn, p []byte) int {
			n := 0
			for ; len(p)-n >= frame; n += frame {
				if binary.LittleEndian.Uint64(p[n:]) != uint64(got) || p[n+frame-1] != byte(got) {
					s.Errorf("frame %d is broken", got)
				}
				if got++; got == frames {
					close(done)
				}
			}
			return n
		}}
	})
	s.dial(&handler{
		opened: func(c aio.Conn) {
			for i := range frames {
				p := make([]byte, frame)
				binary.LittleEndian.PutUint64(p, uint64(i))
				p[frame-1] = byte(i)
				c.Write(p)
			}
		},
		closed: func(_ aio.Conn, err error) { s.Logf("closed: %v", err) },
	})
	s.await(done, "frames of 2 MiB")
}

// testConnFill sends frames of many sizes, in turn one at a time and several at once, to a handler that gives memory for
// what it lacks of one. Every byte must come to its place, and the end of a frame be told without anything behind it.
func testConnFill(s *suite) {
	const frames = 200
	rng := rand.New(rand.NewPCG(5, 7))
	got, want, done := 0, 0, make(chan struct{})
	next := func() int { return 8 + rng.IntN(1<<(10+rng.IntN(11))) }
	frame := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(n + i*7)
		}
		binary.LittleEndian.PutUint64(p, uint64(n))
		return p
	}
	s.accept(func(c aio.Conn) aio.ConnHandler {
		var part []byte // a frame that is received in two parts
		check := func(c aio.Conn, p []byte) {
			if !bytes.Equal(p, frame(len(p))) {
				s.Errorf("a frame of %d bytes arrived with others", len(p))
			}
			c.Write([]byte{1})
		}
		return &handler{data: func(c aio.Conn, p []byte) int {
			used := 0
			if part != nil {
				check(c, part)
				part = nil
			}
			for len(p)-used >= 8 {
				rest := p[used:]
				size := int(binary.LittleEndian.Uint64(rest))
				if len(rest) < size {
					have := rng.IntN(len(rest) + 1)
					part = make([]byte, size)
					copy(part, rest[:have])
					c.Fill(part[have:])
					return used + have
				}
				check(c, rest[:size])
				used += size
			}
			return used
		}}
	})
	s.dial(&handler{
		opened: func(c aio.Conn) {
			want = 1
			c.Write(frame(next()))
		},
		data: func(c aio.Conn, p []byte) int {
			if got += len(p); got == frames {
				close(done)
			} else if got == want {
				for n := 1 + got%3; n > 0 && want < frames; n-- {
					want++
					c.Write(frame(next()))
				}
			}
			return len(p)
		},
		closed: func(_ aio.Conn, err error) { s.Logf("closed: %v", err) },
	})
	s.await(done, "the answers to all frames")
}

func testConnDialFails(s *suite) {
	t := s.w.Nowhere
	var err error
	s.until(0, "a dial to fail", func(l aio.Loop, done func()) {
		l.Dial(t.Node, t.Addr, t.Shard, &handler{
			opened: func(aio.Conn) { s.Error("somebody answered") },
			closed: func(c aio.Conn, e error) {
				if c != nil {
					s.Error("Closed with a connection that never was")
				}
				err = e
				done()
			},
		})
	})
	if err == nil {
		s.Fatal("a dial that failed gave no error")
	}
}

// testConnRefused: whether the dialling side sees the connection open for a moment
// depends on the implementation; that it ends with an error doesn't.
func testConnRefused(s *suite) {
	s.accept(func(aio.Conn) aio.ConnHandler { return nil })
	done := make(chan struct{})
	s.dial(&handler{closed: func(_ aio.Conn, err error) {
		if err == nil {
			s.Error("a refused connection ended without an error")
		}
		close(done)
	}})
	s.await(done, "the refusal")
}

// testConnClose closes on one side; both are told, once.
func testConnClose(s *suite, dialler bool) {
	done := [2]chan struct{}{make(chan struct{}), make(chan struct{})}
	closes := [2]int{}
	side := func(i int, closer bool) *handler {
		return &handler{
			data: func(c aio.Conn, p []byte) int {
				if closes[i] > 0 {
					s.Error("Data after Closed")
				}
				if closer {
					c.Close()
					c.Close()
					c.Write([]byte("nothing happens"))
				} else {
					c.Write(p)
				}
				return len(p)
			},
			closed: func(c aio.Conn, err error) {
				if c == nil {
					s.Error("Closed without its connection")
				}
				if closer && err != nil {
					s.Errorf("the side that closed was told %v", err)
				}
				if !closer && !errors.Is(err, aio.ErrConnLost) {
					s.Errorf("the other side was told %v", err)
				}
				if closes[i]++; closes[i] == 1 {
					close(done[i])
				}
				if c != nil {
					c.Write([]byte("nothing happens"))
					c.Close()
				}
			},
		}
	}
	s.accept(func(c aio.Conn) aio.ConnHandler {
		if !dialler {
			c.Write([]byte("hello"))
		}
		return side(1, !dialler)
	})
	h := side(0, dialler)
	h.opened = func(c aio.Conn) { c.Write([]byte("hello")) }
	s.dial(h)
	s.await(done[0], "Closed on the dialling side")
	s.await(done[1], "Closed on the accepting side")
	s.until(0, "a moment", func(l aio.Loop, done func()) { l.NewTimer(done).Reset(soon(2)) })
	s.on(0, func(aio.Loop) { checkOnce(s, closes[0]) })
	s.on(1, func(aio.Loop) { checkOnce(s, closes[1]) })
}

func checkOnce(s *suite, n int) {
	if n != 1 {
		s.Errorf("Closed was called %d times", n)
	}
}

// testConnCloseInsideData: after Close no more data is shown.
func testConnCloseInsideData(s *suite) {
	done := make(chan struct{})
	closed := false
	s.accept(func(aio.Conn) aio.ConnHandler {
		return &handler{
			data: func(c aio.Conn, p []byte) int {
				if closed {
					s.Error("Data after Close")
				}
				closed = true
				c.Close()
				return 0
			},
			closed: func(aio.Conn, error) { close(done) },
		}
	})
	s.dial(&handler{opened: func(c aio.Conn) { c.Write(make([]byte, 1<<20)) }})
	s.await(done, "Closed")
}

// testConnQueued: what is written counts as queued, and goes out.
func testConnQueued(s *suite) {
	const size = 4 << 20
	got, arrived := 0, make(chan struct{})
	s.accept(func(aio.Conn) aio.ConnHandler {
		return &handler{data: func(_ aio.Conn, p []byte) int {
			if got += len(p); got == size {
				close(arrived)
			}
			return len(p)
		}}
	})
	opened := make(chan struct{})
	var conn aio.Conn
	s.dial(&handler{opened: func(c aio.Conn) {
		if c.Queued() != 0 {
			s.Errorf("%d bytes queued on a new connection", c.Queued())
		}
		c.Write(make([]byte, size))
		if c.Queued() < size {
			s.Errorf("%d bytes queued after a write of %d", c.Queued(), size)
		}
		conn = c
		close(opened)
	}})
	s.await(opened, "the connection")
	s.await(arrived, "the bytes")
	s.until(0, "the queue to be empty", func(l aio.Loop, done func()) {
		var t aio.Timer
		t = l.NewTimer(func() {
			if conn.Queued() == 0 {
				done()
				return
			}
			t.Reset(soon(1))
		})
		t.Reset(0)
	})
}

// testConnMany opens several connections at once, each with its own order.
func testConnMany(s *suite) {
	const conns, messages = 8, 200
	done, finished := make(chan struct{}), 0
	s.accept(func(aio.Conn) aio.ConnHandler {
		return &handler{data: func(c aio.Conn, p []byte) int {
			n := len(p) &^ 7
			c.Write(p[:n])
			return n
		}}
	})
	for range conns {
		next := uint64(0)
		s.dial(&handler{
			opened: func(c aio.Conn) {
				for i := range messages {
					c.Write(binary.LittleEndian.AppendUint64(nil, uint64(i)))
				}
			},
			data: func(_ aio.Conn, p []byte) int {
				n := 0
				for ; len(p)-n >= 8; n += 8 {
					if v := binary.LittleEndian.Uint64(p[n:]); v != next {
						s.Errorf("message %d came in place of %d", v, next)
					}
					if next++; next == messages {
						if finished++; finished == conns {
							close(done)
						}
					}
				}
				return n
			},
			closed: func(_ aio.Conn, err error) { s.Logf("closed: %v", err) },
		})
	}
	s.await(done, "all messages of all connections")
}
