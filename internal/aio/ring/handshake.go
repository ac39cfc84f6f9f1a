package ring

import (
	"encoding/binary"
	"net"
)

const tlsHeader = 5 // RFC 8446, 5.1: type, version, length

// handshake is the socket below crypto/tls until the preambles are exchanged. It never reads beyond the record of TLS
// that is being read: what comes behind the last one belongs to the loop.
type handshake struct {
	net.Conn
	header []byte // of a record, as far as it has come
	left   int    // bytes of the record that weren't read yet
}

// Read implements net.Conn.
func (h *handshake) Read(p []byte) (int, error) {
	if h.left > 0 {
		n, err := h.Conn.Read(p[:min(len(p), h.left)])
		h.left -= n
		return n, err
	}
	n, err := h.Conn.Read(p[:min(len(p), tlsHeader-len(h.header))])
	if h.header = append(h.header, p[:n]...); len(h.header) == tlsHeader {
		h.left = int(binary.BigEndian.Uint16(h.header[3:]))
		h.header = h.header[:0]
	}
	return n, err
}
