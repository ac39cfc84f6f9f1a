package metatest

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// testEvents adds events from several places at once, more than are kept: none of the newest is missing, and those that ask
// for attention outlive any number of others.
func testEvents(t *testing.T, ctx context.Context, h Harness) {
	_, err := h.Store.Events(ctx)
	want(t, err, meta.ErrNotFound)
	at := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	ok(t, meta.AddEvent(ctx, h.Store, spec.Event{Time: at, What: "first", Warning: true, Message: "look"}))
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			for j := range 20 {
				if err := meta.AddEvent(ctx, h.Store, spec.Event{Time: at, What: "test", Volume: fmt.Sprintf("v%d-%d", i, j), Message: "m"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	have := must[meta.Versioned[[]spec.Event]](t)(h.Store.Events(ctx))
	if len(have.Value) != 61 || have.Value[0].What != "first" {
		t.Fatalf("%d events, the first is %v", len(have.Value), have.Value[0])
	}
	list := have.Value
	for i := range 2 * spec.MaxEvents {
		list = spec.AddEvent(list, spec.Event{Time: at, What: "more", Message: fmt.Sprint(i)})
	}
	rev := must[meta.Rev](t)(h.Store.PutEvents(ctx, list, have.Rev))
	_, err = h.Store.PutEvents(ctx, nil, have.Rev)
	want(t, err, meta.ErrConflict)
	last := spec.Event{Time: at, What: "last", Message: "m"}
	for range 2 { // the second time it is there already
		ok(t, meta.AddEvent(ctx, h.Store, last))
	}
	have = must[meta.Versioned[[]spec.Event]](t)(h.Store.Events(ctx))
	n := len(have.Value)
	if n != spec.MaxEvents+1 || have.Value[0].What != "first" || have.Value[n-1] != last || have.Rev == rev {
		t.Fatalf("%d events, from %v to %v", n, have.Value[0], have.Value[n-1])
	}
}
