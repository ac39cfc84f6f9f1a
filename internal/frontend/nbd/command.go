package nbd

import (
	"math"
	"syscall"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
)

// command is one command of a client. Commands larger than block.MaxIO go to the device
// in parts, one after the other, through the same buffer.
type command struct {
	block.Request // the current part
	c             *conn
	cookie        uint64
	typ           uint16
	errno         syscall.Errno
	start         int64 // where the command begins
	left          int64 // bytes after the current part
	have          int   // write: bytes of the current part that were received
	busy          bool  // the current part is at the device

	// The reply that waits to be sent: a header, then data.
	header   [maxReplyHeader]byte
	headLen  int
	body     []byte
	bodySent int
	pos      int // sender: where in its buffer the body belongs
	next     *command
}

// begin takes over the header of a request. Nothing is checked yet.
func (m *command) begin(r request) {
	m.cookie, m.typ, m.errno = r.cookie, r.typ, 0
	m.start, m.left, m.have = int64(r.off), int64(r.length), 0
	m.Off, m.Len, m.Data, m.Err = m.start, 0, nil, nil
	m.FUA = r.flags&cmdFlagFUA != 0
	m.body, m.bodySent = nil, 0
	switch r.typ {
	case cmdRead:
		m.Op, m.FUA = block.OpRead, false
	case cmdWrite:
		m.Op = block.OpWrite
	case cmdFlush:
		m.Op, m.FUA, m.Off = block.OpFlush, false, 0
	case cmdTrim:
		m.Op = block.OpTrim
	case cmdWriteZeroes:
		// Without NO_HOLE the client lets us give the space back.
		m.Op = block.OpTrim
		if r.flags&cmdFlagNoHole != 0 {
			m.Op = block.OpZero
		}
	default:
		m.Op = 0
	}
}

// check returns why the command can't be executed, or 0.
func (m *command) check(r request, structured bool) syscall.Errno {
	allowed := uint16(cmdFlagFUA)
	switch r.typ {
	case cmdRead:
		if structured {
			allowed |= cmdFlagDF
		}
	case cmdWriteZeroes:
		allowed |= cmdFlagNoHole | cmdFlagFastZero
	}
	if m.Op == 0 || r.flags&^allowed != 0 {
		return syscall.EINVAL
	}
	if m.Op == block.OpFlush {
		return 0
	}
	off := int64(min(r.off, math.MaxInt64&^(block.Size-1)))
	if r.off > math.MaxInt64 && r.off%block.Size != 0 {
		return syscall.EINVAL
	}
	op := m.Op
	if r.typ == cmdWriteZeroes {
		op = block.OpZero // so that writing past the end is ENOSPC
	}
	if e := frontend.Check(op, off, int64(r.length), m.c.s.cfg.Device.Size()); e != 0 {
		return e
	}
	if (r.typ == cmdRead || r.typ == cmdWrite) && r.length > maxPayload {
		return syscall.EINVAL
	}
	if r.flags&cmdFlagDF != 0 && r.length > block.MaxIO {
		return syscall.EOVERFLOW
	}
	return 0
}

// acquire makes Data the buffer of the next part, and reports whether there was memory, and the device can take it.
func (m *command) acquire() bool {
	if m.Data == nil && !frontend.Full(m.c.s.cfg.Device) {
		m.Data = m.c.s.cfg.Loop.Buffers().Get(int(min(m.left, block.MaxIO)))
		m.have = 0
	}
	return m.Data != nil
}

// missing is the part of the payload that wasn't received yet.
func (m *command) missing() []byte { return m.Data[m.have:] }

// submit hands the next part to the device.
func (m *command) submit() {
	switch m.Op {
	case block.OpRead, block.OpWrite:
		m.Len = int64(len(m.Data))
	default:
		m.Len = m.left
	}
	m.left -= m.Len
	m.busy = true
	m.c.atDevice++
	m.c.s.cfg.Device.Submit(&m.Request)
}

// done is called when the device has answered the current part.
func (m *command) done() {
	c := m.c
	m.busy = false
	c.atDevice--
	if m.Err != nil {
		m.errno = frontend.Errno(m.Err)
	}
	switch {
	case c.dead:
		m.abandon()
	case m.Op == block.OpRead && m.errno == 0:
		m.answerData()
	case m.Op == block.OpWrite && m.left > 0:
		// The next part begins in the same buffer, or what comes is thrown away.
		m.advance()
		c.resume()
	default:
		m.answer()
	}
}

// advance makes the buffer that of the next part.
func (m *command) advance() {
	m.Off += m.Len
	m.Data = m.Data[:min(m.left, int64(len(m.Data)))]
	m.have = 0
}

// answerData sends the part that was read.
func (m *command) answerData() {
	h := m.header[:0]
	switch {
	case m.c.neg.structured:
		flags := uint16(0)
		if m.left == 0 {
			flags = chunkDone
		}
		h = appendDataChunk(h, flags, m.cookie, m.Off, len(m.Data))
	case m.Off == m.start:
		h = appendSimple(h, m.cookie, 0)
	}
	m.headLen, m.body, m.bodySent = len(h), m.Data, 0
	m.c.tx.reply(m)
}

// answer sends the last, or only, reply of a command: without data.
func (m *command) answer() {
	h := m.header[:0]
	errno := wireErrno(m.errno)
	switch {
	case m.typ != cmdRead || (!m.c.neg.structured && m.Off == m.start):
		h = appendSimple(h, m.cookie, errno)
	case !m.c.neg.structured:
		m.c.tx.waiting.push(m) // released with the connection
		m.c.shut(errTornRead)
		return
	case errno == 0:
		h = appendChunk(h, chunkNone, chunkDone, m.cookie, 0)
	case m.Len == 0:
		h = appendErrorChunk(h, m.cookie, errno)
	default:
		h = appendErrorOffsetChunk(h, m.cookie, errno, m.Off)
	}
	m.headLen, m.body = len(h), nil
	m.c.tx.reply(m)
}

// sent is called when the reply was copied or sent.
func (m *command) sent() {
	m.body = nil
	if m.Op == block.OpRead && m.errno == 0 && m.left > 0 && !m.c.dead {
		m.advance()
		m.submit()
		return
	}
	m.release()
}

// abandon ends a command whose connection has ended.
func (m *command) abandon() {
	if m.c.cur == m {
		m.c.cur = nil
	}
	m.release()
	m.c.bury()
}

// release makes the command and its memory free again.
func (m *command) release() {
	c := m.c
	if m.Data != nil {
		// A prefix of what Get returned may be given back as well.
		c.s.cfg.Loop.Buffers().Put(m.Data)
		m.Data = nil
	}
	if c.alone == m {
		c.alone = nil
	}
	m.next, c.free = c.free, m
	c.inFlight--
	if !c.dead {
		c.resume()
		c.drained()
	}
	c.s.feedStarved()
}
