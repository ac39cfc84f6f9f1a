package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant/alloc"
)

// whole makes the checksums and the length of the payload of a frame right, so that the fuzzer gets behind them.
func whole(p []byte) []byte {
	if len(p) < HeaderSize {
		return p
	}
	p = bytes.Clone(p)
	if m := int64(binary.LittleEndian.Uint32(p[64:])); m <= int64(len(p)-HeaderSize) {
		binary.LittleEndian.PutUint32(p[72:], crc32.Checksum(p[HeaderSize:HeaderSize+m], castagnoli))
	}
	reseal(p)
	return p
}

// FuzzMessages decodes requests and answers, and encodes what they say: it must come out as it went in.
func FuzzMessages(f *testing.F) {
	for _, k := range []Kind{KindFence, KindRead, KindTrim, KindZero, KindFlush, KindConfirm, KindSums, KindGens, KindCheckpoint, KindTouch, KindVerify} {
		r := &Request{Kind: k, Replica: 7, Term: 3, Session: 2, Period: 3<<32 | 1, Off: block.ChunkSize, Len: block.Size, Sums: []uint64{1}}
		f.Add(AppendRequest(nil, 9, r))
		r.Bad[0] = 5
		r.Status = StatusBadSum
		p, withData := AppendAnswer(nil, 9, r)
		if withData {
			p = append(p, make([]byte, block.Size)...)
		}
		f.Add(p)
	}
	f.Add(encodeWrite(2))
	p, _ := AppendAnswer(nil, 2, &Request{Kind: KindFence, Fence: &FenceReply{Run: "r", Exact: true, Size: 1 << 30, Journal: []JournalEntry{{1, 2}, {3, 4}}}})
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		p = whole(p)
		var fr Frame
		var n int
		var err error
		alloc.Bounded(t, 0, func() { fr, n, err = Decode(p) })
		if err != nil || n == 0 || fr.Type != TypeRequest && fr.Type != TypeAnswer {
			return
		}
		r := &Request{
			Kind: fr.Kind, FUA: fr.FUA, Replica: fr.Replica, Term: fr.Term, Session: fr.Session, Period: fr.Period, Off: fr.Off, Len: fr.Len,
			Status: fr.Status, Sums: fr.Sums(make([]uint64, 0, fr.NumSums())), Bad: fr.Bad(),
		}
		if len(fr.Data) > 0 {
			r.Data = fr.Data
		}
		alloc.Bounded(t, 4*len(p), func() { r.Fence, err = fr.FenceReply() })
		if err != nil {
			if !errors.Is(err, ErrLength) && !errors.Is(err, ErrField) {
				t.Fatal(err)
			}
			return
		}
		var again []byte
		if fr.Type == TypeRequest {
			again = AppendRequest(nil, fr.ID, r)
		} else {
			again, _ = AppendAnswer(nil, fr.ID, r)
		}
		again = append(again, fr.Data...)
		fr2, n2, err := Decode(again)
		if err != nil || n2 != len(again) {
			t.Fatalf("%v of %v: what was decoded can't be decoded again: size %d of %d, %v", fr.Type, fr.Kind, n2, len(again), err)
		}
		fence2, err := fr2.FenceReply()
		if err != nil || !sameFence(r.Fence, fence2) || fr2.Bad() != r.Bad || !bytes.Equal(fr2.Data, fr.Data) ||
			fr2.Kind != fr.Kind || fr2.FUA != fr.FUA || fr2.Replica != fr.Replica || fr2.Term != fr.Term || fr2.Session != fr.Session ||
			fr2.Period != fr.Period || fr2.Off != fr.Off || fr2.Len != fr.Len || fr2.Status != fr.Status || fr2.ID != fr.ID {
			t.Fatalf("it went in as %+v and came out as %+v, %v", fr, fr2, err)
		}
	})
}

func sameFence(a, b *FenceReply) bool {
	if a == nil || b == nil {
		return a == b
	}
	x, y := *a, *b
	x.Journal, y.Journal = nil, nil
	if x.Run != y.Run || x.PrevFence != y.PrevFence || x.Checkpoint != y.Checkpoint || x.Size != y.Size ||
		x.SinceConfirm != y.SinceConfirm || x.Exact != y.Exact || x.AllChunks != y.AllChunks || len(a.Journal) != len(b.Journal) {
		return false
	}
	for i := range a.Journal {
		if a.Journal[i] != b.Journal[i] {
			return false
		}
	}
	return true
}

// FuzzHello decodes the first frame of a connection, which comes before anything else is known of the other side.
func FuzzHello(f *testing.F) {
	f.Add(AppendHello(nil, Hello{Cluster: "0011223344556677", Node: "n1", Incarnation: 7}))
	f.Add(AppendHello(nil, Hello{}))
	f.Add(AppendPing(nil, TypePing, 1))
	f.Fuzz(func(t *testing.T, p []byte) {
		p = whole(p)
		fr, n, err := Decode(p)
		if err != nil || n == 0 || fr.Type != TypeHello {
			return
		}
		var h Hello
		alloc.Bounded(t, len(p), func() { h, err = fr.Hello() })
		if err != nil {
			if !errors.Is(err, ErrLength) {
				t.Fatal(err)
			}
			return
		}
		fr2, _, err := Decode(AppendHello(nil, h))
		if err != nil {
			t.Fatal(err)
		}
		if h2, err := fr2.Hello(); err != nil || h2 != h {
			t.Fatalf("%+v became %+v, %v", h, h2, err)
		}
	})
}
