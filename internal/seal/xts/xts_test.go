package xts

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"math/rand/v2"
	"strings"
	"testing"

	reference "golang.org/x/crypto/xts"
)

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// every returns the cipher that this machine uses, and those for processors with fewer instructions.
func every(t testing.TB, key []byte) map[string]*Cipher {
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := newSlow(key)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Cipher{"own": c, "slow": {slow: s}}
	if n := narrow(c.native); n != nil {
		all["narrow"] = &Cipher{native: n}
	}
	return all
}

// same encrypts and decrypts, in place and elsewhere, and compares with the reference.
func same(t *testing.T, key, text []byte, sector uint64) {
	t.Helper()
	lib, err := reference.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, len(text))
	for at := 0; at < len(text); at += SectorSize {
		lib.Encrypt(want[at:at+SectorSize], text[at:at+SectorSize], sector+uint64(at/SectorSize))
	}
	for name, c := range every(t, key) {
		got := make([]byte, len(text))
		c.Encrypt(got, text, sector)
		if !bytes.Equal(got, want) {
			t.Fatalf("%s: %d bytes at sector %d are encrypted otherwise than by the reference", name, len(text), sector)
		}
		back := make([]byte, len(text))
		if c.Decrypt(back, got, sector); !bytes.Equal(back, text) {
			t.Fatalf("%s: %d bytes at sector %d don't decrypt", name, len(text), sector)
		}
		place := bytes.Clone(text)
		if c.Encrypt(place, place, sector); !bytes.Equal(place, want) {
			t.Fatalf("%s: %d bytes at sector %d are encrypted otherwise in place", name, len(text), sector)
		}
		if c.Decrypt(place, place, sector); !bytes.Equal(place, text) {
			t.Fatalf("%s: %d bytes at sector %d don't decrypt in place", name, len(text), sector)
		}
	}
}

func TestSameAsReference(t *testing.T) {
	c, err := New(random(KeySize))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	t.Logf("wide: %v; narrow: %v", narrow(c.native) != nil, c.native != nil)
	for n := range 18 {
		same(t, random(KeySize), random(n*SectorSize), rand.Uint64N(1<<34))
	}
	for _, n := range []int{64, 256} {
		same(t, random(KeySize), random(n*SectorSize), rand.Uint64())
	}
	for _, sector := range []uint64{0, 1, 255, 256, 1<<32 - 1, 1 << 32, 1<<63 - 1, 1 << 63, 1<<64 - 2} {
		same(t, random(KeySize), random(2*SectorSize), sector)
	}
}

// Extremes, where carries and reductions would go wrong: many random keys make tweaks of all kinds, these the rest.
func TestSameAsReferenceWithOnesAndZeros(t *testing.T) {
	for _, k := range []byte{0, 0xff, 0x80, 0x01} {
		for _, p := range []byte{0, 0xff, 0x80, 0x01} {
			key := bytes.Repeat([]byte{k}, KeySize)
			key[KeySize-1] ^= 1
			same(t, key, bytes.Repeat([]byte{p}, 2*SectorSize), uint64(p))
		}
	}
	for range 200 {
		same(t, random(KeySize), random(SectorSize), rand.Uint64())
	}
}

// IEEE 1619-2007, annex B: vectors 10 and 11, AES-256, of 512 bytes. A sector of ours begins with the same blocks.
func TestStandardsVectors(t *testing.T) {
	key, err := hex.DecodeString("2718281828459045235360287471352662497757247093699959574966967627" + "3141592653589793238462643383279502884197169399375105820974944592")
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, SectorSize)
	for i := range text {
		text[i] = byte(i)
	}
	for sector, want := range map[uint64]string{
		0xff:   "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b5d31e276f8fe4a8d66b317f9ac683f44680a86ac35adfc3345befecb4bb188fd",
		0xffff: "77a31251618a15e6b92d1d66dffe7b50b50bad552305ba0217a610688eff7e11e1d0225438e093242d6db274fde801d4cae06f2092c728b2478559df58e837c2",
	} {
		for name, c := range every(t, key) {
			got := make([]byte, SectorSize)
			c.Encrypt(got, text, sector)
			if s := hex.EncodeToString(got[:len(want)/2]); s != want {
				t.Errorf("%s: sector %#x:\n%s\nnot\n%s", name, sector, s, want)
			}
		}
	}
}

func TestWhatCantBe(t *testing.T) {
	for _, n := range []int{0, 32, 63, 65, 128} {
		if _, err := New(random(n)); err == nil || !strings.Contains(err.Error(), "bytes") {
			t.Errorf("a key of %d bytes: %v", n, err)
		}
	}
	half := random(KeySize / 2)
	if _, err := New(append(half, half...)); err == nil {
		t.Error("a key of two equal halves is taken")
	}
	c := every(t, random(KeySize))["own"]
	for _, n := range []int{1, 16, SectorSize - 1, SectorSize + 512} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%d bytes are no whole sectors, and are encrypted", n)
				}
			}()
			c.Encrypt(make([]byte, n), make([]byte, n), 0)
		}()
	}
}

func TestNothingIsAllocated(t *testing.T) {
	for name, c := range every(t, random(KeySize)) {
		b := random(4 * SectorSize)
		if n := testing.AllocsPerRun(20, func() {
			c.Encrypt(b, b, 7)
			c.Decrypt(b, b, 7)
		}); n > 0 && c.native != nil {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func FuzzSameAsReference(f *testing.F) {
	f.Add(append(make([]byte, 63), 1), []byte("text"), uint64(0))
	f.Add(append(bytes.Repeat([]byte{0xff}, 63), 1), bytes.Repeat([]byte{0xff}, 4097), uint64(1<<63))
	f.Fuzz(func(t *testing.T, key, text []byte, sector uint64) {
		if len(key) != KeySize || bytes.Equal(key[:32], key[32:]) {
			return
		}
		whole := make([]byte, (len(text)+SectorSize-1)/SectorSize*SectorSize)
		copy(whole, text)
		same(t, key, whole, sector)
	})
}

func BenchmarkEncrypt(b *testing.B) {
	key := random(KeySize)
	lib, err := reference.NewCipher(aes.NewCipher, key)
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{SectorSize, 64 << 10, 1 << 20} {
		p := random(n)
		for name, c := range every(b, key) {
			for op, do := range map[string]func(dst, src []byte, sector uint64){"encrypt": c.Encrypt, "decrypt": c.Decrypt} {
				b.Run(strings.Join([]string{sizes[n], name, op}, "/"), func(b *testing.B) {
					b.SetBytes(int64(n))
					for b.Loop() {
						do(p, p, 1)
					}
				})
			}
		}
		b.Run(sizes[n]+"/x-crypto/encrypt", func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				for at := 0; at < n; at += SectorSize {
					lib.Encrypt(p[at:at+SectorSize], p[at:at+SectorSize], 1)
				}
			}
		})
	}
}

var sizes = map[int]string{SectorSize: "4K", 64 << 10: "64K", 1 << 20: "1M"}
