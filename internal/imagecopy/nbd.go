package imagecopy

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"
)

// defaultPort is that of NBD.
const defaultPort = "10809"

// Export is what an NBD URL names.
type Export struct{ Network, Address, Name string }

// ParseNBD reads nbd://HOST[:PORT]/EXPORT and nbd+unix:///EXPORT?socket=PATH.
func ParseNBD(text string) (Export, error) {
	bad := func(why string) (Export, error) {
		return Export{}, fmt.Errorf("%q is no NBD URL that can be used: %s; write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH", text, why)
	}
	u, err := url.Parse(text)
	if err != nil {
		return bad(err.Error())
	}
	e := Export{Name: strings.TrimPrefix(u.Path, "/")}
	switch u.Scheme {
	case "nbd":
		if u.Hostname() == "" {
			return bad("it names no host")
		}
		port := u.Port()
		if port == "" {
			port = defaultPort
		}
		e.Network, e.Address = "tcp", net.JoinHostPort(u.Hostname(), port)
	case "nbd+unix":
		e.Network, e.Address = "unix", u.Query().Get("socket")
		if e.Address == "" {
			return bad("it names no socket")
		}
	default:
		return bad("its scheme is neither nbd nor nbd+unix")
	}
	return e, nil
}

// nbdClient is a connection to an NBD server. Requests of several goroutines are in flight on it at once.
type nbdClient struct {
	conn  net.Conn
	size  int64
	flags uint16
	// structured replies were agreed on; context is the number of base:allocation, if the server has it.
	structured bool
	context    uint32
	hasStatus  bool

	stop func() bool // has the end of the context mean nothing any more

	writing sync.Mutex // held while a request is written

	mu     sync.Mutex
	err    error // why no more requests are taken
	cookie uint64
	calls  map[uint64]*nbdCall
	done   chan struct{} // closed when the reader has ended
	status statusCache
}

// nbdCall is a request that waits for its reply.
type nbdCall struct {
	off    int64
	data   []byte // where what is read goes
	filled int
	extent []extent
	err    error
	done   chan struct{}
}

// extent is a part of an export.
type extent struct {
	off, n int64
	zero   bool
}

// dialTimeout bounds connecting and the handshake.
const dialTimeout = 20 * time.Second

// DialNBD opens an export. When ctx ends, so does the connection, whatever the server does.
func DialNBD(ctx context.Context, text string) (Image, error) {
	e, err := ParseNBD(text)
	if err != nil {
		return nil, err
	}
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(dialing, e.Network, e.Address)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn, calls: map[uint64]*nbdCall{}, done: make(chan struct{})}
	deadline, _ := dialing.Deadline()
	_ = conn.SetDeadline(deadline) // a connection takes any
	r := bufio.NewReaderSize(conn, 256<<10)
	if err := c.handshake(r, e.Name); err != nil {
		_ = conn.Close() // the first error says it
		return nil, fmt.Errorf("NBD server %s, export %q: %w", e.Address, e.Name, err)
	}
	_ = conn.SetDeadline(time.Time{})
	go c.receive(r)
	c.stop = context.AfterFunc(ctx, func() {
		c.fail(ctx.Err())
		_ = conn.Close() // the reader sees it
	})
	return c, nil
}

func (c *nbdClient) Size() int64 { return c.size }

// Close says good-bye, and waits until the reader has ended.
func (c *nbdClient) Close() error {
	if !c.stop() {
		<-c.done
		return nil
	}
	c.fail(net.ErrClosed)
	c.writing.Lock()
	_ = c.conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = c.conn.Write(requestHead(nbdDisconnect, 0, 0, 0, 0)) // a courtesy
	c.writing.Unlock()
	err := c.conn.Close()
	<-c.done
	return err
}

func requestHead(typ, flags uint16, cookie uint64, off int64, n int64) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 28), nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// do makes a request and waits for its reply.
func (c *nbdClient) do(typ, flags uint16, off, n int64, payload, into []byte) (*nbdCall, error) {
	call := &nbdCall{off: off, data: into, done: make(chan struct{})}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.cookie++
	cookie := c.cookie
	c.calls[cookie] = call
	c.mu.Unlock()
	c.writing.Lock()
	bufs := net.Buffers{requestHead(typ, flags, cookie, off, n)}
	if payload != nil {
		bufs = append(bufs, payload)
	}
	_, err := bufs.WriteTo(c.conn)
	c.writing.Unlock()
	if err != nil {
		c.fail(err)
		_ = c.conn.Close() // so that the reader ends too
	}
	<-call.done
	return call, call.err
}

