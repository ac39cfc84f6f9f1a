package replica

import "keelson.io/keelson/internal/aio"

// settler has the file system forget, whenever the last snapshot is gone, that the head shared space with a clone: while a file has that mark, writes that may
// not wait don't go through, and cost several times the processor time. While something is shared still, or if nothing ever was, nothing happens.
type settler struct {
	r  *Replica
	op aio.Op
}

func (s *settler) begin() {
	r := s.r
	if s.op.Busy || r.closed {
		return
	}
	r.background++
	s.op.Done = func(_ int, err error) {
		r.background--
		if err != nil {
			r.log.Debug("the head can't be settled", "error", err)
		} else {
			r.stats.Settled++
		}
		if r.closing != nil {
			r.quiet()
		}
	}
	r.files.head.Settle(&s.op)
}
