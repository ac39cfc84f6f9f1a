package replica

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

// The names of a replica's files.
const (
	headName    = "head"
	sumsName    = "sums"
	gensName    = "gens"
	journalName = "journal"
	metaName    = "meta"
	snapsName   = "snaps"
)

// task is a chain of I/O on one Op: the next step begins in the callback of the one before.
type task struct {
	loop aio.Loop
	op   aio.Op
	buf  mem
}

// read reads [off, off+n) of f, n ≤ 1 MiB, and calls next with what is there.
func (t *task) read(f aio.File, off int64, n int, next func([]byte, error)) {
	t.buf = getMem(t.loop, n)
	t.op.Done = func(got int, err error) {
		buf := t.buf
		t.buf = mem{}
		clear(buf.b[got:])
		next(buf.b, err)
		putMem(t.loop, buf)
	}
	f.ReadAt(&t.op, t.buf.b, off)
}

// How often what can't be read is tried, and how long after each other, before it is taken as damaged.
const (
	readTries = 4
	readPause = time.Second
)

// readPatiently is read for what can be replaced at a price if it is damaged: a disk may fail for a moment only.
func (t *task) readPatiently(f aio.File, off int64, n int, next func([]byte, error)) {
	tries := 0
	var try func()
	try = func() {
		t.read(f, off, n, func(b []byte, err error) {
			if tries++; errors.Is(err, syscall.EIO) && tries < readTries {
				t.loop.NewTimer(try).Reset(readPause)
				return
			}
			next(b, err)
		})
	}
	try()
}

// opening is a replica on its way to be open.
type opening struct {
	cfg   Config
	t     task
	files files
	r     *Replica
	done  func(*Replica, error)
	// healMeta: a copy of meta is damaged, and is to be written anew.
	healMeta bool
	// cut: the journal was shorter than it has to be.
	cut bool
}

// Open opens the replica in cfg.Dir, waits until nothing that a dead engine wrote is on its way to it, and recovers
// from its journal. done is called later, on the loop. The fence must be raised before it serves.
func Open(cfg Config, done func(*Replica, error)) {
	o := &opening{cfg: cfg, done: done, t: task{loop: cfg.Loop}}
	var err error
	cfg.Loop.Work(func() { o.files, err = openFiles(cfg.Loop.FS(), cfg.Dir) }, func() {
		if err != nil {
			o.fail(err)
			return
		}
		o.syncAll(o.files.all()[1:])
	})
}

func openFiles(fsys aio.FS, dir string) (f files, err error) {
	if !fsys.Exists(filepath.Join(dir, metaName)) {
		return f, fmt.Errorf("%s: %w", dir, ErrNotFound)
	}
	for _, x := range []struct {
		name string
		file *aio.File
	}{{headName, &f.head}, {sumsName, &f.sums}, {gensName, &f.gens}, {journalName, &f.journal}, {metaName, &f.meta}} {
		file, err := fsys.OpenFile(filepath.Join(dir, x.name), 0)
		if err == nil {
			*x.file = file
			if !invariant.Mutant("no-drain") {
				err = file.Drain()
			}
		}
		if err != nil {
			closeFiles(f.all())
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: file %s is missing", ErrDamaged, x.name)
			}
			return f, fmt.Errorf("%s: open %s: %w", dir, x.name, err)
		}
	}
	return f, nil
}

// fail ends an Open with an error.
func (o *opening) fail(err error) {
	files := o.files
	o.cfg.Loop.Work(func() { closeFiles(files.all()) }, func() { o.done(nil, fmt.Errorf("open replica %s: %w", o.cfg.Dir, err)) })
}

// syncAll makes durable what a dead engine wrote: this one is going to rely on it.
func (o *opening) syncAll(rest []aio.File) {
	if len(rest) == 0 {
		readMetaFile(&o.t, o.files.meta, o.gotMeta)
		return
	}
	o.t.op.Done = func(_ int, err error) {
		if err != nil {
			o.fail(err)
			return
		}
		o.syncAll(rest[1:])
	}
	rest[0].Sync(&o.t.op)
}

