package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"keelson.io/keelson/internal/server/fdstore"
)

func TestOneProcessOfAName(t *testing.T) {
	cfg := testConfig(t, "n1")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	t.Setenv(fdstore.EnvFD, "")
	began, end, second := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		_ = RunChild(ctx, cfg, "engine", func(context.Context, Config, *fdstore.Line) error {
			close(began)
			<-end
			return nil
		})
	}()
	<-began
	impatient, stop := context.WithCancel(ctx)
	stop()
	if err := RunChild(impatient, cfg, "engine", func(context.Context, Config, *fdstore.Line) error {
		t.Error("two engines ran at once")
		return nil
	}); !errors.Is(err, context.Canceled) {
		t.Errorf("the second engine: %v", err)
	}
	// One of another node will never have its turn.
	if err := (State{Node: "n1", NodeID: "x"}).write(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	stranger := cfg
	stranger.Node = "n2"
	if err := RunChild(ctx, stranger, "engine", nil); !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), "node n1") {
		t.Errorf("another node's engine: %v", err)
	}
	// Another name isn't held up, and the same one goes on when the first has ended.
	for _, name := range []string{"control", "etcd"} {
		if err := RunChild(ctx, cfg, name, func(context.Context, Config, *fdstore.Line) error { return nil }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	go func() {
		defer close(second)
		if err := RunChild(ctx, cfg, "engine", func(context.Context, Config, *fdstore.Line) error { return nil }); err != nil {
			t.Error(err)
		}
	}()
	close(end)
	<-second
}
