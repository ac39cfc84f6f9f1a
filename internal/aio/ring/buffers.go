package ring

import (
	"fmt"
	"math/bits"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	spanShift = 20 // memory is divided among the size classes by the MiB
	spanSize  = 1 << spanShift
	noSpan    = -1
)

// classShift are the buffer sizes: 4 KiB, 16 KiB, 64 KiB, 256 KiB, 1 MiB.
var classShift = [...]uint{12, 14, 16, 18, 20}

// span is a MiB of the arena. Invariant: a bit of free is set if and only if that
// buffer isn't handed out, and nfree counts them.
type span struct {
	class      int8 // index into classShift; -1: in no class
	there      bool // its pages are in memory
	nfree      int16
	free       [4]uint64
	prev, next int32 // in its class's list of spans that have a free buffer
}

// arena is the memory for I/O: mapped, outside Go's heap, a span of it put into memory
// when it is first used. A span serves one class while any of its buffers is out.
// The lowest free buffer of the span that was freed into last goes out first: it is
// likely cached.
//
// Invariant: a buffer that is out has its pages in memory. When a process is killed while the kernel copies a request of FUSE to it, and
// that has to fault a page in, it ends the request with EIO, for whoever uses the volume.
type arena struct {
	mem   []byte
	base  uintptr
	spans []span
	idle  []int32 // spans in no class
	head  [len(classShift)]int32
}

func newArena(size int) (*arena, error) {
	n := max(size>>spanShift, 1)
	mem, err := unix.Mmap(-1, 0, n<<spanShift, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d MiB of I/O memory: %w", n, err)
	}
	// A MiB in small pages has more segments than a loop device takes at once, and what must be split
	// can't be started without a kernel worker. Where there are no huge pages it goes on without.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	a := &arena{mem: mem, base: uintptr(unsafe.Pointer(&mem[0])), spans: make([]span, n), idle: make([]int32, n)}
	for i := range a.spans {
		a.spans[i] = span{class: -1, prev: noSpan, next: noSpan}
		a.idle[n-1-i] = int32(i)
	}
	for c := range a.head {
		a.head[c] = noSpan
	}
	return a, nil
}

// Get implements aio.Buffers.
func (a *arena) Get(n int) []byte {
	if n < 1 || n > spanSize {
		panic(fmt.Sprintf("ring: buffer of %d bytes asked for; 1 to %d are possible", n, spanSize))
	}
	c := 0
	for n > 1<<classShift[c] {
		c++
	}
	i := a.head[c]
	if i == noSpan {
		if len(a.idle) == 0 {
			return nil
		}
		i = a.idle[len(a.idle)-1]
		a.idle = a.idle[:len(a.idle)-1]
		a.assign(i, c)
	}
	s := &a.spans[i]
	w := 0
	for s.free[w] == 0 {
		w++
	}
	bit := bits.TrailingZeros64(s.free[w])
	s.free[w] &^= 1 << bit
	s.nfree--
	if s.nfree == 0 {
		a.unlink(i)
	}
	size := 1 << classShift[c]
	off := int(i)<<spanShift + (w*64+bit)*size
	return a.mem[off : off+n : off+size]
}

// Put implements aio.Buffers.
func (a *arena) Put(b []byte) {
	off := uintptr(unsafe.Pointer(unsafe.SliceData(b))) - a.base
	if cap(b) == 0 || off >= uintptr(len(a.mem)) {
		panic("ring: Put of memory that is no buffer of this loop")
	}
	i := int32(off >> spanShift)
	s := &a.spans[i]
	in := off & (spanSize - 1)
	if s.class < 0 || in&(1<<classShift[s.class]-1) != 0 {
		panic("ring: Put of a part of a buffer, or of one that was put back before")
	}
	k := in >> classShift[s.class]
	if s.free[k/64]&(1<<(k%64)) != 0 {
		panic("ring: Put of a buffer that was put back before")
	}
	s.free[k/64] |= 1 << (k % 64)
	s.nfree++
	if s.nfree == 1 {
		a.link(i)
	}
	if int(s.nfree) == spanSize>>classShift[s.class] {
		a.unlink(i)
		s.class = -1
		a.idle = append(a.idle, i)
	}
}

// assign gives an idle span to class c, all its buffers free.
func (a *arena) assign(i int32, c int) {
	s := &a.spans[i]
	if !s.there {
		populate(a.mem[int(i)<<spanShift:][:spanSize])
	}
	n := spanSize >> classShift[c]
	*s = span{class: int8(c), nfree: int16(n), there: true}
	for k := 0; k < n; k += 64 {
		s.free[k/64] = ^uint64(0) >> (64 - min(n-k, 64))
	}
	a.link(i)
}

// populate puts memory that is mapped into memory, to be written.
func populate(b []byte) {
	if unix.Madvise(b, unix.MADV_POPULATE_WRITE) == nil {
		return
	}
	for i := 0; i < len(b); i += unix.Getpagesize() { // a kernel before 5.14
		b[i] = 0
	}
}

func (a *arena) link(i int32) {
	s := &a.spans[i]
	s.prev, s.next = noSpan, a.head[s.class]
	if s.next != noSpan {
		a.spans[s.next].prev = i
	}
	a.head[s.class] = i
}

func (a *arena) unlink(i int32) {
	s := &a.spans[i]
	if s.prev != noSpan {
		a.spans[s.prev].next = s.next
	} else {
		a.head[s.class] = s.next
	}
	if s.next != noSpan {
		a.spans[s.next].prev = s.prev
	}
	s.prev, s.next = noSpan, noSpan
}

func (a *arena) close() {
	if a.mem != nil {
		unix.Munmap(a.mem)
		a.mem = nil
	}
}
