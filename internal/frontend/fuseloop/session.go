package fuseloop

import (
	"log/slog"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
)

const (
	// maxWrite is the largest payload of one request; the kernel splits larger ones.
	maxWrite = 1 << 20
	// copyMax is the largest payload that is copied into a buffer of its own size, so
	// that the landing buffer is free for the next request at once.
	copyMax = 32 << 10
	// maxInFlight bounds the requests that aren't answered yet.
	maxInFlight = 1024
	// burst is how many requests are taken before the loop sees to others.
	burst = 64
	// retryTime is when a session tries again that found the loop's memory used up.
	retryTime = time.Millisecond
	// fullTime is when a session looks again whose device had enough requests; an answer has it look sooner.
	fullTime = 10 * time.Millisecond
)

// session is the server's side of one FUSE connection. All of it is on the loop.
//
//	serving -> suspending (handed over; no request is begun) -> stopped -> over
//
// The loop says when requests are waiting; then they are read until none is left, or
// until it's the turn of others. Replies are written as soon as the device has answered.
// Neither can block: the descriptor is non-blocking. So a session that has nothing to do
// holds no memory but a page.
type session struct {
	loop aio.Loop
	dev  frontend.Device
	log  *slog.Logger
	fd   aio.FD
	num  int // the descriptor's number

	flags    uint64 // that INIT agreed on
	initDone bool
	// attaching: the loop device is being made, and nobody has written through it yet. See Server.attach.
	attaching bool

	page    []byte // one locked page: head, then room for a short reply
	head    []byte
	short   []byte
	landing []byte // where the next payload lands; nil while nothing is read
	poll    aio.Op
	iov     [2]unix.Iovec

	free     *slot
	slots    int
	inFlight int
	// READs that wait: for memory, while nothing is read; or, while resending, for the kernel to have resent all that
	// changes data.
	reads     []*slot
	resending bool
	stalled   bool
	retry     aio.Timer

	suspending bool
	stopped    bool
	gone       bool          // the kernel ended the connection
	over       chan struct{} // closed when nothing of the session is left
	inited     chan struct{} // closed when INIT was answered
}

// slot is a request of the kernel that is at the device.
type slot struct {
	block.Request
	s      *session
	unique uint64
	next   *slot
}

func newSession(cfg Config, fd int) (*session, error) {
	page, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return nil, err
	}
	afd, err := cfg.Loop.Adopt(fd)
	if err != nil {
		_ = unix.Munmap(page)
		return nil, err
	}
	s := &session{
		loop: cfg.Loop, dev: cfg.Device, log: cfg.Log, fd: afd, num: fd,
		page: page, head: page[:headLen], short: page[headLen:],
		over: make(chan struct{}), inited: make(chan struct{}),
	}
	s.poll.Done = s.readable
	s.retry = s.loop.NewTimer(s.resume)
	return s, nil
}

// arm waits for requests, if one could be taken in.
func (s *session) arm() {
	if s.poll.Busy || s.suspending || s.stopped || s.gone || !s.ready() {
		return
	}
	s.rest()
	s.fd.Poll(&s.poll)
}

// rest gives the landing buffer back.
func (s *session) rest() {
	if s.landing != nil {
		s.loop.Buffers().Put(s.landing)
		s.landing = nil
	}
}

// ready reports whether there is memory for one more request; if not, the session is
// stalled until there is.
func (s *session) ready() bool {
	s.stalled = true
	full := s.free == nil && s.slots == maxInFlight
	if full {
		s.resending = false // no server before this one had more in flight, so all of them have come
	}
	for len(s.reads) > 0 && !s.resending {
		m := s.reads[0]
		if m.Data = s.loop.Buffers().Get(int(m.Len)); m.Data == nil {
			s.retry.Reset(retryTime)
			return false
		}
		s.reads = s.reads[1:]
		s.dev.Submit(&m.Request)
	}
	if full {
		return false
	}
	if frontend.Full(s.dev) {
		s.retry.Reset(fullTime)
		return false
	}
	if s.landing == nil {
		if s.landing = s.loop.Buffers().Get(maxWrite); s.landing == nil {
			s.retry.Reset(retryTime)
			return false
		}
	}
	s.stalled = false
	return true
}

func (s *session) resume() {
	if s.stalled {
		s.arm()
	}
}

