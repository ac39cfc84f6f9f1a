package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"keelson.io/keelson/internal/lab"
)

// wantAtRest is what an encrypted volume must reach of one that isn't.
var wantAtRest = target{0.75, 0.90}

// atRestProfiles are those in which the cipher could be felt.
var atRestProfiles = []string{"random write, 32 in flight", "random read, 32 in flight", "1 MiB write, 8 in flight"}

// settings has the nodes of the lab look for wrapping keys where makeKey puts one.
func settings() map[string]any {
	return map[string]any{"encryption": map[string]any{"provider": "file", "keyDir": keyDir()}}
}

func keyDir() string { return filepath.Join(lab.Dir(labName), "keys") }

func makeKey() error {
	if err := os.MkdirAll(keyDir(), 0o700); err != nil {
		return err
	}
	var key [32]byte
	_, _ = rand.Read(key[:])
	return os.WriteFile(filepath.Join(keyDir(), "k1"), []byte(hex.EncodeToString(key[:])+"\n"), 0o400)
}

// atRest compares a volume that is encrypted at rest with one that isn't.
func (b *bench) atRest(ctx context.Context) error {
	if err := makeKey(); err != nil {
		return err
	}
	var places []place
	for _, v := range []struct {
		name string
		more []string
	}{{"open", nil}, {"at rest", []string{"--encrypt"}}} {
		name := strings.ReplaceAll(v.name, " ", "-")
		dev, err := b.volume(ctx, name, b.mode.volume, "fuse", v.more...)
		if err != nil {
			return err
		}
		p := fusePlace(dev)
		p.name = v.name
		if err := b.fill(ctx, p); err != nil {
			return err
		}
		places = append(places, p)
	}
	for _, profile := range profiles {
		if !slices.Contains(atRestProfiles, profile.name) {
			continue
		}
		profile.want = map[string]target{"at rest": wantAtRest}
		profile.cpu = false
		if err := b.measure(ctx, profile, places); err != nil {
			return fmt.Errorf("%s: %w", profile.name, err)
		}
	}
	for _, name := range []string{"open", "at-rest"} {
		if err := b.drop(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
