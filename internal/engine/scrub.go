package engine

import (
	"sync"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/qos"
	"keelson.io/keelson/internal/spec"
)

// scrubBurst is how many bytes the scrubs of a node may verify ahead of their limit.
const scrubBurst = 4 << 20

// scrubLimit is the limit that the scrubs of all volumes of this node share. Safe for concurrent use.
type scrubLimit struct {
	mu     sync.Mutex
	bucket qos.Bucket
	begun  time.Time
}

// take asks for leave to verify n bytes at a rate, and says how long to wait after it.
func (l *scrubLimit) take(rate, n int64) time.Duration {
	if rate <= 0 {
		rate = spec.DefaultScrubBandwidth
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.begun.IsZero() {
		l.begun = time.Now()
		l.bucket = *qos.NewBucket(rate, scrubBurst)
	}
	now := time.Since(l.begun)
	l.bucket.Set(now, rate, scrubBurst)
	return l.bucket.Take(now, n)
}

// maxEventsWaiting bounds the events that wait for the metadata. What is above is dropped, and stands in the log alone.
const maxEventsWaiting = 64

// events are on their way to the metadata, one after the other, on a goroutine that lives while there are any.
type events struct {
	mu      sync.Mutex
	queue   []spec.Event
	running bool
}

// event records what people should find later. It doesn't block.
func (e *Engine) event(ev spec.Event) {
	if ev.Node == "" {
		ev.Node = e.cfg.Node
	}
	q := &e.events
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.queue) >= maxEventsWaiting {
		e.log.Warn("event dropped: too many wait for the metadata", "volume", ev.Volume, "event", ev.String())
		return
	}
	q.queue = append(q.queue, ev)
	if !q.running && e.begin() {
		q.running = true
		go e.sendEvents()
	}
}

func (e *Engine) sendEvents() {
	defer e.end()
	q := &e.events
	for {
		q.mu.Lock()
		if len(q.queue) == 0 {
			q.running = false
			q.mu.Unlock()
			return
		}
		ev := q.queue[0]
		q.queue = q.queue[1:]
		q.mu.Unlock()
		if err := meta.AddEvent(e.ctx, e.cfg.Store, ev); err != nil && e.ctx.Err() == nil {
			e.log.Warn("event can't be recorded", "volume", ev.Volume, "event", ev.String(), "err", err)
		}
	}
}
