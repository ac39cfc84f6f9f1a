package replica

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

const (
	unlinkRetry = time.Millisecond // how long a deletion waits for what is on its way into the snapshot
	handoverMax = 64               // chunks that are handed over together
)

// setting makes the replica's snapshots those that a KindSnaps names, one after the other: first it makes the missing ones, then
// it deletes the others. Every step can be repeated after a crash.
type setting struct {
	r *Replica
	o *op
	// unsure are those whose map may be another one in the file than in memory: before the replica is brought up to date by what memory says,
	// and in sync, the file has to say the same.
	unsure []*level
	make   []wanted
	gone   []*level
	op     aio.Op
}

// wanted is a snapshot that is to be made.
type wanted struct {
	period uint64
	size   int64
}

func (r *Replica) setSnaps(o *op) {
	if r.snaps.set != nil {
		r.snaps.sets.push(o)
		return
	}
	s := &setting{r: r, o: o}
	r.snaps.set = s
	last := uint64(0)
	keep := make(map[uint64]bool)
	for i := 0; i < len(o.req.Sums); i += 2 {
		p, size := o.req.Sums[i], o.req.Sums[i+1]
		if p <= last || size < block.Size || size%block.Size != 0 || size > uint64(r.desc.Size) {
			s.end(wire.StatusBadRequest)
			return
		}
		last, keep[p] = p, true
		if r.snaps.find(p) == nil {
			if p <= r.m.checkpoint && !invariant.Mutant("lost-snapshot-made-anew") {
				r.log.Error("a snapshot is missing that this replica must have", "snapshot", snapName(p), "checkpoint", r.m.checkpoint)
				s.end(wire.StatusBadRequest)
				return
			}
			s.make = append(s.make, wanted{p, int64(size)})
		}
	}
	for _, l := range r.snaps.levels {
		switch {
		case !keep[l.period]:
			s.gone = append(s.gone, l)
		case len(l.unsure) > 0:
			s.unsure = append(s.unsure, l)
		}
	}
	s.next()
}

func (s *setting) end(status wire.Status) {
	r, o := s.r, s.o
	r.snaps.set = nil
	r.finish(o, status)
	if next := r.snaps.sets.pop(); next != nil {
		r.setSnaps(next)
	}
}

func (s *setting) next() {
	switch {
	case len(s.unsure) > 0:
		l := s.unsure[0]
		s.unsure = s.unsure[1:]
		l.restate(func(err error) {
			if err != nil {
				s.failed("writing its map anew", l.period, err)
				return
			}
			s.next()
		})
	case len(s.make) > 0:
		w := s.make[0]
		s.make = s.make[1:]
		s.create(w.period, w.size)
	case len(s.gone) > 0:
		l := s.gone[0]
		s.gone = s.gone[1:]
		s.remove(l)
	default:
		s.end(wire.StatusOK)
	}
}

func (s *setting) failed(what string, period uint64, err error) {
	s.r.stats.IOErrors++
	s.r.log.Error("snapshot: "+what+" failed", "snapshot", snapName(period), "error", err)
	s.end(statusOf(err))
}

// create makes an empty snapshot. It appears whole or not at all.
func (s *setting) create(period uint64, size int64) {
	r := s.r
	l := newLevel(r, period, size)
	dir := filepath.Join(r.cfg.Dir, snapsName)
	tmp := filepath.Join(dir, CreatingPrefix+snapName(period))
	fsys := r.loop.FS()
	var err error
	fail := func() {
		r.loop.Work(func() {
			closeFiles(l.files())
			_ = fsys.RemoveAll(tmp)
		}, func() { s.failed("making it", period, err) })
	}
	r.loop.Work(func() { err = l.makeFiles(fsys, tmp) }, func() {
		if err != nil {
			fail()
			return
		}
		buf := r.getBuf(block.Size)
		encodeSnapHeader(buf.b, period, l.size)
		s.op.Done = func(_ int, e error) {
			r.putBuf(buf)
			if err = e; err != nil {
				fail()
				return
			}
			r.loop.Work(func() { err = l.publish(fsys, dir, tmp) }, func() {
				if err != nil {
					fail()
					return
				}
				r.snaps.insert(l)
				r.log.Info("snapshot made", "snapshot", snapName(period))
				s.next()
			})
		}
		l.meta.WriteSync(&s.op, buf.b, 0)
	})
}

