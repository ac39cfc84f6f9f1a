package link_test

import (
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// pipe is just enough of a loop to join two Links without allocating anything: what one
// writes is shown to the other by pump.
type pipe struct {
	aio.Loop
	other  *pipe
	accept func(aio.Conn) aio.ConnHandler
	h      aio.ConnHandler
	in     []byte
	free   [][]byte
	dialed bool
}

func newPipe() *pipe { return &pipe{in: make([]byte, 0, 64<<10)} }

func (p *pipe) Now() time.Duration                         { return 0 }
func (p *pipe) NewTimer(func()) aio.Timer                  { return noTimer{} }
func (p *pipe) OnAccept(fn func(aio.Conn) aio.ConnHandler) { p.accept = fn }
func (p *pipe) Buffers() aio.Buffers                       { return p }
func (p *pipe) Dial(_, _ string, _ int, h aio.ConnHandler) { p.h, p.dialed = h, true }
func (p *pipe) Peer() string                               { return "" }
func (p *pipe) Write(b []byte)                             { p.other.in = append(p.other.in, b...) }
func (p *pipe) Queued() int                                { return 0 }
func (p *pipe) Fill([]byte)                                { panic("whole frames are shown") }
func (p *pipe) Close()                                     {}

func (p *pipe) Get(n int) []byte {
	if len(p.free) == 0 {
		return make([]byte, n)
	}
	b := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return b[:n]
}

func (p *pipe) Put(b []byte) { p.free = append(p.free, b) }

func (p *pipe) pump() {
	if p.dialed {
		p.dialed = false
		p.other.h = p.other.accept(p.other)
		p.h.Opened(p)
	}
	for len(p.in)+len(p.other.in) > 0 {
		p.show()
		p.other.show()
	}
}

func (p *pipe) show() {
	n := p.h.Data(p, p.in)
	p.in = p.in[:copy(p.in, p.in[n:])]
}

type noTimer struct{}

func (noTimer) Reset(time.Duration) {}
func (noTimer) Stop()               {}

// instant answers inside Submit: allowed to nobody but a test that counts allocations.
type instant struct{ m *replica }

func (i instant) Submit(r *wire.Request) {
	if r.Kind == wire.KindWrite && block.Sum(r.Data) != r.Sums[0] {
		r.Status = wire.StatusBadSum
	}
	i.m.run(r)
}
