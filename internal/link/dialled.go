package link

import (
	"fmt"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// dialled is one connection, or the attempt at one, of a Peer.
type dialled struct {
	p       *Peer
	c       aio.Conn // nil until it is open
	started time.Duration
	heard   time.Duration // when something was last received
	greeted bool          // the other side's hello has come, and is right
	wasUp   bool
	reason  error // why this side ends it. Once set, nothing is read or sent any more
	over    bool  // the Peer was told that it is closed
}

// give ends the connection from this side.
func (d *dialled) give(reason error) {
	if d.reason != nil {
		return
	}
	d.reason = reason
	d.p.up = false
	if d.c != nil {
		d.c.Close()
	}
}

func (d *dialled) finish(err error) {
	if d.over {
		return
	}
	d.over = true
	if d.reason != nil {
		err = d.reason
	}
	d.p.goneDown(d.wasUp, err)
}

// Opened implements aio.ConnHandler.
func (d *dialled) Opened(c aio.Conn) {
	d.c = c
	d.heard = d.p.links.cfg.Loop.Now()
	if d.over || d.reason != nil {
		c.Close()
		return
	}
	if name := c.Peer(); name != "" && name != d.p.node {
		d.give(fmt.Errorf("%w: node %q answers at %s", ErrPeer, name, d.p.addr))
		return
	}
	c.Write(d.p.links.hello)
}

// Closed implements aio.ConnHandler.
func (d *dialled) Closed(_ aio.Conn, err error) { d.finish(err) }

// Data implements aio.ConnHandler.
func (d *dialled) Data(c aio.Conn, b []byte) int {
	d.heard = d.p.links.cfg.Loop.Now()
	used := 0
	for d.reason == nil {
		f, n, err := wire.Decode(b[used:])
		if err == nil && n > 0 {
			used += n
			err = d.frame(&f)
		}
		if err != nil {
			d.give(fmt.Errorf("%w: %w", ErrPeer, err))
		}
		if n == 0 {
			break
		}
	}
	if d.reason != nil {
		return len(b)
	}
	d.p.sendWaiting()
	c.Expect(int(wire.Size(b[used:])) - (len(b) - used))
	return used
}

func (d *dialled) frame(f *wire.Frame) error {
	p := d.p
	if !d.greeted {
		if _, err := p.links.checkHello(f, d.c.Peer()); err != nil {
			return err
		}
		d.greeted, d.wasUp = true, true
		p.goneUp()
		return nil
	}
	switch f.Type {
	case wire.TypeAnswer:
		return p.answered(f)
	case wire.TypePong:
		p.rtt = d.heard - time.Duration(f.ID)
		return nil
	}
	return fmt.Errorf("%w: frame type %d from the answering side", wire.ErrType, f.Type)
}

// answered hands an answer to who asked. What was read isn't verified against its sums here:
// the asker does that.
func (p *Peer) answered(f *wire.Frame) error {
	r := p.flight.peek(f.ID)
	if r == nil || r.Kind != f.Kind || r.Length() != f.Len || r.Replica != f.Replica {
		return fmt.Errorf("%w: a %v answer that nobody asked for", wire.ErrField, f.Kind)
	}
	fence, err := f.FenceReply()
	if err != nil {
		return err
	}
	n := f.NumSums()
	if len(f.Data) > 0 && n*block.Size != len(f.Data) {
		return fmt.Errorf("%w: %d sums for %d bytes", wire.ErrLength, n, len(f.Data))
	}
	p.flight.take(f.ID)
	r.Status, r.Fence = f.Status, fence
	r.Bad = f.Bad()
	if n > 0 {
		if cap(r.Sums) < n {
			r.Sums = make([]uint64, n)
		}
		r.Sums = f.Sums(r.Sums)
	}
	copy(r.Data, f.Data)
	r.Done(r)
	return nil
}

func (d *dialled) onTick(now time.Duration) {
	switch {
	case d.reason != nil:
		// An attempt can't be called off; when it comes to an end nobody minds.
		if d.c == nil {
			d.finish(d.reason)
		}
	case !d.greeted:
		if now-d.started > openLimit {
			d.give(errSilent)
		}
	case now-d.heard > silenceLimit:
		d.give(errSilent)
	case d.p.closeIfUnused():
	case now-d.heard >= pingAfter:
		l := d.p.links
		l.scratch = wire.AppendPing(l.scratch[:0], wire.TypePing, uint64(now))
		d.c.Write(l.scratch)
	}
}
