package engine

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/nbd"
	"keelson.io/keelson/internal/spec"
)

// FrontendParams is what a frontend is made from.
type FrontendParams struct {
	Loop   aio.Loop
	Device frontend.Device // used on Loop only
	Name   string          // of the volume
	Volume string          // its id
	// ReadOnly is set for one that refuses changes.
	ReadOnly bool
	Term     uint64
	// Takeover is set when a dead engine of this node showed the volume in the term before: what its
	// clients have in flight may be executed. Otherwise it must fail.
	Takeover bool
	// Discard asks for nothing to be opened: what a dead engine left of the volume on this node is taken away, as the
	// volume is somebody else's now. Only Name, Volume and Log are set; or, instead of Volume, Spare: then it's what was
	// left of all volumes but those.
	Discard bool
	Spare   map[string]bool
	// Prepare asks for nothing to be opened: a dead engine of this node had the volume in Term, the newest one, and the
	// next one is about to be taken. Only Name, Volume, Term and Log are set.
	Prepare bool
	Log     *slog.Logger
}

// OpenFrontend opens a frontend, which then is to be closed by the caller. ctx ends when
// the engine closes. It may answer nil to Discard and to Prepare.
type OpenFrontend func(ctx context.Context, p FrontendParams) (frontend.Frontend, error)

// Keeper outlives the engine and keeps descriptors for the next one.
type Keeper interface {
	// Put keeps duplicates of descriptors, and a state, under a name; it replaces what was there.
	Put(name string, state []byte, fds []int) error
	// Remove forgets a name and closes what was kept.
	Remove(name string) error
}

// Kept is what a Keeper kept for this engine under one name. The descriptors belong to
// whoever has it.
type Kept struct {
	State []byte
	FDs   []int
}

// FrontendConfig says where the frontends are and what outlives this engine.
type FrontendConfig struct {
	RunDir string
	// Keeper may be nil: then a FUSE device fails when the engine ends.
	Keeper Keeper
	// Kept is what the engine before this one left, by name.
	Kept map[string]Kept
}

// Frontends are the ways to show volumes that Keelson has: NBD on a socket in RunDir/nbd, and a FUSE
// file below RunDir/fuse with a loop device. RunDir/dev has a link to each loop device, by the volume's name.
func Frontends(cfg FrontendConfig) map[string]OpenFrontend {
	f := &fuseFrontends{cfg: cfg, kept: make(map[string]Kept)}
	for name, k := range cfg.Kept {
		f.kept[name] = k
	}
	return map[string]OpenFrontend{
		spec.FrontendNBD: func(ctx context.Context, p FrontendParams) (frontend.Frontend, error) {
			return openNBD(ctx, cfg.RunDir, p)
		},
		spec.FrontendFUSE: f.open,
	}
}

func openNBD(ctx context.Context, runDir string, p FrontendParams) (frontend.Frontend, error) {
	if p.Discard || p.Prepare {
		return nil, nil // nothing of NBD outlives an engine
	}
	dir := filepath.Join(runDir, "nbd")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	socket := p.Name
	if p.ReadOnly {
		socket = "@" + p.Volume // its name may be too long for the path of a socket
	}
	s := nbd.New(nbd.Config{Loop: p.Loop, Device: p.Device, Name: p.Name, ReadOnly: p.ReadOnly, Socket: filepath.Join(dir, socket+".sock"), Log: p.Log})
	if err := s.Open(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// fuseFrontends opens FUSE frontends, and takes over those of the engine before.
type fuseFrontends struct {
	cfg FrontendConfig

	mu   sync.Mutex
	kept map[string]Kept
}
