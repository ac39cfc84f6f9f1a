package ring

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// receive asks for more, unless the connection has ended.
func (c *conn) receive() {
	if c.ended {
		return
	}
	c.direct = false
	var into []byte
	switch {
	case c.open != nil:
		// What is left is a part of one record.
		if c.cw-c.cr <= moveAlways || len(c.cipher)-c.cw < recvLeast {
			c.cr, c.cw = 0, copy(c.cipher, c.cipher[c.cr:c.cw])
		}
		into = c.cipher[c.cw:]
	case c.fill != nil:
		c.direct = true
		into = c.fill[c.filled:]
	default:
		if c.room(recvLeast) == 0 {
			c.fail(errNotConsumed)
			return
		}
		into = c.plain[c.w:min(c.w+recvMost, len(c.plain))]
	}
	c.receiving = true
	i, s := c.l.slots.take(kindRecv)
	s.own, s.fd, s.p, s.flag = c, c.fd, into, c.patience()
	s.addr, s.n = uintptr(unsafe.Pointer(&into[0])), len(into)
	c.l.submit(i)
}

// Fill implements aio.Conn.
func (c *conn) Fill(p []byte) { c.fill, c.filled = p, 0 }

// patience sets how many bytes make the socket readable, and returns the flag with which the kernel
// waits for that before it looks at what is there. Never more than are sure to come: what fill lacks, less the
// part of a record that is here.
func (c *conn) patience() uint32 {
	want, flag := 1, uint32(0)
	if lacking := len(c.fill) - c.filled - (c.cw - c.cr); lacking >= gatherFrom {
		want, flag = min(lacking, gatherMost), recvPollFst
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
	case c.open != nil:
		c.cw += int(res)
		c.openRecords()
	case c.direct:
		if c.filled += int(res); c.filled == len(c.fill) {
			c.show()
		}
	default:
		c.w += int(res)
		c.show()
	}
	c.receive()
}

// openRecords opens the records that are there as a whole, and shows them.
func (c *conn) openRecords() {
	fresh := false // plain has something that wasn't shown
	for !c.ended {
		body, err := nextRecord(c.cipher[c.cr:c.cw])
		if err != nil {
			c.lost(err)
			return
		}
		if body == 0 {
			break
		}
		n := body - recordTag
		if fresh && n >= sealFrom {
			// Before a large record likely comes what tells where it belongs.
			fresh = false
			c.show()
			continue
		}
		var into []byte
		if c.fill != nil && n <= len(c.fill)-c.filled {
			into = c.fill[c.filled : c.filled : c.filled+n]
			c.filled += n
		} else {
			if c.room(n) < n {
				c.fail(errNotConsumed)
				return
			}
			into = c.plain[c.w : c.w : c.w+n]
			c.w += n
			fresh = true
		}
		if err := c.open.record(into, c.cipher[c.cr:c.cr+recordHeader+body]); err != nil {
			c.lost(err)
			return
		}
		c.cr += recordHeader + body
		if c.fill != nil && (fresh || c.filled == len(c.fill)) {
			fresh = false
			c.show()
		}
	}
	if fresh {
		c.show()
	}
}

// show lets the handler consume. What it has given memory for goes there first.
func (c *conn) show() {
	for !c.ended {
		if c.fill != nil {
			n := copy(c.fill[c.filled:], c.plain[c.r:c.w])
			c.r += n
			if c.filled += n; c.filled < len(c.fill) {
				break
			}
			c.fill, c.filled = nil, 0
		} else if c.r == c.w {
			break
		}
		n := c.h.Data(c, c.plain[c.r:c.w])
		if n < 0 || n > c.w-c.r {
			panic(fmt.Sprintf("ring: a handler consumed %d of %d bytes", n, c.w-c.r))
		}
		c.r += n
		if c.fill == nil {
			break
		}
	}
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

// room returns how many bytes are free behind plain[r:w], once what wasn't consumed was moved to the front if
// they were fewer than n.
func (c *conn) room(n int) int {
	if len(c.plain)-c.w < n {
		c.compact()
	}
	return len(c.plain) - c.w
}
