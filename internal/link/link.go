// Package link carries requests between engines: a Peer is the asking side (a
// wire.Member for every replica on another node's shard), and each Links serves the
// requests that other engines make to the replicas of its own shard. There is one
// Links for each loop, and one connection for each pair of asking loop and answering loop.
//
// What holds:
//
//   - Every request that was submitted is answered exactly once, by the member or with
//     StatusLost. What was answered with StatusLost may have been executed.
//   - A request isn't sent twice: repeating it in a new session is the coordinator's work.
//   - What is unanswered on a connection is bounded by the window (see docs/format/wire.md),
//     at the asker by waiting, at the member by closing the connection.
//   - Requests that have reached a replica run to their end there, also when the
//     connection they came from is gone; their answers are dropped then.
//
// Everything here lives on one loop: the package has no locks and owns no goroutine. In
// steady state it allocates nothing for an I/O.
package link

import (
	"fmt"
	"log/slog"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/wire"
)

// The window: what may be unanswered on one connection.
const (
	windowRequests = 1024
	windowBytes    = 16 << 20
)

// Times of a connection's life.
const (
	tickEvery     = 500 * time.Millisecond
	pingAfter     = 500 * time.Millisecond // of silence
	silenceLimit  = 2 * time.Second        // after which the asker gives a connection up
	serverSilence = 10 * time.Second       // after which the answering side does
	openLimit     = 5 * time.Second        // from dialling until the other side's hello
	backoffFirst  = 100 * time.Millisecond
	backoffMax    = time.Second
	logEvery      = 30 * time.Second // how often it is logged that a node can't be reached
)

// Config is what a Links needs. All fields are required.
type Config struct {
	Loop        aio.Loop
	Self        string // this node
	Cluster     string // the cluster's id
	Incarnation uint64 // different each time this engine starts
	Log         *slog.Logger
	// Local finds the replica of this shard that has the id. Called on the loop.
	Local func(wire.ReplicaID) (wire.Member, bool)
}

// Links is all connections of one loop. Its methods are called on the loop only.
type Links struct {
	cfg     Config
	hello   []byte  // this engine's hello frame
	scratch []byte  // for frames that are being written
	peers   []*Peer // in the order of making, so that a simulation repeats itself
	served  []*served
	tick    aio.Timer
	ticking bool
	ticked  time.Duration // when tick last ran
	jobs    *job          // free list
	spare   spareBuffers
	closed  bool
}

// New makes the Links of a loop and begins to accept connections on it. Call it on
// the loop, or before the loop runs.
func New(cfg Config) *Links {
	l := &Links{
		cfg:     cfg,
		hello:   wire.AppendHello(nil, wire.Hello{Cluster: cfg.Cluster, Node: cfg.Self, Incarnation: cfg.Incarnation}),
		scratch: make([]byte, 0, 4096),
	}
	l.tick = cfg.Loop.NewTimer(l.onTick)
	cfg.Loop.OnAccept(l.accept)
	return l
}

// Peer returns the link to loop number shard of a node's engine, which listens
// at addr. There is one for each node and shard: if it exists already, addr counts
// from its next dialling on.
func (l *Links) Peer(node, addr string, shard int) *Peer {
	for _, p := range l.peers {
		if p.node == node && p.shard == shard {
			p.addr = addr
			return p
		}
	}
	p := newPeer(l, node, shard)
	p.addr = addr
	l.peers = append(l.peers, p)
	return p
}

// Close closes all connections and accepts no more. Requests in flight are answered
// with StatusLost, later. Idempotent.
func (l *Links) Close() {
	if l.closed {
		return
	}
	l.closed = true
	l.cfg.Loop.OnAccept(nil)
	l.tick.Stop()
	for _, p := range l.peers {
		p.retry.Stop()
		if p.conn != nil {
			p.conn.give(errClosing)
		}
	}
	for _, s := range l.served {
		s.give(errClosing)
	}
}

// Status is one peer as seen by this loop.
type Status struct {
	Node     string
	Shard    int
	Up       bool
	InFlight int           // requests that were sent and not answered
	Waiting  int           // requests that wait for the window
	RTT      time.Duration // of the last ping; 0 if there was none
	Err      string        // why it is down, if it is
}

// Status describes all peers.
func (l *Links) Status() []Status {
	out := make([]Status, 0, len(l.peers))
	for _, p := range l.peers {
		out = append(out, Status{
			Node: p.node, Shard: p.shard, Up: p.up, InFlight: p.flight.n,
			Waiting: p.waiting.n, RTT: p.rtt, Err: p.lastErr,
		})
	}
	return out
}

// wake makes sure that the tick runs while there is a connection.
func (l *Links) wake() {
	if !l.ticking && !l.closed {
		l.ticking = true
		l.ticked = l.cfg.Loop.Now()
		l.tick.Reset(tickEvery)
	}
}

// onTick sends pings and gives up connections that are silent for too long.
func (l *Links) onTick() {
	now := l.cfg.Loop.Now()
	// A loop that was itself held up hasn't listened: that silence doesn't count.
	deaf := max(0, now-l.ticked-2*tickEvery)
	l.ticked = now
	l.ticking = false
	for _, p := range l.peers {
		if p.conn != nil {
			p.conn.heard += deaf
			p.conn.onTick(now)
			l.ticking = true
		}
	}
	for _, s := range l.served {
		s.heard += deaf
		if now-s.heard > serverSilence {
			s.give(errSilent)
		}
		l.ticking = true
	}
	if l.ticking && !l.closed {
		l.tick.Reset(tickEvery)
	}
}

// checkHello decodes the other side's hello and says whether this engine talks to it.
// name is the node of its certificate, "" if the connection has none.
func (l *Links) checkHello(f *wire.Frame, name string) (wire.Hello, error) {
	if f.Type != wire.TypeHello {
		return wire.Hello{}, fmt.Errorf("%w: the first frame isn't a hello", ErrPeer)
	}
	h, err := f.Hello()
	if err != nil {
		return h, err
	}
	if h.Cluster != l.cfg.Cluster {
		return h, fmt.Errorf("%w: it belongs to cluster %s, this engine to %s", ErrPeer, h.Cluster, l.cfg.Cluster)
	}
	if name != "" && h.Node != name {
		return h, fmt.Errorf("%w: it says it is node %q, its certificate says %q", ErrPeer, h.Node, name)
	}
	return h, nil
}
