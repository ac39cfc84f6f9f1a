package link

import (
	"time"

	"keelson.io/keelson/internal/wire"
)

// flight is the table of the requests that are unanswered on a connection. An id is
// the number of a slot and how often the slot was used, so that an old answer doesn't
// match a new request.
type flight struct {
	slots []slot
	free  []uint32
	n     int   // Invariant: ≤ windowRequests
	bytes int64 // Invariant: ≤ windowBytes, or n == 1
}

type slot struct {
	r   *wire.Request
	use uint32
	at  time.Duration // when it was sent
}

// weight is what a request counts in the window: the memory that it needs at the member.
func weight(k wire.Kind, n int64) int64 {
	if k.Fills() || k.Sends() || k.Verifies() {
		return n
	}
	return 0
}

func (t *flight) fits(r *wire.Request) bool {
	return t.n < windowRequests && t.bytes+weight(r.Kind, r.Length()) <= windowBytes
}

func (t *flight) add(r *wire.Request, now time.Duration) (id uint64) {
	if len(t.free) == 0 {
		t.free = append(t.free, uint32(len(t.slots)))
		t.slots = append(t.slots, slot{})
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	s := &t.slots[i]
	s.r, s.at = r, now
	s.use++
	t.n++
	t.bytes += weight(r.Kind, r.Length())
	return uint64(s.use)<<32 | uint64(i)
}

// peek returns the request of an id, nil if there is none.
func (t *flight) peek(id uint64) *wire.Request {
	i, use := uint32(id), uint32(id>>32)
	if int(i) >= len(t.slots) || t.slots[i].use != use {
		return nil
	}
	return t.slots[i].r
}

// take removes the request of an id that peek found.
func (t *flight) take(id uint64) {
	i := uint32(id)
	r := t.slots[i].r
	t.slots[i].r = nil
	t.free = append(t.free, i)
	t.n--
	t.bytes -= weight(r.Kind, r.Length())
}

// older returns how many requests were sent before a moment, and what they weigh.
func (t *flight) older(than time.Duration) (n int, bytes int64) {
	for i := range t.slots {
		if r := t.slots[i].r; r != nil && t.slots[i].at < than {
			n++
			bytes += weight(r.Kind, r.Length())
		}
	}
	return n, bytes
}

// takeAll moves all requests to q.
func (t *flight) takeAll(q *queue) {
	for i := range t.slots {
		if r := t.slots[i].r; r != nil {
			t.take(uint64(i))
			q.push(r)
		}
	}
}

// queue is a list of requests, linked by their Next.
type queue struct {
	head, tail *wire.Request
	n          int
}

func (q *queue) push(r *wire.Request) {
	r.Next = nil
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.Next = r
	}
	q.tail = r
	q.n++
}

func (q *queue) pop() *wire.Request {
	r := q.head
	q.head = r.Next
	if q.head == nil {
		q.tail = nil
	}
	r.Next = nil
	q.n--
	return r
}
