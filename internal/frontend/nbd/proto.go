package nbd

import (
	"encoding/binary"
	"syscall"
)

// Numbers of the NBD protocol, fixed newstyle.
const (
	magicServer     = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     = 0x49484156454f5054 // "IHAVEOPT"
	magicOptReply   = 0x0003e889045565a9
	magicRequest    = 0x25609513
	magicSimple     = 0x67446698
	magicStructured = 0x668e33ef

	// Handshake flags, the same bits in both directions.
	flagFixedNewstyle = 1 << 0
	flagNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7
	optStructured = 8

	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repErrUnsup   = 1<<31 + 1
	repErrInvalid = 1<<31 + 3
	repErrUnknown = 1<<31 + 6
	repErrTooBig  = 1<<31 + 9

	infoExport    = 0
	infoName      = 1
	infoBlockSize = 3

	// Transmission flags.
	sendFlags       = 1 << 0
	sendReadOnly    = 1 << 1
	sendFlush       = 1 << 2
	sendFUA         = 1 << 3
	sendTrim        = 1 << 5
	sendWriteZeroes = 1 << 6
	sendDF          = 1 << 7
	canMultiConn    = 1 << 8
	sendFastZero    = 1 << 11

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisc        = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA      = 1 << 0
	cmdFlagNoHole   = 1 << 1
	cmdFlagDF       = 1 << 2
	cmdFlagFastZero = 1 << 4

	chunkDone        = 1 << 0 // flag: the last chunk of a structured reply
	chunkNone        = 0
	chunkOffsetData  = 1
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2

	requestLen      = 28
	simpleLen       = 16
	chunkHeaderLen  = 20
	dataChunkLen    = chunkHeaderLen + 8
	maxReplyHeader  = chunkHeaderLen + 4 + 2 + 8
	maxName         = 4096
	maxOptionLen    = 8192     // longer options are skipped and refused
	maxOptionSkip   = 64 << 10 // still longer ones end the connection
	maxPayload      = 32 << 20 // NBD_INFO_BLOCK_SIZE maximum
	minBlock        = 4096
	preferredBlock  = 4096
	exportNameZeros = 124
)

// request is the header of a command.
type request struct {
	flags  uint16
	typ    uint16
	cookie uint64
	off    uint64
	length uint32
}

// decodeRequest reads the header in p (requestLen bytes); false if its magic is wrong.
func decodeRequest(p []byte) (request, bool) {
	_ = p[requestLen-1]
	return request{
		flags:  binary.BigEndian.Uint16(p[4:]),
		typ:    binary.BigEndian.Uint16(p[6:]),
		cookie: binary.BigEndian.Uint64(p[8:]),
		off:    binary.BigEndian.Uint64(p[16:]),
		length: binary.BigEndian.Uint32(p[24:]),
	}, binary.BigEndian.Uint32(p) == magicRequest
}

func appendSimple(b []byte, cookie uint64, errno uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint64(b, cookie)
}

func appendChunk(b []byte, typ, flags uint16, cookie uint64, length uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, length)
}

// appendDataChunk appends the header of a chunk with n bytes of data read at off.
func appendDataChunk(b []byte, flags uint16, cookie uint64, off int64, n int) []byte {
	b = appendChunk(b, chunkOffsetData, flags, cookie, uint32(8+n))
	return binary.BigEndian.AppendUint64(b, uint64(off))
}

// appendErrorChunk appends the last chunk of a read that failed as a whole.
func appendErrorChunk(b []byte, cookie uint64, errno uint32) []byte {
	b = appendChunk(b, chunkError, chunkDone, cookie, 6)
	b = binary.BigEndian.AppendUint32(b, errno)
	return binary.BigEndian.AppendUint16(b, 0)
}

// appendErrorOffsetChunk appends the last chunk of a read that failed at off.
func appendErrorOffsetChunk(b []byte, cookie uint64, errno uint32, off int64) []byte {
	b = appendChunk(b, chunkErrorOffset, chunkDone, cookie, 14)
	b = binary.BigEndian.AppendUint32(b, errno)
	b = binary.BigEndian.AppendUint16(b, 0)
	return binary.BigEndian.AppendUint64(b, uint64(off))
}

// wireErrno translates an errno into one of those that the protocol knows.
func wireErrno(e syscall.Errno) uint32 {
	switch e {
	case 0, syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC,
		syscall.EOVERFLOW, syscall.ENOTSUP, syscall.ESHUTDOWN:
		return uint32(e)
	case syscall.EROFS:
		return uint32(syscall.EPERM)
	}
	return uint32(syscall.EIO)
}
