package seal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

const volumeID = "00112233445566aa"

func newKey(t testing.TB) *Key {
	t.Helper()
	k, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func wrapKey(b byte) []byte { return bytes.Repeat([]byte{b}, WrapKeySize) }

func TestSealedKeyOpensForItsVolumeOnly(t *testing.T) {
	k := newKey(t)
	sealed, err := Seal(wrapKey(1), k, volumeID)
	if err != nil || len(sealed) != SealedSize {
		t.Fatalf("%d bytes, %v", len(sealed), err)
	}
	if bytes.Contains(sealed, k.bytes()[:8]) {
		t.Fatal("the key is in what is sealed")
	}
	back, err := Open(wrapKey(1), sealed, volumeID)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if !bytes.Equal(back.bytes(), k.bytes()) {
		t.Fatal("another key comes back")
	}
	other := func(change func(b []byte)) []byte {
		b := bytes.Clone(sealed)
		change(b)
		return b
	}
	for what, x := range map[string]struct {
		key    []byte
		sealed []byte
		id     string
		want   error
	}{
		"another wrapping key":     {wrapKey(2), sealed, volumeID, ErrDamaged},
		"another volume":           {wrapKey(1), sealed, "00112233445566ab", ErrDamaged},
		"no volume":                {wrapKey(1), sealed, "", ErrDamaged},
		"truncated":                {wrapKey(1), sealed[:SealedSize-1], volumeID, ErrDamaged},
		"longer":                   {wrapKey(1), append(bytes.Clone(sealed), 0), volumeID, ErrDamaged},
		"empty":                    {wrapKey(1), nil, volumeID, ErrDamaged},
		"nonce changed":            {wrapKey(1), other(func(b []byte) { b[0] ^= 1 }), volumeID, ErrDamaged},
		"key changed":              {wrapKey(1), other(func(b []byte) { b[40] ^= 1 }), volumeID, ErrDamaged},
		"tag changed":              {wrapKey(1), other(func(b []byte) { b[SealedSize-1] ^= 0x80 }), volumeID, ErrDamaged},
		"wrapping key of 16 bytes": {wrapKey(1)[:16], sealed, volumeID, nil},
	} {
		k, err := Open(x.key, x.sealed, x.id)
		if err == nil || x.want != nil && !errors.Is(err, x.want) {
			t.Errorf("%s: %v, %v", what, k, err)
		}
	}
	if again, err := Seal(wrapKey(1), k, volumeID); err != nil || bytes.Equal(again, sealed) {
		t.Errorf("sealed twice it is the same, or %v", err)
	}
}

func TestKeyIsNeverPrinted(t *testing.T) {
	k := newKey(t)
	copy(k.bytes(), "SECRETSECRETSECRET")
	var log bytes.Buffer
	slog.New(slog.NewTextHandler(&log, nil)).Info("made", "key", k, "in", struct{ K *Key }{k})
	for _, text := range []string{fmt.Sprint(k), fmt.Sprintf("%+v %#v %s %q", k, k, k, k), log.String()} {
		if strings.Contains(text, "SECRET") || strings.Contains(text, "83 69 67") {
			t.Errorf("the key is in %q", text)
		}
	}
}

func TestHandoff(t *testing.T) {
	k := newKey(t)
	want := bytes.Clone(k.bytes())
	fd, err := k.Handoff()
	if err != nil {
		t.Fatal(err)
	}
	k.Close()
	k.Close()
	got, err := TakeOver(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if !bytes.Equal(got.bytes(), want) {
		t.Error("another key was taken over")
	}
	unix.Close(fd)
	empty, err := unix.MemfdCreate("empty", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(empty)
	if err := unix.Ftruncate(empty, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := TakeOver(empty); err == nil {
		t.Error("a key of zeros was taken over")
	}
	if _, err := TakeOver(-1); err == nil {
		t.Error("a key was taken over from nothing")
	}
}

// wrapper is a provider with one key.
type wrapper struct {
	id  string
	key byte
	err error
}

func (w *wrapper) Current(context.Context) (string, error) { return w.id, w.err }

func (w *wrapper) Wrap(_ context.Context, k *Key, id string) (spec.WrappedKey, error) {
	sealed, err := Seal(wrapKey(w.key), k, id)
	return spec.WrappedKey{ID: w.id, Sealed: sealed}, errors.Join(w.err, err)
}

func (w *wrapper) Unwrap(_ context.Context, x spec.WrappedKey, id string) (*Key, error) {
	if w.err != nil {
		return nil, w.err
	}
	return Open(wrapKey(w.key), x.Sealed, id)
}

func TestRing(t *testing.T) {
	ctx := t.Context()
	file, kms := &wrapper{id: "a", key: 1}, &wrapper{id: "b", key: 2}
	old := NewRing(spec.ProviderFile, map[string]Wrapper{spec.ProviderFile: file})
	both := NewRing(spec.ProviderKMS, map[string]Wrapper{spec.ProviderFile: file, spec.ProviderKMS: kms})
	only := NewRing(spec.ProviderKMS, map[string]Wrapper{spec.ProviderKMS: kms})
	var none *Ring

	e, err := old.Make(ctx, volumeID)
	if err != nil || e.Cipher != spec.CipherXTS || e.Key.Name() != "file/a" {
		t.Fatalf("%+v, %v", e, err)
	}
	if name, err := both.Current(ctx); name != "kms/b" || err != nil {
		t.Errorf("%s, %v", name, err)
	}
	moved, err := both.Rewrap(ctx, e, volumeID, volumeID)
	if err != nil || moved.Key.Name() != "kms/b" {
		t.Fatalf("%+v, %v", moved, err)
	}
	open := func(r *Ring, e *spec.Encryption, id string) []byte {
		t.Helper()
		k, err := r.Open(ctx, e, id)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		return bytes.Clone(k.bytes())
	}
	if !bytes.Equal(open(old, e, volumeID), open(only, moved, volumeID)) {
		t.Error("another data key after it was wrapped anew")
	}
	clone, err := both.Rewrap(ctx, e, volumeID, "ffeeddccbbaa9988")
	if err != nil || !bytes.Equal(open(only, clone, "ffeeddccbbaa9988"), open(old, e, volumeID)) {
		t.Errorf("a clone hasn't its origin's key: %v", err)
	}
	kms.err = fmt.Errorf("%w: asleep", ErrAway)
	future := *e
	future.Cipher = "aes-512-xyz"
	for what, x := range map[string]struct {
		r     *Ring
		e     *spec.Encryption
		id    string
		want  error
		words string
	}{
		"no ring":                 {none, e, volumeID, ErrNone, "file/a"},
		"no such provider":        {only, e, volumeID, ErrMissing, "file/a"},
		"the provider is away":    {both, moved, volumeID, ErrAway, "kms/b"},
		"the key of another":      {both, clone, volumeID, ErrAway, "kms/b"},
		"for another volume":      {old, e, "ffeeddccbbaa9988", ErrDamaged, "file/a"},
		"a cipher of the future":  {old, &future, volumeID, nil, "aes-512-xyz"},
		"the wrong key by a name": {NewRing("file", map[string]Wrapper{"file": &wrapper{id: "a", key: 9}}), e, volumeID, ErrDamaged, "file/a"},
	} {
		_, err := x.r.Open(ctx, x.e, x.id)
		if err == nil || x.want != nil && !errors.Is(err, x.want) || !strings.Contains(err.Error(), x.words) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := none.Make(ctx, volumeID); !errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "encryption.provider") {
		t.Errorf("without a provider: %v", err)
	}
	if _, err := both.Make(ctx, volumeID); !errors.Is(err, ErrAway) {
		t.Errorf("with a KMS that is away: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(make([]byte, SealedSize), volumeID)
	f.Fuzz(func(t *testing.T, sealed []byte, id string) {
		if k, err := Open(wrapKey(7), sealed, id); err == nil {
			t.Fatalf("%x opens: %v", sealed, k)
		}
	})
}
