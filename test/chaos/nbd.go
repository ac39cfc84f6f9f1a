package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// disk is a volume as a guest sees it. Its methods may be called by several goroutines.
type disk interface {
	ReadAt(p []byte, off int64) error
	WriteAt(p []byte, off int64) error
	Flush() error
	Close() error
}

// nbdDisk is a connection to an NBD server: the raw client, as an application without a kernel device
// would be one. Simple replies.
type nbdDisk struct {
	conn  net.Conn
	write sync.Mutex // held while a request is sent
	mu    sync.Mutex // guards what follows
	next  uint64
	calls map[uint64]*nbdCall
	dead  error
}

type nbdCall struct {
	into   []byte
	result chan error
}

var errConnection = errors.New("connection ended")

func dialNBD(socket, export string) (*nbdDisk, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	d := &nbdDisk{conn: conn, calls: map[uint64]*nbdCall{}}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := d.negotiate(export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %w", errConnection, err)
	}
	_ = conn.SetDeadline(time.Time{})
	go d.receive()
	return d, nil
}

func (d *nbdDisk) negotiate(export string) error {
	if _, err := io.ReadFull(d.conn, make([]byte, 18)); err != nil {
		return err
	}
	be := binary.BigEndian
	b := be.AppendUint32(nil, 3) // fixed newstyle, no zeroes
	b = append(b, "IHAVEOPT"...)
	b = be.AppendUint32(b, 7) // go
	b = be.AppendUint32(b, uint32(len(export)+6))
	b = be.AppendUint32(b, uint32(len(export)))
	b = append(append(b, export...), 0, 0)
	if _, err := d.conn.Write(b); err != nil {
		return err
	}
	for {
		var h [20]byte
		if _, err := io.ReadFull(d.conn, h[:]); err != nil {
			return err
		}
		n := be.Uint32(h[16:])
		if n > 1<<16 {
			return fmt.Errorf("an option's answer of %d bytes", n)
		}
		if _, err := io.ReadFull(d.conn, make([]byte, n)); err != nil {
			return err
		}
		switch typ := be.Uint32(h[12:]); {
		case typ&(1<<31) != 0:
			return fmt.Errorf("export %s was refused with %#x", export, typ)
		case typ == 1:
			return nil
		}
	}
}

func (d *nbdDisk) do(typ uint16, off, n int64, payload, into []byte) error {
	c := &nbdCall{into: into, result: make(chan error, 1)}
	d.mu.Lock()
	if d.dead != nil {
		d.mu.Unlock()
		return d.dead
	}
	d.next++
	cookie := d.next
	d.calls[cookie] = c
	d.mu.Unlock()
	be := binary.BigEndian
	b := be.AppendUint32(nil, 0x25609513)
	b = be.AppendUint16(b, 0)
	b = be.AppendUint16(b, typ)
	b = be.AppendUint64(b, cookie)
	b = be.AppendUint64(b, uint64(off))
	b = be.AppendUint32(b, uint32(n))
	d.write.Lock()
	bufs := net.Buffers{b, payload}
	_, err := bufs.WriteTo(d.conn)
	d.write.Unlock()
	if err != nil {
		d.fail(err)
	}
	return <-c.result
}

// receive hands replies to their callers until the connection ends.
func (d *nbdDisk) receive() {
	for {
		if err := d.reply(); err != nil {
			d.fail(err)
			return
		}
	}
}

func (d *nbdDisk) reply() error {
	var h [16]byte
	if _, err := io.ReadFull(d.conn, h[:]); err != nil {
		return err
	}
	be := binary.BigEndian
	if m := be.Uint32(h[:]); m != 0x67446698 {
		return fmt.Errorf("a reply begins with %#x", m)
	}
	d.mu.Lock()
	c := d.calls[be.Uint64(h[8:])]
	delete(d.calls, be.Uint64(h[8:]))
	d.mu.Unlock()
	if c == nil {
		return fmt.Errorf("a reply to request %d, which isn't open", be.Uint64(h[8:]))
	}
	if e := be.Uint32(h[4:]); e != 0 {
		c.result <- syscall.Errno(e)
		return nil
	}
	var err error
	if c.into != nil {
		_, err = io.ReadFull(d.conn, c.into)
	}
	c.result <- err
	return err
}

func (d *nbdDisk) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead == nil {
		d.dead = fmt.Errorf("%w: %w", errConnection, err)
	}
	for cookie, c := range d.calls {
		delete(d.calls, cookie)
		c.result <- d.dead
	}
}

func (d *nbdDisk) ReadAt(p []byte, off int64) error  { return d.do(0, off, int64(len(p)), nil, p) }
func (d *nbdDisk) WriteAt(p []byte, off int64) error { return d.do(1, off, int64(len(p)), p, nil) }
func (d *nbdDisk) Flush() error                      { return d.do(3, 0, 0, nil, nil) }

// Close ends the connection; what is unanswered fails.
func (d *nbdDisk) Close() error { return d.conn.Close() }
