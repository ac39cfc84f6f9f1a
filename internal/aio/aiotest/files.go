package aiotest

import (
	"errors"
	"math/rand/v2"
	"os"
	"slices"
	"syscall"

	"keelson.io/keelson/internal/aio"
)

func testFileReadWrite(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	b := s.get(64 << 10)
	for i, size := range []int{Block, 3 * Block, 64 << 10} {
		off := int64(i) * (1 << 20)
		pattern(b[:size], uint64(i))
		s.write(f, b[:size], off)
		clear(b)
		if n := s.read(f, b[:size], off); n != size {
			s.Fatalf("read %d of %d bytes", n, size)
		}
		s.same(b[:size], patterned(size, uint64(i)), "read after write")
	}
	big := s.get(1 << 20)
	pattern(big, 9)
	n, err := s.op("a durable write", func(op *aio.Op) { f.WriteSync(op, big, 8<<20) })
	if n != len(big) || err != nil {
		s.Fatalf("durable write: %d, %v", n, err)
	}
	clear(big)
	s.read(f, big, 8<<20)
	s.same(big, patterned(1<<20, 9), "read after a durable write")
	s.sync(f)
	// Between the writes there is nothing, and it reads as zeros.
	if n := s.read(f, b, 512<<10); n != len(b) || !allZero(b) {
		s.Fatalf("a hole: %d bytes, zeros: %v", n, allZero(b))
	}
}

func allZero(p []byte) bool {
	for _, x := range p {
		if x != 0 {
			return false
		}
	}
	return true
}

func testFileReadPastEnd(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	b := s.get(4 * Block)
	if n := s.read(f, b, 0); n != 0 {
		s.Fatalf("read %d bytes of an empty file", n)
	}
	pattern(b[:2*Block], 1)
	s.write(f, b[:2*Block], 0)
	if n := s.read(f, b, 0); n != 2*Block {
		s.Fatalf("read %d bytes over the end, not %d", n, 2*Block)
	}
	s.same(b[:2*Block], patterned(2*Block, 1), "a read over the end")
	clear(b)
	if n := s.read(f, b, 1<<20); n != 0 || !allZero(b) {
		s.Fatalf("read %d bytes behind the end", n)
	}
}

func testFilePunchZero(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	const size = 1 << 20
	b := s.get(size)
	pattern(b, 3)
	want := slices.Clone(b)
	s.write(f, b, 0)
	s.sync(f)
	before := s.allocated(f)

	_, err := s.op("a punch", func(op *aio.Op) { f.Punch(op, 64<<10, 256<<10) })
	s.must(err)
	clear(want[64<<10 : 320<<10])
	s.read(f, b, 0)
	s.same(b, want, "after a punch")
	if after := s.allocated(f); after > before-(128<<10) {
		s.Fatalf("punching 256 KiB changed the space from %d to %d", before, after)
	}

	before = s.allocated(f)
	_, err = s.op("a zero", func(op *aio.Op) { f.Zero(op, 512<<10, 128<<10) })
	s.must(err)
	clear(want[512<<10 : 640<<10])
	s.read(f, b, 0)
	s.same(b, want, "after a zero")
	if after := s.allocated(f); after < before {
		s.Fatalf("zeroing changed the space from %d to %d", before, after)
	}

	// Neither changes the size, and both may be larger than a buffer.
	_, err = s.op("a long punch", func(op *aio.Op) { f.Punch(op, 0, 64<<20) })
	s.must(err)
	if n := s.size(f); n != size {
		s.Fatalf("size %d after a punch over the end, not %d", n, size)
	}
	s.read(f, b, 0)
	if !allZero(b) {
		s.Fatal("not all zeros after a punch of everything")
	}
}

// testFileClone checks that a clone has what the source had, holes too, and that neither sees what the other becomes.
func testFileClone(s *suite) {
	src, dst := s.open("src", os.O_CREATE), s.open("dst", os.O_CREATE)
	defer s.closeFile(src)
	defer s.closeFile(dst)
	const size, at = 1 << 20, 4 << 20
	b := s.get(size)
	pattern(b, 3)
	want := slices.Clone(b)
	clear(want[64<<10 : 128<<10])
	s.write(src, b, at)
	_, err := s.op("a punch", func(op *aio.Op) { src.Punch(op, at+64<<10, 64<<10) })
	s.must(err)
	pattern(b, 4)
	s.write(dst, b, at) // which gives way, where the source has a hole too
	s.write(dst, b, 0)
	if _, err := s.op("a clone", func(op *aio.Op) { dst.Clone(op, src, at, size) }); err != nil {
		s.Fatal(err)
	}
	s.sync(dst)
	s.read(dst, b, at)
	s.same(b, want, "a clone")
	pattern(b, 5)
	s.write(src, b[:128<<10], at)
	pattern(b, 6)
	s.write(dst, b[:Block], at+512<<10)
	s.read(dst, b, at)
	s.same(b[:512<<10], want[:512<<10], "a clone whose source was changed")
	s.read(src, b, at)
	s.same(b[512<<10:], want[512<<10:], "a source whose clone was changed")
	s.read(dst, b, 0)
	s.same(b, patterned(size, 4), "what lies beside a clone")
	_, err = s.op("settling", func(op *aio.Op) { src.Settle(op) })
	s.must(err)
	s.read(src, b, at)
	s.same(b[512<<10:], want[512<<10:], "a source that was settled")
	if _, err := s.op("a clone of what isn't there", func(op *aio.Op) { dst.Clone(op, src, at, 2*size) }); err == nil {
		s.Fatal("a clone went over the end of its source")
	}
}

