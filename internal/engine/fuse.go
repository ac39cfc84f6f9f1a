package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/fuseloop"
)

// fuseState is what is kept with a FUSE session's descriptor.
type fuseState struct {
	Term    uint64          `json:"term"` // in which the session was served last
	Session json.RawMessage `json:"session"`
}

// fuseName is the name under which the descriptor of a volume's session is kept.
func fuseName(volumeID string) string { return "fuse/" + volumeID }

// fuseFrontend is a fuseloop.Server whose descriptor is kept for the next engine.
type fuseFrontend struct {
	*fuseloop.Server
	f    *fuseFrontends
	name string // of what is kept
	link string
}

// open takes the session of the dead engine over if there is one and nobody else had the volume in between, and
// otherwise makes a new one.
func (f *fuseFrontends) open(ctx context.Context, p FrontendParams) (frontend.Frontend, error) {
	switch {
	case p.Prepare:
		return nil, f.prepare(p)
	case p.Discard && p.Volume == "":
		return nil, f.discardOthers(p.Spare)
	case p.Discard:
		return nil, f.discard(p.Volume)
	}
	cfg := fuseloop.Config{Loop: p.Loop, Device: p.Device, Name: p.Name, MountDir: filepath.Join(f.cfg.RunDir, "fuse"), ReadOnly: p.ReadOnly, Log: p.Log}
	w := &fuseFrontend{f: f, name: fuseName(p.Volume), link: filepath.Join(f.cfg.RunDir, "dev", p.Name)}
	s, err := f.resume(ctx, cfg, p)
	if err != nil && ctx.Err() != nil {
		return nil, err // this engine ends; the next one takes over what is kept
	}
	if err != nil {
		p.Log.Error("the device of the engine before can't be taken over; it fails, and is made anew", "volume", p.Name, "term", p.Term, "err", err)
	}
	if s == nil {
		if f.cfg.Keeper != nil {
			if err := f.cfg.Keeper.Remove(w.name); err != nil {
				return nil, fmt.Errorf("volume %q: descriptor of an older session: %w", p.Name, err)
			}
		}
		s = fuseloop.New(cfg)
		if err := s.Open(ctx); err != nil {
			return nil, err
		}
	}
	w.Server = s
	if err := w.keep(p.Term); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.makeLink(); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// resume takes over the kept session; nil if there is none that may be.
func (f *fuseFrontends) resume(ctx context.Context, cfg fuseloop.Config, p FrontendParams) (*fuseloop.Server, error) {
	name := fuseName(p.Volume)
	f.mu.Lock()
	k, ok := f.kept[name]
	delete(f.kept, name)
	f.mu.Unlock()
	if !ok {
		return nil, nil
	}
	var st fuseState
	err := json.Unmarshal(k.State, &st)
	switch {
	case err != nil || len(k.FDs) != 1:
		err = fmt.Errorf("what was kept of it can't be used: %d descriptors, %w", len(k.FDs), err)
	case !p.Takeover || st.Term+1 != p.Term:
		err = fmt.Errorf("it was served last in term %d: what waits in it may be older than what was written since", st.Term)
	default:
		// The next engine may continue from this term even if this one dies before it is done here.
		if err = f.put(name, p.Term, st.Session, k.FDs[0]); err == nil {
			return fuseloop.Resume(ctx, cfg, st.Session, k.FDs[0])
		}
	}
	for _, fd := range k.FDs {
		unix.Close(fd)
	}
	return nil, err
}

// prepare notes with a kept session that its volume's newest term is this node's. An engine that died right after taking a
// term has served nothing in it, but the next one couldn't tell that no other node had the volume in between.
//
// Invariant: between the term that is kept with a session and the newest one taken by this node there is at most one that no
// engine noted, and nothing was served in that one.
func (f *fuseFrontends) prepare(p FrontendParams) error {
	name := fuseName(p.Volume)
	f.mu.Lock()
	defer f.mu.Unlock()
	k, ok := f.kept[name]
	var st fuseState
	if !ok || json.Unmarshal(k.State, &st) != nil || len(k.FDs) != 1 || st.Term+1 != p.Term {
		return nil
	}
	st.Term = p.Term
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	if f.cfg.Keeper != nil {
		if err := f.cfg.Keeper.Put(name, b, k.FDs); err != nil {
			return fmt.Errorf("volume %q: note its term with the descriptor of its device: %w", p.Name, err)
		}
	}
	k.State = b
	f.kept[name] = k
	return nil
}

// discardOthers takes away what the engine before left of all volumes but those spared.
func (f *fuseFrontends) discardOthers(spare map[string]bool) error {
	f.mu.Lock()
	var list []string
	for name := range f.kept {
		if id := strings.TrimPrefix(name, fuseName("")); !spare[id] {
			list = append(list, id)
		}
	}
	f.mu.Unlock()
	var err error
	for _, id := range list {
		err = errors.Join(err, f.discard(id))
	}
	return err
}

// discard takes away what the engine before left of a volume.
func (f *fuseFrontends) discard(volumeID string) error {
	name := fuseName(volumeID)
	f.mu.Lock()
	k, ok := f.kept[name]
	delete(f.kept, name)
	f.mu.Unlock()
	if !ok {
		return nil
	}
	var err error
	if f.cfg.Keeper != nil {
		err = f.cfg.Keeper.Remove(name)
	}
	return errors.Join(err, Discard(k))
}

// Discard takes away what a dead engine left of a volume that isn't attached to this node any more: the device, whose
// users get errors instead of waiting for ever. The Keeper must have removed it already.
func Discard(k Kept) error {
	for _, fd := range k.FDs {
		unix.Close(fd)
	}
	var st fuseState
	if err := json.Unmarshal(k.State, &st); err != nil {
		return fmt.Errorf("what was kept of a device can't be read: %w", err)
	}
	return fuseloop.Discard(st.Session)
}

func (f *fuseFrontends) put(name string, term uint64, session []byte, fd int) error {
	if f.cfg.Keeper == nil {
		return nil
	}
	b, err := json.Marshal(fuseState{Term: term, Session: session})
	if err != nil {
		return err
	}
	return f.cfg.Keeper.Put(name, b, []int{fd})
}

// keep has the keeper hold the session's descriptor, so that the device outlives this engine.
func (w *fuseFrontend) keep(term uint64) error {
	if w.f.cfg.Keeper == nil {
		return nil
	}
	h, err := w.Handoff()
	if err != nil {
		return err
	}
	defer h.FD.Close()
	if err := w.f.put(w.name, term, h.State, int(h.FD.Fd())); err != nil {
		return fmt.Errorf("volume %q: keep the descriptor of its device: %w", h.Name, err)
	}
	return nil
}

func (w *fuseFrontend) makeLink() error {
	if err := os.MkdirAll(filepath.Dir(w.link), 0o755); err != nil {
		return err
	}
	if err := os.Remove(w.link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(w.Path(), w.link)
}

// Detach implements frontend.Frontend.
func (w *fuseFrontend) Detach() error {
	if err := w.Server.Detach(); err != nil {
		return err
	}
	return w.forget()
}

// Close implements frontend.Frontend.
func (w *fuseFrontend) Close() error { return errors.Join(w.Server.Close(), w.forget()) }

// forget removes what refers to the device that is gone.
func (w *fuseFrontend) forget() error {
	err := os.Remove(w.link)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	if w.f.cfg.Keeper != nil {
		err = errors.Join(err, w.f.cfg.Keeper.Remove(w.name))
	}
	return err
}

// Suspend implements suspender: the device waits for the next engine if somebody keeps it.
func (w *fuseFrontend) Suspend() error {
	if w.f.cfg.Keeper == nil {
		return w.Close()
	}
	return w.Server.Suspend()
}
