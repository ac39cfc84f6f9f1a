// Package aiotest is the contract of aio.Loop as tests: every implementation passes
// Run. The tests know nothing but the contract; a World tells them how to reach two
// loops of the implementation and how to let time pass.
//
// The test's goroutine touches loops by Post only, and waits with World.Await. It owns
// no other goroutine but in the test of Post itself.
package aiotest

import (
	"bytes"
	"fmt"
	"testing"
	"time"
	"unsafe"

	"keelson.io/keelson/internal/aio"
)

// Block is the alignment of file I/O.
const Block = 4096

// Target is where a loop can be dialled.
type Target struct {
	Node, Addr string
	Shard      int
}

// World is two running loops on two nodes, and what the tests need to know about them.
type World struct {
	Loops   [2]aio.Loop
	Dirs    [2]string // an existing, empty directory for each
	Targets [2]Target
	// Nowhere is a target where nobody answers.
	Nowhere Target
	// Await lets the loops go on until done is closed, and reports whether it was. It
	// gives up after a time that is long for any test.
	Await func(done <-chan struct{}) bool
	// Threads is set if the implementation runs on threads, so that other goroutines may
	// post at any moment.
	Threads bool
}

// Run runs the whole suite, with a new world for every test. The world is taken down
// by t.Cleanup.
func Run(t *testing.T, factory func(t *testing.T) World) {
	for _, c := range []struct {
		name string
		fn   func(*suite)
	}{
		{"FileReadsWhatWasWritten", testFileReadWrite},
		{"FileReadPastEnd", testFileReadPastEnd},
		{"FilePunchAndZero", testFilePunchZero},
		{"FileSizes", testFileSizes},
		{"FileDrain", testFileDrain},
		{"FileClone", testFileClone},
		{"FileBusyOpPanics", testFileBusyOp},
		{"FileErrors", testFileErrors},
		{"FileAgainstModel", testFileModel},
		{"FSNames", testFSNames},
		{"CallbacksAreNeverInsideCalls", testCallbacksLater},
		{"TimersInOrder", testTimersInOrder},
		{"TimerStopAndReset", testTimerStopReset},
		{"TimerOfZeroWaitsATurn", testTimerZero},
		{"NowAdvances", testNow},
		{"PostInOrder", testPostOrder},
		{"PostFromGoroutines", testPostGoroutines},
		{"Work", testWork},
		{"BuffersAligned", testBuffersAligned},
		{"BuffersUsedUp", testBuffersUsedUp},
		{"ConnStream", testConnStream},
		{"ConnLargeFrames", testConnLargeFrames},
		{"ConnFill", testConnFill},
		{"ConnDialFails", testConnDialFails},
		{"ConnRefused", testConnRefused},
		{"ConnClosedByDialler", func(s *suite) { testConnClose(s, true) }},
		{"ConnClosedByAccepter", func(s *suite) { testConnClose(s, false) }},
		{"ConnCloseInsideData", testConnCloseInsideData},
		{"ConnQueued", testConnQueued},
		{"ConnMany", testConnMany},
	} {
		t.Run(c.name, func(t *testing.T) { c.fn(&suite{T: t, w: factory(t)}) })
	}
}

// suite is one test at work.
type suite struct {
	*testing.T
	w World
}

// await waits for done.
func (s *suite) await(done <-chan struct{}, what string) {
	s.Helper()
	if !s.w.Await(done) {
		s.Fatalf("waited in vain for %s", what)
	}
}

// on runs fn on a loop and waits for it.
func (s *suite) on(i int, fn func(l aio.Loop)) {
	s.Helper()
	done := make(chan struct{})
	s.w.Loops[i].Post(func() {
		defer close(done)
		fn(s.w.Loops[i])
	})
	s.await(done, "a posted function")
}

// until has fn started on a loop and waits until the function that it is given is called.
func (s *suite) until(i int, what string, fn func(l aio.Loop, done func())) {
	s.Helper()
	done := make(chan struct{})
	s.w.Loops[i].Post(func() { fn(s.w.Loops[i], func() { close(done) }) })
	s.await(done, what)
}

// work runs fn on a worker of a loop and waits for it.
func (s *suite) work(i int, fn func()) {
	s.Helper()
	s.until(i, "work", func(l aio.Loop, done func()) { l.Work(fn, done) })
}

// must fails the test on an error.
func (s *suite) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// open makes a file on the first node.
func (s *suite) open(name string, flag int) (f aio.File) {
	s.Helper()
	var err error
	s.work(0, func() { f, err = s.w.Loops[0].FS().OpenFile(s.w.Dirs[0]+"/"+name, flag) })
	s.must(err)
	return f
}

// closeFile closes it.
func (s *suite) closeFile(f aio.File) {
	s.Helper()
	var err error
	s.work(0, func() { err = f.Close() })
	s.must(err)
}

// op starts one operation on the first loop and waits for its outcome.
func (s *suite) op(what string, start func(op *aio.Op)) (n int, err error) {
	s.Helper()
	s.until(0, what, func(_ aio.Loop, done func()) {
		start(&aio.Op{Done: func(m int, e error) {
			n, err = m, e
			done()
		}})
	})
	return n, err
}

// write, read, and so on do one operation that must succeed.
func (s *suite) write(f aio.File, p []byte, off int64) {
	s.Helper()
	n, err := s.op("a write", func(op *aio.Op) { f.WriteAt(op, p, off) })
	if n != len(p) || err != nil {
		s.Fatalf("write of %d at %d: %d, %v", len(p), off, n, err)
	}
}

func (s *suite) read(f aio.File, p []byte, off int64) int {
	s.Helper()
	n, err := s.op("a read", func(op *aio.Op) { f.ReadAt(op, p, off) })
	if err != nil {
		s.Fatalf("read of %d at %d: %v", len(p), off, err)
	}
	return n
}

func (s *suite) sync(f aio.File) {
	s.Helper()
	_, err := s.op("a sync", func(op *aio.Op) { f.Sync(op) })
	s.must(err)
}

// get takes a buffer of the first loop for the duration of the test.
func (s *suite) get(n int) (b []byte) {
	s.Helper()
	s.on(0, func(l aio.Loop) { b = l.Buffers().Get(n) })
	if b == nil {
		s.Fatalf("no buffer of %d bytes", n)
	}
	return b
}

// pattern fills p with bytes that differ by seed and by position.
func pattern(p []byte, seed uint64) {
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x)
	}
}

func patterned(n int, seed uint64) []byte {
	p := make([]byte, n)
	pattern(p, seed)
	return p
}

// same compares what was read.
func (s *suite) same(got, want []byte, what string) {
	s.Helper()
	if !bytes.Equal(got, want) {
		at := 0
		for at < len(got) && at < len(want) && got[at] == want[at] {
			at++
		}
		s.Fatalf("%s: %d and %d bytes differ from byte %d on", what, len(got), len(want), at)
	}
}

func aligned(b []byte) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Block == 0
}

// panics reports whether fn panics.
func panics(fn func()) (did bool) {
	defer func() { did = recover() != nil }()
	fn()
	return false
}

// soon is a time that a timer can tell from a longer one, in any implementation.
func soon(n int) time.Duration { return time.Duration(n) * 5 * time.Millisecond }

func name(i int) string { return fmt.Sprintf("file-%d", i) }
