package replica

import (
	"encoding/json"
	"reflect"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant/alloc"
)

// FuzzDesc reads anything as a replica's description, and what it was read as comes back.
func FuzzDesc(f *testing.F) {
	raw, _ := json.Marshal(Desc{Cluster: "c", Volume: "v", Name: "n", Replica: 1, Columns: 2, Column: 1, Size: block.ChunkSize, Policy: json.RawMessage(`{"a":1}`)})
	f.Add(raw)
	f.Add([]byte(`{"replica":"-1","size":-9223372036854775808}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var d Desc
		var err error
		alloc.Bounded(t, 100*len(b), func() { err = json.Unmarshal(b, &d) })
		if err != nil {
			return
		}
		if d.validate() == nil && (d.Size <= 0 || d.Size > maxSize || d.Column >= d.Columns) {
			t.Fatalf("an impossible description was accepted: %+v", d)
		}
		again, err := json.Marshal(d)
		if err != nil {
			t.Fatalf("%+v: %v", d, err)
		}
		var d2 Desc
		if err := json.Unmarshal(again, &d2); err != nil {
			t.Fatal(err)
		}
		if d.Policy, d2.Policy = nil, nil; !reflect.DeepEqual(d, d2) {
			t.Fatalf("%+v became %+v", d, d2)
		}
	})
}

// FuzzFiles reads anything as the whole files of a replica: journal, sums and meta, of any length.
func FuzzFiles(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, journalSize))
	f.Add(make([]byte, 2*metaSlotSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		// A journal is 512 KiB whatever it says; what is found in it is bounded by the column's chunks.
		alloc.Bounded(t, 64*(len(b)+journalSize), func() {
			if len(b) >= journalSize {
				_, _ = readJournal(b[:journalSize], 1000)
			}
			if len(b) >= 2*metaSlotSize {
				_, _ = readMeta([2][]byte{b[:metaSlotSize], b[metaSlotSize : 2*metaSlotSize]})
			}
			_ = checkOf(b[:len(b)/8*8])
		})
	})
}
