package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"keelson.io/keelson/internal/block"
)

// Version is the version of the frame format that this package writes, and the only
// one that it reads.
const Version = 1

// Sizes and limits of frames, in bytes unless said.
const (
	// HeaderSize is the size of every frame's header.
	HeaderSize = 80
	// MaxMeta is the largest payload but the data: sums, bitmap, fence reply or hello.
	MaxMeta = 768 << 10
	// MaxGens is how many gens one KindGens may ask for; larger columns are asked
	// for in several requests.
	MaxGens = 64 << 10
	// MaxJournal is how many journal entries a fence reply carries on the wire. A
	// longer journal is sent as AllChunks.
	MaxJournal = 32 << 10
	// MaxFrame is the size of the largest frame.
	MaxFrame = HeaderSize + MaxMeta + block.MaxIO

	// MaxText is the longest description that a KindClone carries, in bytes.
	MaxText = 8 << 10

	maxName = 255 // bytes in a name or run
	badSize = 128 // bytes of the bitmap of bad blocks
)

const magic = 0x31464c4b // "KLF1"

// Type says what a frame is.
type Type uint8

// The types of frames.
const (
	TypeHello   Type = iota + 1 // first frame in each direction
	TypePing                    // the other side answers with TypePong and the same id
	TypePong                    //
	TypeRequest                 // a Request, to a member
	TypeAnswer                  // its answer, with the same id
)

const (
	flagFUA   = 1 << 0
	flagBad   = 1 << 1
	flagFence = 1 << 2
)

