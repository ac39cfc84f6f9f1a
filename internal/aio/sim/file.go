package sim

import (
	"bytes"
	"fmt"
	"syscall"
	"time"
	"unsafe"

	"keelson.io/keelson/internal/aio"
)

// ioKind says what an operation does.
type ioKind uint8

const (
	ioRead ioKind = iota
	ioWrite
	ioWriteSync
	ioSync
	ioPunch
	ioZero
	ioClone
	ioSettle
)

func (k ioKind) String() string {
	return [...]string{"read", "write", "write-sync", "sync", "punch", "zero", "clone", "settle"}[k]
}

// ioOp is an operation on a file in flight: submitted, then in effect, then answered.
type ioOp struct {
	kind ioKind
	l    *Loop
	f    *file
	ino  *inode
	src  *inode // of a clone
	op   *aio.Op
	mem  []byte
	off  int64
	n    int64
	c    *change // what it will do, until it is in effect
	did  *change // what it has done, while that is pending
	upto uint64  // sync: what was answered before it was submitted
	res  int
	err  error
	done bool
}

// file is a file opened by one process.
type file struct {
	l      *Loop
	ino    *inode
	closed bool
}

func (f *file) ReadAt(op *aio.Op, p []byte, off int64) {
	f.start(&ioOp{kind: ioRead, op: op, mem: p, off: off, n: int64(len(p))})
}

func (f *file) WriteAt(op *aio.Op, p []byte, off int64) {
	f.start(&ioOp{kind: ioWrite, op: op, mem: p, off: off, n: int64(len(p))})
}

func (f *file) WriteSync(op *aio.Op, p []byte, off int64) {
	f.start(&ioOp{kind: ioWriteSync, op: op, mem: p, off: off, n: int64(len(p))})
}

func (f *file) Sync(op *aio.Op) { f.start(&ioOp{kind: ioSync, op: op}) }

func (f *file) Punch(op *aio.Op, off, n int64) {
	f.start(&ioOp{kind: ioPunch, op: op, off: off, n: n})
}

func (f *file) Zero(op *aio.Op, off, n int64) {
	f.start(&ioOp{kind: ioZero, op: op, off: off, n: n})
}

// Settle implements aio.File: it takes its time, and changes nothing.
func (f *file) Settle(op *aio.Op) { f.start(&ioOp{kind: ioSettle, op: op}) }

func (f *file) Clone(op *aio.Op, src aio.File, off, n int64) {
	f.start(&ioOp{kind: ioClone, op: op, src: src.(*file).ino, off: off, n: n})
}

// fill gives a clone's change the pages that the source has now.
func (c *change) fill(src *inode) {
	for i := c.off / pageSize; i < (c.off+c.n)/pageSize; i++ {
		c.pages = append(c.pages, src.cur.get(i).hold())
	}
}

// start submits an operation.
func (f *file) start(io *ioOp) {
	f.l.check(io.kind.String())
	f.valid(io)
	if f.l.dead {
		return
	}
	w := f.l.w
	io.op.Busy = true
	io.l, io.f, io.ino = f.l, f, f.ino
	switch io.kind {
	case ioSync:
		io.upto = f.ino.answers
	case ioWrite, ioWriteSync:
		io.c = &change{kind: chWrite, off: io.off, n: io.n}
		for at := 0; at < len(io.mem); at += pageSize {
			p := w.newPage()
			copy(p.b[:], io.mem[at:])
			io.c.pages = append(io.c.pages, p)
		}
	case ioPunch:
		io.c = &change{kind: chPunch, off: io.off, n: io.n}
	case ioZero:
		io.c = &change{kind: chZero, off: io.off, n: io.n}
	case ioClone:
		io.c = &change{kind: chClone, off: io.off, n: io.n}
	}
	f.ino.flying = append(f.ino.flying, io)
	f.l.flying = append(f.l.flying, io)
	d := f.ino.disk
	d.later(d.latency(), nil, io.kind.String(), func() { io.run() })
}

