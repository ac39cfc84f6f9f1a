package sim

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"keelson.io/keelson/internal/aio"
)

// dirOp is a change of directories: a name given, taken away, or moved in one step.
type dirOp struct {
	from, to         *inode // directories; nil: none
	fromName, toName string
	ino              *inode
}

func (op dirOp) applyTo(ents func(dir *inode) map[string]*inode) {
	if op.from != nil {
		delete(ents(op.from), op.fromName)
	}
	if op.to != nil {
		ents(op.to)[op.toName] = op.ino
	}
}

func (op *dirOp) sharesName(o *dirOp) bool {
	same := func(a *inode, an string, b *inode, bn string) bool { return a != nil && a == b && an == bn }
	return same(op.from, op.fromName, o.from, o.fromName) || same(op.from, op.fromName, o.to, o.toName) ||
		same(op.to, op.toName, o.from, o.fromName) || same(op.to, op.toName, o.to, o.toName)
}

func (d *Disk) newInode(name string, dir bool) *inode {
	f := &inode{disk: d, name: d.node.name + ":" + name, dir: dir}
	if dir {
		f.ents, f.dur = make(map[string]*inode), make(map[string]*inode)
	}
	return f
}

func sortedNames(m map[string]*inode) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// find returns what has that path, or nil.
func (d *Disk) find(name string) *inode {
	at := d.root
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		if part == "" {
			continue
		}
		if at = at.ents[part]; at == nil {
			return nil
		}
	}
	return at
}

func (d *Disk) do(op dirOp) {
	op.applyTo(func(dir *inode) map[string]*inode { return dir.ents })
	d.log = append(d.log, op)
}

// procFS is a process's view of its node's file system. Its methods run inside Work or
// outside events, and each is one step: a process that is to die inside Work dies
// between two of them.
type procFS struct{ l *Loop }

var _ aio.FS = (*procFS)(nil)

// enter is the beginning of every blocking call.
func (s *procFS) enter(call string) error {
	l := s.l
	if l.w.ctx == onLoop {
		panic(fmt.Sprintf("sim: %s blocks, and was called on the loop", call))
	}
	if l.dead {
		return syscall.EIO
	}
	if l.crashAt > 0 && l.w.ctx == onWorker {
		if l.crashAt--; l.crashAt == 0 {
			l.w.Tracef("%s: dies before %s", l.node.name, call)
			l.node.Crash()
			panic(killed{l})
		}
	}
	return nil
}

func pathErr(op, name string, err error) error { return &os.PathError{Op: op, Path: name, Err: err} }