// readMetaFile reads both copies of meta. If one can't be read, err says why, and m is what the other says, if it is whole.
func readMetaFile(t *task, f aio.File, done func(m openedMeta, err error)) {
	var slots [2][]byte
	t.read(f, 0, metaSlotSize, func(b []byte, err0 error) {
		slots[0] = readable(b, err0)
		t.read(f, metaSlotSize, metaSlotSize, func(b []byte, err1 error) {
			slots[1] = readable(b, err1)
			if err0 != nil && err1 != nil {
				done(openedMeta{}, fmt.Errorf("the disk can't read meta: %w", errors.Join(err0, err1)))
				return
			}
			m, err := readMeta(slots)
			if err == nil && m.unread {
				err = ErrUnreadable
			}
			if err != nil {
				err = errors.Join(err, err0, err1)
			}
			done(m, err)
		})
	})
}

// readable returns a copy of what was read; nil if it could not be.
func readable(b []byte, err error) []byte {
	if err != nil {
		return nil
	}
	return append([]byte(nil), b...)
}

func (o *opening) gotMeta(m openedMeta, err error) {
	if err != nil {
		o.fail(err)
		return
	}
	r := newReplica(o.cfg, m.desc, m.raw, o.files)
	o.r = r
	r.m, r.saved = m.state, m.state
	r.metaSeq, r.metaSlot = m.seq, m.slot
	if r.m.fence > 0 && !invariant.Mutant("restart-forgets-confirmation") {
		r.lowerAt, r.lower = r.loop.Now(), true
	}
	r.flush.dirty, r.flush.oldest = true, 0
	r.cache.unsynced = true
	r.reconcileTerm = r.m.fence
	if m.damaged {
		r.log.Warn("one copy of meta is damaged; it may have been the newer one, so every chunk is taken as changed")
		r.allSuspect()
		o.healMeta = true
	}
	o.fixSizes()
}

// allSuspect takes every chunk as having been written in any period there can have been.
func (r *Replica) allSuspect() {
	r.m.all = max((r.m.fence+1)<<32-1, r.m.checkpoint+1)
	r.m.allKept = true
}

// fixSizes gives files that were cut short their size back. What is missing reads as zeros, which the sums find.
func (o *opening) fixSizes() {
	r := o.r
	var err error
	r.loop.Work(func() {
		for _, x := range []struct {
			f    aio.File
			size int64
		}{{r.files.head, r.desc.Size}, {r.files.sums, r.chunks * sumsSize}, {r.files.journal, journalSize}} {
			n, e := x.f.Size()
			if e == nil && n < x.size {
				o.cut = o.cut || x.f == r.files.journal
				e = x.f.Truncate(x.size)
			}
			err = errors.Join(err, e)
		}
	}, func() {
		if err != nil {
			o.fail(err)
			return
		}
		o.t.readPatiently(r.files.journal, 0, journalSize, o.gotJournal)
	})
}

func (o *opening) gotJournal(b []byte, err error) {
	r := o.r
	var found journalFound
	if errors.Is(err, syscall.EIO) {
		found.damaged = true
	} else if err != nil {
		o.fail(err)
		return
	} else if found, err = readJournal(b, r.chunks); err != nil {
		o.fail(err)
		return
	}
	if found.damaged = found.damaged || o.cut || found.seq < r.m.journalSeq; found.damaged {
		r.log.Warn("the journal is damaged, so every chunk is taken as changed")
		r.allSuspect()
	} else {
		r.journal.recover(found)
	}
	if r.m == r.saved && !o.healMeta {
		o.healJournal(found.damaged)
		return
	}
	r.saveMeta(func(err error) {
		if err != nil {
			o.fail(err)
			return
		}
		o.healJournal(found.damaged)
	})
}

// recover takes over what the file had.
func (j *journal) recover(f journalFound) {
	r := j.r
	j.seq = f.seq
	j.slots = make([][]int64, journalSlots)
	for _, c := range slices.Sorted(maps.Keys(f.entries)) {
		e := f.entries[c]
		if e.period <= r.m.checkpoint {
			continue
		}
		if e.kept || e.period>>32 < r.m.fence {
			r.unrec.add(c)
		}
		if !invariant.Mutant("sums-trusted-after-crash") {
			r.suspect.add(c)
		}
		r.crashed.add(c)
		if !invariant.Mutant("touch-keeps-gen") {
			r.gens[c] = e.period // raised to what the file has, later
		}
		if e.period <= r.m.all {
			continue
		}
		slot := f.slots[c]
		j.live[c] = record{period: e.period, slot: int16(slot)}
		j.slots[slot] = append(j.slots[slot], c)
	}
}

