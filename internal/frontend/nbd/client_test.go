package nbd_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
)

// client is an NBD client for tests: one connection, many requests in flight.
type client struct {
	conn  net.Conn
	size  int64
	flags uint16

	write sync.Mutex // held while a request is sent
	mu    sync.Mutex // guards what follows
	next  uint64
	calls map[uint64]*call
	dead  error
}

type call struct {
	into   []byte // what is read
	off    int64
	result chan error
	err    error
}

// dial connects and negotiates.
func dial(socket, name string, structured bool) (*client, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	c := &client{conn: conn, calls: map[uint64]*call{}}
	if err := c.negotiate(name, structured); err != nil {
		conn.Close()
		return nil, err
	}
	go c.receive(structured)
	return c, nil
}

func (c *client) negotiate(name string, structured bool) error {
	if _, err := io.ReadFull(c.conn, make([]byte, 18)); err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32(nil, 3)
	if structured {
		b = appendOption(b, 8, nil)
	}
	info := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	info = append(info, name...)
	b = appendOption(b, 7, append(info, 0, 0))
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(c.conn, h[:]); err != nil {
			return err
		}
		typ := binary.BigEndian.Uint32(h[12:])
		data := make([]byte, binary.BigEndian.Uint32(h[16:]))
		if _, err := io.ReadFull(c.conn, data); err != nil {
			return err
		}
		switch opt := binary.BigEndian.Uint32(h[8:]); {
		case typ&(1<<31) != 0:
			return fmt.Errorf("option %d refused with %#x", opt, typ)
		case typ == 3 && binary.BigEndian.Uint16(data) == 0:
			c.size = int64(binary.BigEndian.Uint64(data[2:]))
			c.flags = binary.BigEndian.Uint16(data[10:])
		case typ == 1 && opt == 7:
			return nil
		}
	}
}

func appendOption(b []byte, opt uint32, data []byte) []byte {
	b = append(b, "IHAVEOPT"...)
	b = binary.BigEndian.AppendUint32(b, opt)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func appendRequest(b []byte, flags, typ uint16, cookie, off uint64, n uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, 0x25609513)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	return binary.BigEndian.AppendUint32(b, n)
}

// do sends a request and waits for its reply.
func (c *client) do(typ, flags uint16, off, n int64, payload, into []byte) error {
	k := &call{into: into, off: off, result: make(chan error, 1)}
	c.mu.Lock()
	if c.dead != nil {
		c.mu.Unlock()
		return c.dead
	}
	c.next++
	cookie := c.next
	c.calls[cookie] = k
	c.mu.Unlock()

	c.write.Lock()
	bufs := net.Buffers{appendRequest(nil, flags, typ, cookie, uint64(off), uint32(n)), payload}
	_, err := bufs.WriteTo(c.conn)
	c.write.Unlock()
	if err != nil {
		c.fail(err)
	}
	return <-k.result
}

// receive hands replies to their callers until the connection ends.
func (c *client) receive(structured bool) {
	for {
		done, k, err := c.reply(structured)
		if err != nil {
			c.fail(err)
			if done && k != nil {
				k.result <- err
			}
			return
		}
		if done {
			k.result <- k.err
		}
	}
}

func (c *client) find(cookie uint64, last bool) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.calls[cookie]
	if k == nil {
		return nil, fmt.Errorf("reply with unknown cookie %d", cookie)
	}
	if last {
		delete(c.calls, cookie)
	}
	return k, nil
}

// reply receives one reply, or one chunk of one.
func (c *client) reply(structured bool) (last bool, k *call, err error) {
	var h [20]byte
	if _, err = io.ReadFull(c.conn, h[:16]); err != nil {
		return
	}
	switch binary.BigEndian.Uint32(h[:]) {
	case 0x67446698:
		if k, err = c.find(binary.BigEndian.Uint64(h[8:]), true); err != nil {
			return
		}
		if e := binary.BigEndian.Uint32(h[4:]); e != 0 {
			k.err = syscall.Errno(e)
		} else if k.into != nil {
			if structured {
				return false, nil, errors.New("simple reply to a read though structured replies were agreed on")
			}
			_, err = io.ReadFull(c.conn, k.into)
		}
		return true, k, err
	case 0x668e33ef:
		if !structured {
			return false, nil, errors.New("structured reply that wasn't agreed on")
		}
	default:
		return false, nil, fmt.Errorf("reply begins with %x", h[:4])
	}
	if _, err = io.ReadFull(c.conn, h[16:]); err != nil {
		return
	}
	last = binary.BigEndian.Uint16(h[4:])&1 != 0
	if k, err = c.find(binary.BigEndian.Uint64(h[8:]), last); err != nil {
		return
	}
	n := binary.BigEndian.Uint32(h[16:])
	switch typ := binary.BigEndian.Uint16(h[6:]); {
	case typ == 0 && n == 0:
	case typ == 1:
		var off [8]byte
		if _, err = io.ReadFull(c.conn, off[:]); err != nil {
			return
		}
		at := int64(binary.BigEndian.Uint64(off[:])) - k.off
		if at < 0 || at+int64(n-8) > int64(len(k.into)) {
			return false, nil, fmt.Errorf("chunk at %d of a read of %d", at, len(k.into))
		}
		_, err = io.ReadFull(c.conn, k.into[at:][:n-8])
	case typ&(1<<15) != 0:
		data := make([]byte, n)
		if _, err = io.ReadFull(c.conn, data); err == nil {
			k.err = syscall.Errno(binary.BigEndian.Uint32(data))
		}
	default:
		err = fmt.Errorf("chunk of type %d, %d bytes", typ, n)
	}
	return last, k, err
}

func (c *client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead == nil {
		c.dead = fmt.Errorf("connection ended: %w", err)
	}
	for cookie, k := range c.calls {
		delete(c.calls, cookie)
		k.result <- c.dead
	}
}

func (c *client) Size() int64 { return c.size }

func (c *client) ReadAt(p []byte, off int64) error {
	return c.do(0, 0, off, int64(len(p)), nil, p)
}

func (c *client) WriteAt(p []byte, off int64, fua bool) error {
	flags := uint16(0)
	if fua {
		flags = 1
	}
	return c.do(1, flags, off, int64(len(p)), p, nil)
}

func (c *client) Flush() error            { return c.do(3, 0, 0, 0, nil, nil) }
func (c *client) Trim(off, n int64) error { return c.do(4, 0, off, n, nil, nil) }
func (c *client) Zero(off, n int64) error { return c.do(6, 2, off, n, nil, nil) }
func (c *client) Close() error            { c.send(2); return c.conn.Close() }
func (c *client) send(typ uint16)         { c.conn.Write(appendRequest(nil, 0, typ, 0, 0, 0)) }

// mustDial is dial for tests.
func mustDial(t *testing.T, socket, name string, structured bool) *client {
	t.Helper()
	c, err := dial(socket, name, structured)
	if err != nil {
		t.Fatalf("dial NBD: %v", err)
	}
	t.Cleanup(func() { c.conn.Close() })
	return c
}
