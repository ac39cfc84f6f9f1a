package engine_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/seal"
	"keelson.io/keelson/internal/spec"
)

// keys gives duplicates of the data keys to an engine that starts.
func (k *keeper) keys() map[string]engine.Kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[string]engine.Kept)
	for name, e := range k.kept {
		if _, ok := engine.KeptKey(name); !ok {
			continue
		}
		if fds, err := dup(e.FDs); err == nil {
			out[name] = engine.Kept{FDs: fds}
		}
	}
	return out
}

// lock has the wrapping key of all nodes of a test; err is why it can't be had.
type lock struct {
	mu    sync.Mutex
	err   error
	opens int
}

var wrapKey = bytes.Repeat([]byte{7}, seal.WrapKeySize)

func (l *lock) set(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
}

func (l *lock) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opens
}

func (l *lock) Open(_ context.Context, e *spec.Encryption, id string) (*seal.Key, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opens++
	if l.err != nil {
		return nil, fmt.Errorf("its key is wrapped by %s: %w", e.Key.Name(), l.err)
	}
	return seal.Open(wrapKey, e.Key.Sealed, id)
}

// encrypt gives a volume that was never attached a data key, and all nodes the means to open it.
func (c *cluster) encrypt(id string) *lock {
	c.t.Helper()
	k, err := seal.NewKey()
	if err != nil {
		c.t.Fatal(err)
	}
	defer k.Close()
	sealed, err := seal.Seal(wrapKey, k, id)
	if err != nil {
		c.t.Fatal(err)
	}
	c.change(id, func(v *spec.Volume) {
		v.Encryption = &spec.Encryption{Cipher: spec.CipherXTS, Key: spec.WrappedKey{Provider: "file", ID: "k1", Sealed: sealed}}
	})
	l := &lock{}
	for _, n := range c.nodes {
		n.stop()
		n.keys = l
		n.start()
	}
	return l
}

// finds reports whether any file below the node's pool has the text.
func (n *node) finds(text []byte) (found bool) {
	err := filepath.Walk(n.pool, func(path string, st os.FileInfo, err error) error {
		if err != nil || st.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, text)
		return err
	})
	if err != nil {
		n.c.t.Error(err)
	}
	return found
}

func (n *node) condition(id string) string {
	n.c.t.Helper()
	st, err := n.engine.Status(n.c.ctx)
	if err != nil {
		n.c.t.Fatal(err)
	}
	for _, v := range st.Volumes {
		if v.ID == id {
			return v.Condition
		}
	}
	return ""
}

func TestEncryptedVolumeIsReadElsewhere(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	id, plain := c.volume("vol", 8*mib, 2, "a", "b"), c.volume("plain", 8*mib, 1, "a", "b")
	c.encrypt(id)
	text := make([]byte, 512)
	pattern(text, 0, 1)
	for _, v := range []string{plain, id} {
		d := a.attach(v)
		d.write(t, 0, mib, 1)
		d.write(t, 3*mib-4096, 8192, 2) // in both columns
		d.flush(t)
		d.verify(t, 3*mib-4096, 8192, 2)
		a.detach(v)
	}
	if !a.finds(text) || !b.finds(text) {
		t.Fatal("what isn't encrypted isn't found: the search is worth nothing")
	}
	c.change(plain, func(v *spec.Volume) { v.Deleting = true })
	c.until("the volume that isn't encrypted is gone", func() bool { return a.replicaDirs()+b.replicaDirs() == 4 })
	if a.finds(text) || b.finds(text) {
		t.Fatal("what was written is readable on a pool")
	}
	d := b.attach(id)
	d.verify(t, 0, mib, 1)
	d.verify(t, 3*mib-4096, 8192, 2)
	b.detach(id)
	c.until("no data key is kept any more", func() bool { return len(a.keeper.keys())+len(b.keeper.keys()) == 0 })
}