// healJournal empties a damaged journal: meta says by now that all chunks are in it.
func (o *opening) healJournal(damaged bool) {
	if !damaged {
		o.readGens(0)
		return
	}
	r := o.r
	buf := getMem(r.loop, journalSize)
	clear(buf.b)
	o.t.op.Done = func(_ int, err error) {
		putMem(r.loop, buf)
		if err != nil {
			o.fail(err)
			return
		}
		o.readGens(0)
	}
	r.files.journal.WriteSync(&o.t.op, buf.b, 0)
}

// readGens reads the gens from block number at on.
func (o *opening) readGens(at int64) {
	r := o.r
	total := gensBlocks(r.chunks)
	if at >= total {
		o.finish()
		return
	}
	n := min(total-at, 256)
	o.t.readPatiently(r.files.gens, at*block.Size, int(n)*block.Size, func(b []byte, err error) {
		if err != nil && !errors.Is(err, syscall.EIO) {
			o.fail(err)
			return
		}
		for i := range n {
			v := frameDamaged
			if err == nil {
				v = r.loadGens(b[i*block.Size:(i+1)*block.Size], at+i)
			}
			switch v {
			case frameNewer:
				o.fail(ErrVersion)
				return
			case frameDamaged:
				o.gensDamaged(at + i)
			}
		}
		o.readGens(at + n)
	})
}

// loadGens takes over a block of gens. What the journal says stands if it is higher.
func (r *Replica) loadGens(b []byte, index int64) verdict {
	lo := index * gensPerBlock
	hi := min(lo+gensPerBlock, r.chunks)
	var gens [gensPerBlock]uint64
	v := decodeGens(b, index, gens[:hi-lo], r.checks[lo:hi])
	if v != frameWhole {
		return v
	}
	for i, g := range gens[:hi-lo] {
		r.gens[lo+int64(i)] = max(r.gens[lo+int64(i)], g)
	}
	return v
}

// gensDamaged marks the gens of a block, which finish sets, and their checksums as unknown.
func (o *opening) gensDamaged(index int64) {
	r := o.r
	r.log.Warn("a block of gens is damaged: its chunks are taken as just written", "block", index)
	r.gensDirty.add(index)
	lo := index * gensPerBlock
	for c := lo; c < min(lo+gensPerBlock, r.chunks); c++ {
		r.checks[c] = checkUnknown
	}
	o.r.gensLost = append(o.r.gensLost, index)
}

// finish sets what depends on everything that was read.
func (o *opening) finish() {
	r := o.r
	highest := r.m.checkpoint
	for _, g := range r.gens {
		highest = max(highest, g)
	}
	for _, index := range r.gensLost {
		lo := index * gensPerBlock
		for c := lo; c < min(lo+gensPerBlock, r.chunks); c++ {
			r.gens[c] = highest
		}
	}
	r.gensLost = nil
	if r.m.all > r.m.checkpoint {
		for c := range r.gens {
			r.gens[c] = max(r.gens[c], r.m.all)
		}
		r.gensDirty.addAll()
		r.suspect.addAll()
		r.crashed.addAll()
		if r.m.allKept || r.m.all>>32 < r.m.fence {
			r.unrec.addAll()
		}
	}
	for c := r.suspect.next(0); c >= 0; c = r.suspect.next(c + 1) {
		r.gensDirty.add(c / gensPerBlock)
	}
	o.openSnaps()
}

// opened ends an Open that succeeded.
func (o *opening) opened() {
	r := o.r
	r.log.Debug("replica opened", "fence", r.m.fence, "checkpoint", r.m.checkpoint, "suspect", r.suspect.count, "snapshots", len(r.snaps.levels))
	o.done(r, nil)
}
