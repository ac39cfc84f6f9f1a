package sim

import "fmt"

// page is 4 KiB of a file. It never changes once it is in a table; who holds it counts
// in refs, and the last one gives it back.
type page struct {
	refs int32
	b    [pageSize]byte
}

// zeros is the page of an allocated range that reads as zeros. It isn't counted.
var zeros = &page{}

func (w *World) newPage() *page {
	if n := len(w.pages); n > 0 {
		p := w.pages[n-1]
		w.pages = w.pages[:n-1]
		p.refs = 1
		return p
	}
	return &page{refs: 1}
}

func (p *page) hold() *page {
	if p != nil && p != zeros {
		p.refs++
	}
	return p
}

func (w *World) drop(p *page) {
	if p == nil || p == zeros {
		return
	}
	p.refs--
	if p.refs == 0 && len(w.pages) < 4096 {
		w.pages = append(w.pages, p)
	}
}

const leafPages = 256

// table maps page numbers to pages; nil is a hole.
type table struct {
	leaves []*[leafPages]*page
}

func (t *table) get(i int64) *page {
	leaf := i / leafPages
	if leaf >= int64(len(t.leaves)) || t.leaves[leaf] == nil {
		return nil
	}
	return t.leaves[leaf][i%leafPages]
}

// set puts p, of which the table takes over the caller's hold, at i.
func (w *World) set(t *table, i int64, p *page) {
	leaf := i / leafPages
	if leaf >= int64(len(t.leaves)) {
		if p == nil {
			return
		}
		t.leaves = append(t.leaves, make([]*[leafPages]*page, leaf+1-int64(len(t.leaves)))...)
	}
	if t.leaves[leaf] == nil {
		if p == nil {
			return
		}
		t.leaves[leaf] = new([leafPages]*page)
	}
	at := &t.leaves[leaf][i%leafPages]
	w.drop(*at)
	*at = p
}

// pages is one more than the highest page that the table can hold now.
func (t *table) pages() int64 { return int64(len(t.leaves)) * leafPages }

// changeKind says what a change does to a file.
type changeKind uint8

const (
	chWrite    changeKind = iota // pages at off
	chPunch                      // holes at off, n
	chZero                       // zeros at off, n
	chTruncate                   // the size, from oldSize to size
	chClone                      // pages of another file at off, holes too
)

func (k changeKind) String() string {
	return [...]string{"write", "punch", "zero", "truncate", "clone"}[k]
}

// change is something done to a file that may not be durable yet.
type change struct {
	kind          changeKind
	off, n        int64
	pages         []*page
	size, oldSize int64
	// done is the file's count of answers when this one was answered; 0: not yet.
	done uint64
}

// span returns the range of pages that c concerns.
func (c *change) span() (from, to int64) {
	if c.kind == chTruncate {
		return min(c.size, c.oldSize) / pageSize, 1 << 50
	}
	return c.off / pageSize, (c.off + c.n + pageSize - 1) / pageSize
}

func (c *change) overlaps(o *change) bool {
	a0, a1 := c.span()
	b0, b1 := o.span()
	return a0 < b1 && b0 < a1
}

// inode is a file or a directory.
type inode struct {
	disk *Disk
	name string // where it was made, for messages

	// Of a directory: its entries as seen, and as they would be after a power loss.
	dir       bool
	ents, dur map[string]*inode

	// Of a file: its content as seen and as it would be after a power loss, and what
	// happened between the two, in order.
	cur, safe      table
	size, safeSize int64
	pending        []*change
	answers        uint64  // operations answered
	flying         []*ioOp // operations in flight, also of dead processes
	bad            map[int64]bool
	allocated      int64 // pages in cur
	removed        bool  // no name any more; its space was counted back
	// watch is told which pages, from … to-1, a change has made visible.
	watch func(from, to int64)
}

// apply does a change to a table (cur or safe) and returns the file's new size.
func (f *inode) apply(t *table, size int64, c *change) int64 {
	w := f.disk.w
	put := func(i int64, p *page) {
		if t == &f.cur {
			if old := f.cur.get(i); (old == nil) != (p == nil) {
				if p == nil {
					f.account(-1)
				} else {
					f.account(1)
				}
			}
		}
		w.set(t, i, p)
	}
	switch c.kind {
	case chWrite, chClone:
		for i, p := range c.pages {
			put(c.off/pageSize+int64(i), p.hold())
		}
		return max(size, c.off+c.n)
	case chPunch, chZero:
		from, to := c.span()
		if c.kind == chPunch {
			to = min(to, t.pages())
		} else {
			to = min(to, (size+pageSize-1)/pageSize)
		}
		var p *page
		if c.kind == chZero {
			p = zeros
		}
		for i := from; i < to; i++ {
			put(i, p)
		}
		return size
	case chTruncate:
		for i := (c.size + pageSize - 1) / pageSize; i < t.pages(); i++ {
			put(i, nil)
		}
		if part := c.size % pageSize; part != 0 {
			if old := t.get(c.size / pageSize); old != nil && old != zeros {
				p := w.newPage()
				copy(p.b[:part], old.b[:part])
				clear(p.b[part:])
				put(c.size/pageSize, p)
			}
		}
		return c.size
	}
	panic(fmt.Sprintf("sim: change %d", c.kind))
}