func (s *suite) allocated(f aio.File) (n int64) {
	s.Helper()
	var err error
	s.work(0, func() { n, err = f.Allocated() })
	s.must(err)
	return n
}

func (s *suite) size(f aio.File) (n int64) {
	s.Helper()
	var err error
	s.work(0, func() { n, err = f.Size() })
	s.must(err)
	return n
}

func testFileSizes(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	var err error
	s.work(0, func() { err = f.Truncate(1 << 30) })
	s.must(err)
	if n := s.size(f); n != 1<<30 {
		s.Fatalf("size %d after truncating to 1 GiB", n)
	}
	if n := s.allocated(f); n > 1<<20 {
		s.Fatalf("an empty file of 1 GiB occupies %d bytes", n)
	}
	b := s.get(Block)
	if n := s.read(f, b, 1<<30-Block); n != Block || !allZero(b) {
		s.Fatalf("the last block of an empty file: %d bytes", n)
	}
	pattern(b, 1)
	s.write(f, b, 4*Block)
	s.work(0, func() { err = f.Truncate(Block) })
	s.must(err)
	s.work(0, func() { err = f.Truncate(8 * Block) })
	s.must(err)
	if s.read(f, b, 4*Block); !allZero(b) {
		s.Fatal("data came back after the file was cut and grown again")
	}
}

func testFileDrain(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	b := s.get(16 * Block)
	pattern(b, 1)
	for i := range 4 {
		s.write(f, b, int64(i)*16*Block)
		var err error
		s.work(0, func() { err = f.Drain() })
		s.must(err)
	}
	if n := s.size(f); n != 64*Block {
		s.Fatalf("size %d after draining", n)
	}
}

func testFileBusyOp(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	b := s.get(2 * Block)
	again := false
	s.until(0, "a write", func(_ aio.Loop, done func()) {
		op := &aio.Op{}
		op.Done = func(int, error) { done() }
		f.WriteAt(op, b[:Block], 0)
		if !op.Busy {
			s.Error("an Op in flight isn't Busy")
		}
		again = panics(func() { f.WriteAt(op, b[Block:], Block) })
	})
	if !again {
		s.Fatal("an Op in flight could be submitted again")
	}
	// In its callback an Op is free again.
	s.until(0, "two writes of one Op", func(_ aio.Loop, done func()) {
		op, left := &aio.Op{}, 2
		op.Done = func(int, error) {
			if left--; left == 0 {
				done()
				return
			}
			f.WriteAt(op, b[:Block], 0)
		}
		f.WriteAt(op, b[:Block], 0)
	})
}

func testFileErrors(s *suite) {
	var err error
	s.work(0, func() { _, err = s.w.Loops[0].FS().OpenFile(s.w.Dirs[0]+"/none", 0) })
	if !errors.Is(err, os.ErrNotExist) {
		s.Fatalf("opening what isn't there: %v", err)
	}
	s.closeFile(s.open("f", os.O_CREATE|os.O_EXCL))
	s.work(0, func() { _, err = s.w.Loops[0].FS().OpenFile(s.w.Dirs[0]+"/f", os.O_CREATE|os.O_EXCL) })
	if !errors.Is(err, os.ErrExist) {
		s.Fatalf("making what is there: %v", err)
	}
	f := s.open("f", 0)
	defer s.closeFile(f)
	b := s.get(Block)
	_, err = s.op("a read", func(op *aio.Op) { f.ReadAt(op, b, -Block) })
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		s.Fatalf("a read before the start of the file: %v, not an Errno", err)
	}
}

