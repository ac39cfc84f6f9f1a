package api

import (
	"log/slog"
	"sync"
	"time"
)

// strangers logs calls that were refused, at most one a second, so that nobody fills a disk by being refused.
type strangers struct {
	mu struct {
		sync.Mutex
		said    time.Time
		skipped int
	}
}

func (s *strangers) note(log *slog.Logger, remote, call string, err error) {
	now := time.Now()
	s.mu.Lock()
	if now.Sub(s.mu.said) < time.Second {
		s.mu.skipped++
		s.mu.Unlock()
		return
	}
	skipped := s.mu.skipped
	s.mu.said, s.mu.skipped = now, 0
	s.mu.Unlock()
	log.Warn("call refused", "remote", remote, "call", call, "err", err, "others", skipped)
}
