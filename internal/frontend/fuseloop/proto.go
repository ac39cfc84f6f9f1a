package fuseloop

import (
	"encoding/binary"
	"syscall"
)

// Numbers of the FUSE kernel interface, version 7.
const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opOpendir     = 27
	opReaddir     = 28
	opReleasedir  = 29
	opFsyncdir    = 30
	opInterrupt   = 36
	opDestroy     = 38
	opBatchForget = 42
	opFallocate   = 43

	kernelMajor = 7
	kernelMinor = 31 // what this server speaks; INIT_EXT and later flags come on top
	oldestMinor = 31

	// INIT flags.
	initAsyncRead = 1 << 0
	initBigWrites = 1 << 5
	initAsyncDIO  = 1 << 15
	initMaxPages  = 1 << 22
	initExt       = 1 << 30
	initResend    = 1 << 39 // requests can be asked for again (Linux 6.9)

	// OPEN flags.
	openDirectIO       = 1 << 0
	openNoFlush        = 1 << 5
	openParallelWrites = 1 << 6

	setattrMode = 1 << 0
	setattrUID  = 1 << 1
	setattrGID  = 1 << 2
	setattrSize = 1 << 3

	fallocKeepSize  = 0x01
	fallocPunchHole = 0x02
	fallocZeroRange = 0x10

	notifyResend = 7

	inHeaderLen  = 40
	outHeaderLen = 16
	// headLen is the length of the header and arguments of READ and WRITE. It is read into
	// memory of its own, so that the payload of a WRITE lands page-aligned.
	headLen = 80

	rootNode = 1
	fileNode = 2
	fileName = "volume"

	validSeconds = 86400 // the names and attributes never change on their own
	maxPages     = 256
	nameMax      = 255
)

var order = binary.NativeEndian

// resentBit marks the unique number of a request that the kernel resends (FUSE_UNIQUE_RESEND, Linux 6.9).
const resentBit = 1 << 63

// header is the start of every request of the kernel.
type header struct {
	length uint32
	opcode uint32
	unique uint64
	node   uint64
}

func decodeHeader(b []byte) header {
	_ = b[inHeaderLen-1]
	return header{
		length: order.Uint32(b),
		opcode: order.Uint32(b[4:]),
		unique: order.Uint64(b[8:]),
		node:   order.Uint64(b[16:]),
	}
}

// transfer is the arguments of READ and WRITE.
type transfer struct {
	off   uint64
	size  uint32
	flags uint32 // of the open file
}

func decodeTransfer(b []byte) transfer {
	_ = b[39]
	return transfer{off: order.Uint64(b[8:]), size: order.Uint32(b[16:]), flags: order.Uint32(b[32:])}
}

func putOutHeader(b []byte, length int, errno syscall.Errno, unique uint64) {
	order.PutUint32(b, uint32(length))
	order.PutUint32(b[4:], uint32(-int32(errno)))
	order.PutUint64(b[8:], unique)
}

// appendAttr appends struct fuse_attr.
func appendAttr(b []byte, node uint64, size int64) []byte {
	mode, links := uint32(syscall.S_IFDIR|0o700), uint32(2)
	if node == fileNode {
		mode, links = syscall.S_IFREG|0o600, 1
	} else {
		size = 0
	}
	b = order.AppendUint64(b, node)
	b = order.AppendUint64(b, uint64(size))
	b = order.AppendUint64(b, uint64(size/512))
	b = append(b, make([]byte, 3*8+3*4)...) // times
	b = order.AppendUint32(b, mode)
	b = order.AppendUint32(b, links)
	b = append(b, make([]byte, 3*4)...) // owner, group, device number
	b = order.AppendUint32(b, 4096)
	return order.AppendUint32(b, 0)
}

// appendEntry appends struct fuse_entry_out for the file.
func appendEntry(b []byte, size int64) []byte {
	b = order.AppendUint64(b, fileNode)
	b = order.AppendUint64(b, 0)
	b = order.AppendUint64(b, validSeconds)
	b = order.AppendUint64(b, validSeconds)
	b = order.AppendUint64(b, 0)
	return appendAttr(b, fileNode, size)
}

// appendAttrOut appends struct fuse_attr_out.
func appendAttrOut(b []byte, node uint64, size int64) []byte {
	b = order.AppendUint64(b, validSeconds)
	b = order.AppendUint64(b, 0)
	return appendAttr(b, node, size)
}

// appendOpen appends struct fuse_open_out.
func appendOpen(b []byte, node uint64) []byte {
	flags := uint32(0)
	if node == fileNode {
		flags = openDirectIO | openParallelWrites | openNoFlush
	}
	b = order.AppendUint64(b, 0)
	b = order.AppendUint32(b, flags)
	return order.AppendUint32(b, 0)
}

// appendStatfs appends struct fuse_statfs_out. The loop driver takes its discard
// granularity from the block size.
func appendStatfs(b []byte, size int64) []byte {
	b = order.AppendUint64(b, uint64(size/4096))
	b = append(b, make([]byte, 2*8)...) // nothing free
	b = order.AppendUint64(b, 1)
	b = order.AppendUint64(b, 0)
	b = order.AppendUint32(b, 4096)
	b = order.AppendUint32(b, nameMax)
	b = order.AppendUint32(b, 4096)
	return append(b, make([]byte, 7*4)...)
}

// appendInit appends struct fuse_init_out.
func appendInit(b []byte, flags uint64, maxBackground uint16) []byte {
	b = order.AppendUint32(b, kernelMajor)
	b = order.AppendUint32(b, kernelMinor)
	b = order.AppendUint32(b, 0) // no readahead
	b = order.AppendUint32(b, uint32(flags))
	b = order.AppendUint16(b, maxBackground)
	b = order.AppendUint16(b, maxBackground*3/4)
	b = order.AppendUint32(b, maxWrite)
	b = order.AppendUint32(b, 1)
	b = order.AppendUint16(b, maxPages)
	b = order.AppendUint16(b, 0)
	b = order.AppendUint32(b, uint32(flags>>32))
	return append(b, make([]byte, 7*4)...)
}

// appendDirent appends struct fuse_dirent.
func appendDirent(b []byte, node, next uint64, typ uint32, name string) []byte {
	b = order.AppendUint64(b, node)
	b = order.AppendUint64(b, next)
	b = order.AppendUint32(b, uint32(len(name)))
	b = order.AppendUint32(b, typ)
	b = append(b, name...)
	return append(b, make([]byte, -len(name)&7)...)
}
