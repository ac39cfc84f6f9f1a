// Package fdstore is the line between the supervisor and a child: a unix packet socket
// that the child inherits. Over it the child says that it is ready, and hands descriptors
// over for keeping: name, opaque state, and descriptors, which its successor asks
// for when it starts. Its end tells each side that the other one is gone.
//
// Invariants: an entry that Put has answered survives the child's death; entries belong
// to a child's name, not to one life of it; every descriptor that a Keeper holds
// is closed by Remove, a newer Put of the same name, or Close.
//
// A Holder is a second keeper, in a process that outlives the supervisor: it listens on a socket where the supervisor
// is in the child's place. A Keeper with a mirror answers Put when the holder has the entry too.
//
// Goroutines: Keeper.Serve and Hold run on the caller's; a Line owns one reader, which
// ends with Close or with the supervisor.
package fdstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Bounds of one entry. A packet has to fit into a socket's default send buffer, and
// the kernel passes at most 253 descriptors at once.
const (
	MaxState = 64 << 10
	MaxFDs   = 250
	maxName  = 256
	maxBytes = 128 << 10
)

// ErrTooLarge is what Put answers for an entry beyond the bounds.
var ErrTooLarge = errors.New("entry too large for the descriptor store")

// Entry is what is kept under a name.
type Entry struct {
	Name  string
	State []byte
	FDs   []int
}

// op says what a packet is.
type op string

const (
	opReady   op = "ready"   // child: I serve
	opPut     op = "put"     // child: keep this
	opRemove  op = "remove"  // child: forget this
	opRestore op = "restore" // child: give me what is kept
	opEnd     op = "end"     // supervisor, to the holder: let everything go, and end
	opEntry   op = "entry"   // supervisor: one kept entry
	opDone    op = "done"    // supervisor: done, or all entries sent
	opError   op = "error"   // supervisor: refused
)

type packet struct {
	Op    op     `json:"op"`
	Name  string `json:"name,omitempty"`
	State []byte `json:"state,omitempty"`
	Error string `json:"error,omitempty"`
}

// Pair makes a connected pair: the supervisor's end, and the child's, to be inherited.
func Pair() (*net.UnixConn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	child := os.NewFile(uintptr(fds[1]), "line")
	conn, err := adopt(fds[0])
	if err != nil {
		child.Close()
		return nil, nil, err
	}
	return conn, child, nil
}

// adopt makes a connection of a descriptor, which it takes.
func adopt(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "line")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is no socket: %w", fd, err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("descriptor %d is no unix socket", fd)
	}
	return uc, nil
}

func send(c *net.UnixConn, p packet, fds []int) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if len(b) > maxBytes || len(fds) > MaxFDs || len(p.Name) > maxName {
		return ErrTooLarge
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// receiver reads packets; not for concurrent use.
type receiver struct {
	conn *net.UnixConn
	buf  []byte
	oob  []byte
}

func newReceiver(c *net.UnixConn) *receiver {
	return &receiver{conn: c, buf: make([]byte, maxBytes), oob: make([]byte, unix.CmsgSpace(MaxFDs*4))}
}

// next returns the next packet and its descriptors, which are the caller's to close.
func (r *receiver) next() (packet, []int, error) {
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(r.buf, r.oob)
	if err != nil {
		return packet{}, nil, err
	}
	fds, err := parseRights(r.oob[:oobn])
	if err != nil {
		return packet{}, nil, err
	}
	if n == 0 {
		CloseAll(fds)
		return packet{}, nil, net.ErrClosed
	}
	var p packet
	if flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = ErrTooLarge
	} else if err = json.Unmarshal(r.buf[:n], &p); err != nil {
		err = fmt.Errorf("packet that can't be read: %w", err)
	}
	if err != nil {
		CloseAll(fds)
		return packet{}, nil, err
	}
	return p, fds, nil
}

func parseRights(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			CloseAll(fds)
			return nil, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// CloseAll closes descriptors.
func CloseAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
