package imagecopy

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Numbers of the NBD protocol, as a client needs them.
const (
	nbdMagic        = 0x4e42444d41474943
	nbdOptMagic     = 0x49484156454f5054
	nbdReplyMagic   = 0x0003e889045565a9
	nbdRequestMagic = 0x25609513
	nbdSimple       = 0x67446698
	nbdChunk        = 0x668e33ef

	nbdOptGo         = 7
	nbdOptStructured = 8
	nbdOptSetContext = 10

	nbdRepAck     = 1
	nbdRepInfo    = 3
	nbdRepContext = 4

	nbdFlagReadOnly    = 1 << 1
	nbdFlagFlush       = 1 << 2
	nbdFlagWriteZeroes = 1 << 6

	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdTrim        = 4
	nbdWriteZeroes = 6
	nbdBlockStatus = 7

	nbdChunkNone   = 0
	nbdChunkData   = 1
	nbdChunkHole   = 2
	nbdChunkStatus = 5

	// maxReply bounds what a server may say in one piece besides data.
	maxReply = 1 << 20
)

// allocation is the context that says what is zeros.
const allocation = "base:allocation"

// handshake agrees with the server on an export.
func (c *nbdClient) handshake(r *bufio.Reader, name string) error {
	var head [18]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(head[:]) != nbdMagic || binary.BigEndian.Uint64(head[8:]) != nbdOptMagic {
		return errors.New("it isn't an NBD server that speaks the newstyle handshake")
	}
	flags := binary.BigEndian.Uint16(head[16:])
	if flags&1 == 0 {
		return errors.New("the NBD server doesn't speak the fixed newstyle handshake")
	}
	if _, err := c.conn.Write(binary.BigEndian.AppendUint32(nil, uint32(flags&3))); err != nil {
		return err
	}
	ok, err := c.option(r, nbdOptStructured, nil, nil)
	if err != nil {
		return err
	}
	if c.structured = ok; ok {
		if err := c.askContext(r, name); err != nil {
			return err
		}
	}
	q := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	q = append(q, name...)
	q = binary.BigEndian.AppendUint16(q, 0)
	known := false
	ok, err = c.option(r, nbdOptGo, q, func(typ uint32, p []byte) {
		if typ == nbdRepInfo && len(p) >= 12 && binary.BigEndian.Uint16(p) == 0 {
			c.size, c.flags, known = int64(binary.BigEndian.Uint64(p[2:])), binary.BigEndian.Uint16(p[10:]), true
		}
	})
	switch {
	case err != nil:
		return err
	case !ok:
		return errors.New("the NBD server has no such export, or doesn't let us have it")
	case !known || c.size < 0:
		return errors.New("the NBD server doesn't say how large the export is")
	}
	return nil
}

// askContext asks for the context that says what is zeros.
func (c *nbdClient) askContext(r *bufio.Reader, name string) error {
	q := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	q = append(q, name...)
	q = binary.BigEndian.AppendUint32(q, 1)
	q = binary.BigEndian.AppendUint32(q, uint32(len(allocation)))
	q = append(q, allocation...)
	_, err := c.option(r, nbdOptSetContext, q, func(typ uint32, p []byte) {
		if typ == nbdRepContext && len(p) >= 4 && string(p[4:]) == allocation {
			c.context, c.hasStatus = binary.BigEndian.Uint32(p), true
		}
	})
	return err
}

// option asks for an option, and reports whether the server agreed.
func (c *nbdClient) option(r *bufio.Reader, opt uint32, data []byte, said func(typ uint32, p []byte)) (bool, error) {
	b := binary.BigEndian.AppendUint64(nil, nbdOptMagic)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		return false, err
	}
	for {
		var head [20]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return false, err
		}
		typ, n := binary.BigEndian.Uint32(head[12:]), binary.BigEndian.Uint32(head[16:])
		if binary.BigEndian.Uint64(head[:]) != nbdReplyMagic || binary.BigEndian.Uint32(head[8:]) != opt || n > maxReply {
			return false, errors.New("the NBD server answers what wasn't asked")
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return false, err
		}
		switch {
		case typ == nbdRepAck:
			return true, nil
		case typ&(1<<31) != 0:
			return false, nil
		case said != nil:
			said(typ, p)
		}
	}
}

