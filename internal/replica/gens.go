package replica

import (
	"encoding/binary"
	"unsafe"

	"github.com/minio/crc64nvme"

	"keelson.io/keelson/internal/block"
)

// The file gens: blocks of 4 KiB, each with the gens of 254 chunks and a checksum over the sums of each.
const (
	gensMagic    = 0x31474c4b // "KLG1"
	gensHeader   = 32
	gensPerBlock = (block.Size - gensHeader) / 16

	// checkUnknown stands for the checksum of sums that can't be verified.
	checkUnknown = ^uint64(0)
)

// gensBlocks returns how many blocks the gens of so many chunks need.
func gensBlocks(chunks int64) int64 { return (chunks + gensPerBlock - 1) / gensPerBlock }

// encodeGens fills the block b with the gens and checks of block number index.
func encodeGens(b []byte, index int64, gens, checks []uint64) {
	clear(b)
	le := binary.LittleEndian
	le.PutUint32(b, gensMagic)
	b[4] = formatVersion
	le.PutUint64(b[8:], uint64(index))
	for i := range gens {
		le.PutUint64(b[gensHeader+16*i:], gens[i])
		le.PutUint64(b[gensHeader+16*i+8:], checks[i])
	}
	le.PutUint64(b[24:], gensSum(b))
}

func gensSum(b []byte) uint64 {
	return crc64nvme.Update(crc64nvme.Checksum(b[:24]), b[gensHeader:block.Size])
}

// decodeGens decodes block number index into gens and checks.
func decodeGens(b []byte, index int64, gens, checks []uint64) verdict {
	le := binary.LittleEndian
	if le.Uint32(b) != gensMagic || le.Uint64(b[8:]) != uint64(index) || le.Uint64(b[24:]) != gensSum(b) {
		return frameDamaged
	}
	if b[4] != formatVersion {
		return frameNewer
	}
	for i := range gens {
		gens[i] = le.Uint64(b[gensHeader+16*i:])
		checks[i] = le.Uint64(b[gensHeader+16*i+8:])
	}
	return frameWhole
}

// crcOfZeroSums is the CRC of the sums of a chunk of zeros.
var crcOfZeroSums = crc64nvme.Checksum(make([]byte, sumsSize))

// checkOf returns the checksum over a chunk's sums: 0 if and only if they are all 0, never checkUnknown.
func checkOf(sums []byte) uint64 {
	c := crc64nvme.Checksum(sums) ^ crcOfZeroSums
	switch {
	case c == checkUnknown:
		return c - 1
	case c == 0 && !block.IsZero(sums):
		return 1
	}
	return c
}

// rawSums is the memory of a chunk's sums, as it stands in a file.
func rawSums(sums []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&sums[0])), len(sums)*8)
}
