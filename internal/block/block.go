// Package block holds the units of Keelson's I/O and what is computed over one
// unit: the block (4 KiB: checksums, I/O), the chunk (4 MiB: activity log, gens,
// resync), the checksum of a block, and the request that a frontend makes of a
// volume. It does no I/O and owns no goroutine.
package block

import (
	"fmt"

	"github.com/minio/crc64nvme"
)

const (
	// Size is the size of a block in bytes: the unit of checksums and of I/O,
	// and the logical sector size of every device.
	Size = 4096
	// ChunkSize is the size of a chunk in bytes: the unit of the activity log,
	// of gens, of snapshot preservation and of resync.
	ChunkSize = 4 << 20
	// PerChunk is the number of blocks in a chunk.
	PerChunk = ChunkSize / Size
	// MaxIO is the largest request in bytes that passes through the data path.
	// Frontends split larger ones.
	MaxIO = 1 << 20
	// MaxBlocks is the number of blocks in the largest request.
	MaxBlocks = MaxIO / Size
)

var zeroBlock [Size]byte

// crcOfZeros is the CRC-64/NVMe of a block of zeros.
var crcOfZeros = crc64nvme.Checksum(zeroBlock[:])

// Sum returns the checksum that is stored for one block: its CRC-64/NVMe, moved
// so that a block has sum 0 if and only if all its bytes are zero. A block that
// was never written, or was trimmed, therefore needs no stored sum, and a reader
// may answer a block with sum 0 without looking at the disk. (Non-zero data whose
// moved CRC happens to be 0, or was made to be, gets 1.)
//
// b must be exactly Size bytes.
func Sum(b []byte) uint64 {
	if len(b) != Size {
		panic(fmt.Sprintf("block: sum of %d bytes", len(b)))
	}
	s := crc64nvme.Checksum(b) ^ crcOfZeros
	if s == 0 && !IsZero(b) {
		return 1
	}
	return s
}

// SumAll stores the sum of every block of data into sums.
// len(data) must be len(sums)*Size.
func SumAll(sums []uint64, data []byte) {
	for i := range sums {
		sums[i] = Sum(data[i*Size : (i+1)*Size])
	}
}

// IsZero reports whether every byte of b is zero.
func IsZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), Size)
		if string(b[:n]) != string(zeroBlock[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

// Chunk returns the index of the chunk that holds byte offset off.
func Chunk(off int64) int64 { return off / ChunkSize }

// Chunks returns how many chunks a column of size bytes has.
func Chunks(size int64) int64 { return (size + ChunkSize - 1) / ChunkSize }

// Op says what a Request does.
type Op uint8

// The operations of a block device.
const (
	OpRead  Op = iota + 1
	OpWrite    // Data holds what to write
	OpFlush    // everything answered before it was submitted becomes durable
	OpTrim     // the range reads as zeros afterwards and its space is given back
	OpZero     // as OpTrim, but the space stays allocated
)

// String returns the operation's name, as used in logs and metrics.
func (o Op) String() string {
	switch o {
	case OpRead:
		return "read"
	case OpWrite:
		return "write"
	case OpFlush:
		return "flush"
	case OpTrim:
		return "trim"
	case OpZero:
		return "zero"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Changes reports whether the operation changes data.
func (o Op) Changes() bool { return o == OpWrite || o == OpTrim || o == OpZero }

// Request is one request of a frontend to a volume. The frontend owns it and may
// use it again once Done was called. All of its life is on the volume's shard.
type Request struct {
	Op  Op
	FUA bool  // the request's own effect is durable when it is answered
	Off int64 // bytes from the start of the volume, a multiple of Size
	Len int64 // bytes, a multiple of Size; ≤ MaxIO for reads and writes, any for trim and zero
	// Data is what is written, or where what is read goes: Len bytes, page-aligned
	// (from the loop's Buffers). It must not change until Done. Then it may be another
	// buffer of the loop: the device keeps one that a disk which hangs still uses, and
	// gives it back itself.
	Data []byte
	// Done is called exactly once, on the shard. Err is nil or a syscall.Errno
	// (EINVAL, EIO, ENOSPC, ESHUTDOWN). Set once when the request is made; it must
	// not block.
	Done func(*Request)
	Err  error

	// Resent is set on a request that was at an engine before this one, and got no answer. A frontend submits
	// those that change data before any read, and a volume answers no read before it has answered them.
	Resent bool

	// Next links requests in their owner's queues. Free for the current holder.
	Next *Request
}
