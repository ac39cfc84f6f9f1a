package replica

import (
	"encoding/binary"
	"testing"

	"keelson.io/keelson/internal/block"
)

// FuzzSnapMap reads a block of a snapshot's map, and of its header, whatever is in them.
func FuzzSnapMap(f *testing.F) {
	b := make([]byte, block.Size)
	p := &mapPart{}
	p.pieces[0], p.pieces[35], p.check[35] = allPieces, 5, 7
	p.encode(b, 3)
	f.Add(b, int64(3))
	encodeSnapHeader(b, 9, 1<<20)
	f.Add(b, int64(0))
	f.Fuzz(func(t *testing.T, b []byte, index int64) {
		if len(b) != block.Size {
			return
		}
		if period, size, v := decodeSnapHeader(b); v == frameWhole && (period == 0 || size < block.Size) {
			t.Errorf("a header of period %d, %d bytes", period, size)
		}
		var p, q mapPart
		lost := false
		if p.decode(b, index, func(int) { lost = true }) != frameWhole || lost {
			return
		}
		out := make([]byte, block.Size)
		p.encode(out, index)
		if q.decode(out, index, func(i int) { t.Errorf("chunk %d is lost", i) }); q.pieces != p.pieces {
			t.Error("it holds others when it is written again")
		}
	})
}

// A sector of the older sort says that all pieces of a chunk are held; written again it is one of the newer sort that says the same.
func TestOldMapSector(t *testing.T) {
	old := make([]byte, block.Size)
	p := &mapPart{}
	p.pieces[3], p.check[3] = mapHeld, 9
	p.encode(old, 2)
	le := binary.LittleEndian
	le.PutUint32(old, snapMapOld)
	le.PutUint64(old[24:], sectorSum(old[:sectorSize]))
	var q, r mapPart
	lost := func(i int) { t.Errorf("chunk %d is lost", i) }
	if v := q.decode(old, 2, lost); v != frameWhole || q.pieces[3] != allPieces || q.pieces[2] != 0 || q.check[3] != 9 {
		t.Fatalf("%v: %x", v, q.pieces[:5])
	}
	again := make([]byte, block.Size)
	q.encode(again, 2)
	if v := r.decode(again, 2, lost); v != frameWhole || r != q || le.Uint32(again) != snapMapM {
		t.Fatalf("written again: %v: %x", v, r.pieces[:5])
	}
}