// Why a frame isn't accepted; the connection it came from is not to be used any
// more. Errors of this package wrap one of these.
var (
	ErrMagic    = errors.New("wire: not a frame of the engine protocol")
	ErrVersion  = errors.New("wire: unknown frame version")
	ErrType     = errors.New("wire: unknown frame type or kind")
	ErrLength   = errors.New("wire: impossible length")
	ErrChecksum = errors.New("wire: wrong checksum")
	ErrField    = errors.New("wire: impossible field")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Frame is a decoded frame. Meta and Data point into the memory that was decoded.
type Frame struct {
	Type    Type
	Kind    Kind
	FUA     bool
	Status  Status
	Session uint32
	ID      uint64 // matches an answer with its request
	Replica ReplicaID
	Term    uint64
	Period  uint64
	Off     int64
	Len     int64
	// Meta is the payload but the data, verified against its checksum.
	Meta []byte
	// Data is the block data. It is covered by the sums in Meta only, and isn't
	// verified here.
	Data []byte

	flags uint8
}

// Decode decodes the frame at the start of p, and returns its size. Size 0 with a
// nil error says that more bytes are needed. It allocates nothing unless it fails.
func Decode(p []byte) (f Frame, size int, err error) {
	f, head, data, err := DecodeHead(p)
	if size = head + data; err != nil || head == 0 || len(p) < size {
		return Frame{}, 0, err
	}
	f.Data = p[head:size:size]
	return f, size, nil
}

// DecodeHead decodes the frame at the start of p without its data, and returns how many bytes that is, and how many
// bytes of data follow. Head 0 with a nil error says that more bytes are needed. It allocates nothing unless it fails.
func DecodeHead(p []byte) (f Frame, head, data int, err error) {
	if len(p) < HeaderSize {
		return f, 0, 0, nil
	}
	le := binary.LittleEndian
	if le.Uint32(p) != magic {
		return f, 0, 0, fmt.Errorf("%w: it starts with %08x", ErrMagic, le.Uint32(p))
	}
	if p[4] != Version {
		return f, 0, 0, fmt.Errorf("%w: %d, this engine knows %d", ErrVersion, p[4], Version)
	}
	if sum := crc32.Checksum(p[:HeaderSize-4], castagnoli); sum != le.Uint32(p[HeaderSize-4:]) {
		return f, 0, 0, fmt.Errorf("%w: frame header", ErrChecksum)
	}
	f.decodeHeader(p)
	metaLen, dataLen := int64(le.Uint32(p[64:])), int64(le.Uint32(p[68:]))
	if err := f.check(p, metaLen, dataLen); err != nil {
		return Frame{}, 0, 0, err
	}
	head = int(HeaderSize + metaLen)
	if len(p) < head {
		return Frame{}, 0, 0, nil
	}
	f.Meta = p[HeaderSize:head:head]
	if metaLen > 0 || le.Uint32(p[72:]) != 0 {
		if crc32.Checksum(f.Meta, castagnoli) != le.Uint32(p[72:]) {
			return Frame{}, 0, 0, fmt.Errorf("%w: payload of a frame (%v)", ErrChecksum, f.Kind)
		}
	}
	return f, head, int(dataLen), nil
}

func (f *Frame) decodeHeader(p []byte) {
	le := binary.LittleEndian
	f.Type = Type(p[5])
	f.Kind = Kind(p[6])
	f.flags = p[7]
	f.FUA = f.flags&flagFUA != 0
	f.Status = Status(p[8])
	f.Session = le.Uint32(p[12:])
	f.ID = le.Uint64(p[16:])
	f.Replica = ReplicaID(le.Uint64(p[24:]))
	f.Term = le.Uint64(p[32:])
	f.Period = le.Uint64(p[40:])
	f.Off = int64(le.Uint64(p[48:]))
	f.Len = int64(le.Uint64(p[56:]))
}

// check verifies everything that can be said of a frame before its payload is there.
func (f *Frame) check(p []byte, metaLen, dataLen int64) error {
	if p[9]|p[10]|p[11] != 0 || f.flags&^(flagFUA|flagBad|flagFence) != 0 {
		return fmt.Errorf("%w: reserved bits are set", ErrField)
	}
	if f.Type < TypeRequest && f.flags|p[6]|p[8] != 0 {
		return fmt.Errorf("%w: flags, kind or status in a frame of type %d", ErrField, f.Type)
	}
	switch f.Type {
	case TypeHello:
		if metaLen == 0 || metaLen > 4*maxName || dataLen != 0 {
			return fmt.Errorf("%w: hello of %d and %d bytes", ErrLength, metaLen, dataLen)
		}
		return nil
	case TypePing, TypePong:
		if metaLen != 0 || dataLen != 0 {
			return fmt.Errorf("%w: ping of %d and %d bytes", ErrLength, metaLen, dataLen)
		}
		return nil
	case TypeRequest, TypeAnswer:
	default:
		return fmt.Errorf("%w: type %d", ErrType, f.Type)
	}
	if !f.Kind.Valid() {
		return fmt.Errorf("%w: %v", ErrType, f.Kind)
	}
	if f.Off < 0 || f.Len < 0 || f.Off%block.Size != 0 || f.Off+f.Len < 0 {
		return fmt.Errorf("%w: %v of %d bytes at offset %d", ErrField, f.Kind, f.Len, f.Off)
	}
	if f.Kind.Sends() || f.Kind.Fills() || f.Kind.Verifies() {
		if f.Len == 0 || f.Len > block.MaxIO || f.Len%block.Size != 0 {
			return fmt.Errorf("%w: %v of %d bytes", ErrLength, f.Kind, f.Len)
		}
	}
	if f.Kind == KindGens && f.Len > MaxGens*block.ChunkSize {
		return fmt.Errorf("%w: gens of %d bytes", ErrLength, f.Len)
	}
	if f.Type == TypeRequest {
		return f.checkRequest(metaLen, dataLen)
	}
	return f.checkAnswer(metaLen, dataLen)
}

func (f *Frame) checkRequest(metaLen, dataLen int64) error {
	if f.Status != StatusOK || f.flags&(flagBad|flagFence) != 0 {
		return fmt.Errorf("%w: a request with an answer in it", ErrField)
	}
	var wantData int64
	if f.Kind.Sends() {
		wantData = f.Len
	}
	if !f.metaFits(metaLen) || dataLen != wantData {
		return fmt.Errorf("%w: %v request of %d and %d bytes for %d bytes", ErrLength, f.Kind, metaLen, dataLen, f.Len)
	}
	return nil
}

// metaFits reports whether a request of the frame's kind can have so many bytes of meta.
func (f *Frame) metaFits(n int64) bool {
	switch f.Kind {
	case KindWrite, KindSnapWrite, KindSnapMend:
		return n == f.Len/block.Size*8
	case KindSnaps:
		return n%16 == 0 && n <= MaxSnaps*16
	case KindSnapSeal:
		return n == block.PerChunk*8
	case KindRestore:
		return n == 8
	case KindClone:
		return n > 0 && n <= MaxText
	}
	return n == 0
}

func (f *Frame) checkAnswer(metaLen, dataLen int64) error {
	if f.Status >= StatusLost {
		return fmt.Errorf("%w: answer with %v", ErrField, f.Status)
	}
	var wantData int64
	if f.HasData() {
		wantData = f.Len
	}
	sums := metaLen
	if f.flags&flagBad != 0 {
		sums -= badSize
	}
	bad := dataLen != wantData || metaLen > MaxMeta || sums < 0
	if f.flags&flagFence != 0 {
		bad = bad || f.Kind != KindFence || f.flags&flagBad != 0
	} else {
		bad = bad || sums%8 != 0 || sums/8 > f.maxSums()
	}
	if bad {
		return fmt.Errorf("%w: %v answer of %d and %d bytes", ErrLength, f.Kind, metaLen, dataLen)
	}
	return nil
}

// HasData reports whether the data of Len bytes belongs to the frame.
func (f *Frame) HasData() bool {
	if f.Type == TypeRequest {
		return f.Kind.Sends()
	}
	return f.Type == TypeAnswer && f.Kind.Fills() && (f.Status == StatusOK || f.Status == StatusBadSum)
}

// maxSums is how many sums an answer may carry.
func (f *Frame) maxSums() int64 {
	switch f.Kind {
	case KindRead, KindVerify, KindSnapRead, KindSnapVerify:
		return f.Len / block.Size
	case KindSums, KindSnapSums, KindSnapCheck, KindSnapOpen:
		return block.PerChunk
	case KindSnapLevels:
		return MaxSnaps
	case KindSnapUsage:
		return 2 * MaxSnaps
	case KindGens:
		return block.Chunks(f.Len)
	}
	return 0
}

// NumSums is how many sums (or gens) the frame carries.
func (f *Frame) NumSums() int {
	switch {
	case f.Type != TypeRequest && f.Type != TypeAnswer || f.flags&flagFence != 0 || f.Kind == KindClone:
		return 0
	case f.flags&flagBad != 0:
		return (len(f.Meta) - badSize) / 8
	}
	return len(f.Meta) / 8
}

// Sums decodes the frame's sums (or gens) into dst's memory, whose capacity is at least
// NumSums, and returns them.
func (f *Frame) Sums(dst []uint64) []uint64 {
	dst = dst[:f.NumSums()]
	for i := range dst {
		dst[i] = binary.LittleEndian.Uint64(f.Meta[8*i:])
	}
	return dst
}

// Bad decodes the bitmap of bad blocks; all zero if the frame has none.
func (f *Frame) Bad() (bad [16]uint64) {
	if f.flags&flagBad == 0 {
		return bad
	}
	m := f.Meta[len(f.Meta)-badSize:]
	for i := range bad {
		bad[i] = binary.LittleEndian.Uint64(m[8*i:])
	}
	return bad
}
