package fdstore

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sort"
	"sync"
)

// Keeper is the supervisor's side: what one child has stored, through all its lives.
// Safe for concurrent use, but Serve runs at most once at a time.
type Keeper struct {
	mu struct {
		sync.Mutex
		entries map[string]Entry
		closed  bool
	}
}

// NewKeeper returns an empty store.
func NewKeeper() *Keeper {
	k := &Keeper{}
	k.mu.entries = map[string]Entry{}
	return k
}

// Serve answers one life of the child on conn, calls ready when it says that it is,
// and returns when the child is gone and all that it sent was taken in. It closes conn.
func (k *Keeper) Serve(conn *net.UnixConn, ready func()) error {
	defer conn.Close()
	r := newReceiver(conn)
	for {
		p, fds, err := r.next()
		switch {
		case errors.Is(err, ErrTooLarge):
			if err := send(conn, packet{Op: opError, Error: err.Error()}, nil); err != nil {
				return err
			}
			continue
		case errors.Is(err, net.ErrClosed), errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := k.handle(conn, p, fds, ready); err != nil && !errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

// handle takes over fds. An error in answering is the only one returned: the child is gone then,
// and what it sent before is still to be read.
func (k *Keeper) handle(conn *net.UnixConn, p packet, fds []int, ready func()) error {
	answer := packet{Op: opDone}
	switch p.Op {
	case opReady:
		CloseAll(fds)
		ready()
	case opPut:
		k.Keep(Entry{Name: p.Name, State: p.State, FDs: fds})
	case opRemove:
		CloseAll(fds)
		k.Remove(p.Name)
	case opRestore:
		CloseAll(fds)
		for _, e := range k.Entries() {
			if err := send(conn, packet{Op: opEntry, Name: e.Name, State: e.State}, e.FDs); err != nil {
				return nil
			}
		}
	default:
		CloseAll(fds)
		answer = packet{Op: opError, Error: fmt.Sprintf("unknown request %q", p.Op)}
	}
	// A child that died after asking doesn't wait for the answer, and what it asked counts.
	_ = send(conn, answer, nil)
	return nil
}

// Keep takes an entry over, with its descriptors; it replaces one of the same name.
func (k *Keeper) Keep(e Entry) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.closed {
		CloseAll(e.FDs)
		return
	}
	CloseAll(k.mu.entries[e.Name].FDs)
	k.mu.entries[e.Name] = e
}

// Remove forgets an entry and closes its descriptors.
func (k *Keeper) Remove(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	CloseAll(k.mu.entries[name].FDs)
	delete(k.mu.entries, name)
}

// Entries returns the entries by name. Their descriptors stay the keeper's: they are valid until the entry is
// removed or replaced.
func (k *Keeper) Entries() []Entry {
	k.mu.Lock()
	defer k.mu.Unlock()
	es := make([]Entry, 0, len(k.mu.entries))
	for _, e := range k.mu.entries {
		es = append(es, e)
	}
	sort.Slice(es, func(i, j int) bool { return es[i].Name < es[j].Name })
	return es
}

// Len returns how many entries are kept.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.mu.entries)
}

// Close closes every descriptor. What arrives later is closed at once.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.closed = true
	for name, e := range k.mu.entries {
		CloseAll(e.FDs)
		delete(k.mu.entries, name)
	}
}
