package gcm

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"
)

// library is what every result is compared with.
func library(t testing.TB, key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func ours(t testing.TB, key []byte) cipher.AEAD {
	a, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// same seals with both, compares, opens what the other one sealed, and refuses it with any one bit changed.
func same(t *testing.T, key, nonce, text, data []byte) {
	t.Helper()
	lib, own := library(t, key), ours(t, key)
	compare(t, lib, own, nonce, text, data)
	if all := everyLength(own); all != nil {
		compare(t, lib, all, nonce, text, data)
	}
}

func compare(t *testing.T, lib, own cipher.AEAD, nonce, text, data []byte) {
	t.Helper()
	want := lib.Seal(nil, nonce, text, data)
	if got := own.Seal([]byte("before"), nonce, text, data); !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Fatalf("%d bytes with %d bytes of data are sealed otherwise than by the library", len(text), len(data))
	}
	inPlace := make([]byte, len(text), len(text)+TagSize)
	copy(inPlace, text)
	sealed := own.Seal(inPlace[:0], nonce, inPlace, data)
	if !bytes.Equal(sealed, want) {
		t.Fatalf("%d bytes are sealed otherwise in place", len(text))
	}
	opened, err := own.Open(nil, nonce, want, data)
	if err != nil || !bytes.Equal(opened, text) {
		t.Fatalf("%d bytes with %d bytes of data don't open: %v", len(text), len(data), err)
	}
	if opened, err := own.Open(sealed[:0], nonce, sealed, data); err != nil || !bytes.Equal(opened, text) {
		t.Fatalf("%d bytes don't open in place: %v", len(text), err)
	}
	bad := bytes.Clone(want)
	at := rand.IntN(len(bad) * 8)
	bad[at/8] ^= 1 << (at % 8)
	room := bytes.Repeat([]byte{0xaa}, len(text))
	if _, err := own.Open(room[:0], nonce, bad, data); err == nil {
		t.Fatalf("%d bytes open although bit %d was changed", len(text), at)
	}
	// What isn't authentic is never left to be read.
	if secret := bytes.Repeat([]byte{0xaa}, len(text)); len(text) > 0 && !bytes.Equal(room, secret) && !bytes.Equal(room, make([]byte, len(text))) {
		t.Fatal("a message that was changed leaves something behind")
	}
	if len(data) > 0 {
		other := bytes.Clone(data)
		other[rand.IntN(len(other))] ^= 0x40
		if _, err := own.Open(nil, nonce, want, other); err == nil {
			t.Fatal("opens with other additional data")
		}
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

func TestSameAsLibrary(t *testing.T) {
	t.Logf("compared with the library: %T", ours(t, random(KeySize)))
	for n := range 2*256 + 40 {
		same(t, random(KeySize), random(NonceSize), random(n), random(n%19))
	}
	for _, n := range []int{4096, 4096 + 64, 65536, 65535, 1<<20 + 17} {
		for _, data := range []int{0, 4, 13, 255, 256, 257, 1000} {
			same(t, random(KeySize), random(NonceSize), random(n), random(data))
		}
	}
}

// Extremes of keys and texts, where carries and reductions would go wrong.
func TestSameAsLibraryWithOnesAndZeros(t *testing.T) {
	for _, k := range []byte{0, 0xff, 0x80, 0x01} {
		for _, p := range []byte{0, 0xff, 0x80, 0x01} {
			for _, n := range []int{15, 16, 255, 256, 257, 4096} {
				same(t, bytes.Repeat([]byte{k}, KeySize), bytes.Repeat([]byte{p}, NonceSize), bytes.Repeat([]byte{p}, n), bytes.Repeat([]byte{k}, 4))
			}
		}
	}
}

func TestWhatCantBe(t *testing.T) {
	if _, err := New(make([]byte, 32)); err == nil {
		t.Error("a key of 32 bytes is taken")
	}
	own := ours(t, make([]byte, KeySize))
	if _, err := own.Open(nil, make([]byte, NonceSize), make([]byte, TagSize-1), nil); err == nil {
		t.Error("less than a tag opens")
	}
}

func TestNothingIsAllocated(t *testing.T) {
	own := ours(t, random(KeySize))
	nonce, text, data, out := random(NonceSize), random(5000), random(4), make([]byte, 0, 6000)
	if n := testing.AllocsPerRun(100, func() {
		sealed := own.Seal(out, nonce, text, data)
		if _, err := own.Open(sealed[:0], nonce, sealed, data); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a message", n)
	}
}

func FuzzSameAsLibrary(f *testing.F) {
	f.Add(make([]byte, KeySize), make([]byte, NonceSize), []byte("text"), []byte("data"))
	f.Add(bytes.Repeat([]byte{0xff}, KeySize), make([]byte, NonceSize), make([]byte, 300), []byte{})
	f.Fuzz(func(t *testing.T, key, nonce, text, data []byte) {
		if len(key) != KeySize || len(nonce) != NonceSize {
			return
		}
		same(t, key, nonce, text, data)
	})
}

func BenchmarkSeal(b *testing.B) {
	key, nonce, data := random(KeySize), random(NonceSize), random(4)
	for _, n := range []int{64, 4096 + 64, 64 << 10} {
		text, out := random(n), make([]byte, 0, n+TagSize)
		for name, a := range map[string]cipher.AEAD{"library": library(b, key), "own": ours(b, key)} {
			b.Run(fmt.Sprintf("%d/%s", n, name), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					a.Seal(out, nonce, text, data)
				}
			})
			sealed := a.Seal(nil, nonce, text, data)
			b.Run(fmt.Sprintf("%d/%s-open", n, name), func(b *testing.B) {
				b.SetBytes(int64(n))
				for b.Loop() {
					if _, err := a.Open(out, nonce, sealed, data); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
