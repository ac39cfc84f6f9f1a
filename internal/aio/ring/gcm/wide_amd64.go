package gcm

import (
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"math/bits"
	"slices"

	"golang.org/x/sys/cpu"
)

// stride is how many bytes the assembly works on at a time.
const stride = 16 * blockSize

var errOpen = errors.New("gcm: the message or what goes with it was changed")

// leastWide is the length in bytes from which on the strides are faster than the library.
const leastWide = 1024

// wide is AES-128-GCM in strides.
type wide struct {
	small cipher.AEAD         // seals and opens what is shorter than least
	least int                 // bytes
	keys  [11][blockSize]byte // of the rounds
	// powers has the hash key to the power of 16, 15, … 1, as ghash takes them.
	powers [16][2]uint64
}

// expandKey makes the keys of the rounds (FIPS 197, 5.2).
//
//go:noescape
func expandKey(key *byte, keys *[11][blockSize]byte)

// seal encrypts n strides from src to dst, which may be the same, with the counter's blocks, and takes the result into the hash
// y. counter is left at the next one. counter is a block of counter mode, its bytes in reverse.
//
//go:noescape
func seal(keys *[11][blockSize]byte, powers *[16][2]uint64, dst, src *byte, n int, counter, y *[blockSize]byte)

// open is seal's reverse: it takes src into the hash, and decrypts it.
//
//go:noescape
func open(keys *[11][blockSize]byte, powers *[16][2]uint64, dst, src *byte, n int, counter, y *[blockSize]byte)

// ghash takes a stride into the hash y.
//
//go:noescape
func ghash(powers *[16][2]uint64, src *[stride]byte, y *[blockSize]byte)

func hasWide() bool {
	return cpu.X86.HasAVX512F && cpu.X86.HasAVX512VL && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ &&
		cpu.X86.HasAVX512VAES && cpu.X86.HasAVX512VPCLMULQDQ && cpu.X86.HasAES
}

// newWide returns nil if the processor hasn't the instructions.
func newWide(block cipher.Block, key []byte) cipher.AEAD {
	if !hasWide() {
		return nil
	}
	small, err := cipher.NewGCM(block)
	if err != nil {
		return nil
	}
	w := &wide{small: small, least: leastWide}
	expandKey(&key[0], &w.keys)
	var h [blockSize]byte
	block.Encrypt(h[:], h[:])
	first := double(element(h))
	power := first
	for i := len(w.powers) - 1; ; i-- {
		w.powers[i] = [2]uint64{power.low, power.high}
		if i == 0 {
			return w
		}
		power = mul(power, first)
	}
}

// NonceSize implements cipher.AEAD.
func (w *wide) NonceSize() int { return NonceSize }

// Overhead implements cipher.AEAD.
func (w *wide) Overhead() int { return TagSize }

// Seal implements cipher.AEAD.
func (w *wide) Seal(dst, nonce, plaintext, data []byte) []byte {
	at, n := len(dst), len(plaintext)
	if n < w.least {
		return w.small.Seal(dst, nonce, plaintext, data)
	}
	dst = slices.Grow(dst, n+TagSize)[:at+n+TagSize]
	out := dst[at:]
	m := w.begin(nonce, data)
	full := n / stride
	if full > 0 {
		seal(&w.keys, &w.powers, &out[0], &plaintext[0], full, &m.counter, &m.y)
	}
	m.xorTail(out[full*stride:n], plaintext[full*stride:])
	m.end(out[full*stride:n], n, len(data))
	copy(out[n:], m.y[:])
	return dst
}

// Open implements cipher.AEAD.
func (w *wide) Open(dst, nonce, ciphertext, data []byte) ([]byte, error) {
	n := len(ciphertext) - TagSize
	if n < w.least {
		return w.small.Open(dst, nonce, ciphertext, data)
	}
	at := len(dst)
	dst = slices.Grow(dst, n)[:at+n]
	out := dst[at:]
	m := w.begin(nonce, data)
	full := n / stride
	// The tag is read and the tail hashed before anything is written: out may be where ciphertext is.
	var tag [TagSize]byte
	copy(tag[:], ciphertext[n:])
	if full > 0 {
		open(&w.keys, &w.powers, &out[0], &ciphertext[0], full, &m.counter, &m.y)
	}
	m.end(ciphertext[full*stride:n], n, len(data))
	if subtle.ConstantTimeCompare(m.y[:], tag[:]) != 1 {
		clear(out)
		return nil, errOpen
	}
	m.xorTail(out[full*stride:], ciphertext[full*stride:n])
	return dst, nil
}