// fail ends all calls, and refuses further ones.
func (c *nbdClient) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	for cookie, call := range c.calls {
		delete(c.calls, cookie)
		call.err = c.err
		close(call.done)
	}
}

// receive reads replies until the connection ends.
func (c *nbdClient) receive(r *bufio.Reader) {
	defer close(c.done)
	for {
		if err := c.reply(r); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the NBD server closed the connection")
			}
			c.fail(err)
			return
		}
	}
}

// take returns a call, and forgets it if that was its last reply.
func (c *nbdClient) take(cookie uint64, last bool) *nbdCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.calls[cookie]
	if last {
		delete(c.calls, cookie)
	}
	return call
}

func (c *nbdClient) ReadAt(p []byte, off int64) error {
	if rest := c.size - off; int64(len(p)) > rest {
		clear(p[max(0, rest):])
		p = p[:max(0, rest)]
	}
	for len(p) > 0 {
		n := min(len(p), piece)
		call, err := c.do(nbdRead, 0, off, int64(n), nil, p[:n])
		if err != nil {
			return err
		}
		if call.filled != n {
			return fmt.Errorf("the NBD server sent %d of %d bytes", call.filled, n)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

func (c *nbdClient) WriteAt(p []byte, off int64) error {
	if c.flags&nbdFlagReadOnly != 0 {
		return ErrReadOnly
	}
	_, err := c.do(nbdWrite, 0, off, int64(len(p)), p, nil)
	return err
}

func (c *nbdClient) Zero(off, n int64) error {
	if c.flags&nbdFlagReadOnly != 0 {
		return ErrReadOnly
	}
	for n > 0 {
		k := min(n, 64<<20)
		if c.flags&nbdFlagWriteZeroes == 0 {
			k = min(n, piece)
			if err := c.WriteAt(make([]byte, k), off); err != nil {
				return err
			}
		} else if _, err := c.do(nbdWriteZeroes, 0, off, k, nil, nil); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Trim gives a range back, where a server of ours is known to make it read as zeros.
func (c *nbdClient) Trim(off, n int64) error {
	for n > 0 {
		k := min(n, 1<<30)
		if _, err := c.do(nbdTrim, 0, off, k, nil, nil); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

func (c *nbdClient) Flush() error {
	if c.flags&nbdFlagFlush == 0 {
		return nil
	}
	_, err := c.do(nbdFlush, 0, 0, 0, nil, nil)
	return err
}

// Extent asks the server, if it knows.
func (c *nbdClient) Extent(off, n int64) (int64, bool, error) {
	if !c.hasStatus {
		return n, false, nil
	}
	if e, ok := c.status.find(off); ok {
		return min(n, e.off+e.n-off), e.zero, nil
	}
	call, err := c.do(nbdBlockStatus, 0, off, min(n, 1<<30), nil, nil)
	if err != nil {
		return 0, false, err
	}
	if len(call.extent) == 0 || call.extent[0].n <= 0 {
		return n, false, nil
	}
	c.status.keep(call.extent)
	return min(n, call.extent[0].n), call.extent[0].zero, nil
}

// statusCache has the extents that the server named last.
type statusCache struct {
	mu   sync.Mutex
	list []extent
}

func (s *statusCache) keep(list []extent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = list
}

func (s *statusCache) find(off int64) (extent, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.list {
		if off >= e.off && off < e.off+e.n {
			return e, true
		}
	}
	return extent{}, false
}

// errno is an error of the protocol.
func errno(n uint32) error {
	if n == 0 {
		return nil
	}
	return syscall.Errno(n)
}

// Clear makes a volume that is open over NBD read as zeros, and gives its space back.
func Clear(ctx context.Context, volume Image) error {
	const step = 1 << 30
	for off, size := int64(0), volume.Size(); off < size && ctx.Err() == nil; off += step {
		n := min(step, size-off)
		var err error
		if c, ok := volume.(*nbdClient); ok {
			err = c.Trim(off, n) // a volume of ours reads as zeros where it was trimmed
		} else {
			err = volume.Zero(off, n)
		}
		if err != nil {
			return fmt.Errorf("clearing %d bytes at %d: %w", n, off, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return volume.Flush()
}
