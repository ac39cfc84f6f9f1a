// Package keyfile has wrapping keys in the files of a directory, one in each: the file's name is the key's id. That is what a
// Secret of Kubernetes looks like where it is mounted, too. The last one in order wraps; all open what they have wrapped. Order is
// that of the names, with numbers in them compared as numbers: k2 comes before k10.
//
// The directory is read at each use, so a key that is added counts at once. Nothing is kept in memory.
//
// The package owns no goroutine.
package keyfile

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// Dir is a directory of wrapping keys. It is a seal.Wrapper.
type Dir struct{ Path string }

var _ seal.Wrapper = Dir{}

// idForm is what a key's file may be called. Others are no keys: a Secret's mount has some that begin with a dot.
var idForm = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._]{0,127}$`)

const legalKey = "32 bytes, or 64 hex digits"

// IDs returns the ids of the keys, the one that wraps last.
func (d Dir) IDs() ([]string, error) {
	entries, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, fmt.Errorf("%w: the directory of the wrapping keys can't be read: %w", seal.ErrMissing, err)
	}
	var ids []string
	for _, e := range entries {
		if idForm.MatchString(e.Name()) && !e.IsDir() {
			ids = append(ids, e.Name())
		}
	}
	slices.SortFunc(ids, order)
	return ids, nil
}

// Current implements seal.Wrapper.
func (d Dir) Current(context.Context) (string, error) {
	ids, err := d.IDs()
	if err != nil {
		return "", err
	}
	if len(ids) == 0 {
		return "", fmt.Errorf("%w: there is no key in %s: put one there, %s", seal.ErrMissing, d.Path, legalKey)
	}
	return ids[len(ids)-1], nil
}

// Wrap implements seal.Wrapper.
func (d Dir) Wrap(ctx context.Context, k *seal.Key, volumeID string) (spec.WrappedKey, error) {
	id, err := d.Current(ctx)
	if err != nil {
		return spec.WrappedKey{}, err
	}
	key, err := d.read(id)
	if err != nil {
		return spec.WrappedKey{}, err
	}
	defer clear(key)
	sealed, err := seal.Seal(key, k, volumeID)
	return spec.WrappedKey{Provider: spec.ProviderFile, ID: id, Sealed: sealed}, err
}

// Unwrap implements seal.Wrapper.
func (d Dir) Unwrap(_ context.Context, w spec.WrappedKey, volumeID string) (*seal.Key, error) {
	key, err := d.read(w.ID)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return seal.Open(key, w.Sealed, volumeID)
}

// Check looks at the directory and at every key in it, and returns what is wrong with them, and with whom they belong to. That there are
// none is for Current to say.
func (d Dir) Check() (wrong []error) {
	ids, err := d.IDs()
	if err != nil {
		return nil
	}
	if err := private(d.Path, 0o022, "changed"); err != nil {
		wrong = append(wrong, err)
	}
	for _, id := range ids {
		key, err := d.read(id)
		clear(key)
		if err == nil {
			err = private(filepath.Join(d.Path, id), 0o077, "read")
		}
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	return wrong
}

// private returns an error if somebody but root may do with a file what the bits of the mode say.
func private(path string, bits fs.FileMode, what string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 {
		return fmt.Errorf("%s belongs to user %d, who can give others the right to it: make it root's", path, sys.Uid)
	}
	if st.Mode().Perm()&bits != 0 {
		return fmt.Errorf("%s can be %s by others than root (mode %#o)", path, what, st.Mode().Perm())
	}
	return nil
}

// read reads a key. Errors name the file, never what is in it.
func (d Dir) read(id string) ([]byte, error) {
	if !idForm.MatchString(id) {
		return nil, fmt.Errorf("%w: %q is no name of a key", seal.ErrDamaged, id)
	}
	path := filepath.Join(d.Path, id)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: put it there as %s", seal.ErrMissing, path)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", seal.ErrMissing, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s can be read by others than its owner (mode %#o): make it 0400", path, st.Mode().Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, 256))
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	return parse(path, b)
}

// parse takes the key from what its file has, and wipes that.
func parse(path string, b []byte) ([]byte, error) {
	defer clear(b)
	key := make([]byte, seal.WrapKeySize)
	if len(b) == seal.WrapKeySize {
		copy(key, b)
	} else if text := bytes.TrimRight(b, "\r\n"); len(text) != hex.EncodedLen(len(key)) {
		return nil, fmt.Errorf("key file %s has %d bytes: it must have %s", path, len(b), legalKey)
	} else if _, err := hex.Decode(key, text); err != nil {
		return nil, fmt.Errorf("key file %s isn't right: it must have %s", path, legalKey)
	}
	if bytes.Count(key, key[:1]) == len(key) {
		return nil, fmt.Errorf("key file %s has the same byte throughout: that is no key; make one with `head -c 32 /dev/urandom`", path)
	}
	return key, nil
}

// order compares names, and numbers in them as numbers.
func order(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		p, xs := number(x)
		q, ys := number(y)
		if p != "" && q != "" {
			p, q = strings.TrimLeft(p, "0"), strings.TrimLeft(q, "0")
			if c := cmp.Or(cmp.Compare(len(p), len(q)), cmp.Compare(p, q)); c != 0 {
				return c
			}
			x, y = xs, ys
			continue
		}
		if x[0] != y[0] {
			return cmp.Compare(x[0], y[0])
		}
		x, y = x[1:], y[1:]
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), cmp.Compare(a, b))
}

// number cuts the digits off that s begins with.
func number(s string) (digits, rest string) {
	n := 0
	for n < len(s) && '0' <= s[n] && s[n] <= '9' {
		n++
	}
	return s[:n], s[n:]
}
