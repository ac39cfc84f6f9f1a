package ring

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

// descriptor is an aio.FD.
//
// A socket is made blocking: the kernel then waits for it by itself. Any other device
// is made non-blocking, because one that several read (as clones of /dev/fuse) can be
// found ready and be empty again a moment later, and then a blocking read would hold up
// the loop's thread. So an operation may fail with EAGAIN; it is put into a queue here,
// and goes on when a poll says so. After a poll as many go on as the one before it could
// serve, and one more: if many reads wait for few requests, few wake up in vain.
type descriptor struct {
	l      *Loop
	fd     int
	closed bool
	flying int // operations in the kernel
	in     waiting
	out    waiting
}

// waiting is the queue of one direction.
type waiting struct {
	slots   []int32 // the operations that wait, oldest first
	polling bool
	flying  int // operations in the kernel
	burst   int // how many to try after the next poll
}

// Adopt implements aio.Loop.
func (l *Loop) Adopt(fd int) (aio.FD, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("ring: adopt descriptor %d: %w", fd, err)
	}
	device := st.Mode&unix.S_IFMT != unix.S_IFSOCK
	if err := unix.SetNonblock(fd, device); err != nil {
		return nil, fmt.Errorf("ring: adopt descriptor %d: %w", fd, err)
	}
	d := &descriptor{l: l, fd: fd}
	l.fds[d] = struct{}{}
	return d, nil
}

// Fd implements aio.FD.
func (d *descriptor) Fd() int { return d.fd }

// Readv implements aio.FD.
func (d *descriptor) Readv(op *aio.Op, a, b []byte) { d.start(op, kindFDRead, &d.in, a, b) }

// Writev implements aio.FD.
func (d *descriptor) Writev(op *aio.Op, a, b []byte) { d.start(op, kindFDWrite, &d.out, a, b) }

// Poll implements aio.FD.
func (d *descriptor) Poll(op *aio.Op) {
	if d.closed {
		claim(op)
		d.l.refuse(op, 0, unix.ECANCELED)
		return
	}
	i, s := d.l.start(op, kindFDWait)
	s.own, s.fd, s.flag = d, int32(d.fd), unix.POLLIN
	d.flying++
	d.l.submit(i)
}

func (d *descriptor) start(op *aio.Op, k kind, w *waiting, a, b []byte) {
	if d.closed {
		claim(op)
		d.l.refuse(op, 0, unix.ECANCELED)
		return
	}
	i, s := d.l.start(op, k)
	s.own, s.fd, s.p, s.q = d, int32(d.fd), a, b
	for _, m := range [2][]byte{a, b} {
		if len(m) > 0 {
			s.iov[s.n] = unix.Iovec{Base: unsafe.SliceData(m), Len: uint64(len(m))}
			s.n++
		}
	}
	if w.polling || len(w.slots) > 0 {
		w.slots = append(w.slots, i)
		return
	}
	d.issue(w, i)
}

func (d *descriptor) issue(w *waiting, i int32) {
	d.flying++
	w.flying++
	d.l.submit(i)
}

// resume lets up to n waiting operations go on.
func (d *descriptor) resume(w *waiting, n int) {
	n = min(n, len(w.slots))
	for _, i := range w.slots[:n] {
		d.issue(w, i)
	}
	w.slots = w.slots[:copy(w.slots, w.slots[n:])]
}

// poll waits for the descriptor to be ready.
func (d *descriptor) poll(w *waiting) {
	w.polling = true
	i, s := d.l.slots.take(kindFDPoll)
	s.own, s.fd, s.flag = d, int32(d.fd), unix.POLLIN
	if w == &d.out {
		s.flag = unix.POLLOUT
	}
	d.flying++
	d.l.submit(i)
}

// complete takes the completion of a slot of this descriptor.
func (d *descriptor) complete(i int32, s *slot, res int32) {
	d.flying--
	if s.kind == kindFDWait {
		errno := unix.Errno(max(-res, 0))
		if d.closed {
			errno = unix.ECANCELED
		}
		d.closeIfIdle()
		if errno != 0 {
			d.l.finish(i, 0, errno)
		} else {
			d.l.finish(i, 0, nil)
		}
		return
	}
	w := &d.in
	if s.kind == kindFDWrite || s.kind == kindFDPoll && s.flag == unix.POLLOUT {
		w = &d.out
	}
	if s.kind == kindFDPoll {
		d.l.slots.release(i)
		w.polling = false
		if !d.closed {
			n := w.burst + 1
			w.burst = 0
			d.resume(w, n)
		}
		d.closeIfIdle()
		return
	}
	w.flying--
	switch errno := unix.Errno(-res); {
	case d.closed:
		d.closeIfIdle()
		d.l.finish(i, 0, unix.ECANCELED)
	case res >= 0:
		w.burst++
		d.resume(w, 1)
		d.l.finish(i, int(res), nil)
	case errno == unix.EAGAIN || errno == unix.EINTR:
		w.slots = append(w.slots, i)
		if w.flying == 0 && !w.polling {
			d.poll(w)
		}
	default:
		d.resume(w, 1)
		d.l.finish(i, 0, errno)
	}
}

// Close implements aio.FD.
func (d *descriptor) Close() {
	if d.closed {
		return
	}
	d.closed = true
	for _, w := range [2]*waiting{&d.in, &d.out} {
		for _, i := range w.slots {
			s := d.l.slots.at(i)
			op := s.op
			d.l.slots.release(i)
			d.l.refuse(op, 0, unix.ECANCELED)
		}
		w.slots = nil
	}
	if d.flying > 0 {
		d.l.cancelFD(int32(d.fd))
	}
	d.closeIfIdle()
}

func (d *descriptor) closeIfIdle() {
	if _, open := d.l.fds[d]; open && d.closed && d.flying == 0 {
		delete(d.l.fds, d)
		unix.Close(d.fd)
	}
}
