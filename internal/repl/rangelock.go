package repl

import "keelson.io/keelson/internal/invariant"

// RangeLock keeps requests that overlap from being in flight together. Readers share. Grants are
// first come, first served: a request also waits for an earlier one that waits, if they overlap.
// The zero value is ready. Not safe for concurrent use.
type RangeLock struct {
	held []*Range // few: the requests in flight of one column
	wait []*Range // in order of arrival
}

// Range is one holder, or waiter, of a RangeLock. The caller embeds it in its request.
type Range struct {
	start, end int64
	shared     bool
	slot       int // index in held; -1 while waiting
	// Granted is called when a lock that wasn't granted at once is. Set once.
	Granted func()
}

func (r *Range) conflicts(o *Range) bool {
	return r.start < o.end && o.start < r.end && !(r.shared && o.shared)
}

// Lock takes [off, off+n) for r and reports whether it was granted at once; if not, r.Granted is
// called later, from within the Unlock that made way.
func (l *RangeLock) Lock(r *Range, off, n int64, shared bool) bool {
	r.start, r.end, r.shared = off, off+n, shared
	if l.blocked(r, len(l.wait)) {
		r.slot = -1
		l.wait = append(l.wait, r)
		return false
	}
	l.grant(r)
	return true
}

// blocked reports whether r conflicts with a holder or with one of the first n waiters.
func (l *RangeLock) blocked(r *Range, n int) bool {
	if invariant.Mutant("no-range-lock") {
		return false
	}
	for _, h := range l.held {
		if r.conflicts(h) {
			return true
		}
	}
	for _, w := range l.wait[:n] {
		if r.conflicts(w) {
			return true
		}
	}
	return false
}

func (l *RangeLock) grant(r *Range) {
	r.slot = len(l.held)
	l.held = append(l.held, r)
}

// Unlock gives r up and grants, in order, what can be granted now.
func (l *RangeLock) Unlock(r *Range) {
	last := len(l.held) - 1
	invariant.Check(r.slot >= 0 && r.slot <= last && l.held[r.slot] == r, "unlock of a range that isn't held")
	l.held[r.slot] = l.held[last]
	l.held[r.slot].slot = r.slot
	l.held[last] = nil
	l.held = l.held[:last]
	r.slot = -1
	for i := 0; i < len(l.wait); {
		w := l.wait[i]
		if l.blocked(w, i) {
			i++
			continue
		}
		copy(l.wait[i:], l.wait[i+1:])
		l.wait[len(l.wait)-1] = nil
		l.wait = l.wait[:len(l.wait)-1]
		l.grant(w)
		w.Granted()
		// Granted may have locked and unlocked others: look at everything anew.
		i = 0
	}
}

// Pass gives the range that r holds to o, which holds none.
func (l *RangeLock) Pass(r, o *Range) {
	invariant.Check(r.slot >= 0 && r.slot < len(l.held) && l.held[r.slot] == r, "passing on a range that isn't held")
	o.start, o.end, o.shared, o.slot = r.start, r.end, r.shared, r.slot
	l.held[o.slot] = o
	r.slot = -1
}

// Idle reports whether nothing is held.
func (l *RangeLock) Idle() bool { return len(l.held) == 0 }
