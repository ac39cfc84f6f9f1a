package replica

import (
	"encoding/binary"

	"github.com/minio/crc64nvme"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

// The journal's blocks and the two slots of meta are framed sector by sector, so that a write
// that a power loss tore can be told from damage: of a torn one, every sector is valid on its own.
const (
	sectorSize    = 512
	sectorHeader  = 32
	sectorPayload = sectorSize - sectorHeader

	formatVersion = 1
)

// verdict is what a framed block turned out to be.
type verdict uint8

const (
	frameWhole   verdict = iota
	frameEmpty           // all zeros: never written
	frameTorn            // each sector is valid or empty, but they aren't of one write
	frameDamaged         // a sector is neither valid nor empty
	frameNewer           // whole, of a version that isn't known
)

// seal completes the sectors of b, whose payloads are in place: used bytes of the block's payload
// in all.
func seal(b []byte, magic uint32, seq uint64, used int) {
	le := binary.LittleEndian
	var digest uint64
	for s := 0; s < len(b); s += sectorSize {
		digest = crc64nvme.Update(digest, b[s+sectorHeader:s+sectorSize])
	}
	for s := 0; s < len(b); s += sectorSize {
		p := b[s : s+sectorSize]
		n := min(used, sectorPayload)
		used -= n
		le.PutUint32(p, magic)
		p[4] = formatVersion
		p[5] = byte(s / sectorSize)
		le.PutUint16(p[6:], uint16(n))
		le.PutUint64(p[8:], seq)
		le.PutUint64(p[16:], digest)
		le.PutUint64(p[24:], sectorSum(p))
	}
}

func sectorSum(p []byte) uint64 {
	return crc64nvme.Update(crc64nvme.Checksum(p[:24]), p[sectorHeader:])
}

// unseal judges a framed block. seq and used mean something for a whole one only.
func unseal(b []byte, magic uint32) (seq uint64, used int, v verdict) {
	le := binary.LittleEndian
	var digest, sum uint64
	var version byte
	empty, mixed := 0, false
	for s := 0; s < len(b); s += sectorSize {
		p := b[s : s+sectorSize]
		sum = crc64nvme.Update(sum, p[sectorHeader:])
		if block.IsZero(p) {
			empty++
			continue
		}
		n := int(le.Uint16(p[6:]))
		if le.Uint32(p) != magic || int(p[5]) != s/sectorSize || n > sectorPayload || le.Uint64(p[24:]) != sectorSum(p) {
			return 0, 0, frameDamaged
		}
		used += n
		if s > 0 && (le.Uint64(p[8:]) != seq || le.Uint64(p[16:]) != digest || p[4] != version) {
			mixed = true
		}
		seq, digest, version = le.Uint64(p[8:]), le.Uint64(p[16:]), p[4]
	}
	switch {
	case empty == len(b)/sectorSize:
		return 0, 0, frameEmpty
	case (empty > 0 || mixed) && invariant.Mutant("torn-record-trusted"):
		return seq, used, frameWhole
	case empty > 0 || mixed:
		return 0, 0, frameTorn
	case digest != sum:
		return 0, 0, frameDamaged
	case version != formatVersion:
		return seq, used, frameNewer
	}
	return seq, used, frameWhole
}
