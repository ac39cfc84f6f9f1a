package replica

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

// openSnaps opens the snapshots, and removes what interrupted creations and deletions left.
func (o *opening) openSnaps() {
	r := o.r
	dir := filepath.Join(r.cfg.Dir, snapsName)
	fsys := r.loop.FS()
	var found []*level
	var err error
	r.loop.Work(func() {
		var names []string
		if !fsys.Exists(dir) {
			return
		}
		if names, err = fsys.ReadDir(dir); err != nil {
			return
		}
		for _, name := range names {
			period, ok := parseSnapName(name)
			if !ok {
				if strings.HasPrefix(name, CreatingPrefix) || strings.HasPrefix(name, DeletingPrefix) {
					err = errors.Join(err, fsys.RemoveAll(filepath.Join(dir, name)))
				}
				continue
			}
			l := newLevel(r, period, r.desc.Size)
			found = append(found, l)
			for _, x := range []string{"data", sumsName, metaName} {
				if !fsys.Exists(filepath.Join(dir, name, x)) {
					err = errors.Join(err, fmt.Errorf("%w: file %s of snapshot %s is missing", ErrDamaged, x, name))
				}
			}
			if err == nil {
				err = l.reopen(filepath.Join(dir, name))
			}
			if err != nil {
				return
			}
		}
	}, func() {
		r.snaps.levels = found
		slices.SortFunc(found, func(a, b *level) int {
			if a.period < b.period {
				return -1
			}
			return 1
		})
		if err != nil {
			o.failSnaps(err)
			return
		}
		o.readSnaps(found)
	})
}

// reopen opens and drains the files.
func (l *level) reopen(dir string) error {
	for _, x := range []struct {
		name string
		file *aio.File
	}{{"data", &l.data}, {sumsName, &l.sums}, {metaName, &l.meta}} {
		file, err := l.r.loop.FS().OpenFile(filepath.Join(dir, x.name), 0)
		if err != nil {
			return fmt.Errorf("snapshot %016x: file %s: %w", l.period, x.name, err)
		}
		*x.file = file
		if invariant.Mutant("no-drain") {
			continue
		}
		if err := file.Drain(); err != nil {
			return fmt.Errorf("snapshot %016x: file %s: %w", l.period, x.name, err)
		}
	}
	return nil
}

func (o *opening) failSnaps(err error) {
	for _, l := range o.r.snaps.levels {
		o.files.snaps = append(o.files.snaps, l.files()...)
	}
	o.fail(err)
}

// readSnaps syncs and reads one snapshot after the other.
func (o *opening) readSnaps(rest []*level) {
	if len(rest) == 0 {
		o.opened()
		return
	}
	l := rest[0]
	syncFiles(&o.t.op, l.files(), func(err error) {
		if err != nil {
			o.failSnaps(fmt.Errorf("snapshot %016x: %w", l.period, err))
			return
		}
		o.t.readPatiently(l.meta, 0, block.Size, func(b []byte, err error) {
			if err == nil {
				err = l.take(b)
			}
			if err != nil {
				o.failSnaps(fmt.Errorf("snapshot %016x: %w", l.period, err))
				return
			}
			o.fixSnap(l, func() { o.readMap(l, 0, func() { o.readSnaps(rest[1:]) }) })
		})
	})
}

// take takes the header over.
func (l *level) take(b []byte) error {
	period, size, v := decodeSnapHeader(b)
	switch {
	case v == frameNewer:
		return ErrVersion
	case v != frameWhole || period != l.period || size > l.r.desc.Size:
		return fmt.Errorf("%w: its header is not valid", ErrDamaged)
	}
	l.size, l.chunks = size, block.Chunks(size)
	l.held.size, l.lost.size = l.chunks, l.chunks
	return nil
}

// fixSnap gives files that a power loss left short their size.
func (o *opening) fixSnap(l *level, next func()) {
	var err error
	o.r.loop.Work(func() {
		for _, x := range []struct {
			f    aio.File
			size int64
		}{{l.data, l.size}, {l.sums, l.chunks * sumsSize}, {l.meta, snapMetaSize(l.chunks)}} {
			n, e := x.f.Size()
			if e == nil && n < x.size {
				e = x.f.Truncate(x.size)
			}
			err = errors.Join(err, e)
		}
	}, func() {
		if err != nil {
			o.failSnaps(err)
			return
		}
		next()
	})
}

// readMap reads the map from block number at on.
func (o *opening) readMap(l *level, at int64, next func()) {
	total := snapMapBlocks(l.chunks)
	if at >= total {
		next()
		return
	}
	n := min(total-at, 256)
	o.t.readPatiently(l.meta, snapHeader+at*block.Size, int(n)*block.Size, func(b []byte, err error) {
		for i := range n {
			p := &mapPart{}
			lo := (at + i) * mapPerBlock
			lost := func(k int) {
				if c := lo + int64(k); c < l.chunks {
					l.lost.add(c)
				}
			}
			if err != nil {
				for k := range mapPerBlock {
					lost(k)
				}
				continue
			}
			if p.decode(b[i*block.Size:(i+1)*block.Size], at+i, lost) == frameNewer {
				o.failSnaps(ErrVersion)
				return
			}
			for k, pieces := range p.pieces {
				if c := lo + int64(k); pieces != 0 && c < l.chunks {
					l.parts[at+i] = p
					l.held.add(c)
				}
			}
		}
		if l.lost.count > 0 {
			o.r.log.Error("the map of a snapshot is damaged: those chunks of it can't be read here", "snapshot", snapName(l.period), "chunks", l.lost.count)
		}
		o.readMap(l, at+n, next)
	})
}
