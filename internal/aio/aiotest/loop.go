package aiotest

import (
	"os"
	"slices"
	"sync"
	"time"

	"keelson.io/keelson/internal/aio"
)

// testCallbacksLater starts one of everything, and sees that nothing is called back
// before the function that started it has returned.
func testCallbacksLater(s *suite) {
	f := s.open("f", os.O_CREATE)
	defer s.closeFile(f)
	b := s.get(4 * Block)
	s.until(0, "one of everything", func(l aio.Loop, done func()) {
		inside, left := true, 0
		called := func() {
			if inside {
				s.Error("a callback ran inside the call that started its operation")
			}
			if left--; left == 0 {
				done()
			}
		}
		op := func() *aio.Op {
			left++
			return &aio.Op{Done: func(int, error) { called() }}
		}
		f.WriteAt(op(), b[:Block], 0)
		f.WriteSync(op(), b[Block:2*Block], Block)
		f.ReadAt(op(), b[2*Block:3*Block], 1<<20)
		f.Sync(op())
		f.Punch(op(), 2*Block, Block)
		f.Zero(op(), 3*Block, Block)
		f.ReadAt(op(), b[3*Block:], -Block)
		left += 3
		l.NewTimer(called).Reset(0)
		l.Post(called)
		l.Work(func() {}, called)
		left++
		l.Dial(s.w.Nowhere.Node, s.w.Nowhere.Addr, s.w.Nowhere.Shard, &handler{closed: func(aio.Conn, error) { called() }})
		inside = false
	})
}

func testTimersInOrder(s *suite) {
	var got []int
	s.until(0, "ten timers", func(l aio.Loop, done func()) {
		for _, n := range []int{3, 9, 1, 7, 5, 2, 8, 6, 4, 10} {
			l.NewTimer(func() {
				got = append(got, n)
				if len(got) == 10 {
					done()
				}
			}).Reset(soon(n))
		}
	})
	if !slices.IsSorted(got) {
		s.Fatalf("timers went off in the order %v", got)
	}
}

func testTimerStopReset(s *suite) {
	var stopped, moved, again int
	var at time.Duration
	s.until(0, "timers", func(l aio.Loop, done func()) {
		start := l.Now()
		t := l.NewTimer(func() { stopped++ })
		t.Reset(soon(1))
		t.Stop()
		t.Stop()
		m := l.NewTimer(func() { moved++; at = l.Now() - start })
		m.Reset(soon(1))
		m.Reset(soon(4))
		var r aio.Timer
		r = l.NewTimer(func() {
			if again++; again < 3 {
				r.Reset(soon(1))
			}
		})
		r.Reset(soon(1))
		// A timer that another one stops in the same moment doesn't go off.
		victim := l.NewTimer(func() { stopped++ })
		l.NewTimer(func() { victim.Stop() }).Reset(soon(2))
		victim.Reset(soon(6))
		l.NewTimer(done).Reset(soon(10))
	})
	if stopped != 0 || moved != 1 || again != 3 {
		s.Fatalf("stopped timers went off %d times, one that was reset %d, one that resets itself %d", stopped, moved, again)
	}
	if at < soon(4) {
		s.Fatalf("a timer of %v went off after %v", soon(4), at)
	}
}

func testTimerZero(s *suite) {
	turns := 0
	s.until(0, "timers of zero", func(l aio.Loop, done func()) {
		var t aio.Timer
		inside := false
		t = l.NewTimer(func() {
			if inside {
				s.Error("a timer went off inside Reset")
			}
			if turns++; turns == 100 {
				done()
				return
			}
			inside = true
			t.Reset(-time.Second)
			inside = false
		})
		t.Reset(0)
	})
}

func testNow(s *suite) {
	var a, b time.Duration
	s.until(0, "a timer", func(l aio.Loop, done func()) {
		a = l.Now()
		l.NewTimer(func() { b = l.Now(); done() }).Reset(soon(2))
	})
	if b-a < soon(2) {
		s.Fatalf("Now went from %v to %v over a timer of %v", a, b, soon(2))
	}
}