// OpenFile implements aio.FS.
func (s *procFS) OpenFile(name string, flag int) (aio.File, error) {
	if err := s.enter("OpenFile " + name); err != nil {
		return nil, pathErr("open", name, err)
	}
	d := s.l.node.disk
	f := d.find(name)
	switch {
	case f == nil && flag&os.O_CREATE == 0:
		return nil, pathErr("open", name, syscall.ENOENT)
	case f != nil && flag&os.O_EXCL != 0:
		return nil, pathErr("open", name, syscall.EEXIST)
	case f != nil && f.dir:
		return nil, pathErr("open", name, syscall.EISDIR)
	case f == nil:
		dir := d.find(path.Dir(name))
		if dir == nil || !dir.dir {
			return nil, pathErr("open", name, syscall.ENOENT)
		}
		if d.used >= d.quota {
			return nil, pathErr("open", name, syscall.ENOSPC)
		}
		f = d.newInode(name, false)
		d.do(dirOp{to: dir, toName: path.Base(name), ino: f})
	}
	h := &file{l: s.l, ino: f}
	if flag&os.O_TRUNC != 0 && f.size > 0 {
		if err := h.Truncate(0); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// MkdirAll implements aio.FS.
func (s *procFS) MkdirAll(name string) error {
	if err := s.enter("MkdirAll " + name); err != nil {
		return pathErr("mkdir", name, err)
	}
	d := s.l.node.disk
	at, full := d.root, ""
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		if part == "" {
			continue
		}
		full += "/" + part
		next := at.ents[part]
		if next == nil {
			next = d.newInode(full, true)
			d.do(dirOp{to: at, toName: part, ino: next})
		} else if !next.dir {
			return pathErr("mkdir", name, syscall.ENOTDIR)
		}
		at = next
	}
	return nil
}

// RemoveAll implements aio.FS.
func (s *procFS) RemoveAll(name string) error {
	if err := s.enter("RemoveAll " + name); err != nil {
		return pathErr("remove", name, err)
	}
	d := s.l.node.disk
	dir := d.find(path.Dir(name))
	if dir == nil || dir.ents[path.Base(name)] == nil {
		return nil
	}
	d.remove(dir, path.Base(name))
	return nil
}

func (d *Disk) remove(dir *inode, name string) {
	f := dir.ents[name]
	for _, sub := range sortedNames(f.ents) {
		d.remove(f, sub)
	}
	d.do(dirOp{from: dir, fromName: name, ino: f})
	d.forget(f)
}

// forget counts back the space of a file that has no name any more.
func (d *Disk) forget(f *inode) {
	if !f.removed {
		d.used -= f.allocated * pageSize
		f.removed = true
	}
}

// Rename implements aio.FS.
func (s *procFS) Rename(from, to string) error {
	if err := s.enter("Rename " + from); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	d := s.l.node.disk
	a, b := d.find(path.Dir(from)), d.find(path.Dir(to))
	if a == nil || b == nil || a.ents[path.Base(from)] == nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOENT}
	}
	f := a.ents[path.Base(from)]
	if old := b.ents[path.Base(to)]; old != nil && old != f {
		if old.dir && len(old.ents) > 0 {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOTEMPTY}
		}
		d.forget(old)
	}
	d.do(dirOp{from: a, fromName: path.Base(from), to: b, toName: path.Base(to), ino: f})
	return nil
}

// ReadDir implements aio.FS.
func (s *procFS) ReadDir(name string) ([]string, error) {
	if err := s.enter("ReadDir " + name); err != nil {
		return nil, pathErr("readdir", name, err)
	}
	f := s.l.node.disk.find(name)
	if f == nil || !f.dir {
		return nil, pathErr("readdir", name, syscall.ENOENT)
	}
	return sortedNames(f.ents), nil
}

// Exists implements aio.FS.
func (s *procFS) Exists(name string) bool {
	if s.enter("Exists "+name) != nil {
		return false
	}
	return s.l.node.disk.find(name) != nil
}

// SyncDir implements aio.FS. Only what concerns this very directory becomes durable.
func (s *procFS) SyncDir(name string) error {
	if err := s.enter("SyncDir " + name); err != nil {
		return pathErr("sync", name, err)
	}
	d := s.l.node.disk
	dir := d.find(name)
	if dir == nil || !dir.dir {
		return pathErr("sync", name, syscall.ENOENT)
	}
	// What is durable is every change of this directory, and what such a change builds on.
	chosen := make([]bool, len(d.log))
	for i := len(d.log) - 1; i >= 0; i-- {
		op := &d.log[i]
		chosen[i] = op.from == dir || op.to == dir
		for j := i + 1; !chosen[i] && j < len(d.log); j++ {
			chosen[i] = chosen[j] && op.sharesName(&d.log[j])
		}
	}
	kept := d.log[:0]
	for i, op := range d.log {
		if chosen[i] {
			op.applyTo(func(dir *inode) map[string]*inode { return dir.dur })
		} else {
			kept = append(kept, op)
		}
	}
	clear(d.log[len(kept):])
	d.log = kept
	return nil
}

// Space implements aio.FS.
func (s *procFS) Space(name string) (size, free int64, err error) {
	if err := s.enter("Space " + name); err != nil {
		return 0, 0, pathErr("statfs", name, err)
	}
	d := s.l.node.disk
	return d.quota, max(d.quota-d.used, 0), nil
}
