package ring

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// handshakesMost bounds the handshakes under way at a time.
const handshakesMost = 256

// ListenConfig describes a Listener.
type ListenConfig struct {
	// Addr is where to listen, host:port.
	Addr string
	// Loops are the process's shards, by number. The first one's Config says how
	// connections are secured and bounded in time.
	Loops []*Loop
}

// Listener accepts the connections of other engines, and gives each to the shard that
// it asks for. Methods may be called on any goroutine.
type Listener struct {
	cfg    Config
	loops  []*Loop
	ln     net.Listener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{}

	refused struct {
		sync.Mutex
		said    time.Time
		skipped int // since then
	}
}

// noteRefusal logs connections that were refused, at most one a second: whoever can reach the port can be refused as often
// as they like, and must not fill a disk by it.
func (n *Listener) noteRefusal(from net.Addr, err error) {
	now := time.Now()
	n.refused.Lock()
	if now.Sub(n.refused.said) < time.Second {
		n.refused.skipped++
		n.refused.Unlock()
		return
	}
	others := n.refused.skipped
	n.refused.said, n.refused.skipped = now, 0
	n.refused.Unlock()
	n.cfg.Log.Warn("refused a connection", "node", n.cfg.Node, "from", from.String(), "others", others, "error", err)
}

// Listen starts to accept connections.
func Listen(cfg ListenConfig) (*Listener, error) {
	if len(cfg.Loops) == 0 {
		return nil, errors.New("ring: Listen without loops")
	}
	lc := net.ListenConfig{Control: setSocketOptions}
	ln, err := lc.Listen(context.Background(), "tcp", cfg.Addr)
	if err != nil {
		return nil, fmt.Errorf("ring: listen for engines on %s: %w", cfg.Addr, err)
	}
	n := &Listener{cfg: cfg.Loops[0].cfg, loops: cfg.Loops, ln: ln, slots: make(chan struct{}, handshakesMost)}
	n.ctx, n.cancel = context.WithCancel(context.Background())
	n.wg.Add(1)
	go n.run()
	return n, nil
}

// Addr is the address that is listened on.
func (n *Listener) Addr() net.Addr { return n.ln.Addr() }

// Close stops accepting, ends handshakes that are under way, and waits for its
// goroutines. Connections that were handed to loops stay.
func (n *Listener) Close() error {
	n.cancel()
	err := n.ln.Close()
	n.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		err = nil
	}
	return err
}

func (n *Listener) run() {
	defer n.wg.Done()
	for {
		sock, err := n.ln.Accept()
		if n.ctx.Err() != nil {
			if err == nil {
				sock.Close()
			}
			return
		}
		if err != nil {
			// Out of descriptors or memory, most likely: others may free some.
			n.cfg.Log.Error("can't accept connections of engines", "node", n.cfg.Node, "error", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-n.ctx.Done():
			}
			continue
		}
		select {
		case n.slots <- struct{}{}:
		case <-n.ctx.Done():
			sock.Close()
			return
		}
		n.wg.Add(1)
		go func() {
			defer n.wg.Done()
			defer func() { <-n.slots }()
			n.welcome(sock)
		}()
	}
}

// welcome shakes hands and gives the connection to its loop.
func (n *Listener) welcome(sock net.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.DialTimeout)
	defer cancel()
	var shard int
	s, err := shake(ctx, sock, false, func(m net.Conn) (*tls.Conn, string, error) {
		if n.cfg.TLS == nil {
			return nil, "", nil
		}
		_, server := n.cfg.TLS()
		t := tls.Server(m, hardened(server, ""))
		peer, err := n.cfg.identify(ctx, t)
		return t, peer, err
	}, func(rw io.ReadWriter) (name string, err error) {
		if shard, name, err = readPreamble(rw); err != nil {
			return "", err
		}
		if shard >= len(n.loops) {
			return "", fmt.Errorf("it asked for shard %d; this node has %d", shard, len(n.loops))
		}
		return name, writePreamble(rw, shard, "")
	})
	if err != nil {
		if n.ctx.Err() == nil {
			n.noteRefusal(sock.RemoteAddr(), err)
		}
		return
	}
	l := n.loops[shard]
	if !l.post(func() { l.accepted(s) }) {
		unix.Close(s.fd)
	}
}