// account adds n pages to what the file occupies.
func (f *inode) account(n int64) {
	f.allocated += n
	if !f.removed {
		f.disk.used += n * pageSize
	}
}

// happen makes a change visible. It isn't durable.
func (f *inode) happen(c *change) {
	f.size = f.apply(&f.cur, f.size, c)
	if (c.kind == chWrite || c.kind == chClone) && len(f.bad) > 0 {
		for i := range c.pages {
			delete(f.bad, c.off/pageSize+int64(i))
		}
	}
	f.pending = append(f.pending, c)
	if f.watch != nil {
		from, to := c.span()
		f.watch(from, min(to, (max(f.size, c.oldSize)+pageSize-1)/pageSize))
	}
	if len(f.pending) > 2048 {
		// A disk writes back by itself.
		f.persist(func(i int, _ *change) bool { return i < 1024 })
	}
}

// persist makes the chosen changes durable, and every older one that overlaps one of
// those, so that order is kept where it can be seen.
func (f *inode) persist(chosen func(i int, c *change) bool) {
	must := make([]bool, len(f.pending))
	rest := 0
	for i, c := range f.pending {
		must[i] = chosen(i, c)
		if !must[i] {
			rest++
		}
	}
	if rest > 0 {
		for j := len(must) - 1; j >= 0; j-- {
			for i := j + 1; !must[j] && i < len(must); i++ {
				must[j] = must[i] && f.pending[j].overlaps(f.pending[i])
			}
		}
	}
	kept := f.pending[:0]
	for i, c := range f.pending {
		if !must[i] {
			kept = append(kept, c)
			continue
		}
		f.safeSize = f.apply(&f.safe, f.safeSize, c)
		f.release(c)
	}
	clear(f.pending[len(kept):])
	f.pending = kept
}

func (f *inode) release(c *change) {
	for _, p := range c.pages {
		f.disk.w.drop(p)
	}
	c.pages = nil
}

// powerLoss leaves of what was not durable what chance wants.
func (f *inode) powerLoss() {
	w := f.disk.w
	type span struct{ from, to int64 }
	var touched []span
	lost := f.pending
	w.stats.Unsynced += len(lost)
	for _, io := range f.flying {
		// A clone that hasn't begun has nothing yet.
		if c := io.takeChange(); c != nil && c.kind != chClone {
			lost = append(lost, c)
		}
	}
	f.flying = f.flying[:0]
	for _, c := range lost {
		from, to := c.span()
		touched = append(touched, span{from, to})
		switch r := w.rng.IntN(10); {
		case r < 4:
			w.stats.Kept++
			f.safeSize = f.apply(&f.safe, f.safeSize, c)
		case r < 7 && c.kind == chWrite:
			f.tear(c)
			w.stats.Torn++
			f.safeSize = f.apply(&f.safe, f.safeSize, c)
		case r < 7 && c.kind == chClone:
			w.shorten(c)
			w.stats.Torn++
			f.safeSize = f.apply(&f.safe, f.safeSize, c)
		}
		f.release(c)
	}
	f.pending = nil
	end := max(f.cur.pages(), f.safe.pages()) // of what is known now: a change that was kept may have been the first so far out
	for _, s := range touched {
		for i := s.from; i < min(s.to, end); i++ {
			if p := f.safe.get(i); p != f.cur.get(i) {
				w.set(&f.cur, i, p.hold())
			}
		}
	}
	f.size = f.safeSize
	if len(lost) > 0 {
		f.recount()
	}
}

// tear replaces the pages of an unsynced write by a mixture of sectors, old and new.
func (f *inode) tear(c *change) {
	w := f.disk.w
	const sector = 512
	prefix := w.rng.IntN(2) == 0
	cut := w.rng.IntN(len(c.pages)*pageSize/sector + 1)
	for i, p := range c.pages {
		mixed := w.newPage()
		if old := f.safe.get(c.off/pageSize + int64(i)); old != nil {
			mixed.b = old.b
		} else {
			clear(mixed.b[:])
		}
		for s := range pageSize / sector {
			isNew := i*(pageSize/sector)+s < cut
			if !prefix {
				isNew = w.rng.IntN(2) == 0
			}
			if isNew {
				copy(mixed.b[s*sector:(s+1)*sector], p.b[s*sector:])
			}
		}
		w.drop(p)
		c.pages[i] = mixed
	}
}

// recount counts anew what the file occupies.
func (f *inode) recount() {
	n := int64(0)
	for _, leaf := range f.cur.leaves {
		if leaf != nil {
			for _, p := range leaf {
				if p != nil {
					n++
				}
			}
		}
	}
	f.account(n - f.allocated)
}
