package wire

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"keelson.io/keelson/internal/block"
)

// TestSnapshotRequests checks that the requests about snapshots come out as they went in, and that meta of another length is refused.
func TestSnapshotRequests(t *testing.T) {
	many := make([]uint64, block.PerChunk)
	many[5] = 9
	for _, r := range []*Request{
		{Kind: KindSnaps, Sums: []uint64{1, 4096, 2, 8192}},
		{Kind: KindSnaps},
		{Kind: KindSnapSums, Period: 7}, {Kind: KindSnapCheck, Period: 7}, {Kind: KindSnapLevels}, {Kind: KindSnapOpen, Period: 7}, {Kind: KindSnapDrop, Period: 7}, {Kind: KindSnapUsage},
		{Kind: KindSnapSeal, Period: 7, Sums: many},
		{Kind: KindRestore, Len: block.ChunkSize, Sums: []uint64{7}},
		{Kind: KindClone, Period: 7, Text: []byte("{}")},
		{Kind: KindSnapRead, Period: 7, Len: block.Size},
	} {
		p := AppendRequest(nil, 3, r)
		f, n, err := Decode(p)
		if err != nil || n != len(p) || f.Kind != r.Kind || f.Period != r.Period {
			t.Fatalf("%v: %+v, %d, %v", r.Kind, f, n, err)
		}
		if got := f.Sums(make([]uint64, f.NumSums())); !slices.Equal(got, r.Sums) {
			t.Errorf("%v: sums %x", r.Kind, got)
		}
		if r.Text != nil && !bytes.Equal(f.Meta, r.Text) {
			t.Errorf("%v: text %q", r.Kind, f.Meta)
		}
	}
	for _, r := range []*Request{
		{Kind: KindSnaps, Sums: []uint64{1}}, {Kind: KindSnaps, Sums: make([]uint64, 2*MaxSnaps+2)}, {Kind: KindSnapSeal, Sums: []uint64{1}},
		{Kind: KindRestore}, {Kind: KindClone}, {Kind: KindClone, Text: make([]byte, MaxText+1)}, {Kind: KindSnapRead},
	} {
		if _, _, err := Decode(AppendRequest(nil, 3, r)); !errors.Is(err, ErrLength) {
			t.Errorf("%v with %d words, %d bytes: %v", r.Kind, len(r.Sums), len(r.Text), err)
		}
	}
	a := &Request{Kind: KindSnapLevels, Sums: []uint64{4, 5}}
	p, _ := AppendAnswer(nil, 3, a)
	if f, _, err := Decode(p); err != nil || !slices.Equal(f.Sums(make([]uint64, 2)), a.Sums) {
		t.Errorf("an answer: %+v, %v", f, err)
	}
}