func testFSNames(s *suite) {
	fs, dir := s.w.Loops[0].FS(), s.w.Dirs[0]
	var err error
	s.work(0, func() {
		err = errors.Join(fs.MkdirAll(dir+"/a/b/c"), fs.MkdirAll(dir+"/a/b"), fs.SyncDir(dir+"/a"))
	})
	s.must(err)
	for i := range 3 {
		s.closeFile(s.open("a/"+name(i), os.O_CREATE))
	}
	var names []string
	s.work(0, func() {
		err = errors.Join(fs.Rename(dir+"/a/file-0", dir+"/a/b/moved"), fs.SyncDir(dir+"/a"), fs.SyncDir(dir+"/a/b"))
		var e error
		names, e = fs.ReadDir(dir + "/a")
		err = errors.Join(err, e)
	})
	s.must(err)
	slices.Sort(names)
	if want := []string{"b", "file-1", "file-2"}; !slices.Equal(names, want) {
		s.Fatalf("the directory holds %v, not %v", names, want)
	}
	var was, is, gone bool
	var size, free int64
	s.work(0, func() {
		was, is = fs.Exists(dir+"/a/file-0"), fs.Exists(dir+"/a/b/moved")
		err = fs.RemoveAll(dir + "/a")
		gone = !fs.Exists(dir + "/a")
		var e error
		size, free, e = fs.Space(dir)
		err = errors.Join(err, e, fs.RemoveAll(dir+"/nothing"))
	})
	s.must(err)
	if was || !is || !gone {
		s.Fatalf("after a rename: the old name %v, the new %v; after a removal gone: %v", was, is, gone)
	}
	if free <= 0 || free > size {
		s.Fatalf("space: %d of %d are free", free, size)
	}
	s.work(0, func() { _, err = fs.ReadDir(dir + "/a") })
	if !errors.Is(err, os.ErrNotExist) {
		s.Fatalf("reading a directory that isn't there: %v", err)
	}
}

const (
	modelBlocks = 256
	modelSteps  = 10000
	modelDepth  = 16
)

// modelRun is a random sequence of operations, several in flight, and what the file
// must hold. Operations in flight never overlap.
type modelRun struct {
	s      *suite
	rng    *rand.Rand
	f      aio.File
	bufs   aio.Buffers
	blocks [modelBlocks]uint64 // the seed of what a block holds; 0: zeros
	locked [modelBlocks]bool
	steps  int
	flying int
	done   func()
}

// testFileModel does 10,000 random operations and compares with a model.
func testFileModel(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	var err error
	s.work(0, func() { err = f.Truncate(modelBlocks * Block) })
	s.must(err)
	m := &modelRun{s: s, rng: rand.New(rand.NewPCG(1, 2)), f: f}
	s.until(0, "random operations", func(l aio.Loop, done func()) {
		m.bufs, m.done = l.Buffers(), done
		m.launch()
	})
}

// launch starts operations until modelDepth are in flight.
func (m *modelRun) launch() {
	for tries := 0; m.flying < modelDepth && m.steps < modelSteps && tries < 100 && !m.s.Failed(); tries++ {
		at := m.rng.IntN(modelBlocks)
		n := 1 + m.rng.IntN(min(8, modelBlocks-at))
		if !slices.Contains(m.locked[at:at+n], true) {
			m.start(at, n)
		}
	}
	if m.flying == 0 {
		m.done()
	}
}

func (m *modelRun) start(at, n int) {
	m.steps++
	m.flying++
	for i := at; i < at+n; i++ {
		m.locked[i] = true
	}
	off, size := int64(at)*Block, n*Block
	b := m.bufs.Get(size)
	kind := m.rng.IntN(10)
	set := func(seed uint64) {
		for i := range n {
			m.blocks[at+i] = seed
			if seed != 0 {
				m.blocks[at+i] += uint64(i)
				pattern(b[i*Block:(i+1)*Block], m.blocks[at+i])
			}
		}
	}
	op := &aio.Op{}
	op.Done = func(got int, err error) {
		if err != nil || kind < 8 && got != size {
			m.s.Errorf("operation %d at block %d: %d bytes of %d, %v", kind, at, got, size, err)
		}
		if kind < 4 {
			m.check(b, at, n)
		}
		m.bufs.Put(b)
		for i := at; i < at+n; i++ {
			m.locked[i] = false
		}
		m.flying--
		m.launch()
	}
	switch {
	case kind < 4:
		pattern(b, 1<<40)
		m.f.ReadAt(op, b, off)
	case kind < 7:
		set(uint64(m.steps) * 1000)
		m.f.WriteAt(op, b, off)
	case kind == 7:
		set(uint64(m.steps) * 1000)
		m.f.WriteSync(op, b, off)
	case kind == 8:
		set(0)
		m.f.Punch(op, off, int64(size))
	default:
		set(0)
		m.f.Zero(op, off, int64(size))
	}
}

func (m *modelRun) check(b []byte, at, n int) {
	want := make([]byte, Block)
	for i := range n {
		clear(want)
		if seed := m.blocks[at+i]; seed != 0 {
			pattern(want, seed)
		}
		if string(b[i*Block:(i+1)*Block]) != string(want) {
			m.s.Errorf("block %d doesn't hold what was written to it (step %d)", at+i, m.steps)
		}
	}
}