func (l *level) makeFiles(fsys aio.FS, dir string) error {
	if err := fsys.RemoveAll(dir); err != nil {
		return err
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	return l.openFiles(fsys, dir, os.O_CREATE|os.O_EXCL)
}

// openFiles opens the snapshot's files and gives them their sizes.
func (l *level) openFiles(fsys aio.FS, dir string, flag int) error {
	for _, x := range []struct {
		name string
		size int64
		file *aio.File
	}{{"data", l.size, &l.data}, {sumsName, l.chunks * sumsSize, &l.sums}, {metaName, snapMetaSize(l.chunks), &l.meta}} {
		file, err := fsys.OpenFile(filepath.Join(dir, x.name), flag)
		if err != nil {
			return fmt.Errorf("file %s: %w", x.name, err)
		}
		*x.file = file
		n, err := file.Size()
		if err == nil && n < x.size {
			err = file.Truncate(x.size)
		}
		if err != nil {
			return fmt.Errorf("file %s: %w", x.name, err)
		}
	}
	return nil
}

// publish gives the finished directory its name.
func (l *level) publish(fsys aio.FS, dir, tmp string) error {
	if err := fsys.SyncDir(tmp); err != nil {
		return err
	}
	if err := fsys.Rename(tmp, filepath.Join(dir, snapName(l.period))); err != nil {
		return err
	}
	return fsys.SyncDir(dir)
}

func (s *snapshots) insert(l *level) {
	i, _ := slices.BinarySearchFunc(s.levels, l.period, func(o *level, p uint64) int {
		switch {
		case o.period < p:
			return -1
		case o.period > p:
			return 1
		}
		return 0
	})
	s.levels = slices.Insert(s.levels, i, l)
}

// remove deletes a snapshot: what the next older one needs is handed to it, and the rest is given back.
func (s *setting) remove(l *level) {
	l.closing = true
	if r := s.r; l.mapBusy || r.snaps.keep.uses(l) { // what is on its way into it has to be handed over too
		r.loop.NewTimer(func() { s.remove(l) }).Reset(unlinkRetry)
		return
	}
	older := s.r.snaps.older(l)
	if older == nil || invariant.Mutant("delete-without-handover") {
		s.unlink(l)
		return
	}
	var list []int64
	for c := l.held.next(0); c >= 0; c = l.held.next(c + 1) {
		if l.handsDown(older, c) != 0 {
			list = append(list, c)
		}
	}
	s.handUnknown(l, older, func() { (&handover{s: s, from: l, to: older, list: list}).next() })
}

// handUnknown sees to it that an older snapshot doesn't fall through to what is newer where it isn't known what the deleted one holds.
func (s *setting) handUnknown(l, older *level, next func()) {
	var changes []mapChange
	for c := l.lost.next(0); c >= 0; c = l.lost.next(c + 1) {
		if !older.holds(c) {
			changes = append(changes, mapChange{chunk: c, lost: true})
		}
	}
	if len(changes) == 0 {
		next()
		return
	}
	older.commit(changes, func(err error) {
		if err != nil {
			s.failed("handing a damaged map over", l.period, err)
			return
		}
		next()
	})
}

// older returns the next older snapshot that stays.
func (s *snapshots) older(l *level) (older *level) {
	for _, o := range s.levels {
		if o.period < l.period && !o.closing {
			older = o
		}
	}
	return older
}

// handover moves chunks to an older snapshot, many at a time, as preserving does.
type handover struct {
	s        *setting
	from, to *level
	list     []int64
	changes  []mapChange // of those under way
	left     int
	err      error
}

func (h *handover) next() {
	if len(h.list) == 0 {
		h.s.unlink(h.from)
		return
	}
	n := min(len(h.list), handoverMax)
	batch := h.list[:n]
	h.changes, h.list = nil, h.list[n:]
	h.left, h.err = n, nil
	for _, chunk := range batch {
		h.from.handDown(h.to, chunk, func(change mapChange, err error) {
			h.changes = append(h.changes, change)
			if h.err == nil {
				h.err = err
			}
			if h.left--; h.left == 0 {
				h.sync()
			}
		})
	}
}

// handsDown returns the pieces of a chunk that an older snapshot finds in l. It lacks them, or the whole chunk.
func (l *level) handsDown(older *level, chunk int64) pieceSet {
	if chunk >= older.chunks || older.lost.has(chunk) {
		return 0
	}
	return l.pieces(chunk) &^ older.pieces(chunk)
}

// handDown brings what an older snapshot finds in l of a chunk to its own files, and calls done with what its map has to say when these are synced.
func (l *level) handDown(older *level, chunk int64, done func(mapChange, error)) {
	change := mapChange{chunk: chunk, pieces: l.handsDown(older, chunk), check: l.check(chunk)}
	list := change.pieces.extents(nil, extent{file: l.data, level: l, share: true, zero: change.check == 0}, chunk, older.size)
	l.r.move(list, older.data, func(err error) {
		if err != nil || change.check == 0 || older.holds(chunk) {
			done(change, err)
			return
		}
		l.copySums(older.sums, chunk, func(err error) { done(change, err) })
	})
}

// copySums copies the sums of a chunk that l holds and that isn't all zeros. They aren't verified: if they are damaged they stay so, and may be mended there.
func (l *level) copySums(to aio.File, chunk int64, done func(error)) {
	op, buf := &aio.Op{}, l.r.getBuf(sumsSize)
	op.Done = func(n int, err error) {
		end := func(_ int, err error) {
			l.r.putBuf(buf)
			done(err)
		}
		if err != nil {
			end(0, err)
			return
		}
		clear(buf.b[n:])
		op.Done = end
		to.WriteAt(op, buf.b, chunk*sumsSize)
	}
	l.sums.ReadAt(op, buf.b, chunk*sumsSize)
}

func (h *handover) sync() {
	done := func(err error) {
		if err != nil {
			h.s.failed("handing chunks over", h.from.period, err)
			return
		}
		h.next()
	}
	if h.err != nil {
		done(h.err)
		return
	}
	syncFiles(&h.s.op, []aio.File{h.to.data, h.to.sums}, func(err error) {
		if err != nil {
			done(err)
			return
		}
		h.to.commit(h.changes, done)
	})
}

// unlink takes the snapshot out, waits until nobody reads it, and gives its space back.
func (s *setting) unlink(l *level) {
	r := s.r
	r.snaps.levels = slices.DeleteFunc(r.snaps.levels, func(o *level) bool { return o == l })
	l.idle = func() {
		fsys := r.loop.FS()
		dir := filepath.Join(r.cfg.Dir, snapsName)
		gone := filepath.Join(dir, DeletingPrefix+snapName(l.period))
		var err error
		r.loop.Work(func() {
			if err = fsys.Rename(filepath.Join(dir, snapName(l.period)), gone); err == nil {
				err = fsys.SyncDir(dir)
			}
			if l.unnamed = err == nil; l.unnamed {
				_ = l.data.Truncate(0) // an unlinked file's space may come back later than this returns
			}
			if err == nil {
				closeFiles(l.files())
				err = fsys.RemoveAll(gone)
			}
		}, func() {
			if err != nil {
				if !l.unnamed {
					r.snaps.insert(l) // to be tried again
				}
				s.failed("deleting it", l.period, err)
				return
			}
			r.log.Info("snapshot deleted", "snapshot", snapName(l.period))
			if len(r.snaps.levels) == 0 {
				r.snaps.settle.begin()
			}
			s.next()
		})
	}
	l.refs++
	l.release()
}
