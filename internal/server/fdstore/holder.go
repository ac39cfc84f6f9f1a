package fdstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// holderLimit is how long a supervisor waits for its holder before it looks for another one.
const holderLimit = time.Second

// Hold keeps entries for the supervisors that connect to the socket at path, one after another, until ctx ends or a
// supervisor says End. ready is called when it listens.
func Hold(ctx context.Context, path string, ready func()) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	unix.Umask(old)
	if err != nil {
		return fmt.Errorf("holder: %w", err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := &Keeper{end: cancel}
	h.mu.entries = map[string]Entry{}
	defer h.Close()
	// What is being read ends with ctx too.
	var now struct {
		sync.Mutex
		conn *net.UnixConn
	}
	context.AfterFunc(ctx, func() {
		l.Close()
		now.Lock()
		defer now.Unlock()
		if now.conn != nil {
			now.conn.Close()
		}
	})
	ready()
	for {
		// One at a time: what a dead supervisor sent is taken in before the next one asks what is kept.
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("holder: %w", err)
		}
		now.Lock()
		now.conn = conn
		now.Unlock()
		if ctx.Err() != nil {
			conn.Close()
			return nil
		}
		// A line that broke is as good as one that ended: the supervisor connects again.
		_ = h.Serve(conn, func() {})
	}
}

// DialHolder connects to the holder that listens at path.
func DialHolder(path string) (*Line, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	l := newLine(c)
	l.limit = holderLimit
	return l, nil
}

// End has the holder let everything go, and end.
func (l *Line) End() error {
	_, err := l.call(packet{Op: opEnd}, nil)
	return err
}
