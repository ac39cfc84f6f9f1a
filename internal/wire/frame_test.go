package wire

import (
	"bytes"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"encoding/binary"

	"keelson.io/keelson/internal/block"
)

func writeRequest(blocks int) *Request {
	r := &Request{
		Kind: KindWrite, FUA: true, Replica: 0xabcdef0102030405, Term: 7, Session: 3,
		Period: 7<<32 | 9, Off: 5 * block.Size, Data: make([]byte, blocks*block.Size), Sums: make([]uint64, blocks),
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range r.Data {
		r.Data[i] = byte(rnd.Uint32())
	}
	block.SumAll(r.Sums, r.Data)
	return r
}

func encodeWrite(blocks int) []byte {
	r := writeRequest(blocks)
	return append(AppendRequest(nil, 42, r), r.Data...)
}

func TestRequestRoundTrip(t *testing.T) {
	r := writeRequest(3)
	p := append(AppendRequest(nil, 42, r), r.Data...)
	f, n, err := Decode(append(p, 1, 2, 3))
	if err != nil || n != len(p) {
		t.Fatalf("decoded %d of %d bytes: %v", n, len(p), err)
	}
	sums := f.Sums(make([]uint64, 0, 3))
	if f.Type != TypeRequest || f.Kind != KindWrite || !f.FUA || f.ID != 42 || f.Replica != r.Replica || f.Term != 7 ||
		f.Session != 3 || f.Period != r.Period || f.Off != r.Off || f.Len != 3*block.Size ||
		!reflect.DeepEqual(sums, r.Sums) || !bytes.Equal(f.Data, r.Data) {
		t.Fatalf("decoded %+v", f)
	}
	for i := range p {
		if _, n, err := Decode(p[:i]); n != 0 || err != nil {
			t.Fatalf("%d of %d bytes: size %d, %v", i, len(p), n, err)
		}
	}
	for k := KindFence; k <= KindVerify; k++ {
		if k == KindWrite || k == KindRead {
			continue
		}
		p := AppendRequest(nil, 1, &Request{Kind: k, Off: block.ChunkSize, Len: block.Size})
		if f, n, err := Decode(p); n != HeaderSize || err != nil || f.Kind != k || f.Len != block.Size {
			t.Errorf("%v: %+v, %d, %v", k, f, n, err)
		}
	}
}

func TestAnswerRoundTrip(t *testing.T) {
	r := writeRequest(2)
	r.Kind, r.FUA, r.Status = KindRead, false, StatusBadSum
	r.Bad[0] = 2
	p, withData := AppendAnswer(nil, 9, r)
	if !withData {
		t.Fatal("a read's answer has data")
	}
	f, n, err := Decode(append(p, r.Data...))
	if err != nil || n != len(p)+len(r.Data) || f.Status != StatusBadSum || f.Bad() != r.Bad || !bytes.Equal(f.Data, r.Data) {
		t.Fatalf("decoded %+v, %d, %v", f, n, err)
	}
	if sums := f.Sums(make([]uint64, 2)); !reflect.DeepEqual(sums, r.Sums) {
		t.Fatalf("sums %x", sums)
	}
	r.Status = StatusFenced
	r.Bad = [16]uint64{}
	if p, withData = AppendAnswer(nil, 9, r); withData || len(p) != HeaderSize {
		t.Fatalf("a refused read has %d bytes", len(p))
	}
	s := &Request{Kind: KindSums, Sums: make([]uint64, block.PerChunk), Bad: [16]uint64{15: 1}}
	s.Sums[1023] = 5
	p, _ = AppendAnswer(nil, 9, s)
	f, _, err = Decode(p)
	if err != nil {
		t.Fatal(err)
	}
	if sums := f.Sums(make([]uint64, block.PerChunk)); sums[1023] != 5 || f.Bad() != s.Bad {
		t.Fatal("the sums of a chunk differ")
	}
}

func TestFenceRoundTrip(t *testing.T) {
	fr := &FenceReply{
		Run: "d2b5c9a0-boot", PrevFence: 4, Checkpoint: 3<<32 | 1, Size: 1 << 40, SinceConfirm: -1,
		Exact: true, Journal: []JournalEntry{{1, 2}, {9, 3 << 32}},
	}
	check := func(want *FenceReply) {
		t.Helper()
		p, _ := AppendAnswer(nil, 1, &Request{Kind: KindFence, Fence: fr})
		f, n, err := Decode(p)
		if err != nil || n != len(p) {
			t.Fatal(n, err)
		}
		if got, err := f.FenceReply(); err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	check(fr)
	fr.Journal = make([]JournalEntry, MaxJournal+1)
	fr.SinceConfirm = time.Minute
	want := *fr
	want.AllChunks, want.Journal = true, fr.Journal[:MaxJournal]
	check(&want)
}

func TestHelloRoundTrip(t *testing.T) {
	h := Hello{Cluster: "0011223344556677", Node: "n1", Incarnation: 77}
	f, _, err := Decode(AppendHello(nil, h))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := f.Hello(); err != nil || got != h {
		t.Fatalf("got %+v, %v", got, err)
	}
	f, n, err := Decode(AppendPing(nil, TypePing, 5))
	if err != nil || n != HeaderSize || f.Type != TypePing || f.ID != 5 {
		t.Fatal(f, n, err)
	}
}

// reseal makes the header's checksum right again after a field was changed.
func reseal(p []byte) []byte {
	binary.LittleEndian.PutUint32(p[76:], crc32.Checksum(p[:76], castagnoli))
	return p
}

func TestDecodeRefuses(t *testing.T) {
	put32 := func(at int, v uint32) func(p []byte) {
		return func(p []byte) { binary.LittleEndian.PutUint32(p[at:], v); reseal(p) }
	}
	put8 := func(at int, v byte) func(p []byte) {
		return func(p []byte) { p[at] = v; reseal(p) }
	}
	for _, c := range []struct {
		name   string
		change func(p []byte)
		want   error
	}{
		{"another protocol", func(p []byte) { copy(p, "GET / HTTP/1.1") }, ErrMagic},
		{"a newer version", put8(4, 2), ErrVersion},
		{"an unknown type", put8(5, 9), ErrType},
		{"an unknown kind", put8(6, 99), ErrType},
		{"kind zero", put8(6, 0), ErrType},
		{"a flipped bit in the header", func(p []byte) { p[33] ^= 1 }, ErrChecksum},
		{"a flipped bit in the sums", func(p []byte) { p[HeaderSize] ^= 1 }, ErrChecksum},
		{"reserved bits", put8(9, 1), ErrField},
		{"reserved flags", put8(7, 0x80), ErrField},
		{"data that isn't whole blocks", put32(68, 4095), ErrLength},
		{"4 GiB of data", put32(68, 0xffffffff), ErrLength},
		{"4 GiB of sums", put32(64, 0xfffffff8), ErrLength},
		{"more than MaxIO", put32(56, block.MaxIO+block.Size), ErrLength},
		{"a negative offset", put32(52, 0x80000000), ErrField},
		{"an odd offset", put32(48, 1), ErrField},
		{"a status in a request", put8(8, 1), ErrField},
		{"an answer of lost", func(p []byte) { p[5], p[8] = byte(TypeAnswer), byte(StatusLost); reseal(p) }, ErrField},
		{"a write's answer with data", put8(5, byte(TypeAnswer)), ErrLength},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := encodeWrite(1)
			c.change(p)
			if _, n, err := Decode(p); !errors.Is(err, c.want) || n != 0 {
				t.Fatalf("size %d, error %v, want %v", n, err, c.want)
			}
		})
	}
}

