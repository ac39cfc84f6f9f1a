package imagecopy

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// sparse makes a file with data in some places, and returns what it reads as.
func sparse(t *testing.T, path string, size int64, at ...int64) []byte {
	t.Helper()
	all := make([]byte, size)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	for _, off := range at {
		part := all[off:min(size, off+100<<10)]
		for i := range part {
			part[i] = byte(rng.Uint32())
		}
		if _, err := f.WriteAt(part, off); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func openRaw(t *testing.T, path string) Image {
	t.Helper()
	i, err := OpenRaw(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func createRaw(t *testing.T, path string, size int64) Image {
	t.Helper()
	i, err := CreateRaw(path, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = i.Close() })
	return i
}

func readAll(t *testing.T, i Image, size int64) []byte {
	t.Helper()
	b := make([]byte, size)
	if err := i.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCopyRaw(t *testing.T) {
	const size = 30<<20 + 999 // no whole block
	dir := t.TempDir()
	want := sparse(t, filepath.Join(dir, "a"), size, 0, 5<<20-4096, 20<<20, size-5000)
	source := openRaw(t, filepath.Join(dir, "a"))
	for _, empty := range []bool{true, false} {
		target := createRaw(t, filepath.Join(dir, fmt.Sprint("b", empty)), 31<<20)
		if !empty {
			if err := target.WriteAt(bytes.Repeat([]byte("old"), 1<<20), 10<<20); err != nil {
				t.Fatal(err)
			}
		}
		var last int64
		r, err := Copy(t.Context(), target, source, Options{Empty: empty, stepData: 1 << 20, Step: func(pos int64) error {
			if pos <= last {
				t.Errorf("a step ends at %d after %d", pos, last)
			}
			last = pos
			return nil
		}})
		if err != nil || last != size {
			t.Fatalf("%v, ended at %d", err, last)
		}
		if r.Data < 300<<10 || r.Data > 4<<20 {
			t.Errorf("%d bytes of data were written", r.Data)
		}
		if !bytes.Equal(readAll(t, target, size), want) {
			t.Error("the copy differs")
		}
		if err := Compare(t.Context(), target, source, nil); err != nil {
			t.Error(err)
		}
		if err := target.WriteAt([]byte{^want[20<<20+5]}, 20<<20+5); err != nil {
			t.Fatal(err)
		}
		var differ *DifferError
		if err := Compare(t.Context(), target, source, nil); !errors.As(err, &differ) || differ.Off != 20<<20+5 {
			t.Errorf("compared: %v", err)
		}
	}
}

// TestResume: a copy that is interrupted at every step, and writes nothing before where it goes on, is whole in the end.
func TestResume(t *testing.T) {
	const size = 40 << 20
	dir := t.TempDir()
	data := []byte(strings.Repeat("not zeros ", piece/10+1))[:piece]
	path := filepath.Join(dir, "a")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; off += piece {
		if _, err := f.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	source := openRaw(t, path)
	target := &watched{Image: createRaw(t, filepath.Join(dir, "b"), size)}
	stop := errors.New("stop")
	tries := 0
	for pos := int64(0); pos < size; tries++ {
		target.from = pos
		_, err := Copy(t.Context(), target, source, Options{From: pos, Empty: true, stepData: 8 << 20, Step: func(p int64) error {
			if !target.flushed {
				t.Error("a step ended that isn't durable")
			}
			pos = p
			return stop
		}})
		if !errors.Is(err, stop) {
			t.Fatal(err)
		}
	}
	if tries < 5 {
		t.Errorf("%d steps", tries)
	}
	if err := Compare(t.Context(), target, source, nil); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Copy(ctx, target, source, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// watched reports writes before from.
type watched struct {
	Image
	from    int64
	flushed bool
}

func (w *watched) WriteAt(p []byte, off int64) error {
	if off < w.from {
		return fmt.Errorf("written at %d, before %d", off, w.from)
	}
	return w.Image.WriteAt(p, off)
}

func (w *watched) Flush() error {
	w.flushed = true
	return w.Image.Flush()
}

func TestErrorsEndACopy(t *testing.T) {
	dir := t.TempDir()
	sparse(t, filepath.Join(dir, "a"), 10<<20, 0, 5<<20)
	source := openRaw(t, filepath.Join(dir, "a"))
	if _, err := Copy(t.Context(), createRaw(t, filepath.Join(dir, "small"), 9<<20), source, Options{}); err == nil {
		t.Error("it fits into less")
	}
	if _, err := Copy(t.Context(), &watched{Image: createRaw(t, filepath.Join(dir, "b"), 10<<20), from: 5 << 20}, source, Options{Empty: true}); err == nil {
		t.Error("a failed write is no error")
	}
	if _, err := Copy(t.Context(), source, source, Options{}); !errors.Is(err, ErrReadOnly) {
		t.Errorf("read-only: %v", err)
	}
}

func TestQEMU(t *testing.T) {
	for _, p := range []string{"qemu-nbd", "qemu-img"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip("needs qemu-utils: reads and writes qcow2")
		}
	}
	const size = 64<<20 + 4096
	dir := t.TempDir()
	want := sparse(t, filepath.Join(dir, "a"), size, 0, 30<<20, size-8192)
	source := openRaw(t, filepath.Join(dir, "a"))
	path := filepath.Join(dir, "b.qcow2")
	q, err := CreateQEMU(t.Context(), path, FormatQCOW2, size)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Copy(t.Context(), q, source, Options{Empty: true}); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err := Detect(path); err != nil || f != FormatQCOW2 {
		t.Errorf("%s, %v", f, err)
	}
	back, err := OpenQEMU(t.Context(), path, FormatQCOW2, false)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if !bytes.Equal(readAll(t, back, size), want) {
		t.Error("the copy differs")
	}
	if n, zero, err := back.Extent(1<<20, size-1<<20); err != nil || !zero || n < 20<<20 {
		t.Errorf("a hole: %d, %v, %v", n, zero, err)
	}
	if n, zero, err := back.Extent(30<<20, 1<<20); err != nil || zero || n < 64<<10 {
		t.Errorf("data: %d, %v, %v", n, zero, err)
	}
	if err := back.WriteAt(make([]byte, 4096), 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("written: %v", err)
	}
	target := createRaw(t, filepath.Join(dir, "c"), size)
	if r, err := Copy(t.Context(), target, back, Options{Empty: true}); err != nil || r.Data > 4<<20 {
		t.Errorf("%+v, %v", r, err)
	}
	if !bytes.Equal(readAll(t, target, size), want) {
		t.Error("the copy of the copy differs")
	}
	if _, err := OpenQEMU(t.Context(), filepath.Join(dir, "a"), FormatQCOW2, false); err == nil || !strings.Contains(err.Error(), "can't be opened as qcow2") {
		t.Errorf("a raw file as qcow2: %v", err)
	}
}

func TestDetect(t *testing.T) {
	head := func(change func(b []byte)) []byte {
		b := make([]byte, 104)
		copy(b, "QFI\xfb")
		binary.BigEndian.PutUint32(b[4:], 3)
		change(b)
		return b
	}
	for name, x := range map[string]struct {
		b     []byte
		want  string
		fails string
	}{
		"empty":         {nil, FormatRaw, ""},
		"short":         {[]byte("QFI\xfb"), FormatRaw, ""},
		"raw":           {make([]byte, 4096), FormatRaw, ""},
		"qcow2":         {head(func([]byte) {}), FormatQCOW2, ""},
		"version 2":     {head(func(b []byte) { b[7] = 2; b[79] = 4 }), FormatQCOW2, ""},
		"version 9":     {head(func(b []byte) { b[7] = 9 }), "", "version 9"},
		"backing file":  {head(func(b []byte) { b[15] = 104 }), "", "needs a backing file"},
		"encrypted":     {head(func(b []byte) { b[35] = 2 }), "", "is encrypted"},
		"external data": {head(func(b []byte) { b[79] = 4 }), "", "keeps its data in another file"},
	} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, x.b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := Detect(path)
		if x.fails != "" {
			if err == nil || !strings.Contains(err.Error(), x.fails) {
				t.Errorf("%s: %v", name, err)
			}
		} else if err != nil || got != x.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

func TestParseNBD(t *testing.T) {
	for text, want := range map[string]Export{
		"nbd://h/e":                      {"tcp", "h:10809", "e"},
		"nbd://[::1]:99/a/b":             {"tcp", "[::1]:99", "a/b"},
		"nbd://h":                        {"tcp", "h:10809", ""},
		"nbd+unix:///e?socket=/run/s":    {"unix", "/run/s", "e"},
		"nbd+unix:///?socket=%2Frun%2Fs": {"unix", "/run/s", ""},
		"nbd+unix:///e":                  {},
		"nbd:///e":                       {},
		"nbds://h/e":                     {},
		"http://h/e":                     {},
		"nbd://h:x/e":                    {},
	} {
		got, err := ParseNBD(text)
		if got != want || (err == nil) != (want != Export{}) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
}

// TestContextEndsRequests: a server that doesn't answer is given up when the context ends.
func TestContextEndsRequests(t *testing.T) {
	if _, err := exec.LookPath("qemu-nbd"); err != nil {
		t.Skip("needs qemu-nbd")
	}
	path := filepath.Join(t.TempDir(), "a")
	sparse(t, path, 1<<20, 0)
	ctx, cancel := context.WithCancel(t.Context())
	q, err := OpenQEMU(ctx, path, FormatRaw, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.(*qemuImage).cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- q.ReadAt(make([]byte, 4096), 0) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	if err := errors.Join(q.(*qemuImage).cmd.Process.Signal(syscall.SIGCONT), q.Close()); err != nil {
		t.Error(err)
	}
}

// TestBadServers: what a server must not do ends the connection with an error, and nothing waits for ever.
func TestBadServers(t *testing.T) {
	be := binary.BigEndian
	hello := append(be.AppendUint64(be.AppendUint64(nil, nbdMagic), nbdOptMagic), 0, 3)
	optReply := func(opt, typ uint32, p []byte) []byte {
		b := be.AppendUint32(be.AppendUint64(nil, nbdReplyMagic), opt)
		return append(be.AppendUint32(be.AppendUint32(b, typ), uint32(len(p))), p...)
	}
	info := be.AppendUint16(be.AppendUint64([]byte{0, 0}, 1<<20), 1|nbdFlagFlush)
	ready := bytes.Join([][]byte{hello, optReply(8, nbdRepAck, nil), optReply(10, 1<<31|1, nil), optReply(7, nbdRepInfo, info), optReply(7, nbdRepAck, nil)}, nil)
	chunk := func(flags, typ uint16, cookie uint64, p []byte) []byte {
		b := be.AppendUint16(be.AppendUint16(be.AppendUint32(nil, nbdChunk), flags), typ)
		return append(be.AppendUint32(be.AppendUint64(b, cookie), uint32(len(p))), p...)
	}
	data := func(off uint64, n int) []byte { return append(be.AppendUint64(nil, off), make([]byte, n)...) }
	for name, x := range map[string]struct {
		sends []byte // before a request
		reply []byte
		opens bool
		works bool
	}{
		"nothing":               {nil, nil, false, false},
		"another protocol":      {[]byte("SSH-2.0-OpenSSH_9.2p1 and more\r\n"), nil, false, false},
		"old style":             {append(be.AppendUint64(be.AppendUint64(nil, nbdMagic), nbdOptMagic), 0, 0), nil, false, false},
		"another option":        {append(bytes.Clone(hello), optReply(3, nbdRepAck, nil)...), nil, false, false},
		"a huge option":         {append(bytes.Clone(hello), be.AppendUint32(be.AppendUint64(nil, nbdReplyMagic), 8)...), nil, false, false},
		"no such export":        {bytes.Join([][]byte{hello, optReply(8, 1<<31|1, nil), optReply(7, 1<<31|6, nil)}, nil), nil, false, false},
		"no size":               {bytes.Join([][]byte{hello, optReply(8, 1<<31|1, nil), optReply(7, nbdRepAck, nil)}, nil), nil, false, false},
		"closes":                {ready, nil, true, false},
		"garbage":               {ready, make([]byte, 64), true, false},
		"another cookie":        {ready, chunk(1, nbdChunkData, 77, data(0, 4096)), true, false},
		"too much":              {ready, chunk(1, nbdChunkData, 1, data(0, 8192)), true, false},
		"elsewhere":             {ready, chunk(1, nbdChunkData, 1, data(8192, 4096)), true, false},
		"too little":            {ready, chunk(1, nbdChunkData, 1, data(0, 512)), true, false},
		"none":                  {ready, chunk(1, nbdChunkNone, 1, nil), true, false},
		"a hole too large":      {ready, chunk(1, nbdChunkHole, 1, append(make([]byte, 8), 255, 255, 255, 255)), true, false},
		"an error":              {ready, chunk(1, 1<<15|1, 1, []byte{0, 0, 0, 5, 0, 0}), true, false},
		"an unknown chunk":      {ready, chunk(1, 99, 1, nil), true, false},
		"data and a hole":       {ready, append(chunk(0, nbdChunkData, 1, data(0, 2048)), chunk(1, nbdChunkHole, 1, []byte{0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0})...), true, true},
		"the answer as it is":   {ready, chunk(1, nbdChunkData, 1, data(0, 4096)), true, true},
		"half of the handshake": {ready[:len(ready)-7], nil, false, false},
	} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = conn.Write(x.sends)
			// Flags, three options and a request.
			if x.opens {
				if _, err := io.ReadFull(conn, make([]byte, 4+16+44+23+28)); err == nil {
					_, _ = conn.Write(x.reply)
				}
			}
			if w, ok := conn.(*net.UnixConn); ok {
				_ = w.CloseWrite()
			}
			_, _ = io.Copy(io.Discard, conn)
		}()
		c, err := DialNBD(t.Context(), "nbd+unix:///e?socket="+l.Addr().String())
		if (err == nil) != x.opens {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := c.ReadAt(make([]byte, 4096), 0); (err == nil) != x.works {
				t.Errorf("%s: read: %v", name, err)
			}
			_ = c.Close()
		}
		_ = l.Close()
	}
}
