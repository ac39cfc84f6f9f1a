package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/server/fdstore"
	"keelson.io/keelson/internal/spec"
)

// openFrontends returns the ways to show a volume, with the supervisor as the keeper of their descriptors. What the
// dead engine left of volumes that aren't attached here any more is let go: their users get an error
// instead of waiting for ever.
//
// The data keys that it left of volumes that are attached here still are the second result.
func openFrontends(ctx context.Context, cfg Config, line *fdstore.Line, store meta.Store, log *slog.Logger) (map[string]engine.OpenFrontend, map[string]engine.Kept, error) {
	fc := engine.FrontendConfig{RunDir: cfg.RunDir, Kept: map[string]engine.Kept{}}
	keys := map[string]engine.Kept{}
	if line != nil {
		fc.Keeper = line
	}
	entries, err := line.Restore()
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		_, id, _ := strings.Cut(e.Name, "/")
		keyOf, isKey := engine.KeptKey(e.Name)
		if isKey {
			id = keyOf
		}
		v, err := store.Volume(ctx, id)
		if err != nil && !errors.Is(err, meta.ErrNotFound) {
			return nil, nil, fmt.Errorf("volume %s, whose device is kept: %w", id, err)
		}
		if err == nil && isKey && v.Value.State.Node == cfg.Node && v.Value.State.Frontend != spec.FrontendNone {
			keys[e.Name] = engine.Kept{FDs: e.FDs}
			continue
		}
		if err == nil && !isKey && v.Value.State.Node == cfg.Node && v.Value.State.Frontend == spec.FrontendFUSE {
			fc.Kept[e.Name] = engine.Kept{State: e.State, FDs: e.FDs}
			continue
		}
		if !isKey {
			log.Warn("volume isn't attached here any more; what used its device gets an error", "volume", id)
		}
		fdstore.CloseAll(e.FDs)
		if err := line.Remove(e.Name); err != nil {
			return nil, nil, err
		}
	}
	return engine.Frontends(fc), keys, nil
}
