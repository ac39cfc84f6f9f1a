package ring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

// kind is what an operation in a slot is.
type kind uint8

const (
	kindFree kind = iota
	kindWake
	kindCancel
	kindRead
	kindWrite
	kindSync
	kindPunch
	kindZero
	kindZeroPunch // Zero on a file system without it: punch, then
	kindAllocate  // allocate
	kindFDRead
	kindFDWrite
	kindFDPoll
	kindFDWait
	kindSend
	kindRecv
)

const (
	slotBlock = 256 // slots are made by the block, and never move
	slotEnd   = -1
)

// slot is one operation in flight. Invariant: while kind isn't kindFree, all that the
// kernel may touch for it is reachable from here.
type slot struct {
	kind kind
	next int32 // free list
	op   *aio.Op
	fd   int32
	addr uintptr // into p, or into memory that the owner keeps
	n    int     // bytes asked for
	done int     // bytes moved by earlier parts of the operation
	off  int64
	flag uint32 // kind's own
	p, q []byte // keep alive what addr and iov point to
	iov  [2]unix.Iovec
	own  any // *descriptor or *conn, if the operation is one of theirs
}

// slotTable hands out slots by number.
type slotTable struct {
	blocks []*[slotBlock]slot
	free   int32
	used   int
}

func (t *slotTable) at(i int32) *slot { return &t.blocks[i/slotBlock][i%slotBlock] }

func (t *slotTable) take(k kind) (int32, *slot) {
	if t.used == len(t.blocks)*slotBlock {
		b := new([slotBlock]slot)
		base := int32(len(t.blocks) * slotBlock)
		for i := range b {
			b[i].next = base + int32(i) + 1
		}
		b[slotBlock-1].next = slotEnd
		t.blocks = append(t.blocks, b)
		t.free = base
	}
	i := t.free
	s := t.at(i)
	t.free = s.next
	t.used++
	s.kind = k
	return i, s
}

func (t *slotTable) release(i int32) {
	s := t.at(i)
	*s = slot{next: t.free}
	t.free = i
	t.used--
}

// failure is a callback that is due without an operation in the kernel.
type failure struct {
	op  *aio.Op
	n   int
	err error
}

// runReady calls back operations that ended before they began.
func (l *Loop) runReady() {
	n := len(l.ready)
	if n == 0 {
		return
	}
	for i := range n {
		f := l.ready[i]
		f.op.Busy = false
		f.op.Done(f.n, f.err)
	}
	rest := copy(l.ready, l.ready[n:])
	clear(l.ready[rest:])
	l.ready = l.ready[:rest]
}

// claim marks op as in flight.
func claim(op *aio.Op) {
	if op.Busy {
		panic("ring: an Op that is in flight was submitted again")
	}
	op.Busy = true
}

// refuse ends a claimed op without an operation.
func (l *Loop) refuse(op *aio.Op, n int, err error) {
	if l.closing {
		return
	}
	l.ready = append(l.ready, failure{op, n, err})
}

// start claims op and takes a slot for it.
func (l *Loop) start(op *aio.Op, k kind) (int32, *slot) {
	claim(op)
	i, s := l.slots.take(k)
	s.op, op.Slot = op, i
	return i, s
}

// submit queues the slot's new operation for the next enter.
func (l *Loop) submit(i int32) {
	if l.closing {
		l.slots.release(i)
		return
	}
	l.again(i)
}

// again queues an operation that goes on, or one of the loop's own.
func (l *Loop) again(i int32) {
	l.inFlight++
	if l.slots.at(i).kind == kindWrite {
		l.writes = append(l.writes, i)
		return
	}
	l.queue(i)
}

// queue puts an operation into the submission queue, or behind those that found it full.
func (l *Loop) queue(i int32) {
	if len(l.backlog) == 0 {
		if e := l.u.next(); e != nil {
			l.prepare(e, i)
			return
		}
	}
	l.backlog = append(l.backlog, i)
}

// queueWrites submits writes of files behind the sends of the same turn: what another node is to do meanwhile is
// on its way before this node's disk is asked.
func (l *Loop) queueWrites() {
	for _, i := range l.writes {
		l.queue(i)
	}
	l.writes = l.writes[:0]
}

