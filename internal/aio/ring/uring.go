package ring

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Operation codes, flags and offsets of linux/io_uring.h that this package uses.
const (
	opReadv       = 1
	opWritev      = 2
	opFsync       = 3
	opPollAdd     = 6
	opAsyncCancel = 14
	opFallocate   = 17
	opRead        = 22
	opWrite       = 23
	opSend        = 26
	opRecv        = 27

	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupRDisabled    = 1 << 6
	setupSubmitAll    = 1 << 7
	setupCoopTaskrun  = 1 << 8
	setupTaskrunFlag  = 1 << 9
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	featExtArg = 1 << 8

	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	registerEnableRings = 12

	offSQRing = 0
	offCQRing = 0x8000000
	offSQEs   = 0x10000000

	sqeAsync    = 1 << 4 // IOSQE_ASYNC: go to a kernel worker at once
	fsyncData   = 1      // IORING_FSYNC_DATASYNC
	cancelAll   = 1 << 0
	cancelFD    = 1 << 1
	cancelAny   = 1 << 2
	recvPollFst = 1 << 0 // IORING_RECVSEND_POLL_FIRST
	rwfDsync    = 0x2
)

// sqe is struct io_uring_sqe.
type sqe struct {
	opcode   uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	_        [3]uint64
}

// cqe is struct io_uring_cqe.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// setupParams is struct io_uring_params.
type setupParams struct {
	sqEntries, cqEntries, flags, sqThreadCPU, sqThreadIdle, features, wqFd uint32
	_                                                                      [3]uint32
	sqHead, sqTail, sqMask, sqRingEntries, sqFlags, sqDropped, sqArray     uint32
	_                                                                      uint32
	_                                                                      uint64
	cqHead, cqTail, cqMask, cqRingEntries, cqOverflow, cqCqes, cqFlags     uint32
	_                                                                      uint32
	_                                                                      uint64
}

// eventsArg is struct io_uring_getevents_arg.
type eventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	_         uint32
	ts        uint64
}

// uring is one io_uring, mapped. It isn't safe for concurrent use.
type uring struct {
	fd       int
	deferred bool // SINGLE_ISSUER|DEFER_TASKRUN were granted
	disabled bool // made by SETUP_R_DISABLED, and not enabled yet

	sqRing, cqRing, sqeMem []byte

	sqHead, sqTail, sqFlags *uint32
	cqHead, cqTail          *uint32
	sqMask, sqEntries       uint32
	cqMask                  uint32
	sqes                    []sqe
	cqes                    []cqe

	tail uint32 // of the submissions that were prepared

	// arg and ts are read by the kernel during enter; they live on the heap with
	// the uring, which doesn't move.
	arg eventsArg
	ts  unix.Timespec
}

// newUring makes a ring with room for entries submissions and four times as many
// completions. It asks for the cheapest mode that the kernel grants.
func newUring(entries uint32) (*uring, error) {
	base := uint32(setupCQSize | setupClamp)
	modes := []uint32{
		setupSubmitAll | setupSingleIssuer | setupDeferTaskrun | setupRDisabled,
		setupSubmitAll | setupCoopTaskrun,
		0,
	}
	var p setupParams
	var fd uintptr
	var errno syscall.Errno
	for _, m := range modes {
		p = setupParams{flags: base | m, cqEntries: entries * 4}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(&p)), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w (is io_uring switched off? see sysctl kernel.io_uring_disabled)", errno)
	}
	u := &uring{fd: int(fd), deferred: p.flags&setupDeferTaskrun != 0, disabled: p.flags&setupRDisabled != 0}
	if p.features&featExtArg == 0 {
		u.close()
		return nil, fmt.Errorf("io_uring without timeouts on enter: Linux 5.11 or newer is needed: %w", unix.ENOSYS)
	}
	if err := u.mmap(&p); err != nil {
		u.close()
		return nil, err
	}
	return u, nil
}

