package link

import (
	"fmt"
	"slices"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// served is a connection that another engine made to this loop, to ask its replicas.
type served struct {
	l       *Links
	c       aio.Conn
	node    string // from the certificate, then from the hello
	greeted bool
	heard   time.Duration
	n       int   // jobs that aren't answered; Invariant: ≤ windowRequests
	bytes   int64 // what they weigh; Invariant: ≤ windowBytes
	reason  error // why this side ends it
	closed  bool

	in      inflow
	filling *job // whose data is being received
}

// job is one request of a served connection. Jobs are used again and again.
type job struct {
	req   wire.Request
	id    uint64
	from  *served
	sums  []uint64 // of at most block.MaxBlocks blocks
	spare bool     // req.Data comes from Links.spare
	next  *job
}

func (l *Links) accept(c aio.Conn) aio.ConnHandler {
	s := &served{l: l, c: c, node: c.Peer(), heard: l.cfg.Loop.Now()}
	l.served = append(l.served, s)
	l.wake()
	c.Write(l.hello)
	return s
}

// give ends the connection from this side.
func (s *served) give(reason error) {
	if s.reason == nil {
		s.reason = reason
		s.c.Close()
	}
}

// Opened implements aio.ConnHandler; accepted connections are open from the start.
func (s *served) Opened(aio.Conn) {}

// Closed implements aio.ConnHandler.
func (s *served) Closed(_ aio.Conn, err error) {
	s.closed = true
	if s.filling != nil {
		s.filling.answer()
		s.filling = nil
	}
	s.l.served = slices.DeleteFunc(s.l.served, func(o *served) bool { return o == s })
	if s.reason != nil {
		err = s.reason
	}
	switch {
	case err == nil || err == errClosing:
	case s.greeted && s.reason == nil:
		s.l.cfg.Log.Info("engine disconnected", "node", s.node, "in_flight", s.n, "err", err)
	default:
		s.l.cfg.Log.Warn("connection from an engine ended", "node", s.node, "in_flight", s.n, "err", err)
	}
}

// Data implements aio.ConnHandler.
func (s *served) Data(c aio.Conn, b []byte) int {
	s.heard = s.l.cfg.Loop.Now()
	used, err := s.in.data(c, b, s)
	if err != nil {
		s.give(fmt.Errorf("%w: %w", ErrPeer, err))
	}
	if s.stopped() {
		return len(b)
	}
	return used
}

// stopped implements framer.
func (s *served) stopped() bool { return s.reason != nil }

// frame implements framer.
func (s *served) frame(f *wire.Frame, all bool) ([]byte, error) {
	if !s.greeted {
		h, err := s.l.checkHello(f, s.c.Peer())
		if err != nil {
			return nil, err
		}
		s.node, s.greeted = h.Node, true
		return nil, nil
	}
	switch f.Type {
	case wire.TypeRequest:
		j, err := s.request(f)
		if err == nil && !all {
			s.filling = j
			return j.req.Data, nil
		}
		if err == nil {
			copy(j.req.Data, f.Data)
			j.submit()
		}
		return nil, err
	case wire.TypePing:
		s.l.scratch = wire.AppendPing(s.l.scratch[:0], wire.TypePong, f.ID)
		s.c.Write(s.l.scratch)
		return nil, nil
	}
	return nil, fmt.Errorf("%w: frame type %d from the asking side", wire.ErrType, f.Type)
}

// full implements framer: the data of filling is there.
func (s *served) full() {
	j := s.filling
	s.filling = nil
	j.submit()
}

// request makes a job of what a frame asks of a replica of this shard. The frame's data isn't looked at.
func (s *served) request(f *wire.Frame) (*job, error) {
	w := weight(f.Kind, f.Len)
	if s.n == windowRequests || s.bytes+w > windowBytes {
		return nil, fmt.Errorf("%w: more than %d requests or %d bytes unanswered", wire.ErrField, windowRequests, windowBytes)
	}
	s.n++
	s.bytes += w
	j := s.l.newJob()
	j.id, j.from = f.ID, s
	r := &j.req
	r.Kind, r.FUA, r.Replica, r.Term = f.Kind, f.FUA, f.Replica, f.Term
	r.Session, r.Period, r.Off, r.Len = f.Session, f.Period, f.Off, f.Len
	r.ResetAnswer()
	r.Sums = j.sums[:0]
	switch f.Kind {
	case wire.KindWrite, wire.KindSnapWrite, wire.KindSnapMend:
		s.l.memory(j, int(f.Len))
		r.Sums = f.Sums(j.sums)
	case wire.KindRead, wire.KindSnapRead:
		s.l.memory(j, int(f.Len))
		r.Sums = j.sums[:f.Len/block.Size]
	case wire.KindVerify, wire.KindSnapVerify:
		r.Sums = j.sums[:f.Len/block.Size]
	case wire.KindSums, wire.KindSnapSums, wire.KindSnapCheck, wire.KindSnapOpen:
		r.Sums = make([]uint64, block.PerChunk)
	case wire.KindSnaps, wire.KindSnapSeal, wire.KindRestore:
		r.Sums = f.Sums(make([]uint64, f.NumSums()))
	case wire.KindSnapLevels:
		r.Sums = make([]uint64, 0, wire.MaxSnaps)
	case wire.KindSnapUsage:
		r.Sums = make([]uint64, 0, 2*wire.MaxSnaps)
	case wire.KindClone:
		r.Text = append([]byte(nil), f.Meta...)
	case wire.KindGens:
		r.Sums = make([]uint64, block.Chunks(f.Len))
	}
	return j, nil
}

// submit asks the replica.
func (j *job) submit() {
	member, ok := j.from.l.cfg.Local(j.req.Replica)
	if !ok {
		j.req.Status = wire.StatusNotFound
		j.answer()
		return
	}
	member.Submit(&j.req)
}

// answer is the Done of a job's request.
func (j *job) answer() {
	s, r := j.from, &j.req
	l := s.l
	s.n--
	s.bytes -= weight(r.Kind, r.Len)
	if r.Status == wire.StatusLost {
		r.Status = wire.StatusIOError
	}
	if !s.closed && s.reason == nil {
		var withData bool
		l.scratch, withData = wire.AppendAnswer(l.scratch[:0], j.id, r)
		s.c.Write(l.scratch)
		if withData {
			s.c.Write(r.Data)
		}
	}
	l.freeJob(j)
}

func (l *Links) newJob() *job {
	j := l.jobs
	if j == nil {
		j = &job{sums: make([]uint64, block.MaxBlocks)}
		j.req.Done = func(*wire.Request) { j.answer() }
		return j
	}
	l.jobs, j.next = j.next, nil
	return j
}

func (l *Links) freeJob(j *job) {
	if d := j.req.Data; d != nil {
		if j.spare {
			l.spare.put(d)
		} else {
			l.cfg.Loop.Buffers().Put(d)
		}
	}
	j.req.Data, j.req.Sums, j.req.Text, j.req.Fence, j.req.Next = nil, nil, nil, nil, nil
	j.from, j.spare = nil, false
	j.next, l.jobs = l.jobs, j
}