// reply reads one reply, or one chunk of a structured one.
func (c *nbdClient) reply(r *bufio.Reader) error {
	var b [20]byte
	if _, err := io.ReadFull(r, b[:16]); err != nil {
		return err
	}
	switch binary.BigEndian.Uint32(b[:]) {
	case nbdSimple:
		call := c.take(binary.BigEndian.Uint64(b[8:]), true)
		if call == nil {
			return errors.New("the NBD server answers what wasn't asked")
		}
		defer close(call.done)
		if call.err = errno(binary.BigEndian.Uint32(b[4:])); call.err != nil || call.data == nil {
			return nil
		}
		n, err := io.ReadFull(r, call.data)
		call.filled, call.err = n, err
		return err
	case nbdChunk:
		if _, err := io.ReadFull(r, b[16:]); err != nil {
			return err
		}
		return c.chunk(r, binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:]))
	}
	return errors.New("the NBD server sends what isn't a reply")
}

// chunk reads the rest of a chunk.
func (c *nbdClient) chunk(r *bufio.Reader, flags, typ uint16, cookie uint64, n uint32) error {
	last := flags&1 != 0
	call := c.take(cookie, last)
	if call == nil {
		return errors.New("the NBD server answers what wasn't asked")
	}
	err := call.chunk(r, typ, n, c.context)
	if err != nil && call.err == nil {
		call.err = err
	}
	if last {
		close(call.done)
	}
	return err
}

// chunk takes one chunk over. An error ends the connection; what the server says of the request is in call.err.
func (call *nbdCall) chunk(r *bufio.Reader, typ uint16, n, context uint32) error {
	switch {
	case typ == nbdChunkNone && n == 0:
		return nil
	case typ == nbdChunkData && n >= 8:
		var at [8]byte
		if _, err := io.ReadFull(r, at[:]); err != nil {
			return err
		}
		p, err := call.part(binary.BigEndian.Uint64(at[:]), int64(n)-8)
		if err != nil {
			return err
		}
		_, err = io.ReadFull(r, p)
		return err
	case n > maxReply:
		return fmt.Errorf("the NBD server sends a chunk of %d bytes", n)
	}
	p := make([]byte, n)
	if _, err := io.ReadFull(r, p); err != nil {
		return err
	}
	switch {
	case typ == nbdChunkHole && n == 12:
		hole, err := call.part(binary.BigEndian.Uint64(p), int64(binary.BigEndian.Uint32(p[8:])))
		if err != nil {
			return err
		}
		clear(hole)
		return nil
	case typ == nbdChunkStatus && n >= 4:
		if binary.BigEndian.Uint32(p) == context {
			call.extents(p[4:])
		}
		return nil
	case typ&(1<<15) != 0 && n >= 4: // an error
		call.err = errno(max(1, binary.BigEndian.Uint32(p)))
		return nil
	}
	return fmt.Errorf("the NBD server sends a chunk of type %d", typ)
}

// part is where n bytes of the export at off belong.
func (call *nbdCall) part(off uint64, n int64) ([]byte, error) {
	at := int64(off) - call.off
	if at < 0 || n < 0 || n > int64(len(call.data)) || at > int64(len(call.data))-n {
		return nil, errors.New("the NBD server sends data that wasn't asked for")
	}
	call.filled += int(n)
	return call.data[at : at+n], nil
}

// extents reads what the server says of allocation: bit 1 says that it reads as zeros.
func (call *nbdCall) extents(p []byte) {
	off := call.off
	for ; len(p) >= 8; p = p[8:] {
		n := int64(binary.BigEndian.Uint32(p))
		call.extent = append(call.extent, extent{off, n, binary.BigEndian.Uint32(p[4:])&2 != 0})
		off += n
	}
}
