package ring

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

const (
	preambleMagic   = 0x4e534c4b // "KLSN"
	preambleVersion = 1
	preambleLen     = 16
	nameMost        = 253

	socketBuffer = 4 << 20          // of a connection, in the kernel, each way
	deadAfter    = 20 * time.Second // without an acknowledgement of what was sent
)

// Dial implements aio.Loop.
func (l *Loop) Dial(node, addr string, shard int, h aio.ConnHandler) {
	if l.closing {
		return
	}
	l.dials.Add(1)
	go func() {
		defer l.dials.Done()
		ctx, cancel := context.WithTimeout(l.ctx, l.cfg.DialTimeout)
		defer cancel()
		s, err := l.dial(ctx, node, addr, shard)
		if err != nil {
			err = fmt.Errorf("%w: dial node %s at %s: %w", aio.ErrConnLost, node, addr, err)
		}
		if !l.post(func() { l.dialled(s, err, h) }) && s != nil {
			unix.Close(s.fd)
		}
	}()
}

// dialled gives a new connection to its handler.
func (l *Loop) dialled(s *session, err error, h aio.ConnHandler) {
	var c *conn
	if err == nil && l.closing {
		unix.Close(s.fd)
		err = ErrClosed
	}
	if err == nil {
		if c, err = l.adopt(s); err != nil {
			unix.Close(s.fd)
		}
	}
	if err != nil {
		h.Closed(nil, err)
		return
	}
	c.h = h
	h.Opened(c)
	c.receive()
}

// accepted offers a connection to the loop's user.
func (l *Loop) accepted(s *session) {
	if l.closing || l.accept == nil {
		unix.Close(s.fd)
		return
	}
	c, err := l.adopt(s)
	if err != nil {
		l.cfg.Log.Error("a connection can't be accepted", "node", l.cfg.Node, "peer", s.peer, "error", err)
		unix.Close(s.fd)
		return
	}
	c.h = l.accept(c)
	if c.h == nil {
		c.Close()
		return
	}
	c.receive()
}

// dial connects, shakes hands and asks for the shard.
func (l *Loop) dial(ctx context.Context, node, addr string, shard int) (*session, error) {
	d := net.Dialer{Control: setSocketOptions}
	sock, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	name, want := l.cfg.Node, node
	s, err := shake(ctx, sock, true, func(m net.Conn) (*tls.Conn, string, error) {
		if l.cfg.TLS == nil {
			return nil, want, nil
		}
		name = ""
		client, _ := l.cfg.TLS()
		t := tls.Client(m, hardened(client, node))
		peer, err := l.cfg.identify(ctx, t)
		if err == nil && peer != want {
			err = fmt.Errorf("it is node %s, by its certificate; check the addresses of both nodes", peer)
		}
		return t, peer, err
	}, func(rw io.ReadWriter) (string, error) {
		if err := writePreamble(rw, shard, name); err != nil {
			return "", err
		}
		_, _, err := readPreamble(rw)
		if errors.Is(err, io.EOF) {
			err = errors.New("the other side refused the connection; its log says why")
		}
		return "", err
	})
	return s, err
}

// identify completes the handshake and returns the name in the peer's certificate.
func (c *Config) identify(ctx context.Context, t *tls.Conn) (string, error) {
	if err := t.HandshakeContext(ctx); err != nil {
		return "", err
	}
	return c.PeerName(t.ConnectionState())
}

// hardened is cfg as this package needs it.
func hardened(cfg *tls.Config, node string) *tls.Config {
	cfg = cfg.Clone()
	cfg.MinVersion = tls.VersionTLS13
	// No tickets: nothing but data may come after the handshake.
	cfg.SessionTicketsDisabled = true
	cfg.ClientSessionCache = nil
	if cfg.ServerName == "" {
		cfg.ServerName = node
	}
	return cfg
}

// shake runs a handshake and then the exchange of preambles on sock, and takes the
// descriptor from it. It ends when ctx does, and owns sock.
func shake(ctx context.Context, sock net.Conn, dialler bool, secure func(net.Conn) (*tls.Conn, string, error),
	greet func(io.ReadWriter) (string, error)) (*session, error) {
	defer sock.Close()
	stop := context.AfterFunc(ctx, func() { sock.Close() })
	defer stop()
	t, peer, err := secure(&handshake{Conn: sock})
	if err != nil {
		return nil, err
	}
	var rw io.ReadWriter = sock
	if t != nil {
		rw = t
	}
	claimed, err := greet(rw)
	if err != nil {
		return nil, err
	}
	if t == nil && peer == "" {
		peer = claimed
	}
	var seal *sealer
	var open *opener
	if t != nil {
		if seal, open, err = newKeyrings(t, dialler); err != nil {
			return nil, err
		}
	}
	if !stop() {
		return nil, ctx.Err()
	}
	fd, err := detachFD(sock)
	if err != nil {
		return nil, err
	}
	return &session{fd: fd, peer: peer, seal: seal, open: open}, nil
}

// detachFD duplicates the connection's descriptor, in blocking mode.
func detachFD(sock net.Conn) (int, error) {
	sc, ok := sock.(syscall.Conn)
	if !ok {
		return 0, errors.New("not a connection of the operating system")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0, err
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(p uintptr) { fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0) })
	if err = errors.Join(err, dupErr); err != nil {
		return 0, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// setSocketOptions asks for large buffers, and for an end to connections into the void.
// Without the right to exceed the system's limit of buffers, the kernel's own tuning does
// better than that limit.
func setSocketOptions(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer)
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(deadAfter.Milliseconds()))
	})
}

func writePreamble(w io.Writer, shard int, name string) error {
	b := make([]byte, preambleLen, preambleLen+len(name))
	binary.LittleEndian.PutUint32(b[0:], preambleMagic)
	binary.LittleEndian.PutUint16(b[4:], preambleVersion)
	binary.LittleEndian.PutUint16(b[6:], uint16(shard))
	binary.LittleEndian.PutUint16(b[8:], uint16(len(name)))
	_, err := w.Write(append(b, name...))
	return err
}

func readPreamble(r io.Reader) (shard int, name string, err error) {
	var b [preambleLen]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, "", err
	}
	if m := binary.LittleEndian.Uint32(b[0:]); m != preambleMagic {
		return 0, "", fmt.Errorf("it doesn't speak the engines' protocol (magic %#x)", m)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != preambleVersion {
		return 0, "", fmt.Errorf("it speaks version %d of the engines' connections, this node %d", v, preambleVersion)
	}
	n := int(binary.LittleEndian.Uint16(b[8:]))
	if n > nameMost {
		return 0, "", fmt.Errorf("a node name of %d bytes; %d are possible", n, nameMost)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return 0, "", err
	}
	return int(binary.LittleEndian.Uint16(b[6:])), string(text), nil
}
