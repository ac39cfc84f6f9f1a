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
	end func() // what opEnd does, if anything

	mu struct {
		sync.Mutex
		entries map[string]Entry
		closed  bool
		// mirror has the entries too, with prefix before their names; nil if there is none.
		mirror *Line
		prefix string
	}
}

// NewKeeper returns an empty store.
func NewKeeper() *Keeper {
	k := &Keeper{}
	k.mu.entries = map[string]Entry{}
	return k
}

// Serve answers one life of the child on conn, calls ready when it says that it is,
// and returns when the child is gone and all that it sent was taken in, or, with os.ErrDeadlineExceeded, when conn's
// deadline for reading has passed and nothing that it read is unanswered. It closes conn.
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
	case opEnd:
		CloseAll(fds)
		if k.end == nil {
			answer = packet{Op: opError, Error: "this keeper ends with its process"}
			break
		}
		_ = send(conn, answer, nil)
		k.end()
		return nil
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
	k.put(e)
	CloseAll(k.mu.entries[e.Name].FDs)
	k.mu.entries[e.Name] = e
}

// Mirror has all entries, those to come too, kept by l under prefix and their names, for as long as l answers. nil ends it.
func (k *Keeper) Mirror(l *Line, prefix string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.mirror, k.mu.prefix = l, prefix
	for _, e := range k.mu.entries {
		k.put(e)
	}
}

// put gives an entry to the mirror. One that doesn't take it is given up: its Line ends, and whoever watches that brings
// another one.
func (k *Keeper) put(e Entry) {
	if k.mu.mirror != nil && k.mu.mirror.Put(k.mu.prefix+e.Name, e.State, e.FDs) != nil {
		k.mu.mirror.abandon()
		k.mu.mirror = nil
	}
}

// Remove forgets an entry and closes its descriptors.
func (k *Keeper) Remove(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.mu.mirror != nil && k.mu.mirror.Remove(k.mu.prefix+name) != nil {
		k.mu.mirror.abandon()
		k.mu.mirror = nil
	}
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

// Has says whether an entry of that name is kept.
func (k *Keeper) Has(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.mu.entries[name]
	return ok
}

// Len returns how many entries are kept.
func (k *Keeper) Len() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.mu.entries)
}

// Close closes every descriptor; a mirror keeps its own. What arrives later is closed at once.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.closed = true
	for name, e := range k.mu.entries {
		CloseAll(e.FDs)
		delete(k.mu.entries, name)
	}
}
