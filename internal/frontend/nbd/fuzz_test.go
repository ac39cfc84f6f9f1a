package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"keelson.io/keelson/internal/frontend/frontendtest"
)

// FuzzNegotiate feeds the negotiation anything, whole and byte by byte: both must
// end the same way, with the same answers, in bounded memory.
func FuzzNegotiate(f *testing.F) {
	flags := []byte{0, 0, 0, 3}
	option := func(opt uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, opt)
		b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
		return append(b, data...)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	f.Add(join(flags, option(optGo, "\x00\x00\x00\x03vol\x00\x01\x00\x03")))
	f.Add(join(flags, option(optStructured, ""), option(optList, ""), option(optInfo, "\x00\x00\x00\x00\x00\x00"), option(optAbort, "")))
	f.Add(join(flags, option(optExportName, "vol"), []byte("rest")))
	f.Add(join(flags, option(99, string(make([]byte, maxOptionLen+1))), option(optGo, "\xff\xff\xff\xffvol")))
	f.Add([]byte{0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) > 2*maxOptionSkip {
			return
		}
		whole := negotiation{name: "vol", size: 1 << 20}
		used, out, err := whole.feed(p, nil)
		if used > len(p) || len(out) > 16*len(p)+256 {
			t.Fatalf("%d bytes in, %d used, %d out", len(p), used, len(out))
		}
		steps := negotiation{name: "vol", size: 1 << 20}
		var pending, out2 []byte
		var err2 error
		for i := 0; i < len(p) && err2 == nil && steps.state != negDone; i++ {
			pending = append(pending, p[i])
			var k int
			k, out2, err2 = steps.feed(pending, out2)
			pending = pending[k:]
			if len(pending) > maxOptionLen+16 {
				t.Fatalf("%d bytes are kept", len(pending))
			}
		}
		if err != err2 || !bytes.Equal(out, out2) || whole.state != steps.state || whole.structured != steps.structured {
			t.Fatalf("whole: %v, state %d, %x\nbyte by byte: %v, state %d, %x", err, whole.state, out, err2, steps.state, out2)
		}
	})
}

// FuzzRequests sends anything as commands to a server. It must answer or hang up, keep
// the rules of block.Request, and give everything back.
func FuzzRequests(f *testing.F) {
	request := func(flags, typ uint16, off uint64, n uint32) []byte {
		b := binary.BigEndian.AppendUint32(nil, magicRequest)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, typ)
		b = binary.BigEndian.AppendUint64(b, 7)
		b = binary.BigEndian.AppendUint64(b, off)
		return binary.BigEndian.AppendUint32(b, n)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	f.Add(true, join(request(0, cmdRead, 0, 8192), request(1, cmdWrite, 4096, 4096), make([]byte, 4096), request(0, cmdFlush, 0, 0), request(0, cmdDisc, 0, 0)))
	f.Add(false, join(request(0, cmdRead, 0, 1<<20), request(0, cmdRead, 0, 3<<20), request(2, cmdWriteZeroes, 0, 1<<20), request(0, cmdTrim, 4096, 4096)))
	f.Add(true, join(request(0, cmdWrite, 0, 5<<20), make([]byte, 100)))
	f.Add(false, join(request(0, cmdWrite, 1, 5000), make([]byte, 5000), request(0xffff, 0xffff, 1<<63, 0xffffffff)))
	f.Add(true, request(0, cmdWrite, 0, 0xffffffff))
	loop := frontendtest.NewLoop(f)
	dev := frontendtest.NewDevice(loop, 4<<20)
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	s := New(Config{Loop: loop, Device: dev, Name: "vol", Socket: filepath.Join(dir, "s")})
	if err := s.Open(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, structured bool, p []byte) {
		conn, err := net.Dial("unix", filepath.Join(dir, "s"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(5 * time.Second))
		hello := []byte{0, 0, 0, 3}
		if structured {
			hello = append(binary.BigEndian.AppendUint32(append(hello, "IHAVEOPT"...), optStructured), 0, 0, 0, 0)
		}
		hello = append(binary.BigEndian.AppendUint32(append(hello, "IHAVEOPT"...), optExportName), 0, 0, 0, 0)
		go func() {
			conn.Write(append(hello, p...))
			conn.(*net.UnixConn).CloseWrite()
		}()
		if _, err := io.Copy(io.Discard, conn); os.IsTimeout(err) {
			t.Fatal("the server neither answers nor hangs up")
		}
		if n := dev.Wrong(); n > 0 {
			t.Fatalf("%d requests broke the rules of block.Request", n)
		}
	})
}
