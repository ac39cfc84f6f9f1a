package link

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/wire"
)

const (
	// fillFrom is the least data of a frame that is received where it belongs, without a copy.
	fillFrom = 32 << 10
	// fillPiece is how much of it is waited for at a time: a slow connection must be heard of in between.
	fillPiece = 256 << 10
)

// framer is what takes the frames of a connection.
type framer interface {
	// frame takes a frame with its data; or, if it has much and not all is there, without, and returns the memory for it.
	frame(f *wire.Frame, all bool) (into []byte, err error)
	// full is called when that memory is full.
	full()
	// stopped reports whether nothing more is taken.
	stopped() bool
}

// inflow takes what comes on a connection apart. The data of large frames goes straight to where it belongs.
type inflow struct {
	filling bool
	rest    []byte // of the memory for the data: what the connection was not given yet
	f       wire.Frame
}

// data is the Data of the connection's handler.
func (in *inflow) data(c aio.Conn, b []byte, to framer) (used int, err error) {
	if in.filling && !in.more(c) {
		in.filling = false
		to.full()
	}
	for !in.filling && !to.stopped() {
		var head, data int
		if in.f, head, data, err = wire.DecodeHead(b[used:]); err != nil {
			return used, err
		}
		all := len(b)-used-head >= data
		if head == 0 || !all && data < fillFrom {
			break
		}
		used += head
		if all {
			in.f.Data = b[used : used+data : used+data]
			used += data
		}
		into, err := to.frame(&in.f, all)
		if err != nil {
			return used, err
		}
		if !all {
			in.filling, in.rest = true, into
			in.more(c)
		}
	}
	return used, nil
}

// more gives the connection the next piece of memory, if there is any.
func (in *inflow) more(c aio.Conn) bool {
	if len(in.rest) == 0 {
		return false
	}
	n := min(len(in.rest), fillPiece)
	c.Fill(in.rest[:n])
	in.rest = in.rest[n:]
	return true
}
