package ring

import (
	"bytes"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	spinLook    = 20 * time.Millisecond // how often the system's load is looked at
	spinPenalty = 1024                  // the most sleeps without a spin after spins in vain
)

// spinner decides whether the loop looks for completions for a while before it sleeps.
// A sleep and the wake-up cost tens of microseconds, as much as a fast disk's answer; a
// spin costs a CPU that others may need. So it spins only while fewer threads want
// to run than there are CPUs, and after a spin in vain it skips the next sleep, after two in a
// row two more, then four, and so on, until one pays again.
type spinner struct {
	limit   time.Duration // 0: never
	skip    int           // sleeps that are still to go without a spin
	penalty int           // how many after the next spin in vain
	crowded bool          // others want the CPU
	look    time.Duration // when to look at the load again
	loadavg int           // descriptor of /proc/loadavg
	text    [128]byte
}

func (s *spinner) open(limit time.Duration) {
	s.loadavg = -1
	if limit == 0 {
		return
	}
	fd, err := unix.Open("/proc/loadavg", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // without knowing the load it never spins
	}
	s.limit, s.loadavg = limit, fd
}

func (s *spinner) close() {
	if s.loadavg >= 0 {
		unix.Close(s.loadavg)
		s.loadavg = -1
	}
}

// worthwhile reports whether to spin before this sleep.
func (s *spinner) worthwhile(now time.Duration) bool {
	if s.limit == 0 {
		return false
	}
	if now >= s.look {
		s.look = now + spinLook
		n, err := unix.Pread(s.loadavg, s.text[:], 0)
		s.crowded = err != nil || runnable(s.text[:max(n, 0)]) > runtime.NumCPU()
	}
	if s.crowded {
		return false
	}
	if s.skip > 0 {
		s.skip--
		return false
	}
	return true
}

// runnable is the number of threads that run or want to, the caller's included, from
// the fourth field of /proc/loadavg.
func runnable(text []byte) int {
	for range 3 {
		text = text[bytes.IndexByte(text, ' ')+1:]
	}
	n := 0
	for _, c := range text {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// paid and failed say how a spin ended.
func (s *spinner) paid() { s.penalty = 0 }

func (s *spinner) failed() {
	s.penalty = min(max(1, 2*s.penalty), spinPenalty)
	s.skip = s.penalty
}

// trySpin submits and looks for completions and posts for a while, for ns at most
// unless ns < 0, and reports whether the loop needn't sleep.
func (l *Loop) trySpin(ns int64) (bool, error) {
	const ownReads = 1 // the eventfd's
	if l.inFlight <= ownReads || !l.spin.worthwhile(l.now) {
		return false, nil
	}
	limit := l.spin.limit
	if ns >= 0 {
		limit = min(limit, time.Duration(ns))
	}
	start := time.Since(l.epoch)
	for {
		if err := l.u.enter(0); err != nil {
			return false, err
		}
		if l.u.ready() > 0 || l.nPost.Load() > 0 {
			l.spin.paid()
			return true, nil
		}
		if time.Since(l.epoch)-start >= limit {
			l.spin.failed()
			return false, nil
		}
	}
}
