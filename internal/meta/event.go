package meta

import (
	"context"
	"errors"
	"time"

	"keelson.io/keelson/internal/spec"
)

// EventStore is the part of a Store that keeps events.
type EventStore interface {
	Events(ctx context.Context) (Versioned[[]spec.Event], error)
	PutEvents(ctx context.Context, list []spec.Event, rev Rev) (Rev, error)
}

// AddEvent adds an event to those that are kept. While the store can't be reached it tries again until ctx ends. As the
// outcome of a write may be unknown, an event that is there already isn't added again.
func AddEvent(ctx context.Context, s EventStore, e spec.Event) error {
	pause := 50 * time.Millisecond
	for {
		have, err := s.Events(ctx)
		if err == nil || errors.Is(err, ErrNotFound) {
			for _, o := range have.Value {
				if o == e {
					return nil
				}
			}
			if _, err = s.PutEvents(ctx, spec.AddEvent(have.Value, e), have.Rev); err == nil {
				return nil
			}
			if errors.Is(err, ErrConflict) || errors.Is(err, ErrExists) {
				continue
			}
		}
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, 2*time.Second)
	}
}
