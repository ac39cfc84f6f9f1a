package ring_test

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
)

func descriptors(t *testing.T) int {
	t.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(e)
}

// ownGoroutines counts the goroutines that run code of this package.
func ownGoroutines() int {
	b := make([]byte, 1<<20)
	n := 0
	for _, g := range strings.Split(string(b[:runtime.Stack(b, true)]), "\n\n") {
		if strings.Contains(g, "keelson/internal/aio/ring.") {
			n++
		}
	}
	return n
}

// TestCloseLeavesNothing closes loops with everything in flight that can be.
func TestCloseLeavesNothing(t *testing.T) {
	a := newAuthority(t)
	fds, goroutines := 0, ownGoroutines()
	for round := range 6 {
		if round == 1 { // the first round starts what Go keeps, as its poller
			fds = descriptors(t)
		}
		closeBusy(t, a)
	}
	if n := descriptors(t); n > fds {
		t.Errorf("%d descriptors are open, %d were", n, fds)
	}
	// A goroutine that has said it is done may need a moment to be gone.
	for range 1000 {
		if ownGoroutines() <= goroutines {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Errorf("%d goroutines, %d were", ownGoroutines(), goroutines)
}

func closeBusy(t *testing.T, a *authority) {
	cfg := ring.Config{Node: "a"}
	a.secure(&cfg)
	l, err := ring.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := ring.Listen(ring.ListenConfig{Addr: "127.0.0.1:0", Loops: []*ring.Loop{l}})
	if err != nil {
		t.Fatal(err)
	}
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	l.Start()
	f, err := l.FS().OpenFile(t.TempDir()+"/f", os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	r, w := pair(t, true, false)
	defer unix.Close(w)
	opened, closed := make(chan struct{}), make(chan error, 3)
	canceled := make(chan error, 1)
	worked := false
	l.Post(func() {
		l.OnAccept(func(c aio.Conn) aio.ConnHandler { return ends(closed) })
		d, err := l.Adopt(r)
		if err != nil {
			t.Error(err)
			return
		}
		d.Readv(&aio.Op{Done: func(_ int, err error) { canceled <- err }}, make([]byte, 1), nil)
		l.NewTimer(func() { t.Error("a timer of an hour") }).Reset(time.Hour)
		l.Dial("a", ln.Addr().String(), 0, &opener{ends(closed), opened})
	})
	wait(t, opened, "a connection")
	written := make(chan struct{})
	l.Post(func() {
		l.Dial("a", mute.Addr().String(), 0, ends(closed)) // gets no answer
		l.Work(func() { time.Sleep(time.Millisecond); worked = true }, func() {})
		b := l.Buffers().Get(1 << 20)
		f.WriteAt(&aio.Op{Done: func(int, error) { close(written) }}, b, 0)
	})
	runtime.Gosched()
	ln.Close()
	l.Close()
	l.Close()
	if err := <-canceled; err != unix.ECANCELED {
		t.Errorf("a read in flight ended with %v", err)
	}
	for range 2 {
		if err := <-closed; err == nil {
			t.Error("a connection ended without an error")
		}
	}
	select {
	case <-written: // posted before Close, so called back, if it was started
		if !worked {
			t.Error("Close didn't wait for work")
		}
	default:
	}
	l.Post(func() { t.Error("a function ran on a closed loop") })
	if err := l.Run(context.Background()); !errors.Is(err, ring.ErrClosed) {
		t.Errorf("Run of a closed loop: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// opener is ends that also tells of the opening.
type opener struct {
	ends
	opened chan struct{}
}

func (o *opener) Opened(aio.Conn) { close(o.opened) }

// TestRunEndsWithContext also pins the thread.
func TestRunEndsWithContext(t *testing.T) {
	l, err := ring.New(ring.Config{CPUs: []int{0}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	end := make(chan error)
	go func() { end <- l.Run(ctx) }()
	l.Post(cancel)
	if err := <-end; err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// TestCloseAtAnyMoment closes loops that are just starting, or just working.
func TestCloseAtAnyMoment(t *testing.T) {
	for i := range 2000 {
		l, err := ring.New(ring.Config{Entries: 8, BufferMemory: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		l.Start()
		for range i % 4 {
			l.Post(runtime.Gosched)
		}
		if i%3 == 0 {
			on(t, l, func() {})
		}
		l.Close()
	}
}

// TestCloseOfNew closes a loop that never ran.
func TestCloseOfNew(t *testing.T) {
	l, err := ring.New(ring.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	l.Close()
	if err := l.Run(context.Background()); !errors.Is(err, ring.ErrClosed) {
		t.Fatal(err)
	}
}

func TestConfigValidate(t *testing.T) {
	for _, cfg := range []ring.Config{{Entries: -1}, {Entries: 1 << 20}, {Workers: -1}, {BufferMemory: -1}, {Spin: -1}} {
		if _, err := ring.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
	if _, err := ring.Listen(ring.ListenConfig{}); err == nil {
		t.Error("a listener without loops was made")
	}
}
