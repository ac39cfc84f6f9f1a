package link

import (
	"errors"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/wire"
)

// ErrPeer is wrapped by the reasons for which another engine isn't talked to: it is of
// another cluster, isn't who it should be, or breaks the protocol.
var ErrPeer = errors.New("link: peer refused")

var (
	errClosing = errors.New("link: closing")
	errUnused  = errors.New("link: nobody uses it")
	errHung    = errors.New("link: requests that aren't answered take up the window")
	errSilent  = errors.New("link: nothing was received for too long")
)

// Peer is the link to one loop of another engine.
//
//	idle ──Subscribe──▶ dialling ──opened, hello──▶ up
//	  ▲                    │                        │
//	  └─nobody subscribed──┴──closed, then backoff──┘ (dials again while somebody is subscribed)
//
// It implements wire.Member for every replica of that loop.
type Peer struct {
	links *Links
	node  string
	addr  string
	shard int

	subs    []*subscription
	conn    *dialled // nil between a Closed and the next dialling
	up      bool     // Invariant: up implies conn != nil and both hellos were exchanged
	backoff time.Duration
	retry   aio.Timer

	flight  flight
	waiting queue // for room in the window
	lost    queue // to be answered with StatusLost by deliver
	deliver aio.Timer

	rtt     time.Duration
	lastErr string        // why the last connection was closed, or couldn't be opened
	logAt   time.Duration // failures to connect before this moment aren't logged
}

type subscription struct{ fn func(up bool) }

func newPeer(l *Links, node string, shard int) *Peer {
	p := &Peer{links: l, node: node, shard: shard, backoff: backoffFirst}
	p.retry = l.cfg.Loop.NewTimer(p.dial)
	p.deliver = l.cfg.Loop.NewTimer(p.answerLost)
	return p
}

// Up reports whether requests can be sent now.
func (p *Peer) Up() bool { return p.up }

// Node is the name of the node at the other end.
func (p *Peer) Node() string { return p.node }

// Subscribe keeps the link connected, and has fn called on the loop each time it goes up
// or down; not for the state it is in now (see Up). When it goes down, the requests that
// were in flight are answered first. cancel ends that.
func (p *Peer) Subscribe(fn func(up bool)) (cancel func()) {
	s := &subscription{fn: fn}
	p.subs = append(p.subs, s)
	if p.conn == nil {
		p.retry.Stop()
		p.dial()
	}
	return func() {
		for i, o := range p.subs {
			if o == s {
				p.subs = append(p.subs[:i:i], p.subs[i+1:]...)
				break
			}
		}
		s.fn = nil
		p.closeIfUnused()
	}
}

func (p *Peer) closeIfUnused() bool {
	if len(p.subs) > 0 || p.flight.n > 0 || p.waiting.n > 0 {
		return false
	}
	p.retry.Stop()
	if p.conn != nil {
		p.conn.give(errUnused)
	}
	return true
}

func (p *Peer) notify(up bool) {
	for _, s := range append([]*subscription(nil), p.subs...) {
		if s.fn != nil {
			s.fn(up)
		}
	}
}

func (p *Peer) dial() {
	l := p.links
	if p.conn != nil || len(p.subs) == 0 || l.closed {
		return
	}
	now := l.cfg.Loop.Now()
	p.conn = &dialled{p: p, started: now, heard: now}
	l.wake()
	l.cfg.Loop.Dial(p.node, p.addr, p.shard, p.conn)
}

// Submit sends r to its replica; see wire.Member. While the link is down it is
// answered with StatusLost.
func (p *Peer) Submit(r *wire.Request) {
	r.ResetAnswer()
	switch {
	case !p.up:
		p.lost.push(r)
		p.deliver.Reset(0)
	case p.waiting.n > 0 || !p.flight.fits(r):
		p.waiting.push(r)
	default:
		p.send(r)
	}
}

func (p *Peer) send(r *wire.Request) {
	l := p.links
	l.scratch = wire.AppendRequest(l.scratch[:0], p.flight.add(r, l.cfg.Loop.Now()), r)
	p.conn.c.Write(l.scratch)
	if r.Kind.Sends() {
		p.conn.c.Write(r.Data)
	}
}

// Relieve makes room for the requests of other replicas: if those that have been unanswered for longer than limit, as
// a disk hangs, take up much of the window, the connection is made anew. What was in flight is answered with StatusLost.
func (p *Peer) Relieve(limit time.Duration) {
	if !p.up {
		return
	}
	n, bytes := p.flight.older(p.links.cfg.Loop.Now() - limit)
	if n > windowRequests/4 || bytes > windowBytes/4 {
		p.conn.give(errHung)
	}
}

func (p *Peer) sendWaiting() {
	for p.up && p.waiting.head != nil && p.flight.fits(p.waiting.head) {
		p.send(p.waiting.pop())
	}
}

func (p *Peer) answerLost() {
	// Only those that are lost by now: a Done may submit again.
	for n := p.lost.n; n > 0; n-- {
		r := p.lost.pop()
		r.ResetAnswer() // half of an answer may have come
		r.Status = wire.StatusLost
		r.Done(r)
	}
}

// goneUp is called when both hellos were exchanged.
func (p *Peer) goneUp() {
	p.up = true
	p.backoff = backoffFirst
	p.lastErr, p.logAt = "", 0
	p.links.cfg.Log.Info("connected to engine", "node", p.node, "shard", p.shard)
	p.notify(true)
}

// goneDown is called when the connection is closed, or couldn't be opened.
func (p *Peer) goneDown(wasUp bool, err error) {
	p.conn = nil
	p.up = false
	reason := "connection closed"
	if err != nil {
		reason = err.Error()
	}
	now := p.links.cfg.Loop.Now()
	if !errors.Is(err, errUnused) && !errors.Is(err, errClosing) && (wasUp || now >= p.logAt) {
		p.logAt = now + logEvery
		p.links.cfg.Log.Warn("no connection to engine", "node", p.node, "shard", p.shard, "addr", p.addr, "err", reason)
	}
	p.lastErr = reason
	p.flight.takeAll(&p.lost)
	for p.waiting.n > 0 {
		p.lost.push(p.waiting.pop())
	}
	p.answerLost()
	if wasUp {
		p.notify(false)
	}
	if len(p.subs) > 0 && p.conn == nil && !p.links.closed {
		if errors.Is(err, errUnused) {
			p.retry.Reset(0)
			return
		}
		p.retry.Reset(p.backoff)
		p.backoff = min(2*p.backoff, backoffMax)
	}
}
