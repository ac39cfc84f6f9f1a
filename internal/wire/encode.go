package wire

import (
	"encoding/binary"
	"hash/crc32"
)

// AppendRequest appends r's frame to dst, all but the data: the caller sends
// r.Data behind it if r.Kind.Sends().
func AppendRequest(dst []byte, id uint64, r *Request) []byte {
	start := len(dst)
	dst = appendHeader(dst, TypeRequest, id, r)
	dataLen := 0
	switch r.Kind {
	case KindWrite, KindSnapWrite, KindSnapMend:
		dst = appendSums(dst, r.Sums)
		dataLen = len(r.Data)
	case KindSnaps, KindSnapSeal, KindRestore:
		dst = appendSums(dst, r.Sums)
	case KindClone:
		dst = append(dst, r.Text...)
	}
	return seal(dst, start, dataLen)
}

// AppendAnswer appends the frame of r's answer to dst, all but the data. withData
// says that the caller sends r.Data behind it: so it must when a kind that Fills was
// answered with StatusOK or StatusBadSum.
func AppendAnswer(dst []byte, id uint64, r *Request) (frame []byte, withData bool) {
	start := len(dst)
	dst = appendHeader(dst, TypeAnswer, id, r)
	dst[start+8] = byte(r.Status)
	good := r.Status == StatusOK || r.Status == StatusBadSum
	switch r.Kind {
	case KindRead, KindSums, KindGens, KindVerify, KindSnapRead, KindSnapSums, KindSnapCheck, KindSnapLevels, KindSnapOpen, KindSnapUsage, KindSnapVerify:
		if good {
			dst = appendSums(dst, r.Sums)
		}
	}
	if r.Bad != [16]uint64{} {
		dst[start+7] |= flagBad
		for _, w := range r.Bad {
			dst = binary.LittleEndian.AppendUint64(dst, w)
		}
	} else if r.Kind == KindFence && r.Fence != nil {
		dst[start+7] |= flagFence
		dst = appendFence(dst, r.Fence)
	}
	dataLen := 0
	if withData = good && r.Kind.Fills(); withData {
		dataLen = len(r.Data)
	}
	return seal(dst, start, dataLen), withData
}

// AppendPing appends a frame of type TypePing or TypePong to dst.
func AppendPing(dst []byte, t Type, id uint64) []byte {
	start := len(dst)
	var r Request
	dst = appendHeader(dst, t, id, &r)
	return seal(dst, start, 0)
}

func appendHeader(dst []byte, t Type, id uint64, r *Request) []byte {
	var h [HeaderSize]byte
	le := binary.LittleEndian
	le.PutUint32(h[0:], magic)
	h[4] = Version
	h[5] = byte(t)
	h[6] = byte(r.Kind)
	if r.FUA {
		h[7] = flagFUA
	}
	le.PutUint32(h[12:], r.Session)
	le.PutUint64(h[16:], id)
	le.PutUint64(h[24:], uint64(r.Replica))
	le.PutUint64(h[32:], r.Term)
	le.PutUint64(h[40:], r.Period)
	le.PutUint64(h[48:], uint64(r.Off))
	le.PutUint64(h[56:], uint64(r.Length()))
	return append(dst, h[:]...)
}

// seal fills in the lengths and checksums of the frame that starts at start.
func seal(dst []byte, start, dataLen int) []byte {
	h := dst[start : start+HeaderSize]
	meta := dst[start+HeaderSize:]
	le := binary.LittleEndian
	le.PutUint32(h[64:], uint32(len(meta)))
	le.PutUint32(h[68:], uint32(dataLen))
	if len(meta) > 0 {
		le.PutUint32(h[72:], crc32.Checksum(meta, castagnoli))
	}
	le.PutUint32(h[76:], crc32.Checksum(h[:76], castagnoli))
	return dst
}

func appendSums(dst []byte, sums []uint64) []byte {
	for _, s := range sums {
		dst = binary.LittleEndian.AppendUint64(dst, s)
	}
	return dst
}

// Length is how many bytes of the column the request is about: len(Data) of reads
// and writes that have Data, otherwise Len.
func (r *Request) Length() int64 {
	if (r.Kind.Fills() || r.Kind.Sends()) && r.Data != nil {
		return int64(len(r.Data))
	}
	return r.Len
}
