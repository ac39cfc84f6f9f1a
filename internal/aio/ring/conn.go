package ring

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

const (
	plainRoom  = 3 << 20   // received bytes that the handler hasn't consumed, and room for more
	cipherRoom = 512 << 10 // received records that aren't opened yet
	recvMost   = 1 << 20   // one receive without encryption
	recvLeast  = 256 << 10 // room is made when there is less
	moveAlways = 16 << 10  // a rest that is cheap to move to the front
	keepChunks = 64        // free chunks that a loop keeps
	keepRooms  = 32        // receive regions that are kept for later connections
	gatherFrom = 64 << 10  // fewer bytes that are lacking are received as they come
	gatherMost = 192 << 10 // otherwise up to so many are waited for; less than one receive
	sealFrom   = 16 << 10  // a piece of that size is sealed from where it is, smaller ones are gathered

	// chunkSize is one send at most: four whole records.
	chunkSize = 4 * (recordMost + recordExtra)
)

var errNotConsumed = errors.New("the handler left more than fits the receive buffer")

// conn is an aio.Conn.
//
// Outgoing bytes become records in chunks, unencrypted ones go into chunks as they are. Small pieces gather in
// small first, and become a record when the loop is about to enter or a large piece comes. When the loop is about to
// enter and no send is in flight, the first chunk becomes the memory of one send.
//
// Incoming records are received into cipher and opened into fill, if the handler has given memory, otherwise into
// plain; the handler is shown plain[r:w]. Without encryption bytes are received where they would be opened to.
type conn struct {
	l    *Loop
	fd   int32
	peer string
	h    aio.ConnHandler
	seal *sealer // nil without encryption
	open *opener // likewise

	small   []byte   // not sealed yet; behind all of out
	out     [][]byte // chunks
	queued  int      // bytes in out and small
	wire    []byte   // a chunk that is being sent
	wireAt  int
	sending bool
	dirty   bool // in l.dirty

	region        []byte // mapped; plain and cipher are parts of it
	plain, cipher []byte
	r, w          int // of plain
	cr, cw        int // of cipher
	fill          []byte
	filled        int // bytes of fill that have come. Invariant: < len(fill) between turns, if fill != nil
	direct        bool
	receiving     bool
	lowWater      int // of the socket: with fewer bytes it doesn't count as readable

	ended bool // Close was called, or the connection failed
	err   error
}

// session is a connection that was dialled or accepted, and no loop's yet.
type session struct {
	fd   int
	peer string
	seal *sealer
	open *opener
}

// adopt makes a session a connection of the loop; start begins to receive.
func (l *Loop) adopt(s *session) (*conn, error) {
	region, err := l.takeRegion()
	if err != nil {
		return nil, err
	}
	c := &conn{l: l, fd: int32(s.fd), peer: s.peer, seal: s.seal, open: s.open, region: region}
	c.plain, c.cipher = region[:plainRoom:plainRoom], region[plainRoom:]
	l.conns[c] = struct{}{}
	return c, nil
}

func (l *Loop) takeRegion() ([]byte, error) {
	if n := len(l.regions); n > 0 {
		r := l.regions[n-1]
		l.regions = l.regions[:n-1]
		return r, nil
	}
	r, err := unix.Mmap(-1, 0, plainRoom+cipherRoom, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("ring: map a receive buffer: %w", err)
	}
	return r, nil
}

func (l *Loop) giveRegion(r []byte) {
	if len(l.regions) < keepRooms {
		l.regions = append(l.regions, r)
	} else {
		unix.Munmap(r)
	}
}

// Peer implements aio.Conn.
func (c *conn) Peer() string { return c.peer }

// Write implements aio.Conn.
func (c *conn) Write(p []byte) {
	if c.ended || len(p) == 0 {
		return
	}
	if c.seal == nil {
		c.append(p)
	} else {
		c.gather(p)
	}
	c.markDirty()
}

// append puts p into chunks as it is.
func (c *conn) append(p []byte) {
	c.queued += len(p)
	for len(p) > 0 {
		last := c.tail(1)
		n := copy((*last)[len(*last):chunkSize], p)
		*last = (*last)[:len(*last)+n]
		p = p[n:]
	}
}

// gather seals p, or puts it with what is to be sealed.
func (c *conn) gather(p []byte) {
	for len(p) > 0 && !c.ended {
		if len(p) >= sealFrom {
			c.sealSmall()
			n := min(len(p), recordMost)
			c.sealRecord(p[:n])
			p = p[n:]
			continue
		}
		if c.small == nil {
			c.small = c.l.takeChunk()
		}
		n := min(len(p), recordMost-len(c.small))
		c.small = append(c.small, p[:n]...)
		c.queued += n
		if p = p[n:]; len(c.small) == recordMost {
			c.sealSmall()
		}
	}
}