// readable is called when requests are waiting.
func (s *session) readable(int, error) {
	for i := 0; i < burst && !s.suspending && !s.stopped && s.ready(); i++ {
		if n, err := s.readNow(); !s.took(n, err) {
			break
		}
	}
	s.arm()
	s.finish()
}

// took handles the outcome of a read. It returns false if reading has to end for now.
func (s *session) took(n int, err error) bool {
	switch {
	case err == nil:
		s.handle(n)
		return true
	case err == syscall.EAGAIN:
		s.resending = false // they come before all others, at once
		return false
	case err == syscall.EINTR, err == syscall.ENOENT: // ENOENT: interrupted before it was read
		return true
	case err == syscall.ENODEV, err == syscall.ECONNABORTED:
		s.gone = true
		return false
	default:
		s.log.Error("FUSE connection failed", "err", err)
		s.gone = true
		return false
	}
}

// readNow reads a request if one is waiting, otherwise the error is EAGAIN.
func (s *session) readNow() (int, error) {
	s.iov[0].Base, s.iov[0].Len = &s.head[0], headLen
	s.iov[1].Base, s.iov[1].Len = &s.landing[0], maxWrite
	n, _, e := unix.RawSyscall(unix.SYS_READV, uintptr(s.num), uintptr(unsafe.Pointer(&s.iov[0])), 2)
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

// handle executes one request of n bytes.
func (s *session) handle(n int) {
	if n < inHeaderLen {
		s.log.Error("FUSE request is too short", "bytes", n)
		return
	}
	h := decodeHeader(s.head)
	if int(h.length) != n {
		s.log.Error("FUSE request has a wrong length", "bytes", n, "says", h.length)
		s.fail(h.unique, syscall.EIO)
		return
	}
	if s.resending && h.unique&resentBit == 0 {
		s.resending = false
	}
	switch h.opcode {
	case opRead:
		s.transfer(h, n, block.OpRead)
	case opWrite:
		s.transfer(h, n, block.OpWrite)
	case opFsync:
		if s.attaching {
			s.reply(h.unique, outHeaderLen, nil)
			return
		}
		s.begin(h.unique, block.OpFlush, 0, 0, nil)
	case opFallocate:
		s.fallocate(h, n)
	default:
		s.control(h, n)
	}
}

// transfer begins a READ or a WRITE.
func (s *session) transfer(h header, n int, op block.Op) {
	if n < headLen || h.node != fileNode {
		s.fail(h.unique, syscall.EINVAL)
		return
	}
	t := decodeTransfer(s.head[inHeaderLen:])
	size := s.dev.Size()
	if op == block.OpRead && t.off <= uint64(size) {
		t.size = uint32(min(int64(t.size), size-int64(t.off))) // a file ends where it ends
		if t.size == 0 {
			s.reply(h.unique, outHeaderLen, nil)
			return
		}
	}
	if t.size == 0 || t.size > block.MaxIO || t.off > uint64(size) ||
		(op == block.OpWrite && int(t.size) != n-headLen) {
		s.fail(h.unique, syscall.EINVAL)
		return
	}
	if e := frontend.Check(op, int64(t.off), int64(t.size), size); e != 0 {
		s.fail(h.unique, e)
		return
	}
	var data []byte
	if op == block.OpWrite {
		data = s.payload(int(t.size))
	}
	m := s.get(h.unique, op, int64(t.off), int64(t.size))
	m.FUA = op == block.OpWrite && t.flags&unix.O_DSYNC != 0
	if op == block.OpRead && !s.resending && len(s.reads) == 0 {
		data = s.loop.Buffers().Get(int(t.size))
	}
	if m.Data = data; data == nil {
		s.reads = append(s.reads, m)
		return
	}
	s.dev.Submit(&m.Request)
}

// payload returns the first n bytes of the landing buffer in memory that is the
// request's own.
func (s *session) payload(n int) []byte {
	if n <= copyMax {
		if b := s.loop.Buffers().Get(n); b != nil {
			copy(b, s.landing[:n])
			return b
		}
	}
	b := s.landing[:n]
	s.landing = nil
	return b
}

func (s *session) fallocate(h header, n int) {
	if n < inHeaderLen+32 || h.node != fileNode {
		s.fail(h.unique, syscall.EINVAL)
		return
	}
	a := s.head[inHeaderLen:]
	off, length, mode := order.Uint64(a[8:]), order.Uint64(a[16:]), order.Uint32(a[24:])
	if length == 0 {
		s.fail(h.unique, syscall.EINVAL)
		return
	}
	var op block.Op
	switch mode {
	case fallocPunchHole | fallocKeepSize:
		op = block.OpTrim
	case fallocZeroRange, fallocZeroRange | fallocKeepSize:
		op = block.OpZero
	default:
		s.fail(h.unique, syscall.EOPNOTSUPP)
		return
	}
	if e := frontend.Check(op, int64(off), int64(length), s.dev.Size()); e != 0 {
		s.fail(h.unique, e)
		return
	}
	s.begin(h.unique, op, int64(off), int64(length), nil)
}

// begin submits a request to the device.
func (s *session) begin(unique uint64, op block.Op, off, n int64, data []byte) {
	m := s.get(unique, op, off, n)
	m.FUA, m.Data = false, data
	s.dev.Submit(&m.Request)
}

// get returns a slot; ready has seen to it that there is one.
func (s *session) get(unique uint64, op block.Op, off, n int64) *slot {
	if op != block.OpRead {
		s.attaching = false
	}
	m := s.free
	if m == nil {
		m = &slot{s: s}
		m.Done = func(*block.Request) { m.done() }
		s.slots++
	} else {
		s.free = m.next
	}
	s.inFlight++
	m.unique, m.Op, m.Off, m.Len, m.Err, m.next = unique, op, off, n, nil, nil
	m.Resent = unique&resentBit != 0
	return m
}

// done answers the kernel with what the device has answered.
func (m *slot) done() {
	s := m.s
	switch e := frontend.Errno(m.Err); {
	case s.stopped:
	case e != 0:
		s.fail(m.unique, e)
	case m.Op == block.OpRead:
		s.reply(m.unique, outHeaderLen, m.Data)
	case m.Op == block.OpWrite:
		order.PutUint64(s.short[outHeaderLen:], uint64(m.Len))
		s.reply(m.unique, outHeaderLen+8, nil)
	default:
		s.reply(m.unique, outHeaderLen, nil)
	}
	s.release(m)
	s.resume()
	s.finish()
}

func (s *session) release(m *slot) {
	if m.Data != nil {
		s.loop.Buffers().Put(m.Data)
		m.Data = nil
	}
	m.next, s.free = s.free, m
	s.inFlight--
}

// fail answers a request with an error.
func (s *session) fail(unique uint64, e syscall.Errno) {
	putOutHeader(s.short, outHeaderLen, e, unique)
	s.write(outHeaderLen, nil, unique)
}

// reply answers a request with the first n bytes of short, whose header it fills
// in, and data.
func (s *session) reply(unique uint64, n int, data []byte) {
	putOutHeader(s.short, n+len(data), 0, unique)
	s.write(n, data, unique)
}

func (s *session) write(n int, data []byte, unique uint64) {
	s.iov[0].Base, s.iov[0].Len = &s.short[0], uint64(n)
	count := uintptr(1)
	if len(data) > 0 {
		s.iov[1].Base, s.iov[1].Len = &data[0], uint64(len(data))
		count = 2
	}
	_, _, e := unix.RawSyscall(unix.SYS_WRITEV, uintptr(s.num), uintptr(unsafe.Pointer(&s.iov[0])), count)
	switch e {
	case 0, syscall.ENOENT, syscall.ENODEV, syscall.ECONNABORTED: // nobody waits for the answer any more
	default:
		s.log.Error("FUSE reply was refused", "err", e, "unique", unique)
	}
}

// suspend begins no request any more and stops when those that are at the device were
// answered. The connection lives on in another descriptor.
func (s *session) suspend() {
	s.suspending = true
	for _, m := range s.reads {
		s.release(m)
	}
	s.reads = nil
	s.finish()
}

// stop ends the session. Requests that are at the device aren't answered.
func (s *session) stop() {
	s.suspend()
	s.close()
	s.finish()
}

func (s *session) close() {
	if s.stopped {
		return
	}
	s.stopped = true
	s.retry.Stop()
	s.fd.Close()
}

// finish gives everything back once neither the kernel nor the device can touch it.
func (s *session) finish() {
	if s.inFlight > 0 || !(s.suspending || s.gone) || s.page == nil {
		return
	}
	s.close()
	if s.poll.Busy {
		return
	}
	s.rest()
	_ = unix.Munmap(s.page)
	s.page, s.head, s.short = nil, nil, nil
	close(s.over)
}
