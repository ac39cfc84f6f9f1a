package ring

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"testing"
)

// ring2 makes the two ends of a direction, whose next record has number n.
func ring2(t testing.TB, n uint64) (*sealer, *opener) {
	t.Helper()
	export := func(label string, context []byte, length int) ([]byte, error) {
		h := sha256.Sum256(append([]byte(label), context...))
		return h[:length], nil
	}
	s, o := &sealer{keyring{export: export, dialler: true, n: n}}, &opener{keyring{export: export, dialler: true, n: n}}
	if err := errors.Join(s.turn(), o.turn()); err != nil {
		t.Fatal(err)
	}
	return s, o
}

func seal(t testing.TB, s *sealer, p []byte) []byte {
	t.Helper()
	r, err := s.record(nil, p)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func opens(t testing.TB, o *opener, r, want []byte) error {
	t.Helper()
	body, err := nextRecord(r)
	if err != nil {
		return err
	}
	if body == 0 || recordHeader+body != len(r) {
		t.Fatalf("a record of %d bytes says %d", len(r), body)
	}
	into := make([]byte, body-recordTag)
	if err := o.record(into[:0], r); err != nil {
		return err
	}
	if !bytes.Equal(into, want) {
		t.Fatal("a record was opened to something else")
	}
	return nil
}

func TestRecords(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	s, o := ring2(t, epochRecords-3)
	var before []byte
	for i, n := range []int{1, 100, 4096, recordMost, 17, recordMost - 1} { // over the end of an epoch
		p := make([]byte, n)
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		key := s.aead
		r := seal(t, s, p)
		if changed := key != s.aead; changed != (i == 3) {
			t.Errorf("record %d: keys changed: %v", s.n-1, changed)
		}
		if err := opens(t, o, r, p); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(r, before) {
			t.Error("two records are the same")
		}
		before = r
	}
}

// TestRecordsRefused: whatever happens to records on their way, the connection ends with errRecord.
func TestRecordsRefused(t *testing.T) {
	p := bytes.Repeat([]byte("data"), 1000)
	for name, bad := range map[string]func(s *sealer, o *opener) []byte{
		"a flipped bit": func(s *sealer, _ *opener) []byte { r := seal(t, s, p); r[len(r)/2] ^= 1; return r },
		"a flipped bit of the tag": func(s *sealer, _ *opener) []byte {
			r := seal(t, s, p)
			r[len(r)-1] ^= 128
			return r
		},
		"one left out": func(s *sealer, _ *opener) []byte { seal(t, s, p); return seal(t, s, p) },
		"one repeated": func(s *sealer, o *opener) []byte {
			r := seal(t, s, p)
			if err := opens(t, o, r, p); err != nil {
				t.Fatal(err)
			}
			return r
		},
		"one sent back": func(_ *sealer, _ *opener) []byte {
			back, _ := ring2(t, 0)
			back.dialler = false
			if err := back.turn(); err != nil {
				t.Fatal(err)
			}
			return seal(t, back, p)
		},
		"one shortened": func(s *sealer, _ *opener) []byte {
			r := seal(t, s, p)[:recordHeader+100]
			r[0], r[1], r[2], r[3] = 100, 0, 0, 0
			return r
		},
		"a length of nothing":  func(*sealer, *opener) []byte { return []byte{recordTag, 0, 0, 0} },
		"an impossible length": func(*sealer, *opener) []byte { return []byte{17, 0, 1, 0} },
	} {
		s, o := ring2(t, 0)
		if err := opens(t, o, bad(s, o), p); !errors.Is(err, errRecord) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzRecords(f *testing.F) {
	s, _ := ring2(f, 0)
	f.Add(seal(f, s, []byte("one")))
	f.Add([]byte{17, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		_, o := ring2(t, 0)
		into := make([]byte, recordMost)
		for {
			body, err := nextRecord(b)
			if err != nil || body == 0 {
				return
			}
			if o.record(into[:0:body-recordTag], b[:recordHeader+body]) != nil {
				return
			}
			b = b[recordHeader+body:]
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	s, o := ring2(b, 0)
	p, r, into := make([]byte, recordMost), make([]byte, 0, recordMost+recordExtra), make([]byte, recordMost)
	b.SetBytes(recordMost)
	b.ReportAllocs()
	for b.Loop() {
		r, _ = s.record(r[:0], p)
		if err := o.record(into[:0], r); err != nil {
			b.Fatal(err)
		}
	}
}
