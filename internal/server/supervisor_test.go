package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/server/fdstore"
)

// The supervisor's children are this test binary with these arguments.
const childMark = "keelson-test-child"

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == childMark {
		os.Exit(fakeChild(os.Args[2], os.Args[3:]))
	}
	if len(os.Args) > 1 && os.Args[1] == reloadMark {
		os.Exit(fakeReload())
	}
	os.Exit(m.Run())
}

// fakeChild tells what it does through a FIFO, a line for each event.
func fakeChild(name string, args []string) int {
	tell, err := os.OpenFile(os.Getenv("TEST_FIFO"), os.O_WRONLY, 0)
	if err != nil {
		return 3
	}
	line, err := fdstore.Inherited()
	if err != nil {
		return 3
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	succeed := make(chan os.Signal, 1)
	signal.Notify(succeed, successorSignal)
	kept, err := line.Restore()
	if err != nil {
		return 3
	}
	fmt.Fprintf(tell, "%s start %d kept %d\n", name, os.Getpid(), len(kept))
	for _, a := range args {
		switch a {
		case "once":
			fmt.Fprintf(tell, "%s done\n", name)
			return 0
		case "permanent":
			return ExitPermanent
		case "keep":
			null, err := os.Open("/dev/null")
			if err != nil {
				return 3
			}
			if err := line.Put("null", nil, []int{int(null.Fd())}); err != nil {
				return 3
			}
		case "ready":
			if err := line.Ready(); err != nil {
				return 3
			}
		case "tell":
			fmt.Fprintf(tell, "%s serves\n", name)
		case "crash-once":
			if len(kept) == 0 {
				return 1
			}
		}
	}
	select {
	case <-term:
		fmt.Fprintf(tell, "%s term\n", name)
	case <-succeed:
		fmt.Fprintf(tell, "%s makes way\n", name)
	case <-line.Gone():
		fmt.Fprintf(tell, "%s orphaned\n", name)
	}
	return 0
}

// story is what the children tell.
type story struct {
	lines chan string
	mu    sync.Mutex
	pids  map[string]int
}

func newStory(t *testing.T) *story {
	t.Helper()
	fifo := t.TempDir() + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TEST_FIFO", fifo)
	f, err := os.OpenFile(fifo, os.O_RDWR, 0) // also for writing, so that it never ends
	if err != nil {
		t.Fatal(err)
	}
	s := &story{lines: make(chan string, 100), pids: map[string]int{}}
	go func() {
		sc := bufio.NewScanner(f)
		for sc.Scan() {
			s.lines <- sc.Text()
		}
	}()
	t.Cleanup(func() { f.Close() })
	return s
}

// expect waits for a line with this prefix and returns it.
func (s *story) expect(t *testing.T, prefix string) string {
	t.Helper()
	select {
	case l := <-s.lines:
		if !strings.HasPrefix(l, prefix) {
			t.Fatalf("%q happened, want %q", l, prefix)
		}
		var pid, n int
		var name string
		if _, err := fmt.Sscanf(l, "%s start %d kept %d", &name, &pid, &n); err == nil {
			s.mu.Lock()
			s.pids[name] = pid
			s.mu.Unlock()
		}
		return l
	case <-time.After(20 * time.Second):
		t.Fatalf("nothing happened, want %q", prefix)
	}
	return ""
}

func child(name string, args ...string) Child {
	return Child{Name: name, Args: append([]string{childMark, name}, args...), ReadyWithin: 20 * time.Second, StopWithin: 20 * time.Second}
}

func supervise(t *testing.T, children ...Child) (stop func() error) {
	t.Helper()
	s := NewSupervisor(SupervisorConfig{
		Binary: "/proc/self/exe", Children: children, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
		BackoffMin: time.Millisecond, BackoffMax: time.Hour,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(cancel)
	return func() error {
		cancel()
		return <-done
	}
}

func TestSupervisorOrder(t *testing.T) {
	s := newStory(t)
	once := child("p", "once")
	once.Once = true
	stop := supervise(t, once, child("a", "ready"), child("b", "ready"), child("c", "ready"))
	for _, want := range []string{"p start", "p done", "a start", "b start", "c start"} {
		s.expect(t, want)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"c term", "b term", "a term"} {
		s.expect(t, want)
	}
}

func TestSupervisorRestartsAndKeepsDescriptors(t *testing.T) {
	s := newStory(t)
	stop := supervise(t, child("a", "keep", "ready"), child("b", "ready"))
	if l := s.expect(t, "a start"); !strings.HasSuffix(l, "kept 0") {
		t.Fatal(l)
	}
	s.expect(t, "b start")
	for range 3 {
		if err := syscall.Kill(s.pids["a"], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if l := s.expect(t, "a start"); !strings.HasSuffix(l, "kept 1") {
			t.Fatalf("after a crash: %s", l)
		}
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "b term")
	s.expect(t, "a term")
}

func TestSupervisorRestartsAfterExit(t *testing.T) {
	s := newStory(t)
	stop := supervise(t, child("a", "keep", "crash-once", "ready"))
	s.expect(t, "a start")
	s.expect(t, "a start")
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	s.expect(t, "a term")
}

func TestSupervisorGoesOnWithoutReadiness(t *testing.T) {
	s := newStory(t)
	late := child("a")
	late.ReadyWithin = time.Millisecond
	stop := supervise(t, late, child("b", "ready"))
	got := map[string]bool{}
	for range 2 {
		got[s.expect(t, "")[:7]] = true
	}
	if !got["a start"] || !got["b start"] {
		t.Fatalf("%v", got)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
}

func TestSupervisorGivesUp(t *testing.T) {
	s := newStory(t)
	p := child("p", "permanent")
	p.Once = true
	sup := NewSupervisor(SupervisorConfig{Binary: "/proc/self/exe", Children: []Child{p, child("a")}, Log: slog.New(slog.DiscardHandler)})
	err := sup.Run(context.Background())
	if !errors.Is(err, ErrPermanent) {
		t.Fatalf("a child that can't succeed: %v", err)
	}
	s.expect(t, "p start")
	select {
	case l := <-s.lines:
		t.Fatalf("%q happened after that", l)
	default:
	}
}

func TestOrphansEnd(t *testing.T) {
	s := newStory(t)
	// A runner whose line is closed is what a dead supervisor leaves.
	conn, theirs, err := fdstore.Pair()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess("/proc/self/exe", append([]string{"x"}, child("a", "ready", "tell").Args...), &os.ProcAttr{
		Env: append(os.Environ(), fdstore.EnvFD+"=3"), Files: []*os.File{nil, nil, os.Stderr, theirs},
	})
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	k := fdstore.NewKeeper()
	go func() { _ = k.Serve(conn, func() {}) }()
	s.expect(t, "a start")
	s.expect(t, "a serves") // it has the answer to what it said: a line that ends before that is an error of its own
	conn.Close()
	s.expect(t, "a orphaned")
	if st, err := p.Wait(); err != nil || !st.Success() {
		t.Fatalf("%v %v", st, err)
	}
}
