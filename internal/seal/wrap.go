package seal

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"keelson.io/keelson/internal/spec"
)

// Why a key can't be wrapped or opened. Test with errors.Is.
var (
	// ErrNone: the node is configured with no wrapping keys.
	ErrNone = errors.New("no wrapping key is configured on this node: set encryption.provider in its configuration, on all nodes; docs/ops/encryption.md says how")
	// ErrMissing: this node hasn't the wrapping key. It may come.
	ErrMissing = errors.New("the wrapping key isn't on this node")
	// ErrAway: who has the wrapping key can't be asked just now.
	ErrAway = errors.New("the keeper of the wrapping key can't be asked")
	// ErrDamaged: a wrapped key was changed, or is that of another volume.
	ErrDamaged = errors.New("the wrapped key doesn't open: it was changed, belongs to another volume, or the wrapping key of that name is another one than the one that wrapped it")
)

// Wrapper has wrapping keys. Its methods may block until ctx ends, and are safe for concurrent use.
type Wrapper interface {
	// Current returns the id of the key that Wrap uses now.
	Current(ctx context.Context) (id string, err error)
	// Wrap encrypts a data key for a volume with the newest wrapping key.
	Wrap(ctx context.Context, k *Key, volumeID string) (spec.WrappedKey, error)
	// Unwrap is Wrap's reverse, with whichever key wrapped it.
	Unwrap(ctx context.Context, w spec.WrappedKey, volumeID string) (*Key, error)
}

// Ring are the wrapping keys that a node has. A nil Ring has none.
type Ring struct {
	with      string // the provider that wraps
	providers map[string]Wrapper
}

// NewRing returns a ring that wraps with one of the providers, and opens what any of them wrapped.
func NewRing(with string, providers map[string]Wrapper) *Ring {
	return &Ring{with: with, providers: maps.Clone(providers)}
}

// Providers returns the names of those that are configured.
func (r *Ring) Providers() []string {
	if r == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(r.providers))
}

// Current returns the name of the key that wraps now, as WrappedKey.Name does.
func (r *Ring) Current(ctx context.Context) (string, error) {
	if r == nil {
		return "", ErrNone
	}
	id, err := r.providers[r.with].Current(ctx)
	return r.with + "/" + id, err
}

// Make makes the data key of a new volume.
func (r *Ring) Make(ctx context.Context, volumeID string) (*spec.Encryption, error) {
	if r == nil {
		return nil, ErrNone
	}
	k, err := NewKey()
	if err != nil {
		return nil, err
	}
	defer k.Close()
	w, err := r.wrap(ctx, k, volumeID)
	if err != nil {
		return nil, err
	}
	return &spec.Encryption{Cipher: spec.CipherXTS, Key: w}, nil
}

func (r *Ring) wrap(ctx context.Context, k *Key, volumeID string) (spec.WrappedKey, error) {
	w, err := r.providers[r.with].Wrap(ctx, k, volumeID)
	w.Provider = r.with
	return w, err
}

// Open opens a volume's data key. The error names the wrapping key.
func (r *Ring) Open(ctx context.Context, e *spec.Encryption, volumeID string) (*Key, error) {
	if e.Cipher != spec.CipherXTS {
		return nil, fmt.Errorf("its cipher %q isn't known to this version; upgrade the node", e.Cipher)
	}
	w := e.Key
	if r == nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w", w.Name(), ErrNone)
	}
	p := r.providers[w.Provider]
	if p == nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w: provider %s isn't configured here, only %s", w.Name(), ErrMissing, w.Provider, strings.Join(r.Providers(), " and "))
	}
	k, err := p.Unwrap(ctx, w, volumeID)
	if err != nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w", w.Name(), err)
	}
	return k, nil
}

// Rewrap wraps volume from's data key by the newest wrapping key, for volume to, which may be the same.
func (r *Ring) Rewrap(ctx context.Context, e *spec.Encryption, from, to string) (*spec.Encryption, error) {
	k, err := r.Open(ctx, e, from)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	w, err := r.wrap(ctx, k, to)
	if err != nil {
		return nil, err
	}
	return &spec.Encryption{Cipher: e.Cipher, Key: w}, nil
}

// WrapKeySize is the size of a key for Seal and Open, in bytes.
const WrapKeySize = 32

// SealedSize is how long a sealed key is: nonce, key, tag.
const SealedSize = 12 + KeySize + 16

// about binds a sealed key to what it is, and to its volume.
func about(volumeID string) []byte {
	return []byte("keelson data key 1 " + spec.CipherXTS + " " + volumeID)
}

func wrapping(key []byte) (cipher.AEAD, error) {
	if len(key) != WrapKeySize {
		return nil, fmt.Errorf("a wrapping key of %d bytes, not of %d", len(key), WrapKeySize)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(b)
}

// Seal encrypts a data key with a wrapping key, by AES-256-GCM.
func Seal(wrapKey []byte, k *Key, volumeID string) ([]byte, error) {
	a, err := wrapping(wrapKey)
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, k.bytes(), about(volumeID)), nil
}

// Open is Seal's reverse. If the bytes aren't what Seal gave for that volume, the error is ErrDamaged.
func Open(wrapKey, sealed []byte, volumeID string) (*Key, error) {
	a, err := wrapping(wrapKey)
	if err != nil {
		return nil, err
	}
	if len(sealed) != SealedSize {
		return nil, fmt.Errorf("%w (%d bytes, not %d)", ErrDamaged, len(sealed), SealedSize)
	}
	k, err := blankKey()
	if err != nil {
		return nil, err
	}
	if _, err := a.Open(k.page[:0], nil, sealed, about(volumeID)); err != nil {
		k.Close()
		return nil, ErrDamaged
	}
	return k, nil
}
