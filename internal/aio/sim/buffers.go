package sim

import (
	"bytes"
	"fmt"
	"math/bits"
	"unsafe"
)

const (
	pageSize  = 4096
	maxBuffer = 1 << 20
	poison    = 0xDB
)

// buffers is a loop's I/O memory: free lists of page-aligned memory by powers of two.
type buffers struct {
	l    *Loop
	free [9][][]byte // 4 KiB << i
	out  map[*byte]int
	left int // bytes that may still be handed out
}

func (b *buffers) init(l *Loop, limit int) {
	b.l, b.left, b.out = l, limit, make(map[*byte]int)
}

// Get implements aio.Buffers.
func (b *buffers) Get(n int) []byte {
	b.l.check("Buffers.Get")
	if n < 1 || n > maxBuffer {
		panic(fmt.Sprintf("sim: buffer of %d bytes", n))
	}
	class := max(0, bits.Len(uint(n-1))-12)
	size := pageSize << class
	if size > b.left {
		return nil
	}
	b.left -= size
	var p []byte
	if f := b.free[class]; len(f) > 0 {
		p = f[len(f)-1]
		b.free[class] = f[:len(f)-1]
	} else {
		p = aligned(size)
		spoil(p)
	}
	b.out[&p[0]] = class
	return p[:n]
}

// Put implements aio.Buffers. What is given back is overwritten, so that nobody goes on
// using it unnoticed.
func (b *buffers) Put(p []byte) {
	b.l.check("Buffers.Put")
	p = p[:1]
	class, ok := b.out[&p[0]]
	if !ok {
		panic("sim: Put of memory that is not handed out")
	}
	if b.l.dead {
		return
	}
	size := pageSize << class
	p = unsafe.Slice(&p[0], size)
	for _, io := range b.l.flying {
		if io.mem != nil && overlap(io.mem, p) {
			panic(fmt.Sprintf("sim: Put of memory that a %v of %s still uses", io.kind, io.ino.name))
		}
	}
	delete(b.out, &p[0])
	spoil(p)
	b.left += size
	b.free[class] = append(b.free[class], p)
}

// Outstanding is the number of buffers handed out and not given back: zero when nothing
// is going on, unless somebody leaks them.
func (l *Loop) Outstanding() int { return len(l.buffers.out) }

func aligned(n int) []byte {
	raw := make([]byte, n+pageSize)
	off := -int(uintptr(unsafe.Pointer(&raw[0]))) & (pageSize - 1)
	return raw[off : off+n : off+n]
}

// poisoned is a page of what nobody wants to read.
var poisoned = bytes.Repeat([]byte{poison}, pageSize)

// spoil fills memory with what nobody wants to read; large memory only here and there.
func spoil(p []byte) {
	const span = 64 << 10
	if len(p) > span {
		for i := 0; i < len(p); i += span {
			copy(p[i:], poisoned)
		}
		return
	}
	for len(p) > 0 {
		p = p[copy(p, poisoned):]
	}
}

func overlap(a, b []byte) bool {
	a0, b0 := uintptr(unsafe.Pointer(&a[0])), uintptr(unsafe.Pointer(&b[0]))
	return a0 < b0+uintptr(len(b)) && b0 < a0+uintptr(len(a))
}
