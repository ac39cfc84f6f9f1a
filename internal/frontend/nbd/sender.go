package nbd

import (
	"syscall"

	"keelson.io/keelson/internal/aio"
)

// inlineMax is the largest body that is copied behind its header; larger ones are sent
// from where they are.
const inlineMax = 32 << 10

// sender gathers replies and sends them in order. While one buffer is being sent, the
// other one is filled. Replies that don't fit wait, in order, in commands.
type sender struct {
	c       *conn
	op      aio.Op
	active  bool // sending isn't sent yet; also while its commands are told that they are
	a       int  // bytes of the staged part that the write in flight has
	filling stage
	sending stage
	waiting queue
	turn    aio.Timer // fires when the turn's replies are gathered
	armed   bool
	stopped bool
}

// stage is a buffer of replies. A large body belongs between two bytes of it.
type stage struct {
	buf   []byte
	n     int // bytes gathered
	sent  int
	large queue // commands with a body to send at pos
}

func (s *stage) empty() bool { return s.n == 0 && s.large.head == nil }

func (t *sender) init(c *conn, a, b []byte) {
	t.c = c
	t.filling.buf, t.sending.buf = a, b
	t.op.Done = t.wrote
	t.turn = c.s.cfg.Loop.NewTimer(func() { t.armed = false; t.flush() })
}

// bytes queues p. It is for the negotiation, whose answers always fit.
func (t *sender) bytes(p []byte) {
	t.filling.n += copy(t.filling.buf[t.filling.n:], p)
}

// reply queues the reply of a command.
func (t *sender) reply(m *command) {
	if t.stopped {
		t.waiting.push(m) // discard releases it
		return
	}
	if t.waiting.head == nil && t.fits(m) {
		t.place(m)
	} else {
		t.waiting.push(m)
	}
	switch {
	case t.active || t.armed:
	case t.c.atDevice == 0 && t.c.inFlight <= 1:
		t.flush()
	default:
		t.armed = true
		t.turn.Reset(0)
	}
}

// fits reports whether there is room for a reply in the buffer that is being filled.
func (t *sender) fits(m *command) bool {
	need := m.headLen
	if len(m.body) <= inlineMax {
		need += len(m.body)
	}
	return need <= len(t.filling.buf)-t.filling.n
}

// place puts a reply that fits into the buffer that is being filled.
func (t *sender) place(m *command) {
	s := &t.filling
	s.n += copy(s.buf[s.n:], m.header[:m.headLen])
	if len(m.body) > inlineMax {
		m.pos = s.n
		s.large.push(m)
		return
	}
	s.n += copy(s.buf[s.n:], m.body)
	m.sent()
}

// pending reports whether anything isn't sent yet.
func (t *sender) pending() bool {
	return t.active || !t.filling.empty() || t.waiting.head != nil
}

// flush sends what was gathered, unless a write is in flight.
func (t *sender) flush() {
	if t.active || t.stopped || t.filling.empty() {
		return
	}
	t.filling, t.sending = t.sending, t.filling
	t.filling.n, t.filling.sent = 0, 0
	t.active = true
	t.write()
}

func (t *sender) write() {
	s := &t.sending
	m := s.large.head
	if m == nil {
		t.a = s.n - s.sent
		t.c.fd.Writev(&t.op, s.buf[s.sent:s.n], nil)
		return
	}
	body := m.body[m.bodySent:]
	t.a = m.pos - s.sent
	if t.a == 0 {
		t.c.fd.Writev(&t.op, body, nil)
		return
	}
	t.c.fd.Writev(&t.op, s.buf[s.sent:m.pos], body)
}

func (t *sender) wrote(n int, err error) {
	if t.stopped {
		t.c.bury()
		return
	}
	if err == syscall.EAGAIN || err == syscall.EINTR {
		t.write()
		return
	}
	if err != nil {
		t.c.shut(err)
		return
	}
	s := &t.sending
	k := min(n, t.a)
	s.sent += k
	if n -= k; n > 0 {
		m := s.large.head
		if m.bodySent += n; m.bodySent == len(m.body) {
			s.large.pop()
			m.sent()
		}
	}
	if t.stopped { // by what m.sent set off
		t.c.bury()
		return
	}
	if s.sent < s.n || s.large.head != nil {
		t.write()
		return
	}
	for !t.stopped && t.waiting.head != nil && t.fits(t.waiting.head) {
		t.place(t.waiting.pop())
	}
	t.active = false
	if t.stopped {
		t.c.bury()
		return
	}
	t.flush()
	t.c.resume()
	t.c.drained()
}

// stop lets nothing more be sent.
func (t *sender) stop() {
	t.stopped = true
	t.turn.Stop()
}

// discard releases the commands whose replies will never be sent. No write is in flight.
func (t *sender) discard() {
	for _, q := range []*queue{&t.sending.large, &t.filling.large, &t.waiting} {
		for q.head != nil {
			q.pop().release()
		}
	}
}

// queue is a FIFO of commands, linked through next.
type queue struct{ head, tail *command }

func (q *queue) push(m *command) {
	m.next = nil
	if q.tail == nil {
		q.head = m
	} else {
		q.tail.next = m
	}
	q.tail = m
}

func (q *queue) pop() *command {
	m := q.head
	if q.head = m.next; q.head == nil {
		q.tail = nil
	}
	m.next = nil
	return m
}