func testPostOrder(s *suite) {
	var got []int
	s.until(0, "posts", func(l aio.Loop, done func()) {
		for i := range 1000 {
			l.Post(func() { got = append(got, i) })
		}
		l.Post(func() {
			l.Post(done)
		})
	})
	if len(got) != 1000 || !slices.IsSorted(got) {
		s.Fatalf("%d of 1000 posted functions ran, in order: %v", len(got), slices.IsSorted(got))
	}
}

func testPostGoroutines(s *suite) {
	if !s.w.Threads {
		s.Skip("this implementation has no threads")
	}
	const goroutines, each = 8, 2000
	var last [goroutines]int
	count, done := 0, make(chan struct{})
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := 1; i <= each; i++ {
				s.w.Loops[0].Post(func() {
					if last[g] != i-1 {
						s.Errorf("goroutine %d: post %d ran after post %d", g, i, last[g])
					}
					last[g] = i
					if count++; count == goroutines*each {
						close(done)
					}
				})
			}
		})
	}
	wg.Wait()
	s.await(done, "posts from goroutines")
}

func testWork(s *suite) {
	const jobs = 100
	var mu sync.Mutex
	ran, finished := 0, 0
	s.until(0, "work", func(l aio.Loop, done func()) {
		for range jobs {
			own := 0
			l.Work(func() {
				mu.Lock()
				ran++
				mu.Unlock()
				own++
			}, func() {
				if own != 1 {
					s.Error("done came before the work was")
				}
				if finished++; finished == jobs {
					done()
				}
			})
		}
	})
	if ran != jobs {
		s.Fatalf("%d of %d ran", ran, jobs)
	}
}

func testBuffersAligned(s *suite) {
	s.on(0, func(l aio.Loop) {
		bufs := l.Buffers()
		var held [][]byte
		for round := range 3 {
			for _, n := range []int{1, 80, Block, Block + 1, 16 << 10, 20000, 64 << 10, 100000, 256 << 10, 1<<20 - 1, 1 << 20} {
				b := bufs.Get(n)
				if len(b) != n || !aligned(b) {
					s.Errorf("Get(%d): %d bytes, page-aligned: %v", n, len(b), aligned(b))
					return
				}
				pattern(b, uint64(len(held)))
				held = append(held, b)
			}
			for i, b := range held {
				if string(b) != string(patterned(len(b), uint64(i))) {
					s.Errorf("buffer %d of %d bytes shares memory with another (round %d)", i, len(b), round)
				}
			}
		}
		for i, b := range held {
			if i%2 == 0 {
				b = b[:1] // a prefix will do
			}
			bufs.Put(b)
		}
	})
}

func testBuffersUsedUp(s *suite) {
	s.on(0, func(l aio.Loop) {
		bufs := l.Buffers()
		drain := func(n int) (held [][]byte) {
			for {
				b := bufs.Get(n)
				if b == nil {
					return held
				}
				held = append(held, b)
				if len(held) > 1<<20 {
					s.Error("buffers have no bound")
					return held
				}
			}
		}
		counts := make(map[int]int)
		for range 2 {
			for _, n := range []int{1 << 20, Block, 64 << 10} {
				held := drain(n)
				if len(held) == 0 {
					s.Errorf("no buffer of %d bytes after others were put back", n)
					return
				}
				if before, ok := counts[n]; ok && before != len(held) {
					s.Errorf("%d buffers of %d bytes; there were %d before", len(held), n, before)
				}
				counts[n] = len(held)
				bufs.Put(held[0])
				b := bufs.Get(n)
				if b == nil {
					s.Errorf("no buffer of %d bytes after one was put back", n)
					return
				}
				held[0] = b
				for _, b := range held {
					bufs.Put(b)
				}
			}
		}
	})
}