func TestDecodeAllocatesNothing(t *testing.T) {
	p := encodeWrite(1)
	r := writeRequest(1)
	sums, scratch := make([]uint64, 1), make([]byte, 0, 1024)
	if n := testing.AllocsPerRun(100, func() {
		f, _, err := Decode(p)
		if err != nil {
			t.Fatal(err)
		}
		sums = f.Sums(sums)
		scratch = AppendRequest(scratch[:0], 1, r)
	}); n != 0 {
		t.Fatalf("%v allocations a frame", n)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encodeWrite(1))
	f.Add(AppendHello(nil, Hello{Cluster: "0011223344556677", Node: "n1"}))
	f.Add(AppendPing(nil, TypePong, 3))
	r := writeRequest(1)
	r.Kind, r.Status, r.Bad[0] = KindRead, StatusBadSum, 1
	p, _ := AppendAnswer(nil, 2, r)
	f.Add(append(p, r.Data...))
	p, _ = AppendAnswer(nil, 2, &Request{Kind: KindFence, Fence: &FenceReply{Run: "r", Journal: []JournalEntry{{1, 2}}}})
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		// Most mutations die at the checksums: what lies behind these is fuzzed by making them right.
		if len(p) >= HeaderSize {
			reseal(p)
			if m := int64(binary.LittleEndian.Uint32(p[64:])); m <= int64(len(p)-HeaderSize) {
				binary.LittleEndian.PutUint32(p[72:], crc32.Checksum(p[HeaderSize:HeaderSize+m], castagnoli))
				reseal(p)
			}
		}
		fr, n, err := Decode(p)
		if n < 0 || n > len(p) || n > MaxFrame || err != nil && n != 0 {
			t.Fatalf("size %d of %d, %v", n, len(p), err)
		}
		if n == 0 {
			return
		}
		fr.Sums(make([]uint64, 0, MaxGens))
		fr.Bad()
		if _, err := fr.FenceReply(); err != nil && !errors.Is(err, ErrLength) && !errors.Is(err, ErrField) {
			t.Fatal(err)
		}
		if fr.Type == TypeHello {
			fr.Hello()
		}
	})
}

func BenchmarkFrame4K(b *testing.B) {
	r := writeRequest(1)
	scratch := make([]byte, 0, 8192)
	sums := make([]uint64, 1)
	b.ReportAllocs()
	for b.Loop() {
		scratch = append(AppendRequest(scratch[:0], 1, r), r.Data...)
		f, _, err := Decode(scratch)
		if err != nil {
			b.Fatal(err)
		}
		sums = f.Sums(sums)
	}
}