// sealSmall makes a record of what has gathered.
func (c *conn) sealSmall() {
	if len(c.small) == 0 {
		return
	}
	c.queued -= len(c.small)
	c.sealRecord(c.small)
	c.l.giveChunk(c.small)
	c.small = nil
}

func (c *conn) sealRecord(p []byte) {
	last := c.tail(len(p) + recordExtra)
	sealed, err := c.seal.record(*last, p)
	if err != nil {
		c.fail(err)
		return
	}
	c.queued += len(sealed) - len(*last)
	*last = sealed
}

// tail returns the last chunk, which has room for n bytes.
func (c *conn) tail(n int) *[]byte {
	last := len(c.out) - 1
	if last < 0 || len(c.out[last])+n > chunkSize {
		c.out = append(c.out, c.l.takeChunk())
		last++
	}
	return &c.out[last]
}

func (l *Loop) takeChunk() []byte {
	if n := len(l.chunks); n > 0 {
		b := l.chunks[n-1]
		l.chunks[n-1] = nil
		l.chunks = l.chunks[:n-1]
		return b
	}
	return make([]byte, 0, chunkSize)
}

func (l *Loop) giveChunk(b []byte) {
	if b != nil && len(l.chunks) < keepChunks {
		l.chunks = append(l.chunks, b[:0])
	}
}

func (c *conn) markDirty() {
	if !c.dirty && !c.sending {
		c.dirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

// Queued implements aio.Conn.
func (c *conn) Queued() int { return c.queued + len(c.wire) - c.wireAt }

// Close implements aio.Conn. What is queued may be lost.
func (c *conn) Close() { c.fail(nil) }

// fail ends the connection because of err.
func (c *conn) fail(err error) {
	if c.ended {
		return
	}
	c.ended, c.err = true, err
	if c.sending || c.receiving {
		c.l.cancelFD(c.fd)
	}
	c.l.ended = append(c.l.ended, c)
}

func (c *conn) lost(why error) {
	c.fail(fmt.Errorf("%w: to %s: %w", aio.ErrConnLost, c.peer, why))
}

// finishConns tells the handlers of connections that ended, once nothing is in flight
// on them.
func (l *Loop) finishConns() {
	for len(l.ended) > 0 {
		c := l.ended[len(l.ended)-1]
		l.ended = l.ended[:len(l.ended)-1]
		if _, open := l.conns[c]; !open || c.sending || c.receiving {
			continue // comes back with its last completion
		}
		delete(l.conns, c)
		unix.Close(int(c.fd))
		l.giveRegion(c.region)
		c.region, c.plain, c.cipher = nil, nil, nil
		for _, b := range append(c.out, c.small, c.wire) {
			l.giveChunk(b)
		}
		c.out, c.small, c.queued, c.wire, c.wireAt, c.fill = nil, nil, 0, nil, 0, nil
		if c.h != nil {
			c.h.Closed(c, c.err)
		}
	}
}

// flushConns sends what has gathered.
func (l *Loop) flushConns() {
	for i, c := range l.dirty {
		l.dirty[i] = nil
		c.dirty = false
		c.flush()
	}
	l.dirty = l.dirty[:0]
}

func (c *conn) flush() {
	if c.ended || c.sending {
		return
	}
	if len(c.out) == 0 {
		c.sealSmall()
	}
	if len(c.out) == 0 || c.ended {
		return
	}
	c.wire, c.wireAt = c.out[0], 0
	last := copy(c.out, c.out[1:])
	c.out[last] = nil
	c.out = c.out[:last]
	c.queued -= len(c.wire)
	c.send()
}

func (c *conn) send() {
	c.sending = true
	i, s := c.l.slots.take(kindSend)
	s.own, s.fd, s.p = c, c.fd, c.wire
	s.addr, s.n = uintptr(unsafe.Pointer(&c.wire[c.wireAt])), len(c.wire)-c.wireAt
	c.l.submit(i)
}

// sent takes the completion of a send.
func (c *conn) sent(i int32, res int32) {
	c.l.slots.release(i)
	c.sending = false
	errno := unix.Errno(-res)
	switch {
	case c.ended:
		c.l.ended = append(c.l.ended, c)
	case res < 0 && errno != unix.EINTR && errno != unix.EAGAIN:
		c.lost(errno)
	default:
		c.wireAt += int(max(res, 0))
		if c.wireAt < len(c.wire) {
			c.send()
			return
		}
		c.l.giveChunk(c.wire)
		c.wire, c.wireAt = nil, 0
		if len(c.out) > 0 || len(c.small) > 0 {
			c.markDirty()
		}
	}
}
