package server

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// TestEndedHolderStaysEnded: when a node is stopped, and its holder with it, the supervisor doesn't start another one.
func TestEndedHolderStaysEnded(t *testing.T) {
	dir := t.TempDir()
	cfg := Config{DataDir: dir, RunDir: dir, Roles: []spec.Role{spec.RoleStorage}}
	started, binary := filepath.Join(dir, "started"), filepath.Join(dir, "binary")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\necho >"+started+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	up, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- fdstore.Hold(context.Background(), cfg.holderSocket(), func() { close(up) }) }()
	<-up
	t.Setenv(envHolder, "")
	h := newHolding(cfg, binary, nil, slog.New(slog.NewTextHandler(t.Output(), nil)))
	keepers := h.open(t.Context(), map[string]*fdstore.Keeper{})
	h.end()
	if err := <-ended; err != nil {
		t.Errorf("the holder ended with %v", err)
	}
	select {
	case <-h.done:
	default:
		t.Error("a holder is still looked for after the last one was ended")
	}
	h.close()
	for _, k := range keepers {
		k.Close()
	}
	if _, err := os.Stat(started); err == nil {
		t.Error("another holder was started")
	}
}
