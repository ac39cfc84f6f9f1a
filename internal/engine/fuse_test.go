package engine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// TestFUSEDeviceOutlivesTheEngine writes to the loop device all the time, while the engine is stopped and
// started anew.
func TestFUSEDeviceOutlivesTheEngine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a := c.nodes["a"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.detachAny(id) }()
	link := filepath.Join(c.runs, "a", "dev", "vol")
	if target, err := os.Readlink(link); err != nil || target != at.Device {
		t.Fatalf("link to %q, %v; the device is %q", target, err, at.Device)
	}
	stop, result := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		a.stop()
		time.Sleep(50 * time.Millisecond)
		a.start()
		again, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
		if err != nil || again.Device != at.Device {
			t.Fatalf("after the restart: %+v, %v", again, err)
		}
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	if err := <-result; err != nil {
		t.Fatalf("after %d rounds: %v", rounds, err)
	}
	if v := c.record(id); v.State.Term != 4 || rounds == 0 {
		t.Fatalf("term %d after %d rounds", v.State.Term, rounds)
	}
	a.detach(id)
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Fatalf("the link is still there: %v", err)
	}
	if len(a.keeper.kept) != 0 {
		t.Fatalf("descriptors are still kept: %v", a.keeper.kept)
	}
}

// hammer writes blocks and reads each of them back, until stop.
func hammer(device string, stop chan struct{}, rounds *int) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	mem, err := unix.Mmap(-1, 0, 2*block.Size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return err
	}
	defer unix.Munmap(mem)
	w, r := mem[:block.Size], mem[block.Size:]
	for ; ; *rounds++ {
		select {
		case <-stop:
			return nil
		default:
		}
		off := int64(*rounds%1000) * block.Size
		pattern(w, off, *rounds)
		if _, err := unix.Pwrite(fd, w, off); err != nil {
			return err
		}
		if _, err := unix.Pread(fd, r, off); err != nil {
			return err
		}
		if !bytes.Equal(w, r) {
			return os.ErrInvalid
		}
	}
}

// TestEngineDiesRightAfterTakingATerm: the record has a term of this node that no engine has served, nor noted with the
// device's session. The device goes on, as no other node had the volume. With two such terms that can't be known.
func TestEngineDiesRightAfterTakingATerm(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a := c.nodes["a"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.detachAny(id) }()
	stop, result := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		a.stop()
		c.change(id, func(v *spec.Volume) { v.State.Term++ })
		a.start()
		again, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
		if err != nil || again.Device != at.Device {
			t.Fatalf("after the restart: %+v, %v", again, err)
		}
	}
	time.Sleep(50 * time.Millisecond)
	close(stop)
	if err := <-result; err != nil {
		t.Fatalf("after %d rounds: %v", rounds, err)
	}
	a.stop()
	c.change(id, func(v *spec.Volume) { v.State.Term += 2 })
	a.start()
	again, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(a.log.text.String(), "can't be taken over") {
		t.Fatalf("a session of an unknown past was taken over: %+v", again)
	}
}

// TestDeviceOfAVolumeThatWentElsewhere: another node took the volume while no engine ran here. What used the device gets an
// error, and doesn't wait.
func TestDeviceOfAVolumeThatWentElsewhere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a := c.nodes["a"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	stop, result := make(chan struct{}), make(chan error, 1)
	defer close(stop)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	time.Sleep(50 * time.Millisecond)
	a.stop()
	c.nodes["b"].attach(id)
	a.start()
	select {
	case err := <-result:
		if err == nil {
			t.Fatal("what used the device ended without an error")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("what used the device hangs")
	}
	if len(a.keeper.kept) != 0 {
		t.Fatalf("descriptors are still kept: %v", a.keeper.kept)
	}
}

// TestUnansweredRequestsWaitForTheNextEngine stops an engine while a write can't be answered, as the only replica
// is away: the write must succeed later, and not fail.
func TestUnansweredRequestsWaitForTheNextEngine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "b")
	a, b := c.nodes["a"], c.nodes["b"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.detachAny(id) }()
	b.stop()
	stop, result := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	time.Sleep(300 * time.Millisecond) // the write is on its way, and stays there
	a.lease()
	if err := a.engine.Close(); !errors.Is(err, engine.ErrUnanswered) {
		t.Fatalf("Close: %v", err)
	}
	a.listen.Close()
	for _, l := range a.loops {
		l.Close()
	}
	a.engine, a.loops = nil, nil
	b.start()
	a.start()
	if _, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE}); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	close(stop)
	if err := <-result; err != nil || rounds == 0 {
		t.Fatalf("after %d rounds: %v", rounds, err)
	}
}

