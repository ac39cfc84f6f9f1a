package pool

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"keelson.io/keelson/internal/spec"
)

func TestExpand(t *testing.T) {
	ctx := context.Background()
	h := host(t)
	file := filepath.Join(t.TempDir(), "disk")
	p, err := h.Add(ctx, AddOptions{File: file, Size: 512 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(p.ID)
	kept := filepath.Join(h.MountPoint(p.ID), "x")
	if err := os.WriteFile(kept, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, size := range map[string]int64{"smaller": 400 << 20, "too large": 1 << 62, "negative": -4096, "next to nothing": 100} {
		if _, err := h.Expand(ctx, p, size); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 2 { // again does nothing
		got, err := h.Expand(ctx, p, 2<<30+5)
		if err != nil || got.Capacity < 1800<<20 || got.Reserve <= p.Reserve {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if got, err := h.Expand(ctx, p, 0); err != nil || got.Capacity < 1800<<20 {
		t.Errorf("what the file has: %+v, %v", got, err)
	}
	if b, err := os.ReadFile(kept); err != nil || string(b) != "kept" {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := h.Expand(ctx, spec.Pool{ID: "00000000000000ff"}, 0); !errors.Is(err, ErrForeign) {
		t.Errorf("a pool that isn't mounted: %v", err)
	}
	if err := Wipe(ctx, p); !errors.Is(err, ErrInUse) {
		t.Errorf("a mounted pool was wiped: %v", err)
	}
	if err := h.Close(p.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Wipe(ctx, p); err != nil {
			t.Errorf("wipe: %v", err)
		}
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// TestAbandon: the mount of a pool that is in use goes, as it has to when its device is lost.
func TestAbandon(t *testing.T) {
	h := host(t)
	p, err := h.Add(context.Background(), AddOptions{File: filepath.Join(t.TempDir(), "disk"), Size: 512 << 20})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(h.MountPoint(p.ID), "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := h.Close(p.ID); err == nil {
		t.Error("a pool with an open file was unmounted")
	}
	for range 2 {
		if err := h.Abandon(p.ID); err != nil {
			t.Fatal(err)
		}
	}
	if mounted, err := isMountPoint(h.MountPoint(p.ID)); mounted || err != nil {
		t.Errorf("%v, %v", mounted, err)
	}
}
