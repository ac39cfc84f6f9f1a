package ring

import (
	"net"
	"time"
)

// drained is the error of a memory with nothing to read. crypto/tls keeps its state
// over an error that is temporary, and goes on where it was when it is asked again.
type drained struct{}

func (drained) Error() string   { return "nothing to read yet" }
func (drained) Timeout() bool   { return true }
func (drained) Temporary() bool { return true }

var errDrained net.Error = drained{}

// memory is the net.Conn below a tls.Conn: the socket until the handshake is done, then
// bytes that the loop has received and will send. Until detach it is safe for concurrent
// use as a socket is; then it belongs to the loop.
type memory struct {
	net.Conn        // nil after detach
	in       []byte // received, not read
	out      []byte // written, to be sent
}

func (m *memory) detach() { m.Conn = nil }

func (m *memory) Read(p []byte) (int, error) {
	if m.Conn != nil {
		return m.Conn.Read(p)
	}
	if len(m.in) == 0 {
		return 0, errDrained
	}
	n := copy(p, m.in)
	m.in = m.in[n:]
	return n, nil
}

func (m *memory) Write(p []byte) (int, error) {
	if m.Conn != nil {
		return m.Conn.Write(p)
	}
	m.out = append(m.out, p...)
	return len(p), nil
}

func (m *memory) Close() error {
	if m.Conn != nil {
		return m.Conn.Close()
	}
	return nil
}

func (m *memory) SetDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetDeadline(t)
	}
	return nil
}

func (m *memory) SetReadDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetReadDeadline(t)
	}
	return nil
}

func (m *memory) SetWriteDeadline(t time.Time) error {
	if m.Conn != nil {
		return m.Conn.SetWriteDeadline(t)
	}
	return nil
}
