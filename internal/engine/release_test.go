package engine_test

import (
	"testing"

	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/spec"
)

// An attachment without a frontend that has nothing left to do ends by itself, and never the one that has taken its place.
func TestAttachWhileARebuildIsReleased(t *testing.T) {
	c := newCluster(t, "a", "b")
	a := c.nodes["a"]
	id := c.volume("vol", 8*mib, 1, "a", "b")
	for i := range 40 {
		if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNone}); err != nil {
			t.Fatal(err)
		}
		if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		a.detach(id)
	}
}
