package ring

import (
	"crypto/tls"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

const (
	plainRoom  = 3 << 20   // received bytes that the handler hasn't consumed, and room for more
	cipherRoom = 256 << 10 // one receive under TLS
	recvMost   = 1 << 20   // one receive without
	recvLeast  = 256 << 10 // room is made when there is less
	moveAlways = 16 << 10  // a rest that is cheap to move to the front
	chunkSize  = 256 << 10 // one send at most
	keepChunks = 64        // free chunks that a loop keeps
	keepRooms  = 32        // receive regions that are kept for later connections
	gatherFrom = 64 << 10  // a handler that lacks fewer bytes is shown what comes
	gatherMost = 192 << 10 // otherwise up to so many are waited for; less than one receive
	// gatherSlack is more than a TLS record: the part of one that has come already is counted as lacking.
	gatherSlack = 24 << 10
)

// sealLimit is how much may be encrypted with the keys of one handshake: AES-GCM keeps
// its margin for 2^24.5 records of 16 KiB (RFC 8446, 5.5), and crypto/tls doesn't change
// keys by itself.
const sealLimit = 256 << 30

var errKeysUsed = errors.New("its keys have encrypted as much as they may; dial again")

var errNotConsumed = errors.New("the handler left more than fits the receive buffer")

// conn is an aio.Conn.
//
// Outgoing bytes gather in chunks. When the loop is about to enter and no send is in
// flight, the first chunk becomes (encrypted, under TLS) the memory of one send.
// Incoming bytes are received into plain, or under TLS into cipher and decrypted into
// plain; the handler is shown plain[r:w].
type conn struct {
	l    *Loop
	fd   int32
	peer string
	h    aio.ConnHandler
	tls  *tls.Conn // nil without encryption
	pipe *memory   // what tls reads and writes

	out     [][]byte // chunks; all but the last are full
	queued  int      // bytes in out
	sealed  int64    // bytes encrypted since the handshake
	wire    []byte   // being sent: a chunk, or under TLS the connection's own memory
	wireAt  int
	sending bool
	dirty   bool // in l.dirty

	region        []byte // mapped; plain and cipher are parts of it
	plain, cipher []byte
	r, w          int
	receiving     bool
	expect        int // what the handler said last that it lacks
	lowWater      int // of the socket: with fewer bytes it doesn't count as readable

	ended bool // Close was called, or the connection failed
	err   error
}

// session is a connection that was dialled or accepted, and no loop's yet.
type session struct {
	fd   int
	peer string
	tls  *tls.Conn
	pipe *memory
}

// adopt makes a session a connection of the loop; start begins to receive.
func (l *Loop) adopt(s *session) (*conn, error) {
	region, err := l.takeRegion()
	if err != nil {
		return nil, err
	}
	c := &conn{l: l, fd: int32(s.fd), peer: s.peer, tls: s.tls, pipe: s.pipe, region: region}
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
	c.queued += len(p)
	for len(p) > 0 {
		last := len(c.out) - 1
		if last < 0 || len(c.out[last]) == chunkSize {
			c.out = append(c.out, c.l.takeChunk())
			last++
		}
		have := len(c.out[last])
		n := copy(c.out[last][have:chunkSize], p)
		c.out[last] = c.out[last][:have+n]
		p = p[n:]
	}
	c.markDirty()
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
	if len(l.chunks) < keepChunks {
		l.chunks = append(l.chunks, b[:0])
	}
}

func (c *conn) markDirty() {
	if !c.dirty && !c.sending {
		c.dirty = true
		c.l.dirty = append(c.l.dirty, c)
	}
}

// Queued implements aio.Conn. Under TLS it counts some of the bytes encrypted.
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
		for _, b := range c.out {
			l.giveChunk(b)
		}
		c.out, c.queued, c.wire, c.wireAt = nil, 0, nil, 0
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
	if c.ended || c.sending || len(c.out) == 0 {
		return
	}
	chunk := c.out[0]
	last := copy(c.out, c.out[1:])
	c.out[last] = nil
	c.out = c.out[:last]
	c.queued -= len(chunk)
	c.wireAt = 0
	if c.tls == nil {
		c.wire = chunk
	} else {
		err := c.seal(chunk)
		c.l.giveChunk(chunk)
		if err != nil {
			c.lost(err)
			return
		}
	}
	c.send()
}

