package replica

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

// Prefixes of the names of directories that are not, or no longer, replicas.
const (
	// CreatingPrefix marks one that is being created. After a crash it can be removed.
	CreatingPrefix = ".creating-"
	// DeletingPrefix marks one that is being removed. After a crash, Remove goes on with it.
	DeletingPrefix = ".deleting-"
)

// Create makes a new replica in cfg.Dir, whose parent exists, and opens it. It appears whole or not at all.
// done is called later, on the loop.
func Create(cfg Config, d Desc, done func(*Replica, error)) {
	fail := func(err error) {
		cfg.Loop.Post(func() { done(nil, fmt.Errorf("create replica %s: %w", cfg.Dir, err)) })
	}
	if err := d.validate(); err != nil {
		fail(err)
		return
	}
	raw, err := json.Marshal(d)
	if err != nil {
		fail(fmt.Errorf("%w: %w", ErrDesc, err))
		return
	}
	if len(raw) > maxDesc {
		fail(fmt.Errorf("%w: it takes %d bytes, %d are possible", ErrDesc, len(raw), maxDesc))
		return
	}
	tmp := filepath.Join(filepath.Dir(cfg.Dir), CreatingPrefix+filepath.Base(cfg.Dir))
	var f files
	cfg.Loop.Work(func() { f, err = makeFiles(cfg.Loop.FS(), cfg.Dir, tmp, d) }, func() {
		if err != nil {
			fail(err)
			return
		}
		writeFirst(cfg.Loop, f, raw, block.Chunks(d.Size), func(err error) {
			cfg.Loop.Work(func() {
				closeFiles(f.all())
				if err == nil {
					err = publish(cfg.Loop.FS(), tmp, cfg.Dir)
				}
				if err != nil {
					_ = cfg.Loop.FS().RemoveAll(tmp)
				}
			}, func() {
				if err != nil {
					fail(err)
					return
				}
				Open(cfg, done)
			})
		})
	})
}

func makeFiles(fsys aio.FS, dir, tmp string, d Desc) (f files, err error) {
	if fsys.Exists(dir) {
		return f, ErrExists
	}
	if err := fsys.RemoveAll(tmp); err != nil {
		return f, err
	}
	if err := fsys.MkdirAll(filepath.Join(tmp, snapsName)); err != nil {
		return f, err
	}
	chunks := block.Chunks(d.Size)
	for _, x := range []struct {
		name string
		size int64
		file *aio.File
	}{
		{headName, d.Size, &f.head}, {sumsName, chunks * sumsSize, &f.sums},
		{gensName, gensBlocks(chunks) * block.Size, &f.gens}, {journalName, journalSize, &f.journal}, {metaName, metaSize, &f.meta},
	} {
		file, err := fsys.OpenFile(filepath.Join(tmp, x.name), os.O_CREATE|os.O_EXCL)
		if err == nil {
			*x.file = file
			err = file.Truncate(x.size)
		}
		if err != nil {
			closeFiles(f.all())
			return f, fmt.Errorf("file %s: %w", x.name, err)
		}
	}
	return f, nil
}

// writeFirst writes empty gens, zeros to the journal, so that writing to it needs no space later, and meta.
func writeFirst(loop aio.Loop, f files, desc []byte, chunks int64, next func(error)) {
	op := &aio.Op{}
	buf := getMem(loop, journalSize)
	end := func(err error) {
		putMem(loop, buf)
		if err != nil {
			next(err)
			return
		}
		syncFiles(op, []aio.File{f.head, f.sums, f.gens, f.journal}, next)
	}
	meta := func(_ int, err error) {
		if err != nil {
			end(err)
			return
		}
		clear(buf.b)
		encodeMeta(buf.b[:metaSlotSize], 1, metaState{}, desc)
		encodeMeta(buf.b[metaSlotSize:metaSize], 2, metaState{}, desc)
		op.Done = func(_ int, err error) { end(err) }
		f.meta.WriteSync(op, buf.b[:metaSize], 0)
	}
	total, at := gensBlocks(chunks), int64(0)
	var none [gensPerBlock]uint64
	op.Done = func(_ int, err error) {
		if err != nil {
			end(err)
			return
		}
		if at == total {
			clear(buf.b)
			op.Done = meta
			f.journal.WriteAt(op, buf.b, 0)
			return
		}
		first, n := at, min(total-at, journalSize/block.Size)
		for i := range n {
			k := min(gensPerBlock, chunks-(first+i)*gensPerBlock)
			encodeGens(buf.b[i*block.Size:(i+1)*block.Size], first+i, none[:k], none[:k])
		}
		at += n
		f.gens.WriteAt(op, buf.b[:n*block.Size], first*block.Size)
	}
	f.head.Sync(op) // the size
}

func syncFiles(op *aio.Op, rest []aio.File, next func(error)) {
	if len(rest) == 0 {
		next(nil)
		return
	}
	op.Done = func(_ int, err error) {
		if err != nil {
			next(err)
			return
		}
		syncFiles(op, rest[1:], next)
	}
	rest[0].Sync(op)
}

// publish gives the finished directory its name.
func publish(fsys aio.FS, tmp, dir string) error {
	for _, d := range []string{filepath.Join(tmp, snapsName), tmp} {
		if err := fsys.SyncDir(d); err != nil {
			return err
		}
	}
	if err := fsys.Rename(tmp, dir); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

const (
	// removeSteps is into how many portions a head is cut, at most.
	removeSteps = 1024
	removeLeast = 256 << 20 // bytes of the smallest portion
)

// Remove removes the replica in dir, which isn't open, or one whose removal was interrupted (its name then has
// DeletingPrefix). Its space is given back in portions. That there is none is no error. done is called later, on the loop.
func Remove(loop aio.Loop, dir string, done func(error)) {
	fsys := loop.FS()
	gone := dir
	if !strings.HasPrefix(filepath.Base(dir), DeletingPrefix) {
		gone = filepath.Join(filepath.Dir(dir), DeletingPrefix+filepath.Base(dir))
	}
	var head aio.File
	var size int64
	var err error
	finish := func() {
		loop.Work(func() {
			if head != nil {
				_ = head.Close()
			}
			if err == nil {
				err = fsys.RemoveAll(gone)
			}
			if err == nil {
				err = fsys.SyncDir(filepath.Dir(gone))
			}
		}, func() {
			if err != nil {
				err = fmt.Errorf("remove replica %s: %w", dir, err)
			}
			done(err)
		})
	}
	loop.Work(func() { head, size, err = startRemove(fsys, dir, gone) }, func() {
		if err != nil || head == nil {
			finish()
			return
		}
		portion := max(size/removeSteps, removeLeast)
		var cut func()
		cut = func() {
			if err != nil || size == 0 {
				finish()
				return
			}
			size = max(size-portion, 0)
			loop.Work(func() { err = head.Truncate(size) }, cut)
		}
		cut()
	})
}

func startRemove(fsys aio.FS, dir, gone string) (head aio.File, size int64, err error) {
	if dir != gone && fsys.Exists(dir) {
		if err := fsys.RemoveAll(gone); err != nil {
			return nil, 0, err
		}
		if err := fsys.Rename(dir, gone); err != nil {
			return nil, 0, err
		}
		if err := fsys.SyncDir(filepath.Dir(gone)); err != nil {
			return nil, 0, err
		}
	}
	name := filepath.Join(gone, headName)
	if !fsys.Exists(name) {
		return nil, 0, nil
	}
	if head, err = fsys.OpenFile(name, 0); err != nil {
		return nil, 0, err
	}
	size, err = head.Size()
	return head, size, err
}
