package fdstore

import (
	"errors"
	"io"
	"os"
	"testing"
)

// life connects a child to a keeper and returns its line, and what waits for its end.
func life(t *testing.T, k *Keeper) (*Line, func()) {
	t.Helper()
	conn, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- k.Serve(conn, func() {}) }()
	fd, err := dup(child)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLine(fd)
	if err != nil {
		t.Fatal(err)
	}
	return l, func() {
		t.Helper()
		l.Close()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// dup takes the descriptor out of the file, so that the garbage collector doesn't close it.
func dup(f *os.File) (int, error) {
	defer f.Close()
	c, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	fd := -1
	var derr error
	err = c.Control(func(n uintptr) { fd, derr = dupFD(int(n)) })
	return fd, errors.Join(err, derr)
}

// pipe puts the write end into the store under a name and returns the read end.
func pipe(t *testing.T, l *Line, name string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := l.Put(name, []byte("state of "+name), []int{int(w.Fd())}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestEntriesSurviveTheChild(t *testing.T) {
	k := NewKeeper()
	defer k.Close()
	l, end := life(t, k)
	ra, rb := pipe(t, l, "a"), pipe(t, l, "b")
	end()

	l, end = life(t, k)
	defer end()
	es, err := l.Restore()
	if err != nil || len(es) != 2 || es[0].Name != "a" || string(es[1].State) != "state of b" || len(es[1].FDs) != 1 {
		t.Fatalf("restored %+v, %v", es, err)
	}
	for i, r := range []*os.File{ra, rb} {
		w := os.NewFile(uintptr(es[i].FDs[0]), "w")
		if _, err := w.WriteString("hello"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		b := make([]byte, 5)
		if _, err := io.ReadFull(r, b); err != nil || string(b) != "hello" {
			t.Fatalf("through entry %d came %q, %v", i, b, err)
		}
	}
	// Removed, or replaced, its last descriptor is closed.
	if err := l.Remove("a"); err != nil {
		t.Fatal(err)
	}
	pipe(t, l, "b")
	for _, r := range []*os.File{ra, rb} {
		if _, err := r.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("a descriptor is still held: %v", err)
		}
	}
	if k.Len() != 1 {
		t.Errorf("%d entries are kept, want 1", k.Len())
	}
}

func TestBounds(t *testing.T) {
	k := NewKeeper()
	defer k.Close()
	l, end := life(t, k)
	defer end()
	if err := l.Put("big", make([]byte, MaxState+1), nil); !errors.Is(err, ErrTooLarge) {
		t.Errorf("a large state: %v", err)
	}
	if err := l.Put("many", nil, make([]int, MaxFDs+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("many descriptors: %v", err)
	}
	fds := make([]int, MaxFDs)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range fds {
		fds[i] = int(f.Fd())
	}
	if err := l.Put("full", make([]byte, MaxState), fds); err != nil {
		t.Fatal(err)
	}
	es, err := l.Restore()
	if err != nil || len(es) != 1 || len(es[0].FDs) != MaxFDs || len(es[0].State) != MaxState {
		t.Fatalf("%d entries, %v", len(es), err)
	}
	CloseAll(es[0].FDs)
}

func TestSupervisorGone(t *testing.T) {
	conn, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := dup(child)
	if err != nil {
		t.Fatal(err)
	}
	l, err := NewLine(fd)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn.Close()
	<-l.Gone()
	if err := l.Ready(); !errors.Is(err, ErrGone) {
		t.Errorf("Ready without a supervisor: %v", err)
	}
}

func TestNoSupervisor(t *testing.T) {
	t.Setenv(EnvFD, "")
	l, err := Inherited()
	if l != nil || err != nil {
		t.Fatalf("%v, %v", l, err)
	}
	if err := l.Put("a", nil, nil); err != nil {
		t.Error(err)
	}
	if es, err := l.Restore(); es != nil || err != nil {
		t.Errorf("%v, %v", es, err)
	}
	select {
	case <-l.Gone():
		t.Error("a process without a supervisor lost it")
	default:
	}
}

func TestGarbageEndsTheChildOnly(t *testing.T) {
	k := NewKeeper()
	defer k.Close()
	l, end := life(t, k)
	r := pipe(t, l, "a")
	end()
	conn, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := dup(child)
	if err != nil {
		t.Fatal(err)
	}
	bad, err := adopt(fd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := bad.Write([]byte("{not json")); err != nil {
		t.Fatal(err)
	}
	if err := k.Serve(conn, func() {}); err == nil {
		t.Error("garbage was taken")
	}
	bad.Close()
	if k.Len() != 1 {
		t.Errorf("%d entries are left, want 1", k.Len())
	}
	_ = r
}