// seal encrypts a chunk into wire.
func (c *conn) seal(chunk []byte) error {
	if c.sealed += int64(len(chunk)); c.sealed > sealLimit {
		return errKeysUsed
	}
	// What a read made TLS answer goes first.
	c.pipe.out = append(c.wire[:0], c.pipe.out...)
	_, err := c.tls.Write(chunk)
	c.wire, c.pipe.out = c.pipe.out, nil
	return err
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
		if c.tls == nil {
			c.l.giveChunk(c.wire)
			c.wire = nil
		}
		c.wire, c.wireAt = c.wire[:0], 0
		if len(c.out) > 0 {
			c.markDirty()
		}
	}
}

// start shows what the handshake read too much, and begins to receive.
func (c *conn) start() {
	if c.tls != nil {
		c.decrypt()
	}
	c.receive()
}

// receive asks for more, unless the connection has ended.
func (c *conn) receive() {
	if c.ended {
		return
	}
	into := c.cipher
	if c.tls == nil {
		if !c.makeRoom(recvLeast) {
			c.fail(errNotConsumed)
			return
		}
		into = c.plain[c.w:min(c.w+recvMost, len(c.plain))]
	}
	c.receiving = true
	i, s := c.l.slots.take(kindRecv)
	s.own, s.fd, s.p, s.flag = c, c.fd, into, c.gather()
	s.addr, s.n = uintptr(unsafe.Pointer(&into[0])), len(into)
	c.l.submit(i)
}

// Expect implements aio.Conn.
func (c *conn) Expect(n int) { c.expect = n }

// gather sets how many bytes make the socket readable, and returns the flag with which the kernel
// waits for that before it looks at what is there.
func (c *conn) gather() uint32 {
	want, flag := 1, uint32(0)
	if c.expect >= gatherFrom {
		want, flag = min(c.expect-gatherSlack, gatherMost), recvPollFst
	}
	if want != c.lowWater {
		if unix.SetsockoptInt(int(c.fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, want) != nil {
			return 0
		}
		c.lowWater = want
	}
	return flag
}

// received takes the completion of a receive.
func (c *conn) received(i int32, res int32) {
	c.l.slots.release(i)
	c.receiving = false
	errno := unix.Errno(-res)
	switch {
	case c.ended:
		c.l.ended = append(c.l.ended, c)
		return
	case res == 0:
		c.lost(errors.New("the other side closed it"))
		return
	case res < 0 && errno != unix.EINTR && errno != unix.EAGAIN:
		c.lost(errno)
		return
	case res < 0:
	case c.tls != nil:
		c.pipe.in = c.cipher[:res]
		c.decrypt()
	default:
		c.w += int(res)
		c.show()
	}
	c.receive()
}

// decrypt takes what has come through TLS into plain, and shows it.
func (c *conn) decrypt() {
	for !c.ended {
		if !c.makeRoom(1) {
			c.fail(errNotConsumed)
			return
		}
		n, err := c.tls.Read(c.plain[c.w:])
		c.w += n
		if err == errDrained {
			break
		}
		if err != nil {
			c.lost(err)
			return
		}
		if c.w == len(c.plain) {
			c.show()
		}
	}
	c.show()
}

// show lets the handler consume.
func (c *conn) show() {
	if c.ended || c.r == c.w {
		return
	}
	c.expect = 0
	n := c.h.Data(c, c.plain[c.r:c.w])
	if n < 0 || n > c.w-c.r {
		panic(fmt.Sprintf("ring: a handler consumed %d of %d bytes", n, c.w-c.r))
	}
	c.r += n
	if c.w-c.r <= moveAlways {
		c.compact()
	}
}

func (c *conn) compact() {
	if c.r > 0 {
		c.w = copy(c.plain, c.plain[c.r:c.w])
		c.r = 0
	}
}

// makeRoom moves what wasn't consumed to the front if less than n bytes are free
// behind it. It reports whether any room is there.
func (c *conn) makeRoom(n int) bool {
	if len(c.plain)-c.w < n {
		c.compact()
	}
	return c.w < len(c.plain)
}
