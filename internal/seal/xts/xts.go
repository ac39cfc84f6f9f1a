// Package xts is AES-256-XTS (IEEE 1619, NIST SP 800-38E) with sectors of 4096 bytes, whose tweak is their number, as dm-crypt's
// aes-xts-plain64 has it. Where the processor has wide AES and carry-less multiplication (x86-64 with AVX-512, VAES and
// VPCLMULQDQ) it works on 16 blocks at a time, with the older AES instructions on 8; everywhere else it does a block at a time with
// the standard library's AES. All give the same bytes, and tests compare them with each other and with the standard's vectors.
//
// The package owns no goroutine. A Cipher may be used by several goroutines at once, but not after Close.
package xts

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
)

// Sizes in bytes.
const (
	KeySize    = 64 // the first half for the data, the second for the tweaks
	SectorSize = 4096

	blockSize = aes.BlockSize
)

// Cipher encrypts and decrypts sectors with one key.
type Cipher struct {
	native *native // nil where the processor hasn't the instructions
	slow   *slow
}

// New returns the cipher of a key, of KeySize bytes, whose halves must differ. What it makes of the key is in memory that is locked
// and left out of core dumps, as far as the system lets it, and that Close gives back.
func New(key []byte) (*Cipher, error) {
	if len(key) != KeySize {
		return nil, fmt.Errorf("xts: a key of %d bytes, not of %d", len(key), KeySize)
	}
	if subtle.ConstantTimeCompare(key[:KeySize/2], key[KeySize/2:]) == 1 {
		return nil, fmt.Errorf("xts: both halves of the key are the same")
	}
	w, err := newNative(key)
	if err != nil {
		return nil, err
	}
	if w != nil {
		return &Cipher{native: w}, nil
	}
	s, err := newSlow(key)
	return &Cipher{slow: s}, err
}

// Close wipes the key.
func (c *Cipher) Close() error {
	w := c.native
	c.native, c.slow = nil, nil
	return w.close()
}

// Encrypt writes the ciphertext of whole sectors, of which the first has the number sector, to dst, which is as long as src. It may
// be src; any other overlap isn't allowed.
func (c *Cipher) Encrypt(dst, src []byte, sector uint64) {
	if n := sectors(dst, src); n > 0 && c.native != nil {
		c.native.encrypt(dst, src, n, sector)
	} else if n > 0 {
		c.slow.crypt(dst, src, sector, c.slow.data.Encrypt)
	}
}

// Decrypt is Encrypt's reverse.
func (c *Cipher) Decrypt(dst, src []byte, sector uint64) {
	if n := sectors(dst, src); n > 0 && c.native != nil {
		c.native.decrypt(dst, src, n, sector)
	} else if n > 0 {
		c.slow.crypt(dst, src, sector, c.slow.data.Decrypt)
	}
}

func sectors(dst, src []byte) int {
	if len(src)%SectorSize != 0 || len(dst) != len(src) {
		panic(fmt.Sprintf("xts: %d bytes into %d: no whole sectors", len(src), len(dst)))
	}
	return len(src) / SectorSize
}

// slow does a block at a time.
type slow struct{ data, tweak cipher.Block }

func newSlow(key []byte) (*slow, error) {
	data, err := aes.NewCipher(key[:KeySize/2])
	if err != nil {
		return nil, err
	}
	tweak, err := aes.NewCipher(key[KeySize/2:])
	return &slow{data, tweak}, err
}

// crypt xors each block with its tweak before and after do.
func (s *slow) crypt(dst, src []byte, sector uint64, do func(dst, src []byte)) {
	var tweaks [SectorSize]byte
	for ; len(src) > 0; dst, src, sector = dst[SectorSize:], src[SectorSize:], sector+1 {
		s.tweaks(&tweaks, sector)
		subtle.XORBytes(dst[:SectorSize], src[:SectorSize], tweaks[:])
		for at := 0; at < SectorSize; at += blockSize {
			b := dst[at : at+blockSize]
			do(b, b)
		}
		subtle.XORBytes(dst[:SectorSize], dst[:SectorSize], tweaks[:])
	}
}

// tweaks fills t with the tweaks of a sector's blocks.
func (s *slow) tweaks(t *[SectorSize]byte, sector uint64) {
	first := t[:blockSize]
	clear(first)
	binary.LittleEndian.PutUint64(first, sector)
	s.tweak.Encrypt(first, first)
	low, high := binary.LittleEndian.Uint64(first), binary.LittleEndian.Uint64(first[8:])
	for at := blockSize; at < SectorSize; at += blockSize {
		carry := -(high >> 63)
		high = high<<1 | low>>63
		low = low<<1 ^ carry&0x87
		binary.LittleEndian.PutUint64(t[at:], low)
		binary.LittleEndian.PutUint64(t[at+8:], high)
	}
}
