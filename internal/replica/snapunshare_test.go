package replica

import (
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
)

// TestHeadIsSettled checks that what a snapshot shares is taken apart once it is changed, what is left over too, and that the head is
// settled then.
func TestHeadIsSettled(t *testing.T) {
	m := newSnapModel(t, 3)
	for c := range int64(4) {
		m.write(c*block.ChunkSize, content(uint64(100+c)))
	}
	m.set(m.period)
	m.checkpoint()
	m.snaps[m.period-1] = map[int64]uint64{}
	for b := range int64(unshareAfter) {
		for c := range int64(4) {
			if c < 3 || b == 0 { // the last one is changed once
				m.write(c*block.ChunkSize+b*block.Size, content(uint64(200+b)))
			}
		}
	}
	m.w.RunFor(time.Second)
	if s := m.r.Stats(); s.Preserved != 4 || s.Unshared != 4 || s.Settled == 0 {
		t.Errorf("preserved %d, taken apart %d, settled %d times; want 4, 4, at least 1", s.Preserved, s.Unshared, s.Settled)
	}
}
