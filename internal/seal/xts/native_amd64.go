package xts

import (
	"unsafe"

	"golang.org/x/sys/cpu"
	"golang.org/x/sys/unix"
)

// schedule are the keys of the rounds.
type schedule = [15][blockSize]byte

// native uses the processor's instructions.
type native struct {
	page []byte // has keys, and nothing else
	keys *keys
	wide bool // 16 blocks at a time, not 8
}

type keys struct{ encrypt, decrypt, tweak schedule }

// expandKey makes the keys of the rounds of AES-256 (FIPS 197, 5.2).
//
//go:noescape
func expandKey(key *byte, keys *schedule)

// invertKeys makes those of the equivalent inverse cipher (FIPS 197, 5.3.5).
//
//go:noescape
func invertKeys(keys, inverse *schedule)

// encrypt encrypts n > 0 sectors from src to dst, which may be the same.
//
//go:noescape
func encrypt(keys, tweak *schedule, dst, src *byte, n int, sector uint64)

// decrypt is encrypt's reverse.
//
//go:noescape
func decrypt(keys, tweak *schedule, dst, src *byte, n int, sector uint64)

// encryptNarrow is encrypt for processors that have only the AES instructions.
//
//go:noescape
func encryptNarrow(keys, tweak *schedule, dst, src *byte, n int, sector uint64)

// decryptNarrow is encryptNarrow's reverse.
//
//go:noescape
func decryptNarrow(keys, tweak *schedule, dst, src *byte, n int, sector uint64)

func hasWide() bool {
	return cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ &&
		cpu.X86.HasAVX512VAES && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasAES
}

// newNative returns nil if the processor hasn't the instructions.
func newNative(key []byte) (*native, error) {
	if !cpu.X86.HasAES {
		return nil, nil
	}
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	// What the system refuses of this leaves the cipher as good as one without it.
	_ = unix.Mlock(page)
	_ = unix.Madvise(page, unix.MADV_DONTDUMP)
	w := &native{page: page, keys: (*keys)(unsafe.Pointer(&page[0])), wide: hasWide()}
	expandKey(&key[0], &w.keys.encrypt)
	invertKeys(&w.keys.encrypt, &w.keys.decrypt)
	expandKey(&key[KeySize/2], &w.keys.tweak)
	return w, nil
}

func (w *native) close() error {
	if w == nil {
		return nil
	}
	clear(w.page)
	return unix.Munmap(w.page)
}

func (w *native) encrypt(dst, src []byte, n int, sector uint64) {
	if w.wide {
		encrypt(&w.keys.encrypt, &w.keys.tweak, &dst[0], &src[0], n, sector)
	} else {
		encryptNarrow(&w.keys.encrypt, &w.keys.tweak, &dst[0], &src[0], n, sector)
	}
}

func (w *native) decrypt(dst, src []byte, n int, sector uint64) {
	if w.wide {
		decrypt(&w.keys.decrypt, &w.keys.tweak, &dst[0], &src[0], n, sector)
	} else {
		decryptNarrow(&w.keys.decrypt, &w.keys.tweak, &dst[0], &src[0], n, sector)
	}
}
