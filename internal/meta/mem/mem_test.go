package mem

import (
	"context"
	"errors"
	"testing"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/metatest"
)

func TestContract(t *testing.T) {
	metatest.Run(t, func(t *testing.T) metatest.Harness {
		s := New()
		t.Cleanup(func() { s.Close() })
		return metatest.Harness{Store: s, LoseLease: func(node string) {
			s.Cut(node)
			waitUntilGone(t, s, node)
			s.Heal(node)
		}}
	})
}

func waitUntilGone(t *testing.T, s *Store, node string) {
	t.Helper()
	err := s.Watch(t.Context(), func(ev meta.Event) error {
		alive, err := s.Alive(t.Context())
		if err == nil && !alive[node] {
			err = context.Canceled
		}
		return err
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestUnavailable(t *testing.T) {
	s := New()
	s.SetUnavailable(true)
	if _, err := s.Nodes(t.Context()); !errors.Is(err, meta.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	s.SetUnavailable(false)
	if _, err := s.Nodes(t.Context()); err != nil {
		t.Fatal(err)
	}
}