// TestDeviceOfAVolumeThatIsElsewhereFails: a device of which the volume was attached elsewhere while no engine ran
// must not wait for ever.
func TestDeviceOfAVolumeThatIsElsewhereFails(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a, b := c.nodes["a"], c.nodes["b"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	stop, result := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	time.Sleep(100 * time.Millisecond)
	a.stop()
	d := b.attach(id)
	d.write(t, 0, block.Size, 7)
	b.detach(id)
	a.start()
	// It's attached here again, and not the same device as before to whoever had that open.
	again, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.detachAny(id) }()
	select {
	case err := <-result:
		if err == nil {
			t.Fatal("the old device went on")
		}
	case <-c.ctx.Done():
		t.Fatal("whoever uses the old device hangs")
	}
	close(stop)
	fd, err := os.Open(again.Device)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	got, want := make([]byte, block.Size), make([]byte, block.Size)
	pattern(want, 0, 7)
	if _, err := fd.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("what was written elsewhere isn't there: %v", err)
	}
}

// heldStore is a store that, once armed, doesn't answer any more after the next volume record that was written.
type heldStore struct {
	meta.Store
	armed bool
	once  sync.Once
	held  chan struct{}
	mu    sync.Mutex
	hold  bool
}

func (s *heldStore) Volume(ctx context.Context, id string) (meta.Versioned[spec.Volume], error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if !hold {
		return s.Store.Volume(ctx, id)
	}
	s.once.Do(func() { close(s.held) })
	<-ctx.Done()
	return meta.Versioned[spec.Volume]{}, ctx.Err()
}

func (s *heldStore) PutVolume(ctx context.Context, v spec.Volume, rev meta.Rev, cond meta.Cond) (meta.Rev, error) {
	now, err := s.Store.PutVolume(ctx, v, rev, cond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hold = s.hold || s.armed && err == nil
	return now, err
}

// TestEngineEndsWhileItAttachesAgain: an engine that follows a dead one is itself told to end before its volume serves. What
// waits in the device is for the next engine: it gets no error, and the end doesn't take long.
func TestEngineEndsWhileItAttachesAgain(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount and to make loop devices")
	}
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	a := c.nodes["a"]
	at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { a.detachAny(id) }()
	stop, result := make(chan struct{}), make(chan error, 1)
	rounds := 0
	go func() { result <- hammer(at.Device, stop, &rounds) }()
	time.Sleep(50 * time.Millisecond) // of load
	a.stop()
	held := &heldStore{Store: c.store, armed: true, held: make(chan struct{})}
	a.store = held
	a.start()
	select {
	case <-held.held: // the coordinator has fenced, and wants to say so
	case <-c.ctx.Done():
		t.Fatal("the coordinator writes nothing to the metadata")
	}
	time.Sleep(100 * time.Millisecond) // requests that the kernel sends again arrive
	a.lease()
	began := time.Now()
	if err := a.engine.Close(); !errors.Is(err, engine.ErrUnanswered) {
		t.Errorf("Close: %v", err)
	}
	t.Log("ended after", time.Since(began))
	a.listen.Close()
	for _, l := range a.loops {
		l.Close()
	}
	a.engine, a.loops, a.store = nil, nil, nil
	a.start()
	again, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
	if err != nil || again.Device != at.Device {
		t.Fatalf("after the restart: %+v, %v", again, err)
	}
	time.Sleep(50 * time.Millisecond)
	close(stop)
	if err := <-result; err != nil || rounds == 0 {
		t.Fatalf("after %d rounds: %v", rounds, err)
	}
}
