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

	in      inflow
	filling uint64 // of the request whose answer's data is being received
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
	used, err := d.in.data(c, b, d)
	if err != nil {
		d.give(fmt.Errorf("%w: %w", ErrPeer, err))
	}
	if d.stopped() {
		return len(b)
	}
	d.p.sendWaiting()
	return used
}

// stopped implements framer.
func (d *dialled) stopped() bool { return d.reason != nil }

// frame implements framer.
func (d *dialled) frame(f *wire.Frame, all bool) ([]byte, error) {
	p := d.p
	if !d.greeted {
		if _, err := p.links.checkHello(f, d.c.Peer()); err != nil {
			return nil, err
		}
		d.greeted, d.wasUp = true, true
		p.goneUp()
		return nil, nil
	}
	switch f.Type {
	case wire.TypeAnswer:
		r, err := p.answered(f)
		if err == nil && !all {
			d.filling = f.ID
			return r.Data[:f.Len], nil
		}
		if err == nil {
			copy(r.Data, f.Data)
			p.complete(f.ID)
		}
		return nil, err
	case wire.TypePong:
		p.rtt = d.heard - time.Duration(f.ID)
		return nil, nil
	}
	return nil, fmt.Errorf("%w: frame type %d from the answering side", wire.ErrType, f.Type)
}

// full implements framer: the data of the answer to filling is there.
func (d *dialled) full() { d.p.complete(d.filling) }

// answered takes an answer, all but its data, for who asked. What was read isn't verified against its sums here:
// the asker does that.
func (p *Peer) answered(f *wire.Frame) (*wire.Request, error) {
	r := p.flight.peek(f.ID)
	if r == nil || r.Kind != f.Kind || r.Length() != f.Len || r.Replica != f.Replica {
		return nil, fmt.Errorf("%w: a %v answer that nobody asked for", wire.ErrField, f.Kind)
	}
	fence, err := f.FenceReply()
	if err != nil {
		return nil, err
	}
	n := f.NumSums()
	if f.HasData() && n*block.Size != int(f.Len) {
		return nil, fmt.Errorf("%w: %d sums for %d bytes", wire.ErrLength, n, f.Len)
	}
	r.Status, r.Fence = f.Status, fence
	r.Bad = f.Bad()
	if n > 0 {
		if cap(r.Sums) < n {
			r.Sums = make([]uint64, n)
		}
		r.Sums = f.Sums(r.Sums)
	}
	return r, nil
}

// complete hands an answer to who asked.
func (p *Peer) complete(id uint64) {
	r := p.flight.peek(id)
	p.flight.take(id)
	r.Done(r)
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