func (f *file) valid(io *ioOp) {
	switch {
	case io.op.Busy:
		panic(fmt.Sprintf("sim: %v of %s with an Op that is in flight", io.kind, f.ino.name))
	case f.closed:
		panic(fmt.Sprintf("sim: %v of %s, which is closed", io.kind, f.ino.name))
	case io.off%pageSize != 0 || io.n%pageSize != 0 || io.n < 0:
		panic(fmt.Sprintf("sim: %v of %s at %d, %d bytes: not whole pages", io.kind, f.ino.name, io.off, io.n))
	case len(io.mem) > maxBuffer:
		panic(fmt.Sprintf("sim: %v of %s: %d bytes at once", io.kind, f.ino.name, io.n))
	case len(io.mem) > 0 && uintptr(unsafe.Pointer(&io.mem[0]))%pageSize != 0:
		panic(fmt.Sprintf("sim: %v of %s: memory isn't page-aligned", io.kind, f.ino.name))
	case (io.kind == ioRead || io.kind == ioWrite || io.kind == ioWriteSync) && io.n == 0:
		panic(fmt.Sprintf("sim: %v of %s: no bytes", io.kind, f.ino.name))
	}
}

// run is the moment of the effect; the answer comes with it, or later.
func (io *ioOp) run() {
	if io.done || io.l.dead {
		return
	}
	io.effect()
	if w := io.l.w; w.rng.IntN(4) == 0 || io.l.paused {
		w.schedule(w.draw(w.cfg.Disk)/2, io.l, io.kind.String()+" answer", io.answer)
		return
	}
	io.l.call(onLoop, io.answer)
}

// effect does to the disk what the operation is for.
func (io *ioOp) effect() {
	io.done = true
	f := io.ino
	d := f.disk
	if io.off < 0 {
		io.err = syscall.EINVAL
		if c := io.takeChange(); c != nil {
			f.release(c)
		}
		return
	}
	if io.mem != nil && io.c != nil {
		for i, p := range io.c.pages {
			if !bytes.Equal(p.b[:], io.mem[i*pageSize:(i+1)*pageSize]) {
				panic(fmt.Sprintf("sim: memory of a %v of %s at %d was changed in flight", io.kind, f.name, io.off))
			}
		}
	}
	switch io.kind {
	case ioSettle:
	case ioRead:
		io.res, io.err = f.read(io.mem, io.off)
	case ioSync:
		if d.failSync {
			io.err = syscall.EIO
			return
		}
		f.persist(func(_ int, c *change) bool {
			return c.done != 0 && c.done <= io.upto || d.w.rng.IntN(2) == 0
		})
	default:
		c := io.takeChange()
		if c.kind == chClone {
			if c.off+c.n > io.src.size {
				io.err = syscall.EINVAL
				return
			}
			c.fill(io.src)
		}
		if d.failWrites {
			io.err = syscall.EIO
			if c.kind != chWrite || d.w.rng.IntN(2) == 0 || !d.fits(f, c) {
				f.release(c)
				return
			}
			d.w.shorten(c)
			f.happen(c)
			io.did = c
			return
		}
		if !d.fits(f, c) {
			io.err = syscall.ENOSPC
			f.release(c)
			return
		}
		io.res = len(io.mem)
		f.happen(c)
		io.did = c
		if io.kind == ioWriteSync {
			f.persist(func(_ int, o *change) bool { return o == c })
		}
	}
}

// shorten leaves the beginning of a write: only that reached the disk.
func (w *World) shorten(c *change) {
	keep := w.rng.IntN(len(c.pages)) + 1
	for _, p := range c.pages[keep:] {
		w.drop(p)
	}
	c.pages = c.pages[:keep]
	c.n = int64(keep) * pageSize
}

// effectOfDead is the late effect of an operation whose process was killed.
func (io *ioOp) effectOfDead() {
	if io.done {
		return
	}
	io.ino.removeFlying(io)
	c := io.takeChange()
	if c == nil {
		return
	}
	w := io.ino.disk.w
	if c.kind == chClone {
		c.fill(io.src)
	}
	if w.rng.IntN(3) == 0 || !io.ino.disk.fits(io.ino, c) {
		io.ino.release(c)
		return
	}
	if (c.kind == chWrite || c.kind == chClone) && w.rng.IntN(4) == 0 {
		w.shorten(c)
	}
	w.stats.LateIO++
	w.Tracef("%s: late %v of a dead process at %d, %d bytes", io.ino.name, io.kind, c.off, c.n)
	io.ino.happen(c)
	c.done = io.ino.answered()
}

