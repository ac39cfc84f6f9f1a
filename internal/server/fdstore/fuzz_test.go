package fdstore

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzPackets sends anything as packets of a child, with a descriptor, to a keeper, and to a line as the supervisor's answers.
// Neither comes to harm, and no descriptor that came with a packet stays open when both are gone.
func FuzzPackets(f *testing.F) {
	for _, p := range []packet{
		{Op: opReady}, {Op: opPut, Name: "a", State: []byte("state")}, {Op: opRemove, Name: "a"}, {Op: opRestore}, {Op: opEnd},
		{Op: opEntry, Name: "a", State: []byte{0, 1}}, {Op: opDone}, {Op: opError, Error: "no"},
	} {
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b, uint8(1))
	}
	f.Add([]byte{}, []byte{0xff}, uint8(0))
	f.Fuzz(func(t *testing.T, first, second []byte, descriptors uint8) {
		if len(first) > maxBytes || len(second) > maxBytes {
			return // the socket's buffer has no room for it
		}
		before := openDescriptors(t)
		keeperTakes(t, first, second, int(descriptors%4))
		lineTakes(t, first, second, int(descriptors%4))
		if after := openDescriptors(t); after != before {
			t.Fatalf("%d descriptors are open, %d before", after, before)
		}
	})
}

// write sends packets, with descriptors, to a socket that nobody reads yet.
func write(t *testing.T, fd, descriptors int, packets ...[]byte) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var oob []byte
	if descriptors > 0 {
		fds := make([]int, descriptors)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	for _, p := range packets {
		err := unix.Sendmsg(fd, p, oob, nil, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EMSGSIZE) && !errors.Is(err, unix.EPIPE) {
			t.Fatal(err)
		}
	}
}

func keeperTakes(t *testing.T, first, second []byte, descriptors int) {
	t.Helper()
	conn, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	write(t, int(child.Fd()), descriptors, first, second)
	child.Close()
	k := NewKeeper()
	_, end := context.WithCancel(context.Background())
	k.end = end
	_ = k.Serve(conn, func() {})
	k.Close()
	conn.Close()
	end()
}

func lineTakes(t *testing.T, first, second []byte, descriptors int) {
	t.Helper()
	conn, child, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(int(child.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	child.Close()
	raw, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	write(t, int(raw.Fd()), descriptors, first, second)
	if err := unix.Shutdown(int(raw.Fd()), unix.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	raw.Close()
	l, err := NewLine(fd)
	if err != nil {
		t.Fatal(err)
	}
	es, _ := l.Restore()
	for _, e := range es {
		CloseAll(e.FDs)
	}
	_ = l.Close()
	conn.Close()
}

func openDescriptors(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