// message is one message on its way.
type message struct {
	w       *wide
	counter [blockSize]byte // of the next block, its bytes in reverse
	y       [blockSize]byte // the hash so far
	mask    [TagSize]byte   // of the tag
}

// begin takes the additional data into the hash.
func (w *wide) begin(nonce, data []byte) message {
	if len(nonce) != NonceSize {
		panic("gcm: a nonce of the wrong length")
	}
	m := message{w: w}
	for i, b := range nonce {
		m.counter[blockSize-1-i] = b
	}
	binary.LittleEndian.PutUint32(m.counter[:], 1)
	m.xorTail(m.mask[:], m.mask[:])
	binary.LittleEndian.PutUint32(m.counter[:], 2)
	for ; len(data) > stride; data = data[stride:] {
		m.absorb(data[:stride])
	}
	m.absorb(data)
	return m
}

// absorb takes up to a stride into the hash, the last block filled up with zeros.
func (m *message) absorb(p []byte) {
	if len(p) == 0 {
		return
	}
	// Blocks of zeros in front of the first one change nothing as long as y goes into the first.
	var b [stride]byte
	at := (stride - len(p)) / blockSize * blockSize
	copy(b[at:], p)
	subtle.XORBytes(b[at:at+blockSize], b[at:at+blockSize], m.y[:])
	m.y = [blockSize]byte{}
	ghash(&m.w.powers, &b, &m.y)
}

// xorTail encrypts or decrypts less than a stride: what is left after the full ones.
func (m *message) xorTail(dst, src []byte) {
	if len(src) == 0 {
		return
	}
	var b [stride]byte
	var y [blockSize]byte
	seal(&m.w.keys, &m.w.powers, &b[0], &b[0], 1, &m.counter, &y)
	subtle.XORBytes(dst, src, b[:len(src)])
}

// end takes the ciphertext's tail and the lengths into the hash, and makes it the tag.
func (m *message) end(tail []byte, n, data int) {
	m.absorb(tail)
	var lengths [blockSize]byte
	binary.BigEndian.PutUint64(lengths[:8], uint64(data)*8)
	binary.BigEndian.PutUint64(lengths[8:], uint64(n)*8)
	m.absorb(lengths[:])
	subtle.XORBytes(m.y[:], m.y[:], m.mask[:])
}

// field is an element of GHASH's field. As its bits are in reverse there, the most significant bit of high is the coefficient of
// x^0.
type field struct{ low, high uint64 }

func element(b [blockSize]byte) field {
	return field{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[:8])}
}

// reduction is x^128 + x^127 + x^126 + x^121 + 1, the field's polynomial in reverse, without its highest term.
const reduction = 0xc2 << 56

// double shifts a by one bit, and reduces it. In a product of reversed elements everything is one bit too low; so one
// factor is doubled beforehand.
func double(a field) field {
	carry := a.high >> 63
	a.high = a.high<<1 | a.low>>63
	a.low <<= 1
	return field{a.low ^ carry, a.high ^ carry*reduction}
}

// mul multiplies as ghash does, a bit at a time: a·b·x^-128 in reverse. The product of two doubled elements is a
// doubled one.
func mul(a, b field) field {
	var p [4]uint64
	xor := func(at int, low, high uint64) { p[at] ^= low; p[at+1] ^= high }
	for i, x := range []uint64{a.low, a.high} {
		for j, y := range []uint64{b.low, b.high} {
			low, high := carryless(x, y)
			xor(i+j, low, high)
		}
	}
	for i := range 2 {
		low, high := carryless(p[i], reduction)
		p[i+1] ^= low
		p[i+2] ^= high ^ p[i]
	}
	return field{p[2], p[3]}
}

// carryless multiplies polynomials, in time that depends on nothing.
func carryless(x, y uint64) (low, high uint64) {
	for i := range bits.UintSize {
		bit := -(y >> i & 1)
		low ^= x << i & bit
		high ^= x >> 1 >> (63 - i) & bit
	}
	return low, high
}
