package copies

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
)

const (
	sector       = 512
	sectorHeader = 32
	slotSize     = 8192
	metaMagic    = 0x314d4c4b
	journalMagic = 0x314a4c4b
)

// Journal returns the chunks whose sums can't be relied on in the copy in dir; all says that it is every
// chunk. It judges no damage: whatever sector of the journal names a chunk counts.
func Journal(dir string) (chunks map[int64]bool, all bool, err error) {
	checkpoint, allPeriod, err := state(dir)
	if err != nil {
		return nil, false, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "journal"))
	if err != nil {
		return nil, false, err
	}
	chunks = map[int64]bool{}
	le := binary.LittleEndian
	for ; len(b) >= sector; b = b[sector:] {
		if le.Uint32(b) != journalMagic {
			continue
		}
		used := min(int(le.Uint16(b[6:])), sector-sectorHeader)
		for p := b[sectorHeader : sectorHeader+used]; len(p) >= 16; p = p[16:] {
			if le.Uint64(p[8:]) > checkpoint {
				chunks[int64(le.Uint64(p)&(1<<56-1))] = true
			}
		}
	}
	return chunks, allPeriod > checkpoint, nil
}

// state returns what the newer copy of meta says.
func state(dir string) (checkpoint, all uint64, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "meta"))
	if err != nil {
		return 0, 0, err
	}
	if len(b) != 2*slotSize {
		return 0, 0, fmt.Errorf("%s: meta has %d bytes", dir, len(b))
	}
	le := binary.LittleEndian
	var best uint64
	found := false
	for slot := range 2 {
		s := b[slot*slotSize:]
		seq := le.Uint64(s[8:])
		if le.Uint32(s) != metaMagic || found && seq < best {
			continue
		}
		found, best = true, seq
		checkpoint, all = le.Uint64(s[sectorHeader+8:]), le.Uint64(s[sectorHeader+16:])
	}
	if !found {
		return 0, 0, fmt.Errorf("%s: neither copy of meta has its magic", dir)
	}
	return checkpoint, all, nil
}
