package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/frontend/nbd"
)

// open returns an open server; it is closed with the test.
func open(t testing.TB, loop aio.Loop, dev frontend.Device, name string) (*nbd.Server, string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long for a socket's name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	s := nbd.New(nbd.Config{Loop: loop, Device: dev, Name: name, Socket: socket})
	if err := s.Open(t.Context()); err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s, socket
}

func socketOf(path string) string { return path[strings.Index(path, "socket=")+len("socket="):] }

func TestContract(t *testing.T) {
	for _, structured := range []bool{true, false} {
		t.Run(fmt.Sprintf("structured=%v", structured), func(t *testing.T) {
			frontendtest.Run(t, frontendtest.Factory{
				Make: func(t *testing.T, loop aio.Loop, dev frontend.Device, volume string) frontend.Frontend {
					s, _ := open(t, loop, dev, volume)
					return s
				},
				Dial: func(t *testing.T, f frontend.Frontend) frontendtest.Client {
					return mustDial(t, socketOf(f.Path()), "vol", structured)
				},
				Gone: func(t *testing.T, f frontend.Frontend, path string) {
					if _, err := os.Lstat(socketOf(path)); !errors.Is(err, os.ErrNotExist) {
						t.Errorf("socket after detach: %v", err)
					}
				},
			})
		})
	}
}

// start returns a server over a device in memory of 16 MiB.
func start(t testing.TB) (*frontendtest.Device, string) {
	t.Helper()
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 16<<20)
	_, socket := open(t, loop, dev, "vol")
	return dev, socket
}

func TestBadRequests(t *testing.T) {
	for _, structured := range []bool{true, false} {
		_, socket := start(t)
		c := mustDial(t, socket, "vol", structured)
		buf := make([]byte, 33<<20)
		for _, tc := range []struct {
			what       string
			typ, flags uint16
			off, n     int64
			want       syscall.Errno
		}{
			{"unaligned read", 0, 0, 512, 4096, syscall.EINVAL},
			{"read of a part of a block", 0, 0, 0, 100, syscall.EINVAL},
			{"read past the end", 0, 0, 16<<20 - 4096, 8192, syscall.EINVAL},
			{"read with an unknown flag", 0, 1 << 9, 0, 4096, syscall.EINVAL},
			{"read that is too long", 0, 0, 0, 33 << 20, syscall.EINVAL},
			{"unaligned write", 1, 0, 1, 4096, syscall.EINVAL},
			{"write past the end", 1, 0, 16 << 20, 4096, syscall.ENOSPC},
			{"write that overflows", 1, 0, -4096, 8192, syscall.ENOSPC},
			{"write that is too long", 1, 0, 0, 33 << 20, syscall.ENOSPC},
			{"trim past the end", 4, 0, 16 << 20, 4096, syscall.EINVAL},
			{"zero past the end", 6, 0, 16<<20 - 4096, 8192, syscall.ENOSPC},
			{"unknown command", 77, 0, 0, 0, syscall.EINVAL},
			{"read of nothing", 0, 0, 4096, 0, 0},
			{"write of nothing", 1, 0, 4096, 0, 0},
			{"fast zero", 6, 1 << 4, 4096, 4096, 0},
		} {
			var payload, into []byte
			if tc.typ == 0 {
				into = buf[:tc.n]
			}
			if tc.typ == 1 {
				payload = buf[:tc.n]
			}
			var got syscall.Errno
			if err := c.do(tc.typ, tc.flags, tc.off, tc.n, payload, into); err != nil && !errors.As(err, &got) {
				t.Fatalf("%s: %v", tc.what, err)
			}
			if got != tc.want {
				t.Errorf("%s (structured=%v): %v, want %v", tc.what, structured, got, tc.want)
			}
		}
		if err := c.ReadAt(buf[:4096], 0); err != nil {
			t.Errorf("read after bad requests: %v", err)
		}
	}
}

