package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"keelson.io/keelson/internal/pki"
)

// gate is in front of one of the metadata's ports: it lets nodes of the cluster through to etcd's own socket, and nobody else. Etcd
// itself would look at the CA alone, and so let nodes in that were removed.
//
// Goroutines: one that accepts, and two for each connection; they end with close.
type gate struct {
	l       net.Listener
	socket  string
	refused func(node string, issued time.Time) bool
	log     *slog.Logger
	wg      sync.WaitGroup
	mu      sync.Mutex
	closed  bool
	open    map[net.Conn]guest // the outer connections
}

// guest is who is at the other end of a connection.
type guest struct {
	node   string
	issued time.Time
}

// gateHandshake bounds how long somebody may take to show a certificate.
const gateHandshake = 10 * time.Second

// openGate listens at addr with the node's certificate. protos are the protocols that are spoken behind it.
func openGate(addr, socket string, id *identity, refused func(string, time.Time) bool, log *slog.Logger, protos ...string) (*gate, error) {
	conf, err := id.server(false)
	if err != nil {
		return nil, err
	}
	conf = refusing(conf, refused)
	conf.NextProtos = protos
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	g := &gate{l: l, socket: socket, refused: refused, log: log, open: map[net.Conn]guest{}}
	g.wg.Go(func() { g.accept(conf) })
	return g, nil
}

func (g *gate) accept(conf *tls.Config) {
	for {
		c, err := g.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // too many files are open, most likely
			continue
		}
		g.wg.Go(func() { g.serve(c, conf) })
	}
}

// serve lets one connection through, if it may, until either side ends it.
func (g *gate) serve(outer net.Conn, conf *tls.Config) {
	defer outer.Close()
	if !g.note(outer, guest{}) {
		return
	}
	defer g.forget(outer)
	t := tls.Server(outer, conf)
	ctx, cancel := context.WithTimeout(context.Background(), gateHandshake)
	err := t.HandshakeContext(ctx)
	cancel()
	if err != nil {
		g.log.Debug("somebody was refused at the metadata's port", "port", g.l.Addr().String(), "remote", outer.RemoteAddr().String(), "err", err)
		return
	}
	s := t.ConnectionState()
	id, ok := pki.PeerIdentity(s)
	if !ok || !g.note(outer, guest{id.Node, pki.Issued(s.PeerCertificates[0])}) {
		return
	}
	inner, err := net.Dial("unix", g.socket)
	if err != nil {
		return
	}
	defer inner.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(inner, t)
		inner.Close()
	}()
	_, _ = io.Copy(t, inner)
	outer.Close()
	<-done
}

// note keeps a connection among the open ones; false if none is open any more.
func (g *gate) note(c net.Conn, who guest) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.open[c] = who
	}
	return !g.closed
}

func (g *gate) forget(c net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.open, c)
}

// look ends the connections of nodes that were removed since they came.
func (g *gate) look() {
	g.mu.Lock()
	list := make(map[net.Conn]guest, len(g.open))
	for c, who := range g.open {
		list[c] = who
	}
	g.mu.Unlock()
	for c, who := range list {
		if who.node != "" && g.refused(who.node, who.issued) {
			g.log.Warn("a connection with the metadata is ended: its node was removed from the cluster", "removed", who.node)
			c.Close()
		}
	}
}

func (g *gate) close() {
	g.l.Close()
	g.mu.Lock()
	g.closed = true
	for c := range g.open {
		c.Close()
	}
	g.mu.Unlock()
	g.wg.Wait()
}
