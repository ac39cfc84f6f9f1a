package doctor

import (
	"net"
	"testing"
)

// listenSomewhere listens on a free port until the test ends.
func listenSomewhere(t *testing.T) (port int, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port, nil
}