func TestDontFragment(t *testing.T) {
	_, socket := start(t)
	c := mustDial(t, socket, "vol", true)
	if c.flags&(1<<7) == 0 {
		t.Error("SEND_DF isn't offered with structured replies")
	}
	buf := make([]byte, 2<<20)
	if err := c.do(0, 4, 0, 1<<20, nil, buf[:1<<20]); err != nil {
		t.Errorf("unfragmented read of 1 MiB: %v", err)
	}
	if err := c.do(0, 4, 0, 2<<20, nil, buf); !errors.Is(err, syscall.EOVERFLOW) {
		t.Errorf("unfragmented read of 2 MiB: %v, want EOVERFLOW", err)
	}
}

// A read that fails after its first part was sent can't be answered any more without
// structured replies.
func TestLateReadError(t *testing.T) {
	for _, structured := range []bool{true, false} {
		dev, socket := start(t)
		c := mustDial(t, socket, "vol", structured)
		dev.FailWith(func(r *block.Request) error {
			if r.Off >= 2<<20 {
				return syscall.EIO
			}
			return nil
		})
		err := c.ReadAt(make([]byte, 4<<20), 0)
		if err == nil || structured != errors.Is(err, syscall.EIO) {
			t.Errorf("structured=%v: %v", structured, err)
		}
	}
}

func TestTwoConnections(t *testing.T) {
	dev, socket := start(t)
	a, b := mustDial(t, socket, "vol", true), mustDial(t, socket, "", true)
	if a.flags&(1<<8) == 0 {
		t.Error("CAN_MULTI_CONN isn't offered")
	}
	want := bytes.Repeat([]byte("keelson!"), 512)
	if err := a.WriteAt(want, 8192, false); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 4096)
	if err := b.ReadAt(got, 8192); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the other connection doesn't see the write (%v)", err)
	}
	if err := b.Flush(); err != nil || dev.Dirty() != 0 {
		t.Errorf("a flush on the other connection left %d blocks (%v)", dev.Dirty(), err)
	}
}

func TestTooManyConnections(t *testing.T) {
	_, socket := start(t)
	var clients []*client
	for range 16 {
		clients = append(clients, mustDial(t, socket, "vol", true))
	}
	if c, err := dial(socket, "vol", true); err == nil {
		c.conn.Close()
		t.Error("the 17th connection was served")
	}
	for i, c := range clients {
		if err := c.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Errorf("connection %d suffers from one too many: %v", i, err)
		}
	}
}

func TestUnknownExport(t *testing.T) {
	_, socket := start(t)
	if c, err := dial(socket, "other", false); err == nil {
		c.conn.Close()
		t.Error("an export of another name was opened")
	}
}

// The server drops who sends garbage, and goes on with others.
func TestGarbage(t *testing.T) {
	_, socket := start(t)
	good := mustDial(t, socket, "vol", true)
	for _, garbage := range []string{
		"GET / HTTP/1.0\r\n\r\n",
		"\x00\x00\x00\x03" + strings.Repeat("x", 100),
		"\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff",
	} {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		io.WriteString(conn, garbage)
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%q: the server keeps the connection", garbage)
		}
		conn.Close()
	}
	bad := mustDial(t, socket, "vol", true)
	io.WriteString(bad.conn, strings.Repeat("z", 28))
	if err := bad.ReadAt(make([]byte, 4096), 0); err == nil {
		t.Error("a request after a wrong magic number was answered")
	}
	if err := good.ReadAt(make([]byte, 4096), 0); err != nil {
		t.Errorf("a good connection suffers from bad ones: %v", err)
	}
}

func TestStaleSocket(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 1<<20)
	dir := t.TempDir()
	t.Chdir(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "s", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	cfg := nbd.Config{Loop: loop, Device: dev, Name: "vol", Socket: "s"}
	if err := nbd.New(cfg).Open(t.Context()); err == nil {
		t.Error("a socket that another server listens on was taken")
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s := nbd.New(cfg)
	if err := s.Open(t.Context()); err != nil {
		t.Fatalf("a socket that nobody listens on: %v", err)
	}
	s.Close()
}
