package engine_test

import (
	"context"
	"sync/atomic"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// forgetful executes the next change of a volume, and says that the outcome isn't known.
type forgetful struct {
	meta.Store
	armed atomic.Bool
}

func (s *forgetful) PutVolume(ctx context.Context, v spec.Volume, rev meta.Rev, cond meta.Cond) (meta.Rev, error) {
	rev, err := s.Store.PutVolume(ctx, v, rev, cond)
	if err == nil && s.armed.Swap(false) {
		return 0, meta.ErrUnavailable
	}
	return rev, err
}

// The answer to the transaction that takes the dead engine's volume over is lost. The term that it took must be used: in a
// later one the kernel's resent requests would have to fail.
func TestTakeoverWhoseOutcomeIsUnknown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a := c.nodes["a"]
	a.attach(id).write(t, mib, block.Size, 5)
	a.stop()
	s := &forgetful{Store: c.store}
	s.armed.Store(true)
	a.store = s
	a.start()
	c.until("attached again", func() bool {
		at, ok := a.engine.Attachment(id)
		return ok && at.Device != ""
	})
	d := a.attach(id)
	if !d.p.Takeover || d.p.Term != 2 {
		t.Fatalf("taken over as %+v", d.p)
	}
	d.verify(t, mib, block.Size, 5)
	a.detach(id)
}