func (u *uring) mmap(p *setupParams) error {
	var err error
	m := func(off int64, n uint32) (b []byte) {
		if err == nil {
			b, err = unix.Mmap(u.fd, off, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		}
		return b
	}
	u.sqRing = m(offSQRing, p.sqArray+p.sqEntries*4)
	u.cqRing = m(offCQRing, p.cqCqes+p.cqEntries*uint32(unsafe.Sizeof(cqe{})))
	u.sqeMem = m(offSQEs, p.sqEntries*uint32(unsafe.Sizeof(sqe{})))
	if err != nil {
		return os.NewSyscallError("mmap of io_uring", err)
	}
	at := func(b []byte, off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[off])) }
	u.sqHead, u.sqTail, u.sqFlags = at(u.sqRing, p.sqHead), at(u.sqRing, p.sqTail), at(u.sqRing, p.sqFlags)
	u.cqHead, u.cqTail = at(u.cqRing, p.cqHead), at(u.cqRing, p.cqTail)
	u.sqMask, u.sqEntries, u.cqMask = *at(u.sqRing, p.sqMask), p.sqEntries, *at(u.cqRing, p.cqMask)
	u.sqes = unsafe.Slice((*sqe)(unsafe.Pointer(&u.sqeMem[0])), p.sqEntries)
	u.cqes = unsafe.Slice((*cqe)(unsafe.Pointer(&u.cqRing[p.cqCqes])), p.cqEntries)
	// The index array stays the identity: entry i of the queue is always sqe i.
	for i, a := 0, unsafe.Slice(at(u.sqRing, p.sqArray), p.sqEntries); i < len(a); i++ {
		a[i] = uint32(i)
	}
	u.tail = *u.sqTail
	return nil
}

// enable binds the ring to the calling thread. It is called once, on the thread
// that will enter.
func (u *uring) enable() error {
	if !u.disabled {
		return nil
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(u.fd), registerEnableRings, 0, 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("io_uring_register(ENABLE_RINGS)", errno)
	}
	u.disabled = false
	return nil
}

// next returns the next free submission entry, zeroed, or nil when all are taken.
func (u *uring) next() *sqe {
	if u.tail-atomic.LoadUint32(u.sqHead) >= u.sqEntries {
		return nil
	}
	e := &u.sqes[u.tail&u.sqMask]
	u.tail++
	*e = sqe{}
	return e
}

// pending is the number of prepared entries that the kernel hasn't taken.
func (u *uring) pending() uint32 { return u.tail - atomic.LoadUint32(u.sqHead) }

// enter hands all prepared entries to the kernel and waits for one completion: at
// most ns nanoseconds, for ever if ns < 0, not at all if ns is 0.
//
// A wait of at most rawMost is hidden from Go's scheduler: it would otherwise take each of them for a reason to have its
// monitor look every 20 µs, whose wake-ups cost several percent of a CPU. Go can wait that long, and when it can't, as before
// a garbage collection, its signal ends the wait.
func (u *uring) enter(ns int64) error {
	atomic.StoreUint32(u.sqTail, u.tail)
	n := uintptr(u.pending())
	var errno syscall.Errno
	switch {
	case ns == 0:
		_, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), n, 0, enterGetEvents, 0, 0)
	case ns < 0:
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), n, 1, enterGetEvents, 0, 0)
	case ns <= int64(rawMost):
		u.ts = unix.NsecToTimespec(ns)
		u.arg = eventsArg{ts: uint64(uintptr(unsafe.Pointer(&u.ts)))}
		_, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), n, 1, enterGetEvents|enterExtArg,
			uintptr(unsafe.Pointer(&u.arg)), unsafe.Sizeof(u.arg))
	default:
		u.ts = unix.NsecToTimespec(ns)
		u.arg = eventsArg{ts: uint64(uintptr(unsafe.Pointer(&u.ts)))}
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), n, 1, enterGetEvents|enterExtArg,
			uintptr(unsafe.Pointer(&u.arg)), unsafe.Sizeof(u.arg))
	}
	switch errno {
	case 0, unix.ETIME, unix.EINTR, unix.EBUSY, unix.EAGAIN:
		// EBUSY and EAGAIN: the kernel is short of room; what wasn't taken is
		// still queued, and the next turn tries again.
		return nil
	}
	return os.NewSyscallError("io_uring_enter", errno)
}

// ready is the number of completions that wait in the ring.
func (u *uring) ready() uint32 { return atomic.LoadUint32(u.cqTail) - *u.cqHead }

// pop takes one completion out of the ring.
func (u *uring) pop() (cqe, bool) {
	head := *u.cqHead
	if head == atomic.LoadUint32(u.cqTail) {
		return cqe{}, false
	}
	c := u.cqes[head&u.cqMask]
	atomic.StoreUint32(u.cqHead, head+1)
	return c, true
}

func (u *uring) close() {
	for _, b := range [][]byte{u.sqRing, u.cqRing, u.sqeMem} {
		if b != nil {
			unix.Munmap(b)
		}
	}
	unix.Close(u.fd)
}
