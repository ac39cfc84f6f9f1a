package engine

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// Keys opens the data keys of encrypted volumes. Open may take as long as an external service does.
type Keys interface {
	Open(ctx context.Context, e *spec.Encryption, volumeID string) (*seal.Key, error)
}

// keyPrefix begins the names under which data keys are kept for the next engine: prefix, volume id, and a part that makes the name
// unique, as an attachment that ends must not take away what the one after it has put.
const keyPrefix = "key/"

// KeptKey returns the id of the volume whose data key a Keeper has under that name.
func KeptKey(name string) (volumeID string, ok bool) {
	rest, ok := strings.CutPrefix(name, keyPrefix)
	volumeID, _, _ = strings.Cut(rest, "/")
	return volumeID, ok
}

// dataKey is the data key of an encrypted volume that is being attached. A nil *dataKey is that of one that isn't encrypted, or of an
// attachment without a frontend, which needs none.
type dataKey struct {
	e      *Engine
	cipher *seal.Cipher // nil once a device has it
	kept   string       // the key's name in the Keeper
}

// openKey opens the data key of a volume for an attachment, and has it kept for the next engine: that goes on with the volume
// also while whoever has the wrapping key is away.
func (e *Engine) openKey(ctx context.Context, v *spec.Volume, frontend string) (*dataKey, error) {
	if v.Encryption == nil || frontend == spec.FrontendNone {
		return nil, nil
	}
	if k := e.inherited(v.ID); k != nil {
		return k, nil
	}
	key, err := e.unwrap(ctx, v)
	if err = e.noteKey(v, err); err != nil {
		return nil, err
	}
	defer key.Close()
	k := &dataKey{e: e}
	if k.cipher, err = key.Cipher(); err == nil {
		k.kept, err = e.keepKey(v.ID, key)
	}
	if err != nil {
		k.forget()
		return nil, fmt.Errorf("volume %q: %w", v.Name, err)
	}
	return k, nil
}

func (e *Engine) unwrap(ctx context.Context, v *spec.Volume) (*seal.Key, error) {
	if e.cfg.Keys == nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w", v.Encryption.Key.Name(), seal.ErrNone)
	}
	return e.cfg.Keys.Open(ctx, v.Encryption, v.ID)
}

// keepKey gives a key to the keeper, and returns the name under which it is there; "" without a keeper.
func (e *Engine) keepKey(volumeID string, key *seal.Key) (name string, err error) {
	if e.cfg.Keeper == nil {
		return "", nil
	}
	fd, err := key.Handoff()
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	name = keyPrefix + volumeID + "/" + spec.NewID()
	if err := e.cfg.Keeper.Put(name, nil, []int{fd}); err != nil {
		return "", fmt.Errorf("its data key can't be kept for the next engine: %w", err)
	}
	return name, nil
}

// inherited returns the data key that the engine before this one had of a volume, once; nil if it had none.
func (e *Engine) inherited(volumeID string) *dataKey {
	for name, kept := range e.cfg.KeptKeys {
		if id, _ := KeptKey(name); id != volumeID {
			continue
		}
		e.mu.Lock()
		taken := e.keysTaken[name]
		e.keysTaken[name] = true
		e.mu.Unlock()
		if taken {
			continue
		}
		k := &dataKey{e: e, kept: name}
		var err error
		if k.cipher, err = takeKey(kept); err == nil {
			return k
		}
		e.log.Warn("the data key that the engine before this one left can't be used; it is unwrapped again", "volume", volumeID, "err", err)
		k.forget()
	}
	return nil
}

func takeKey(k Kept) (*seal.Cipher, error) {
	defer func() {
		for _, fd := range k.FDs {
			unix.Close(fd)
		}
	}()
	if len(k.FDs) != 1 {
		return nil, fmt.Errorf("%d descriptors with a key", len(k.FDs))
	}
	key, err := seal.TakeOver(k.FDs[0])
	if err != nil {
		return nil, err
	}
	defer key.Close()
	return key.Cipher()
}

// forget gives the key up: the volume isn't served with it. It may block.
func (k *dataKey) forget() {
	if k == nil {
		return
	}
	if k.cipher != nil {
		_ = k.cipher.Close() // it was wiped, which is what counts
		k.cipher = nil
	}
	k.drop()
}

// drop has the keeper forget the key, unless this engine ends: then the next one needs it. It may block.
func (k *dataKey) drop() {
	if k == nil || k.kept == "" || k.e.cfg.Keeper == nil || k.e.ctx.Err() != nil {
		return
	}
	if err := k.e.cfg.Keeper.Remove(k.kept); err != nil {
		k.e.log.Warn("a data key that isn't needed any more is still kept for the next engine", "err", err)
	}
}

// seal puts the encryption before a volume, if there is a key. Called on the loop.
func (k *dataKey) seal(vol seal.Volume, post func(func())) *seal.Device {
	d := seal.NewDevice(vol, k.cipher, post)
	k.cipher = nil
	return d
}

// noteKey notes, for people, whether a volume's data key can be opened, and returns the error in words of the volume.
func (e *Engine) noteKey(v *spec.Volume, err error) error {
	if err != nil {
		err = fmt.Errorf("volume %q is encrypted, and can't be attached to node %s: %w", v.Name, e.cfg.Node, err)
	}
	e.mu.Lock()
	before := e.keyless[v.ID]
	delete(e.keyless, v.ID)
	if err != nil {
		e.keyless[v.ID] = err
	}
	e.mu.Unlock()
	if err == nil || errors.Is(err, context.Canceled) || before != nil && before.Error() == err.Error() {
		return err
	}
	e.log.Error("the data key of an encrypted volume can't be opened", "volume", v.Name, "key", v.Encryption.Key.Name(), "err", err)
	e.event(spec.Event{Time: time.Now().UTC(), What: "key-unavailable", Warning: true, Volume: v.Name, Message: err.Error()})
	return err
}

// Pauses between attempts to open a key that a takeover waits for.
const (
	keyPauseLeast = 250 * time.Millisecond
	keyPauseMost  = 5 * time.Second
)

// awaitKey is openKey for a takeover: what was attached waits until the key can be opened, unless it never can, or somebody detaches
// the volume.
func (e *Engine) awaitKey(ctx context.Context, v *spec.Volume, frontend string) (*dataKey, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	e.mu.Lock()
	e.keyWaits[v.ID] = cancel
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.keyWaits, v.ID)
		e.mu.Unlock()
	}()
	for pause := keyPauseLeast; ; pause = min(2*pause, keyPauseMost) {
		k, err := e.openKey(ctx, v, frontend)
		if err == nil || ctx.Err() != nil || !errors.Is(err, seal.ErrMissing) && !errors.Is(err, seal.ErrAway) && !errors.Is(err, seal.ErrNone) {
			return k, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// stopKeyWait ends a takeover's waiting for a volume's key, if it waits, and forgets what stood against it.
func (e *Engine) stopKeyWait(volumeID string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cancel := e.keyWaits[volumeID]; cancel != nil {
		cancel()
	}
	delete(e.keyless, volumeID)
}

// keyWait says what a takeover of the volume waits for, if it's the key.
func (e *Engine) keyWait(volumeID string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.keyWaits[volumeID] == nil {
		return nil
	}
	return e.keyless[volumeID]
}
