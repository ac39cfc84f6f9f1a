package wire

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Hello is the first frame that each side of a connection sends.
type Hello struct {
	Cluster string // the cluster's id: engines of different clusters don't talk
	Node    string // the sender's name
	// Incarnation is different each time an engine starts.
	Incarnation uint64
}

// AppendHello appends h's frame to dst.
func AppendHello(dst []byte, h Hello) []byte {
	start := len(dst)
	var r Request
	dst = appendHeader(dst, TypeHello, h.Incarnation, &r)
	dst = appendString(dst, h.Cluster)
	dst = appendString(dst, h.Node)
	return seal(dst, start, 0)
}

// Hello decodes the payload of a TypeHello.
func (f *Frame) Hello() (Hello, error) {
	h := Hello{Incarnation: f.ID}
	m := f.Meta
	var ok1, ok2 bool
	h.Cluster, m, ok1 = cutString(m)
	h.Node, m, ok2 = cutString(m)
	if !ok1 || !ok2 || len(m) != 0 {
		return Hello{}, fmt.Errorf("%w: hello of %d bytes", ErrLength, len(f.Meta))
	}
	return h, nil
}

const fenceFixed = 48 // bytes of a fence reply before the run

const (
	fenceExact     = 1 << 0
	fenceAllChunks = 1 << 1
)

func appendFence(dst []byte, fr *FenceReply) []byte {
	journal, flags := fr.Journal, uint32(0)
	if fr.Exact {
		flags |= fenceExact
	}
	if fr.AllChunks || len(journal) > MaxJournal {
		flags |= fenceAllChunks
		journal = journal[:min(len(journal), MaxJournal)]
	}
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, fr.PrevFence)
	dst = le.AppendUint64(dst, fr.Checkpoint)
	dst = le.AppendUint64(dst, uint64(fr.Size))
	dst = le.AppendUint64(dst, uint64(fr.SinceConfirm))
	dst = le.AppendUint32(dst, flags)
	dst = le.AppendUint32(dst, uint32(len(journal)))
	dst = le.AppendUint64(dst, 0)
	dst = appendString(dst, fr.Run)
	for _, e := range journal {
		dst = le.AppendUint64(dst, uint64(e.Chunk))
		dst = le.AppendUint64(dst, e.Period)
	}
	return dst
}

// FenceReply decodes the fence reply of an answer; nil if it has none.
func (f *Frame) FenceReply() (*FenceReply, error) {
	if f.flags&flagFence == 0 {
		return nil, nil
	}
	m := f.Meta
	if len(m) < fenceFixed {
		return nil, fmt.Errorf("%w: fence reply of %d bytes", ErrLength, len(m))
	}
	le := binary.LittleEndian
	flags, n := le.Uint32(m[32:]), int(le.Uint32(m[36:]))
	if flags&^(fenceExact|fenceAllChunks) != 0 || le.Uint64(m[40:]) != 0 {
		return nil, fmt.Errorf("%w: reserved bits of a fence reply are set", ErrField)
	}
	fr := &FenceReply{
		PrevFence:    le.Uint64(m),
		Checkpoint:   le.Uint64(m[8:]),
		Size:         int64(le.Uint64(m[16:])),
		SinceConfirm: time.Duration(le.Uint64(m[24:])),
		Exact:        flags&fenceExact != 0,
		AllChunks:    flags&fenceAllChunks != 0,
	}
	var ok bool
	fr.Run, m, ok = cutString(m[fenceFixed:])
	if !ok || n > MaxJournal || len(m) != 16*n {
		return nil, fmt.Errorf("%w: fence reply with %d journal entries", ErrLength, n)
	}
	if n > 0 {
		fr.Journal = make([]JournalEntry, n)
	}
	for i := range fr.Journal {
		fr.Journal[i] = JournalEntry{Chunk: int64(le.Uint64(m[16*i:])), Period: le.Uint64(m[16*i+8:])}
		if fr.Journal[i].Chunk < 0 {
			return nil, fmt.Errorf("%w: journal entry of chunk %d", ErrField, fr.Journal[i].Chunk)
		}
	}
	return fr, nil
}

// appendString appends a string of at most maxName bytes; longer ones are cut.
func appendString(dst []byte, s string) []byte {
	s = s[:min(len(s), maxName)]
	dst = append(dst, byte(len(s)))
	return append(dst, s...)
}

func cutString(p []byte) (s string, rest []byte, ok bool) {
	if len(p) == 0 || len(p) < 1+int(p[0]) {
		return "", p, false
	}
	n := 1 + int(p[0])
	return string(p[1:n]), p[n:], true
}
