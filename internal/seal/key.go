// Package seal keeps what volumes hold from whoever reads the pools: encryption at rest.
//
// A Key is the data key of one volume, AES-256-XTS. A Device stands between a frontend and the volume's coordinator and encrypts
// what is written and decrypts what is read; so replicas, resync, scrubs, snapshots and clones only ever see ciphertext, and need
// no keys. The metadata has the data key wrapped: encrypted by a wrapping key that a Wrapper has, which is a directory of
// files (seal/keyfile) or an external KMS (seal/kms). A Ring are the wrappers that a node is configured with. The cipher is in
// seal/xts. docs/adr/0010-encryption-at-rest.md says what this protects from, and from what not.
//
// Invariants: a data key is in memory that is locked, left out of core dumps and wiped when it isn't needed any more, as far as
// the system allows, and never in a log, an error or the metadata; a wrapped key opens for the volume it was made for and no
// other.
//
// The package owns no goroutine. A Device is used on its shard's loop alone; the rest may be used by several goroutines at once.
package seal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/seal/xts"
)

// KeySize is the size of a data key in bytes.
const KeySize = xts.KeySize

// Key is a volume's data key in the clear. Close wipes it.
type Key struct {
	once sync.Once
	page []byte
}

// NewKey makes a data key.
func NewKey() (*Key, error) {
	k, err := blankKey()
	if err != nil {
		return nil, err
	}
	_, _ = rand.Read(k.bytes()) // never fails
	return k, nil
}

// blankKey has room for a key, and for the tag of its sealed form.
func blankKey() (*Key, error) {
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("memory for a key: %w", err)
	}
	// Where the system refuses it, the key is as safe as all other memory of the process.
	_ = unix.Mlock(page)
	_ = unix.Madvise(page, unix.MADV_DONTDUMP)
	return &Key{page: page}, nil
}

func (k *Key) bytes() []byte { return k.page[:KeySize] }

// Cipher is what a key is used with.
type Cipher = xts.Cipher

// Cipher returns the cipher of the key, which doesn't need the key any more.
func (k *Key) Cipher() (*Cipher, error) { return xts.New(k.bytes()) }

// Close wipes the key. It may be called again.
func (k *Key) Close() {
	k.once.Do(func() {
		clear(k.page)
		_ = unix.Munmap(k.page)
		k.page = nil
	})
}

// String keeps the key out of whatever prints it.
func (k *Key) String() string { return "(a key)" }

// GoString is String.
func (k *Key) GoString() string { return k.String() }

// LogValue implements slog.LogValuer.
func (k *Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// Handoff puts the key into memory that has a descriptor, which the caller closes: for the process that goes on with the volume
// if this one dies. Where the kernel can, it's memory that nothing but the processes with the descriptor can read, not even
// the kernel by its own map, and that is never paged out.
func (k *Key) Handoff() (fd int, err error) {
	fd, err = unix.MemfdSecret(unix.FD_CLOEXEC)
	if err != nil {
		fd, err = unix.MemfdCreate("key", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	}
	if err != nil {
		return -1, fmt.Errorf("memory to hand a key over in: %w", err)
	}
	err = unix.Ftruncate(fd, int64(unix.Getpagesize()))
	if err == nil {
		err = withMapped(fd, func(b []byte) { copy(b, k.bytes()) })
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("memory to hand a key over in: %w", err)
	}
	return fd, nil
}

// TakeOver returns the key that Handoff has put into a descriptor, which stays the caller's.
func TakeOver(fd int) (*Key, error) {
	k, err := blankKey()
	if err != nil {
		return nil, err
	}
	err = withMapped(fd, func(b []byte) { copy(k.bytes(), b) })
	if err == nil && [KeySize]byte(k.bytes()) == [KeySize]byte{} {
		err = errors.New("there is none in it")
	}
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("a key that was handed over: %w", err)
	}
	return k, nil
}

func withMapped(fd int, do func(b []byte)) error {
	b, err := unix.Mmap(fd, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	do(b)
	return unix.Munmap(b)
}