// drainBacklog moves what waits for room in the submission queue into it.
func (l *Loop) drainBacklog() {
	n := 0
	for ; n < len(l.backlog); n++ {
		e := l.u.next()
		if e == nil {
			break
		}
		l.prepare(e, l.backlog[n])
	}
	if n > 0 {
		l.backlog = l.backlog[:copy(l.backlog, l.backlog[n:])]
	}
}

// prepare describes the slot's operation to the kernel.
func (l *Loop) prepare(e *sqe, i int32) {
	s := l.slots.at(i)
	e.userData = uint64(i)
	e.fd = s.fd
	switch s.kind {
	case kindWake:
		e.opcode, e.addr, e.len = opRead, uint64(s.addr), uint32(s.n)
	case kindCancel:
		e.opcode, e.opFlags = opAsyncCancel, s.flag
	case kindRead, kindWrite:
		e.opcode = opRead
		if s.kind == kindWrite {
			e.opcode, e.opFlags = opWrite, s.flag
		}
		e.addr, e.len, e.off = uint64(s.addr)+uint64(s.done), uint32(s.n-s.done), uint64(s.off)+uint64(s.done)
	case kindSync:
		e.opcode, e.opFlags = opFsync, fsyncData
	case kindPunch, kindZeroPunch:
		e.opcode, e.off, e.addr, e.len = opFallocate, uint64(s.off), uint64(s.n), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE
	case kindZero:
		e.opcode, e.off, e.addr, e.len = opFallocate, uint64(s.off), uint64(s.n), unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE
	case kindAllocate:
		e.opcode, e.off, e.addr, e.len = opFallocate, uint64(s.off), uint64(s.n), unix.FALLOC_FL_KEEP_SIZE
	case kindFDRead:
		e.opcode, e.addr, e.len, e.off = opReadv, uint64(uintptr(unsafe.Pointer(&s.iov))), uint32(s.n), ^uint64(0)
	case kindFDWrite:
		e.opcode, e.addr, e.len, e.off = opWritev, uint64(uintptr(unsafe.Pointer(&s.iov))), uint32(s.n), ^uint64(0)
	case kindFDPoll, kindFDWait:
		e.opcode, e.opFlags = opPollAdd, s.flag
	case kindSend:
		e.opcode, e.addr, e.len = opSend, uint64(s.addr), uint32(s.n)
		e.opFlags = unix.MSG_WAITALL | unix.MSG_NOSIGNAL
	case kindRecv:
		e.opcode, e.addr, e.len, e.ioprio = opRecv, uint64(s.addr), uint32(s.n), uint16(s.flag)
	default:
		panic(fmt.Sprintf("ring: operation of kind %d submitted", s.kind))
	}
}

// complete takes one completion to whom it concerns.
func (l *Loop) complete(c cqe) {
	i := int32(c.userData)
	s := l.slots.at(i)
	l.inFlight--
	switch s.kind {
	case kindCancel:
		l.slots.release(i)
	case kindWake:
		l.slots.release(i)
		if !l.stopping {
			l.armWake()
		}
	case kindRead, kindWrite, kindSync, kindPunch, kindZero, kindZeroPunch, kindAllocate:
		l.completeFile(i, s, c.res)
	case kindFDRead, kindFDWrite, kindFDPoll, kindFDWait:
		s.own.(*descriptor).complete(i, s, c.res)
	case kindSend:
		s.own.(*conn).sent(i, c.res)
	case kindRecv:
		s.own.(*conn).received(i, c.res)
	default:
		panic("ring: completion of an operation that isn't in flight")
	}
}

// finish frees the slot and calls its Op back.
func (l *Loop) finish(i int32, n int, err error) {
	op := l.slots.at(i).op
	l.slots.release(i)
	op.Busy = false
	op.Done(n, err)
}

// cancelFD cancels what is in flight on the descriptor, and what was submitted before.
func (l *Loop) cancelFD(fd int32) { l.cancel(fd, cancelFD|cancelAll) }

// cancelAll cancels all that is in flight.
func (l *Loop) cancelAll() { l.cancel(-1, cancelAny|cancelAll) }

func (l *Loop) cancel(fd int32, flag uint32) {
	i, s := l.slots.take(kindCancel)
	s.fd, s.flag = fd, flag
	l.again(i)
}