// answer calls back.
func (io *ioOp) answer() {
	f := io.ino
	f.removeFlying(io)
	for i, o := range io.l.flying {
		if o == io {
			last := len(io.l.flying) - 1
			io.l.flying[i] = io.l.flying[last]
			io.l.flying[last] = nil
			io.l.flying = io.l.flying[:last]
			break
		}
	}
	if io.did != nil {
		io.did.done = f.answered()
	}
	io.op.Busy = false
	w := io.l.w
	w.mix(uint64(io.res))
	if io.err != nil {
		if io.err == syscall.EIO {
			w.stats.IOErrors++
		} else if io.err == syscall.ENOSPC {
			w.stats.NoSpace++
		}
		w.mix(uint64(io.err.(syscall.Errno)))
	}
	if w.cfg.Trace != nil {
		w.Tracef("  %s %v off %d len %d: %d %v", f.name, io.kind, io.off, io.n, io.res, io.err)
	}
	io.op.Done(io.res, io.err)
}

func (f *inode) answered() uint64 {
	f.answers++
	return f.answers
}

func (f *inode) removeFlying(io *ioOp) {
	for i, o := range f.flying {
		if o == io {
			last := len(f.flying) - 1
			f.flying[i] = f.flying[last]
			f.flying[last] = nil
			f.flying = f.flying[:last]
			return
		}
	}
}

// takeChange takes the change that has not happened yet out of the operation.
func (io *ioOp) takeChange() *change {
	c := io.c
	io.c = nil
	io.done = true
	return c
}

func (f *inode) read(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), f.size-off))
	if n <= 0 {
		return 0, nil
	}
	for at := 0; at < n; at += pageSize {
		i := (off + int64(at)) / pageSize
		if f.bad[i] || f.disk.failReads {
			return 0, syscall.EIO
		}
		dst := p[at:min(at+pageSize, n)]
		if pg := f.cur.get(i); pg != nil {
			copy(dst, pg.b[:])
		} else {
			clear(dst)
		}
	}
	return n, nil
}

// Truncate implements aio.File.
func (f *file) Truncate(size int64) error {
	if err := f.l.fs.enter("Truncate"); err != nil {
		return err
	}
	ino := f.ino
	c := &change{kind: chTruncate, size: size, oldSize: ino.size}
	ino.happen(c)
	c.done = ino.answered()
	return nil
}

// Size implements aio.File.
func (f *file) Size() (int64, error) {
	if err := f.l.fs.enter("Size"); err != nil {
		return 0, err
	}
	return f.ino.size, nil
}

// Allocated implements aio.File.
func (f *file) Allocated() (int64, error) {
	if err := f.l.fs.enter("Allocated"); err != nil {
		return 0, err
	}
	return f.ino.allocated * pageSize, nil
}

// Drain implements aio.File: what is in flight takes its effect now.
func (f *file) Drain() error {
	if err := f.l.fs.enter("Drain"); err != nil {
		return err
	}
	for i := 0; i < len(f.ino.flying); {
		io := f.ino.flying[i]
		switch {
		case io.l.dead:
			io.effectOfDead() // it leaves the list
			continue
		case !io.done:
			io.effect()
			f.l.w.schedule(time.Duration(f.l.w.rng.IntN(50000)), io.l, "drained answer", io.answer)
		}
		i++
	}
	return nil
}

// Close implements aio.File.
func (f *file) Close() error {
	if err := f.l.fs.enter("Close"); err != nil {
		return err
	}
	for _, io := range f.ino.flying {
		if io.f == f && io.op.Busy {
			panic(fmt.Sprintf("sim: Close of %s with a %v in flight", f.ino.name, io.kind))
		}
	}
	f.closed = true
	return nil
}