func TestAttachWithoutTheKey(t *testing.T) {
	c := newCluster(t, "a", "b")
	a := c.nodes["a"]
	id := c.volume("vol", 8*mib, 1, "a", "b")
	l := c.encrypt(id)
	for _, want := range []error{seal.ErrMissing, seal.ErrAway, seal.ErrDamaged} {
		l.set(want)
		_, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), "vol") || !strings.Contains(err.Error(), "file/k1") {
			t.Errorf("%v", err)
		}
		if got := a.condition(id); !strings.Contains(got, "file/k1") || !strings.Contains(got, "node a") {
			t.Errorf("condition %q", got)
		}
	}
	if v := c.record(id); v.State.Term != 0 || v.State.Node != "" {
		t.Errorf("a term was taken without the key: %+v", v.State)
	}
	c.until("an event says so", func() bool {
		ev, err := c.store.Events(c.ctx)
		return err == nil && len(ev.Value) == 3 && ev.Value[0].What == "key-unavailable" && ev.Value[0].Volume == "vol"
	})
	// Bringing copies up to date needs no key.
	if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNone}); err != nil {
		t.Error(err)
	}
	l.set(nil)
	a.attach(id).write(t, 0, 4096, 1)
	if got := a.condition(id); got != "" {
		t.Errorf("condition %q with the key", got)
	}
	a.detach(id)
	c.until("no data key is kept any more", func() bool { return len(a.keeper.keys()) == 0 })

	a.stop()
	a.keys = nil
	a.start()
	if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); !errors.Is(err, seal.ErrNone) || !strings.Contains(err.Error(), "file/k1") {
		t.Errorf("a node without wrapping keys: %v", err)
	}
}

// The engine that follows has the data key from the one before: whoever has the wrapping key isn't asked.
func TestTakeoverWithoutTheWrappingKey(t *testing.T) {
	needRoot(t)
	c := newCluster(t, "a", "b")
	f := &fuseVolume{cluster: c, a: c.nodes["a"], id: c.volume("vol", 16*mib, 1, "a", "b"), stop: make(chan struct{}), result: make(chan error, 1)}
	l := c.encrypt(f.id)
	at, err := f.attach()
	if err != nil {
		t.Fatal(err)
	}
	f.device = at.Device
	defer f.detachAny()
	asked := l.count()
	l.set(seal.ErrAway)
	f.hammer()
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		f.a.stop()
		f.a.start()
		f.attachAgain()
	}
	f.endHammer()
	if n := l.count(); n != asked {
		t.Errorf("the wrapping key was asked for %d times", n-asked)
	}
	f.a.detach(f.id)
	c.until("nothing is kept any more", func() bool { return len(f.a.keeper.keys()) == 0 })
}

// Where the data key wasn't kept, what was attached waits for the wrapping key, says so, and can be detached.
func TestTakeoverWaitsForTheKey(t *testing.T) {
	c := newCluster(t, "a", "b")
	a := c.nodes["a"]
	id := c.volume("vol", 8*mib, 1, "a", "b")
	l := c.encrypt(id)
	restart := func() {
		t.Helper()
		l.set(seal.ErrMissing)
		a.stop()
		for name := range a.keeper.keys() {
			if err := a.keeper.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		a.start()
		c.until("it says what it waits for", func() bool { return strings.Contains(a.condition(id), "file/k1") })
		if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); !errors.Is(err, seal.ErrMissing) {
			t.Errorf("attach while the takeover waits: %v", err)
		}
	}
	a.attach(id).write(t, 0, 4096, 1)
	restart()
	l.set(nil)
	c.until("it is taken over", func() bool {
		at, ok := a.engine.Attachment(id)
		return ok && at.Device != ""
	})
	at, _ := a.engine.Attachment(id)
	a.disks.get(at.Device).verify(t, 0, 4096, 1)

	restart()
	a.detach(id)
	if got := a.condition(id); got != "" {
		t.Errorf("condition %q after it was detached", got)
	}
	l.set(nil)
	d := c.nodes["b"].attach(id)
	d.verify(t, 0, 4096, 1)
	c.nodes["b"].detach(id)
}

// The descriptions of replicas have the key as it is wrapped now: also of those that were away when it was rotated.
func TestReplicasDescribeTheirKey(t *testing.T) {
	c := newCluster(t, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	id := c.volume("vol", 8*mib, 1, "a", "b")
	c.encrypt(id)
	described := func(n *node, sealed string) bool {
		return n.finds([]byte(base64.StdEncoding.EncodeToString([]byte(sealed))))
	}
	rotate := func(sealed string) {
		c.change(id, func(v *spec.Volume) {
			e := *v.Encryption
			e.Key.ID, e.Key.Sealed = "k2", []byte(sealed)
			v.Encryption = &e
		})
	}
	rotate("wrapped anew, once")
	c.until("both say so", func() bool { return described(a, "wrapped anew, once") && described(b, "wrapped anew, once") })
	b.stop()
	rotate("wrapped anew, twice")
	c.until("the one that is there says so", func() bool { return described(a, "wrapped anew, twice") && !described(a, "wrapped anew, once") })
	b.start()
	c.until("so does the other, when it is back", func() bool { return described(b, "wrapped anew, twice") && !described(b, "wrapped anew, once") })
}
