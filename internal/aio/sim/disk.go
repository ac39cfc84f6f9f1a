package sim

import (
	"time"
)

// Disk is a machine's disk, with one file system.
type Disk struct {
	w     *World
	node  *Node
	root  *inode
	log   []dirOp // changes of directories that are not durable yet
	quota int64
	used  int64

	broken                          []*inode // have broken sectors
	slow                            float64  // factor of every latency
	stuck                           bool
	held                            []event // what waits until the disk is unstuck
	failReads, failWrites, failSync bool
}

func newDisk(w *World, n *Node) *Disk {
	d := &Disk{w: w, node: n, quota: 1 << 40, slow: 1}
	d.root = d.newInode("/", true)
	return d
}

// SetQuota makes the disk that large, in bytes. It may be less than what is used.
func (d *Disk) SetQuota(n int64) { d.quota = n }

// Used is the number of bytes that files occupy.
func (d *Disk) Used() int64 { return d.used }

// SetSlow multiplies every latency of the disk by factor.
func (d *Disk) SetSlow(factor float64) { d.slow = factor }

// SetStuck stops the disk: nothing is answered until it is set free again.
func (d *Disk) SetStuck(stuck bool) {
	d.stuck = stuck
	if stuck {
		return
	}
	held := d.held
	d.held = nil
	for _, e := range held {
		d.w.schedule(d.w.draw(d.w.cfg.Disk), e.loop, e.what, e.fn)
	}
}

// Fail makes every operation of the named sorts fail with EIO, until it is called again. Of a write that fails, some may have
// reached the disk even so.
func (d *Disk) Fail(reads, writes, syncs bool) {
	d.failReads, d.failWrites, d.failSync = reads, writes, syncs
}

// FlipBit changes one bit of a file, in the page that holds off, as a disk does that
// rots. It reports whether there was something to rot.
func (d *Disk) FlipBit(name string, off int64) bool {
	f := d.find(name)
	if f == nil || f.dir || f.cur.get(off/pageSize) == nil {
		return false
	}
	i := off / pageSize
	old := f.cur.get(i)
	p := d.w.newPage()
	p.b = old.b
	p.b[off%pageSize] ^= 1 << d.w.rng.IntN(8)
	if f.safe.get(i) == old {
		d.w.set(&f.safe, i, p.hold())
	}
	d.w.set(&f.cur, i, p)
	d.w.Tracef("%s: bit flipped in %s at %d", d.node.name, name, off)
	return true
}

// BreakSector makes reads of the page that holds off fail with EIO until it is
// written anew.
func (d *Disk) BreakSector(name string, off int64) bool {
	f := d.find(name)
	if f == nil || f.dir {
		return false
	}
	if f.bad == nil {
		f.bad = make(map[int64]bool)
	}
	f.bad[off/pageSize] = true
	d.broken = append(d.broken, f)
	return true
}

// HealSectors makes all broken sectors readable again.
func (d *Disk) HealSectors() {
	for _, f := range d.broken {
		clear(f.bad)
	}
	d.broken = nil
}

// Peek copies what a file holds at off to p, without events, and returns how much there
// was; -1 if there is no such file. For checks.
func (d *Disk) Peek(name string, p []byte, off int64) int {
	f := d.find(name)
	if f == nil || f.dir {
		return -1
	}
	return peek(&f.cur, f.size, p, off)
}

// PeekDurable is Peek for what would be there after a power loss, as far as that is certain.
func (d *Disk) PeekDurable(name string, p []byte, off int64) int {
	f := d.find(name)
	if f == nil || f.dir {
		return -1
	}
	return peek(&f.safe, f.safeSize, p, off)
}

func peek(t *table, size int64, p []byte, off int64) int {
	n := int(min(int64(len(p)), size-off))
	for at := 0; at < n; {
		i, in := (off+int64(at))/pageSize, (off+int64(at))%pageSize
		k := min(n-at, int(pageSize-in))
		if pg := t.get(i); pg != nil {
			copy(p[at:at+k], pg.b[in:])
		} else {
			clear(p[at : at+k])
		}
		at += k
	}
	return max(n, 0)
}

// Page returns the page of a file that holds off, as it is seen or, if durable is set, as it would be after a power loss. It is
// not to be changed, and valid until the next event; a hole is a page of zeros. For checks.
func (d *Disk) Page(name string, off int64, durable bool) []byte {
	if f := d.find(name); f != nil && !f.dir {
		t := &f.cur
		if durable {
			t = &f.safe
		}
		if p := t.get(off / pageSize); p != nil {
			return p.b[:]
		}
	}
	return zeros.b[:]
}

