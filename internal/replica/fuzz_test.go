package replica

import (
	"bytes"
	"encoding/json"
	"testing"

	"keelson.io/keelson/internal/block"
)

// resum gives b valid checksums when its first byte is odd, so that the fuzzer gets behind them.
func resum(b []byte, magic uint32, size int) []byte {
	b = append(bytes.Clone(b), make([]byte, max(size-len(b), 0))...)[:size]
	if b[0]&1 == 1 {
		used := int(b[6]) | int(b[7])<<8
		seal(b, magic, uint64(b[8])+1, min(used, size/sectorSize*sectorPayload))
	}
	return b
}

func FuzzMeta(f *testing.F) {
	raw, _ := json.Marshal(Desc{Cluster: "c", Volume: "v", Name: "n", Replica: 1, Columns: 1, Size: block.ChunkSize})
	b := make([]byte, metaSlotSize)
	encodeMeta(b, 7, metaState{fence: 3, checkpoint: 2<<32 | 9, all: 5, allKept: true}, raw)
	f.Add(b)
	b[5000] ^= 1
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		b := resum(in, metaMagic, metaSlotSize)
		seq, m, desc, v := decodeMeta(b)
		if v == frameWhole {
			again := make([]byte, metaSlotSize)
			encodeMeta(again, seq, m, desc)
			seq2, m2, desc2, v2 := decodeMeta(again)
			if v2 != frameWhole || seq2 != seq || m2 != m || !bytes.Equal(desc, desc2) {
				t.Fatalf("%v %v", m, m2)
			}
		}
		if o, err := readMeta([2][]byte{b, b}); err == nil && o.desc.validate() != nil {
			t.Fatal("an impossible description was accepted")
		}
	})
}

func FuzzJournalBlock(f *testing.F) {
	b := make([]byte, block.Size)
	encodeJournal(b, 300, []entry{{chunk: 5, period: 9}, {chunk: 6, period: 10, kept: true}})
	f.Add(b)
	b[700] ^= 1
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		const chunks = 1000
		b := resum(in, journalMagic, block.Size)
		seq, entries, v := decodeJournal(nil, b, chunks)
		if v == frameWhole {
			for _, e := range entries {
				if e.chunk < 0 || e.chunk >= chunks || e.period == 0 {
					t.Fatalf("%+v", e)
				}
			}
			again := make([]byte, block.Size)
			encodeJournal(again, seq, entries)
			if _, e2, v := decodeJournal(nil, again, chunks); v != frameWhole || len(e2) != len(entries) {
				t.Fatal("it isn't read back")
			}
		}
		file := make([]byte, journalSize)
		copy(file[int(seq%journalSlots)*block.Size:], b)
		if _, err := readJournal(file, chunks); err != nil && v != frameNewer {
			t.Fatal(err)
		}
	})
}

func FuzzGensBlock(f *testing.F) {
	b := make([]byte, block.Size)
	encodeGens(b, 3, []uint64{1, 2, 3}, []uint64{4, 5, 6})
	f.Add(b)
	b[50] ^= 1
	f.Add(b)
	f.Fuzz(func(t *testing.T, in []byte) {
		b := append(bytes.Clone(in), make([]byte, max(block.Size-len(in), 0))...)[:block.Size]
		var gens, checks [gensPerBlock]uint64
		switch decodeGens(b, 3, gens[:], checks[:]) {
		case frameWhole:
			again := make([]byte, block.Size)
			encodeGens(again, 3, gens[:], checks[:])
			var g2, c2 [gensPerBlock]uint64
			if decodeGens(again, 3, g2[:], c2[:]) != frameWhole || g2 != gens || c2 != checks {
				t.Fatal("it isn't read back")
			}
		case frameDamaged, frameNewer:
			if gens != [gensPerBlock]uint64{} {
				t.Fatal("a damaged block was taken over")
			}
		}
	})
}

// TestTorn: of two writes of the same block, every mixture of sectors is told from damage, and any flipped bit is damage.
func TestTorn(t *testing.T) {
	old, fresh := make([]byte, block.Size), make([]byte, block.Size)
	encodeJournal(old, 3, []entry{{chunk: 1, period: 1}})
	encodeJournal(fresh, 3+journalSlots, []entry{{chunk: 2, period: 1}})
	sameSeq := make([]byte, block.Size)
	encodeJournal(sameSeq, 3+journalSlots, []entry{{chunk: 3, period: 1}, {chunk: 4, period: 1}})
	for _, other := range [][]byte{old, sameSeq, make([]byte, block.Size)} {
		for mix := 1; mix < 255; mix++ {
			b := bytes.Clone(other)
			for s := range 8 {
				if mix>>s&1 == 1 {
					copy(b[s*sectorSize:(s+1)*sectorSize], fresh[s*sectorSize:])
				}
			}
			if _, _, v := unseal(b, journalMagic); v != frameTorn {
				t.Fatalf("mixture %08b: %v", mix, v)
			}
		}
	}
	for i := range fresh {
		b := bytes.Clone(fresh)
		b[i] ^= 4
		if _, _, v := unseal(b, journalMagic); v != frameDamaged {
			t.Fatalf("byte %d flipped: %v", i, v)
		}
	}
}
