package ring

import (
	"time"

	"keelson.io/keelson/internal/aio"
)

// timer is an aio.Timer. Invariant: l.timers[at] is the timer if at ≥ 0; it is
// disarmed otherwise.
type timer struct {
	l    *Loop
	fn   func()
	when time.Duration
	seq  uint64 // orders timers of one moment by their Reset
	at   int
}

// NewTimer implements aio.Loop.
func (l *Loop) NewTimer(fn func()) aio.Timer { return &timer{l: l, fn: fn, at: -1} }

// Reset implements aio.Timer.
func (t *timer) Reset(d time.Duration) {
	t.Stop()
	t.l.timerSeq++
	t.when, t.seq = t.l.now+max(d, 0), t.l.timerSeq
	t.l.timers.push(t)
}

// Stop implements aio.Timer.
func (t *timer) Stop() {
	if t.at >= 0 {
		t.l.timers.remove(t.at)
	}
}

// runTimers calls the timers that are due. Those that are armed meanwhile wait for
// the next turn, however short.
func (l *Loop) runTimers() {
	last := l.timerSeq
	for len(l.timers) > 0 && l.timers[0].when <= l.now && l.timers[0].seq <= last {
		t := l.timers[0]
		l.timers.remove(0)
		t.fn()
	}
}

// timerHeap is a binary heap, the earliest first.
type timerHeap []*timer

func (h timerHeap) less(a, b *timer) bool {
	return a.when < b.when || a.when == b.when && a.seq < b.seq
}

func (h *timerHeap) push(t *timer) {
	*h = append(*h, t)
	h.up(len(*h)-1, t)
}

func (h *timerHeap) remove(i int) {
	s := *h
	n := len(s) - 1
	s[i].at = -1
	last := s[n]
	s[n] = nil
	*h = s[:n]
	if i == n {
		return
	}
	if i > 0 && h.less(last, s[(i-1)/2]) {
		h.up(i, last)
	} else {
		h.down(i, last)
	}
}

// up and down put t at i, or where it belongs above or below.
func (h *timerHeap) up(i int, t *timer) {
	s := *h
	for i > 0 {
		p := (i - 1) / 2
		if !h.less(t, s[p]) {
			break
		}
		s[i] = s[p]
		s[i].at = i
		i = p
	}
	s[i], t.at = t, i
}

func (h *timerHeap) down(i int, t *timer) {
	s := *h
	for {
		c := 2*i + 1
		if c >= len(s) {
			break
		}
		if c+1 < len(s) && h.less(s[c+1], s[c]) {
			c++
		}
		if !h.less(s[c], t) {
			break
		}
		s[i] = s[c]
		s[i].at = i
		i = c
	}
	s[i], t.at = t, i
}
