package keyfile

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

const volumeID = "00112233445566aa"

func key(b byte) []byte {
	k := bytes.Repeat([]byte{b}, seal.WrapKeySize)
	k[0]++
	return k
}

func dir(t *testing.T, files map[string][]byte) Dir {
	t.Helper()
	d := Dir{t.TempDir()}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(d.Path, name), b, 0o400); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestNewestWrapsAndOlderOnesOpen(t *testing.T) {
	d := dir(t, map[string][]byte{"k2": key(2), "k9": key(9), ".hidden": key(3), "k1~": key(3)})
	k, err := seal.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	old, err := d.Wrap(t.Context(), k, volumeID)
	if err != nil || old.ID != "k9" || old.Provider != spec.ProviderFile {
		t.Fatalf("%+v, %v", old, err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "k10"), []byte(hex.EncodeToString(key(10))+"\n"), 0o400); err != nil {
		t.Fatal(err)
	}
	now, err := d.Wrap(t.Context(), k, volumeID)
	if err != nil || now.ID != "k10" {
		t.Fatalf("%+v, %v", now, err)
	}
	for _, w := range []spec.WrappedKey{old, now} {
		got, err := d.Unwrap(t.Context(), w, volumeID)
		if err != nil {
			t.Fatalf("%s: %v", w.ID, err)
		}
		got.Close()
	}
	wrong := now
	wrong.ID = "k2"
	if _, err := d.Unwrap(t.Context(), wrong, volumeID); !errors.Is(err, seal.ErrDamaged) {
		t.Errorf("another key than the one that wrapped: %v", err)
	}
	for _, id := range []string{"k11", "../k2", "", ".hidden", "k2/../k2"} {
		wrong.ID = id
		if _, err := d.Unwrap(t.Context(), wrong, volumeID); !errors.Is(err, seal.ErrMissing) && !errors.Is(err, seal.ErrDamaged) {
			t.Errorf("key %q: %v", id, err)
		}
	}
}

// As a Secret of Kubernetes is mounted: names are links into a directory whose name begins with a dot.
func TestMountedSecret(t *testing.T) {
	d := Dir{t.TempDir()}
	data := filepath.Join(d.Path, "..2026_11_21")
	if err := errors.Join(os.Mkdir(data, 0o700), os.WriteFile(filepath.Join(data, "2026-11"), key(1), 0o400),
		os.Symlink("..2026_11_21", filepath.Join(d.Path, "..data")), os.Symlink("..data/2026-11", filepath.Join(d.Path, "2026-11"))); err != nil {
		t.Fatal(err)
	}
	if ids, err := d.IDs(); err != nil || !slices.Equal(ids, []string{"2026-11"}) {
		t.Errorf("%v, %v", ids, err)
	}
	if _, err := d.read("2026-11"); err != nil {
		t.Error(err)
	}
}

func TestBadKeys(t *testing.T) {
	text := []byte(hex.EncodeToString(key(1)))
	for what, x := range map[string]struct {
		content []byte
		mode    os.FileMode
		ok      bool
		words   string
	}{
		"32 bytes":                   {key(1), 0o400, true, ""},
		"64 digits":                  {text, 0o600, true, ""},
		"64 digits and a line's end": {append(bytes.Clone(text), "\r\n"...), 0o400, true, ""},
		"empty":                      {nil, 0o400, false, "0 bytes"},
		"31 bytes":                   {key(1)[:31], 0o400, false, "31 bytes"},
		"33 bytes":                   {append(key(1), 1), 0o400, false, "33 bytes"},
		"64 letters":                 {bytes.Repeat([]byte("x"), 64), 0o400, false, "64 hex digits"},
		"long":                       {bytes.Repeat([]byte("a"), 10000), 0o400, false, "256 bytes"},
		"zeros":                      {make([]byte, 32), 0o400, false, "same byte"},
		"zeros in digits":            {bytes.Repeat([]byte("0"), 64), 0o400, false, "same byte"},
		"readable by a group":        {key(1), 0o440, false, "0400"},
		"readable by all":            {key(1), 0o404, false, "0400"},
	} {
		d := Dir{t.TempDir()}
		path := filepath.Join(d.Path, "k")
		if err := errors.Join(os.WriteFile(path, x.content, 0o600), os.Chmod(path, x.mode)); err != nil {
			t.Fatal(err)
		}
		got, err := d.read("k")
		switch {
		case x.ok && (err != nil || !bytes.Equal(got, key(1))):
			t.Errorf("%s: %v", what, err)
		case !x.ok && (err == nil || !strings.Contains(err.Error(), x.words) || !strings.Contains(err.Error(), path)):
			t.Errorf("%s: %v", what, err)
		case err != nil && len(x.content) > 8 && strings.Contains(err.Error(), string(x.content[:8])):
			t.Errorf("%s: the key is in the error", what)
		}
	}
	for what, d := range map[string]Dir{"no directory": {"/nowhere/keys"}, "an empty one": dir(t, nil)} {
		if _, err := d.Current(t.Context()); !errors.Is(err, seal.ErrMissing) || !strings.Contains(err.Error(), d.Path) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOrder(t *testing.T) {
	want := []string{"1", "2", "10", "2026-01", "2026-9", "2026-11", "K", "k", "k1", "k01", "k2", "k10", "k10a", "z"}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, order)
	for _, a := range want {
		for _, b := range want {
			if (order(a, b) == 0) != (a == b) || order(a, b) != -order(b, a) {
				t.Errorf("%s and %s", a, b)
			}
		}
	}
	if i := slices.Index(got, "k10"); i < slices.Index(got, "k2") || slices.Index(got, "2026-11") < slices.Index(got, "2026-9") {
		t.Errorf("%v", got)
	}
}
