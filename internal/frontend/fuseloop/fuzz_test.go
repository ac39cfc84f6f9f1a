package fuseloop

import (
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/invariant/alloc"
)

// FuzzRequests sends anything as requests of the kernel, over a socket that keeps messages apart as /dev/fuse does. Each
// gets exactly one answer, except those that have none; and the device gets only what it may.
func FuzzRequests(f *testing.F) {
	request := func(op uint32, node uint64, args ...any) []byte {
		b := make([]byte, inHeaderLen)
		order.PutUint32(b[4:], op)
		order.PutUint64(b[16:], node)
		for _, a := range args {
			switch a := a.(type) {
			case uint64:
				b = order.AppendUint64(b, a)
			case uint32:
				b = order.AppendUint32(b, a)
			case string:
				b = append(b, a...)
			}
		}
		return b
	}
	transfer := func(op uint32, off uint64, n uint32, data string) []byte {
		return request(op, fileNode, uint64(0), off, n, uint32(0), uint64(0), uint32(unix.O_DSYNC), uint32(0), data)
	}
	f.Add(true, request(opInit, 0, uint32(7), uint32(41), uint32(1<<20), uint32(0xffffffff), uint32(0xffffffff)))
	f.Add(true, request(opLookup, rootNode, fileName+"\x00"))
	f.Add(true, request(opGetattr, fileNode, uint64(0), uint64(0)))
	f.Add(true, request(opSetattr, fileNode, uint64(setattrSize)))
	f.Add(true, request(opReaddir, rootNode, uint64(0), uint64(0), uint32(4096)))
	f.Add(true, request(opFallocate, fileNode, uint64(0), uint64(4096), uint64(8192), uint32(3), uint32(0)))
	f.Add(true, request(opFallocate, fileNode, uint64(0), uint64(1)<<63, uint64(1)<<63, uint32(3), uint32(0)))
	f.Add(true, request(opFallocate, fileNode, uint64(0), uint64(4096), uint64(0), uint32(3), uint32(0)))
	f.Add(true, transfer(opRead, 4096, 8192, ""))
	f.Add(true, transfer(opWrite, 4096, 4096, string(make([]byte, 4096))))
	f.Add(true, transfer(opWrite, 0, 1<<31, ""))
	f.Add(true, transfer(opRead, 1<<63, 0xffffffff, ""))
	f.Add(true, request(opFsync, fileNode, uint64(0), uint64(0)))
	f.Add(true, request(opForget, fileNode, uint64(1)))
	f.Add(false, []byte{1, 2, 3})
	kernel, dev := socketSession(f, false)
	unique := uint64(1)
	f.Fuzz(func(t *testing.T, length bool, p []byte) {
		if len(p) == 0 || len(p) > 64<<10 {
			return
		}
		p = append([]byte(nil), p...)
		answers, wrong := 0, dev.Wrong()
		unique += 2
		if len(p) >= inHeaderLen {
			order.PutUint64(p[8:], unique)
			if length {
				order.PutUint32(p, uint32(len(p)))
			}
			if h := decodeHeader(p); int(h.length) != len(p) || h.opcode != opForget && h.opcode != opBatchForget {
				answers = 1
			}
		}
		last := request(opGetattr, fileNode, uint64(0), uint64(0))
		order.PutUint32(last, uint32(len(last)))
		order.PutUint64(last[8:], unique+1)
		alloc.Bounded(t, 0, func() {
			send(t, kernel, p)
			send(t, kernel, last)
			for got := map[uint64]int{}; got[unique] < answers || got[unique+1] < 1; {
				got[receive(t, kernel)]++
				if got[unique] > answers || got[unique+1] > 1 || len(got) > 2 {
					t.Fatalf("answers: %v, want %d and the last", got, answers)
				}
			}
		})
		if n := dev.Wrong() - wrong; n > 0 {
			t.Fatalf("%d requests broke the rules of block.Request", n)
		}
	})
}

// socketSession is a session whose kernel is the other end of a socket. resending says that it was taken over, and the kernel
// is about to resend.
func socketSession(f testing.TB, resending bool) (kernel int, dev *frontendtest.Device) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	for _, fd := range fds {
		// Room for all answers, beyond the limit of the system: a FUSE device never refuses an answer because it is full.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 32<<20); err != nil {
			f.Fatal(err)
		}
	}
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(fds[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		f.Fatal(err)
	}
	loop := frontendtest.NewLoop(f)
	dev = frontendtest.NewDevice(loop, 4<<20)
	var s *session
	made := make(chan error)
	loop.Post(func() {
		var err error
		if s, err = newSession(Config{Loop: loop, Device: dev, Name: "vol", Log: slog.New(slog.DiscardHandler)}, fds[0]); err == nil {
			err = unix.SetNonblock(fds[0], true) // the loop makes sockets block
			s.resending = resending
			s.arm()
		}
		made <- err
	})
	if err := <-made; err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		loop.Post(s.stop)
		if err := unix.Close(fds[1]); err != nil { // that wakes the session
			f.Error(err)
		}
		<-s.over
	})
	return fds[1], dev
}

func send(t testing.TB, fd int, p []byte) {
	t.Helper()
	if err := unix.Send(fd, p, 0); err != nil {
		t.Fatal(err)
	}
}

var answer = make([]byte, 2<<20)

// receive returns whose answer came.
func receive(t testing.TB, fd int) (unique uint64) {
	n, _, err := unix.Recvfrom(fd, answer, 0)
	for err == unix.EINTR {
		n, _, err = unix.Recvfrom(fd, answer, 0)
	}
	if err != nil || n < outHeaderLen || int(order.Uint32(answer)) != n {
		t.Fatalf("an answer of %d bytes says it has %d: %v", n, order.Uint32(answer), err)
	}
	if e := -int32(order.Uint32(answer[4:])); e < 0 || e >= 512 || e != 0 && n != outHeaderLen {
		t.Fatalf("an answer of %d bytes with the error %d", n, e)
	}
	return order.Uint64(answer[8:])
}

// FuzzHandoff reads anything as what one engine leaves to the next.
func FuzzHandoff(f *testing.F) {
	b, err := json.Marshal(state{Version: stateVersion, Volume: "vol", Dir: "/run/x"})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(`{"version":99}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var st state
		var err error
		alloc.Bounded(t, 100*len(b), func() { st, err = decodeState(b) })
		if err != nil {
			if !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
			return
		}
		again, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if st2, err := decodeState(again); err != nil || st2 != st {
			t.Fatalf("%+v became %+v, %v", st, st2, err)
		}
	})
}