// Names lists what a directory has, sorted; nil if there is none. For checks.
func (d *Disk) Names(dir string) []string {
	if f := d.find(dir); f != nil && f.dir {
		return sortedNames(f.ents)
	}
	return nil
}

// Watch has fn called whenever pages from … to-1 of a file have changed, but for a power loss or a flipped bit; and with
// nil no more. For checks: fn must not touch the world.
func (d *Disk) Watch(name string, fn func(from, to int64)) {
	if f := d.find(name); f != nil {
		f.watch = fn
	}
}

// Answered counts the operations on a file that were answered: a mark for Synced.
func (d *Disk) Answered(name string) uint64 {
	if f := d.find(name); f != nil {
		return f.answers
	}
	return 0
}

// Synced reports whether everything that was answered when the mark was taken is durable. That a file got longer doesn't count: there
// is no data in that.
func (d *Disk) Synced(name string, mark uint64) bool {
	if f := d.find(name); f != nil {
		for _, c := range f.pending {
			if c.done != 0 && c.done <= mark && !(c.kind == chTruncate && c.size >= c.oldSize) {
				return false
			}
		}
	}
	return true
}

// Busy reports whether operations on a file are in flight.
func (d *Disk) Busy(name string) bool {
	f := d.find(name)
	return f != nil && len(f.flying) > 0
}

// slowest is the most that an operation of a slow disk takes, unless the disk is stuck.
const slowest = 10 * time.Second

// latency draws how long one operation takes.
func (d *Disk) latency() time.Duration {
	return min(time.Duration(float64(d.w.draw(d.w.cfg.Disk))*d.slow), slowest)
}

// later schedules something that needs the disk: it waits while the disk is stuck.
func (d *Disk) later(after time.Duration, l *Loop, what string, fn func()) {
	var try func()
	try = func() {
		if d.stuck {
			d.held = append(d.held, event{loop: l, what: what, fn: try})
			return
		}
		fn()
	}
	d.w.schedule(after, l, what, try)
}

// fits reports whether there is space for a change.
func (d *Disk) fits(f *inode, c *change) bool {
	// A clone is counted as a copy: writing to what is shared takes that space.
	if c.kind != chWrite && c.kind != chZero && c.kind != chClone {
		return true
	}
	from, to := c.span()
	if c.kind == chZero {
		to = min(to, (f.size+pageSize-1)/pageSize)
	}
	need := int64(0)
	for i := from; i < to; i++ {
		if f.cur.get(i) == nil {
			need += pageSize
		}
	}
	return need == 0 || d.used+need <= d.quota
}

// orphan decides what becomes of the operations in flight of a process that was killed.
func (d *Disk) orphan(l *Loop) {
	for _, io := range l.flying {
		switch {
		case io.done:
			io.ino.removeFlying(io)
			if io.did != nil {
				io.did.done = io.ino.answered()
			}
		case io.c == nil:
			io.done = true
			io.ino.removeFlying(io)
		case d.w.rng.IntN(2) == 0:
			io.effectOfDead()
		default:
			late := time.Duration(d.w.rng.Int64N(int64(3 * time.Second)))
			if d.w.rng.IntN(2) == 0 {
				late /= 100
			}
			d.later(late, nil, "I/O of a dead process", io.effectOfDead)
		}
	}
	l.flying = nil
}

// powerLoss leaves what is durable, and what else chance wants.
func (d *Disk) powerLoss() {
	d.held = nil
	d.stuck = false
	keep := 0
	if len(d.log) > 0 {
		keep = d.w.rng.IntN(len(d.log) + 1)
	}
	for _, op := range d.log[:keep] {
		op.applyTo(func(dir *inode) map[string]*inode { return dir.dur })
	}
	d.log = nil
	d.used = 0
	d.restore(d.root)
}

// restore makes what is seen of a directory what is durable of it.
func (d *Disk) restore(dir *inode) {
	dir.ents = make(map[string]*inode, len(dir.dur))
	for _, name := range sortedNames(dir.dur) {
		f := dir.dur[name]
		dir.ents[name] = f
		f.removed = false
		if f.dir {
			d.restore(f)
			continue
		}
		d.used += f.allocated * pageSize
		f.powerLoss()
	}
}
