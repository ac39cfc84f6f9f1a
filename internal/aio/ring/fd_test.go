package ring_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
)

// wait waits for done.
func wait(t testing.TB, done <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
	}
}

// on runs fn on the loop and waits for it.
func on(t testing.TB, l *ring.Loop, fn func()) {
	t.Helper()
	done := make(chan struct{})
	l.Post(func() { fn(); close(done) })
	wait(t, done, "a posted function")
}

// adopt gives the descriptor to the loop.
func adopt(t testing.TB, l *ring.Loop, fd int) (d aio.FD) {
	t.Helper()
	on(t, l, func() {
		var err error
		if d, err = l.Adopt(fd); err != nil {
			t.Error(err)
		}
	})
	if d == nil {
		t.FailNow()
	}
	return d
}

// pair makes two connected descriptors: a stream socket, or a pipe (read, write).
func pair(t testing.TB, pipe, nonblock bool) (a, b int) {
	t.Helper()
	var p [2]int
	var err error
	flag := unix.O_CLOEXEC
	if nonblock {
		flag |= unix.O_NONBLOCK
	}
	if pipe {
		err = unix.Pipe2(p[:], flag)
	} else {
		typ := unix.SOCK_STREAM | unix.SOCK_CLOEXEC
		if nonblock {
			typ |= unix.SOCK_NONBLOCK
		}
		p, err = unix.Socketpair(unix.AF_UNIX, typ, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

// TestFDVectors moves a stream through both kinds of descriptors in two-part reads
// and writes.
func TestFDVectors(t *testing.T) {
	for _, pipe := range []bool{false, true} {
		for _, nonblock := range []bool{false, true} {
			t.Run(fmt.Sprintf("pipe=%v nonblock=%v", pipe, nonblock), func(t *testing.T) {
				a, b := pair(t, pipe, nonblock)
				l := newLoop(t, ring.Config{})
				in, out := adopt(t, l, a), adopt(t, l, b)
				stream(t, l, in, out)
			})
		}
	}
}

// stream sends 4 MiB, far more than the descriptor's own room.
func stream(t *testing.T, l *ring.Loop, in, out aio.FD) {
	want := make([]byte, 4<<20)
	for i := range want {
		want[i] = byte(i * 7 >> 3)
	}
	var got []byte
	done := make(chan struct{})
	l.Post(func() {
		head, body := make([]byte, 80), make([]byte, 100000)
		r, w := &aio.Op{}, &aio.Op{}
		sent := 0
		write := func() {
			rest := want[sent:]
			k := min(len(rest), 17)
			out.Writev(w, rest[:k], rest[k:])
		}
		w.Done = func(n int, err error) {
			if err != nil {
				t.Errorf("write: %v", err)
				return
			}
			if sent += n; sent < len(want) {
				write()
			}
		}
		r.Done = func(n int, err error) {
			if err != nil || n == 0 {
				t.Errorf("read: %d, %v", n, err)
				close(done)
				return
			}
			k := min(n, len(head))
			got = append(append(got, head[:k]...), body[:n-k]...)
			if len(got) == len(want) {
				close(done)
				return
			}
			in.Readv(r, head, body)
		}
		in.Readv(r, head, body)
		write()
	})
	wait(t, done, "the stream")
	if !bytes.Equal(got, want) {
		t.Fatal("the stream was changed on its way")
	}
}

// TestFDManyReaders has many reads wait for few messages.
func TestFDManyReaders(t *testing.T) {
	a, b := pair(t, true, false)
	w := os.NewFile(uintptr(b), "pipe")
	defer w.Close()
	l := newLoop(t, ring.Config{})
	in := adopt(t, l, a)
	const readers, messages = 32, 3000
	seen := make(chan uint64, messages)
	on(t, l, func() {
		for range readers {
			p := make([]byte, 8)
			op := &aio.Op{}
			op.Done = func(n int, err error) {
				if err == nil && n == 8 {
					seen <- binary.LittleEndian.Uint64(p)
					in.Readv(op, p, nil)
				} else if !errors.Is(err, unix.ECANCELED) {
					t.Errorf("read: %d, %v", n, err)
				}
			}
			in.Readv(op, p, nil)
		}
	})
	var got []uint64
	for i := range uint64(messages) {
		if _, err := w.Write(binary.LittleEndian.AppendUint64(nil, i)); err != nil {
			t.Fatal(err)
		}
		if i%50 == 49 { // now and then, let the pipe run empty
			for len(got) <= int(i) {
				select {
				case m := <-seen:
					got = append(got, m)
				case <-time.After(20 * time.Second):
					t.Fatalf("%d of %d messages came", len(got), i+1)
				}
			}
		}
	}
	on(t, l, in.Close)
	slices.Sort(got)
	for i, m := range got {
		if m != uint64(i) {
			t.Fatalf("message %d came in place of %d", m, i)
		}
	}
}

// TestFDClose: what is in flight, and what comes later, is called back with ECANCELED,
// and the descriptor is closed.
func TestFDClose(t *testing.T) {
	for _, pipe := range []bool{false, true} {
		t.Run(fmt.Sprintf("pipe=%v", pipe), func(t *testing.T) {
			a, b := pair(t, pipe, false)
			peer := os.NewFile(uintptr(b), "peer")
			defer peer.Close()
			l := newLoop(t, ring.Config{})
			in := adopt(t, l, a)
			errs := make(chan error, 4)
			read := func() {
				in.Readv(&aio.Op{Done: func(_ int, err error) { errs <- err }}, make([]byte, 10), nil)
			}
			on(t, l, func() { read(); read() })
			on(t, l, func() { read(); in.Close(); in.Close(); read() })
			for range 4 {
				select {
				case err := <-errs:
					if err != syscall.ECANCELED {
						t.Errorf("called back with %v", err)
					}
				case <-time.After(20 * time.Second):
					t.Fatal("not called back")
				}
			}
			if pipe {
				if _, err := peer.Write([]byte{1}); !errors.Is(err, unix.EPIPE) {
					t.Errorf("the pipe's reading end is still open: %v", err)
				}
			} else if n, err := peer.Read(make([]byte, 1)); err != io.EOF {
				t.Errorf("the socket's other end is still open: %d, %v", n, err)
			}
		})
	}
}

// TestFDDevice reads the first request of a FUSE mount from /dev/fuse.
func TestFDDevice(t *testing.T) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		t.Skipf("/dev/fuse isn't there, or not for this user: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	err = unix.Mount("keelson-test", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	if err != nil {
		unix.Close(fd)
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENODEV) {
			t.Fatal(err)
		}
		t.Skipf("FUSE can't be mounted by this user, or on this kernel: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	l := newLoop(t, ring.Config{})
	dev := adopt(t, l, fd)
	got := make(chan string, 3)
	on(t, l, func() {
		for range 3 {
			head, body := make([]byte, 80), make([]byte, 1<<20)
			dev.Readv(&aio.Op{Done: func(n int, err error) {
				got <- fmt.Sprintf("%v opcode %d", err, binary.LittleEndian.Uint32(head[4:]))
			}}, head, body)
		}
	})
	const fuseInit = 26
	if s := <-got; s != fmt.Sprintf("%v opcode %d", error(nil), fuseInit) {
		t.Fatalf("the first read gave %s", s)
	}
	on(t, l, func() { dev.Close() })
	for range 2 {
		if s := <-got; s != fmt.Sprintf("%v opcode %d", unix.ECANCELED, 0) {
			t.Fatalf("a read in flight ended with %s", s)
		}
	}
}

// Poll completes when there is something to read, and when the descriptor is closed.
func TestFDPoll(t *testing.T) {
	l := newLoop(t, ring.Config{})
	in, out := pair(t, true, true)
	defer unix.Close(out)
	d := adopt(t, l, in)
	results := make(chan error, 1)
	op := &aio.Op{Done: func(_ int, err error) { results <- err }}
	on(t, l, func() { d.Poll(op) })
	select {
	case err := <-results:
		t.Fatalf("an empty pipe can be read: %v", err)
	default:
	}
	if _, err := unix.Write(out, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if err := <-results; err != nil {
		t.Errorf("poll: %v", err)
	}
	on(t, l, func() {
		if n, err := unix.Read(d.Fd(), make([]byte, 2)); n != 1 || err != nil {
			t.Errorf("read after poll: %d, %v", n, err)
		}
		d.Poll(op)
	})
	on(t, l, d.Close)
	if err := <-results; err != unix.ECANCELED {
		t.Errorf("poll of a closed descriptor: %v, want ECANCELED", err)
	}
}
