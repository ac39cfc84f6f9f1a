package volume

import (
	"maps"
	"time"

	"keelson.io/keelson/internal/wire"
)

// usageEvery is how old the figures of what snapshots occupy may be.
const usageEvery = 5 * time.Second

// snapUsage is what snapshots occupy on disk, by period, in one copy.
type snapUsage struct {
	known  map[uint64]int64
	asked  time.Duration
	asking bool
}

// usageNow returns what is known, and asks anew if that is old.
func (s *snapshotter) usageNow() map[uint64]int64 {
	v, u := s.v, &s.usage
	if now := v.loop.Now(); !u.asking && v.phase == serving && s.any() && (u.known == nil || now-u.asked > usageEvery) {
		u.asking, u.asked = true, now
		s.askUsage(0, map[uint64]int64{})
	}
	return maps.Clone(u.known)
}

// askUsage asks one member of each column.
func (s *snapshotter) askUsage(column int, sum map[uint64]int64) {
	u := &s.usage
	if column == len(s.v.columns) {
		u.asking, u.known = false, sum
		return
	}
	c := s.v.columns[column]
	m := c.reader()
	if m < 0 {
		u.asking = false
		return
	}
	q := &wire.Request{Kind: wire.KindSnapUsage, Sums: make([]uint64, 0, 2*wire.MaxSnaps)}
	c.ask(m, q, func(*wire.Request) {
		if q.Status != wire.StatusOK {
			u.asking = false
			return
		}
		for i := 0; i+1 < len(q.Sums); i += 2 {
			sum[q.Sums[i]] += int64(q.Sums[i+1])
		}
		s.askUsage(column+1, sum)
	})
}
