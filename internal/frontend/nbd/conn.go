package nbd

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

const (
	// maxCommands bounds the commands of one connection that aren't answered yet.
	maxCommands = 128
	// recvSize is the size of the receive buffer, and of each of the two that replies are
	// gathered in. They are mapped on their own: pages that are never used cost nothing.
	recvSize = 256 << 10
	sendSize = 256 << 10
)

var (
	errBadRequest = errors.New("nbd: request with a wrong magic number")
	errTornRead   = errors.New("nbd: read failed after its first part was sent")
)

// conn is one connection. All of it is on the loop.
//
//	negotiating -> serving -> draining (client said DISC) -> dead
type conn struct {
	s   *Server
	fd  aio.FD
	neg negotiation

	arena    []byte // one mapping: recv and the two send buffers
	serving  bool
	draining bool
	dead     bool
	reason   error // why it drains
	deadline aio.Timer

	// Receiving. recv[r:w] is not parsed yet.
	recv     []byte
	r, w     int
	rx       aio.Op
	cur      *command // a write whose payload isn't received as a whole
	skip     int64    // bytes of payload to throw away, then cur is answered
	stalled  bool     // parsing waits until a command, memory or the output is free
	starving bool     // stalled for memory
	alone    *command // a large read with simple replies: nothing else may be answered

	// Commands.
	free     *command
	commands int // made, at most maxCommands
	inFlight int // not answered yet
	atDevice int // submitted and not done yet

	tx sender
}

func newConn(s *Server, fd int) (*conn, error) {
	arena, err := unix.Mmap(-1, 0, recvSize+2*sendSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map buffers: %w", err)
	}
	afd, err := s.cfg.Loop.Adopt(fd)
	if err != nil {
		_ = unix.Munmap(arena)
		unix.Close(fd)
		return nil, err
	}
	c := &conn{s: s, fd: afd, arena: arena, recv: arena[:recvSize]}
	c.neg = negotiation{name: s.cfg.Name, size: s.cfg.Device.Size(), readOnly: s.cfg.ReadOnly}
	c.rx.Done = c.received
	c.tx.init(c, arena[recvSize:recvSize+sendSize], arena[recvSize+sendSize:])
	c.deadline = s.cfg.Loop.NewTimer(func() { c.shut(errNegotiate) })
	return c, nil
}

func (c *conn) start() {
	c.deadline.Reset(negotiationTime)
	c.tx.bytes(greeting())
	c.tx.flush()
	c.receive()
}

// receive reads more, unless a read is in flight or nothing more can be taken in.
func (c *conn) receive() {
	if c.rx.Busy || c.stalled || c.draining || c.dead {
		return
	}
	// What parse left is less than a header, or belongs to an option.
	c.w = copy(c.recv, c.recv[c.r:c.w])
	c.r = 0
	if c.cur != nil && c.skip == 0 {
		c.fd.Readv(&c.rx, c.cur.missing(), c.recv)
		return
	}
	c.fd.Readv(&c.rx, c.recv[c.w:], nil)
}

func (c *conn) received(n int, err error) {
	switch {
	case c.dead:
		c.bury()
		return
	case err == syscall.EAGAIN || err == syscall.EINTR:
		c.receive()
		return
	case err != nil:
		c.shut(err)
		return
	case n <= 0:
		c.shut(io.EOF)
		return
	}
	if c.cur != nil && c.skip == 0 {
		k := min(n, len(c.cur.missing()))
		c.cur.have += k
		n -= k
	}
	c.w += n
	c.advance()
}

// resume goes on after a stall.
func (c *conn) resume() {
	if !c.stalled {
		return
	}
	c.stalled = false
	if c.starving {
		c.starving = false
		c.s.starved--
	}
	c.advance()
}

func (c *conn) advance() {
	if c.dead {
		return
	}
	if !c.serving {
		c.negotiate()
	}
	if c.serving {
		c.parse()
	}
	c.receive()
}

// negotiate feeds what was received to the negotiation. It waits for its answers to
// be sent before it takes more, so that they always fit.
func (c *conn) negotiate() {
	for !c.serving && !c.dead && !c.draining {
		if c.tx.pending() {
			c.stalled = true
			return
		}
		used, out, err := c.neg.feed(c.recv[c.r:min(c.w, c.r+2*maxOptionLen)], nil)
		c.r += used
		if len(out) > 0 {
			c.tx.bytes(out)
			c.tx.flush()
		}
		switch {
		case err != nil:
			c.drain(err)
		case c.neg.state == negDone:
			c.deadline.Stop()
			c.serving = true
		case used == 0:
			return
		}
	}
}

// parse takes commands out of what was received until it needs more bytes, or must
// wait for something else (stalled).
func (c *conn) parse() {
	for !c.dead && !c.draining && !c.stalled {
		switch {
		case c.skip > 0:
			n := min(c.skip, int64(c.w-c.r))
			c.r += int(n)
			if c.skip -= n; c.skip > 0 {
				return
			}
			cmd := c.cur
			c.cur = nil
			cmd.answer() // with the error that made the payload useless
		case c.cur != nil:
			if !c.fill() {
				return
			}
		case c.alone != nil:
			c.stalled = true
		default:
			if c.w-c.r < requestLen || !c.next() {
				return
			}
		}
	}
}

// fill gets the current command to the device: it needs memory, and a write its
// payload, of which fill takes what was received. It returns false if more bytes are
// needed.
func (c *conn) fill() bool {
	cmd := c.cur
	if cmd.busy {
		c.stalled = true // until the part before this one is done
		return true
	}
	if cmd.errno != 0 {
		c.skip = cmd.left
		return true
	}
	if !cmd.acquire() {
		c.starve()
		return true
	}
	if cmd.Op == block.OpWrite {
		n := copy(cmd.missing(), c.recv[c.r:c.w])
		c.r += n
		cmd.have += n
		if cmd.have < len(cmd.Data) {
			return false
		}
	}
	cmd.submit()
	if cmd.Op != block.OpWrite || cmd.left == 0 {
		c.cur = nil
	}
	return true
}

// starve stalls the connection until memory was given back.
func (c *conn) starve() {
	c.stalled = true
	if !c.starving {
		c.starving = true
		c.s.starved++
	}
	c.s.retryLater()
}

// next starts the command whose header is at c.r. It returns false if the connection
// has ended.
func (c *conn) next() bool {
	req, ok := decodeRequest(c.recv[c.r:])
	if !ok {
		c.shut(errBadRequest)
		return false
	}
	if req.typ == cmdDisc {
		c.drain(nil)
		return false
	}
	large := req.typ == cmdRead && req.length > block.MaxIO && !c.neg.structured
	if large && c.inFlight > 0 {
		c.stalled = true
		return true
	}
	cmd := c.get()
	if cmd == nil {
		c.stalled = true
		return true
	}
	c.r += requestLen
	cmd.begin(req)
	switch cmd.errno = cmd.check(req, c.neg.structured); {
	case cmd.errno != 0 && req.typ == cmdWrite && req.length > 0:
		c.cur, c.skip = cmd, int64(req.length)
	case cmd.errno != 0, req.length == 0 && cmd.Op != block.OpFlush:
		cmd.answer()
	case cmd.Op == block.OpRead || cmd.Op == block.OpWrite:
		c.cur = cmd
		if large {
			c.alone = cmd
		}
	default:
		cmd.submit()
	}
	return true
}

// get returns a free command, or nil if too many are in flight.
func (c *conn) get() *command {
	cmd := c.free
	switch {
	case cmd != nil:
		c.free = cmd.next
	case c.commands < maxCommands:
		c.commands++
		cmd = &command{c: c}
		cmd.Done = func(*block.Request) { cmd.done() }
	default:
		return nil
	}
	cmd.next = nil
	c.inFlight++
	return cmd
}

// drain answers what is in flight and then ends the connection.
func (c *conn) drain(reason error) {
	c.draining, c.reason = true, reason
	c.drained()
}

func (c *conn) drained() {
	if c.draining && !c.dead && c.inFlight == 0 && !c.tx.pending() {
		c.shut(c.reason)
	}
}

// shut ends the connection. Commands that are at the device are thrown away when
// they are done. A nil reason is a polite end.
func (c *conn) shut(reason error) {
	if c.dead {
		return
	}
	c.dead = true
	if c.starving {
		c.starving = false
		c.s.starved--
	}
	c.deadline.Stop()
	if reason != nil && !errors.Is(reason, io.EOF) && !errors.Is(reason, errAborted) {
		c.s.log.Info("NBD connection ended", "reason", reason)
	}
	c.tx.stop()
	c.fd.Close()
	c.bury()
}

// bury gives everything back once neither the kernel nor the device can touch it.
func (c *conn) bury() {
	if !c.dead || c.arena == nil || c.rx.Busy || c.tx.op.Busy || c.atDevice > 0 {
		return
	}
	c.tx.discard()
	if c.cur != nil {
		c.cur.release()
		c.cur = nil
	}
	_ = unix.Munmap(c.arena)
	c.arena, c.recv = nil, nil
	c.s.remove(c)
}
