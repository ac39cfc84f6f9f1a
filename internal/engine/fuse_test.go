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

// fuseVolume is a volume that is attached with FUSE at node a, of two.
type fuseVolume struct {
	*cluster
	a          *node
	id, device string
	stop       chan struct{}
	result     chan error
	rounds     int // of hammer; it may be read once there is a result
}

// needRoot skips a test of real devices without root.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts, and makes loop devices")
	}
}

// newFUSEVolume makes the nodes a and b, and attaches a volume with replicas on those of them.
func newFUSEVolume(t *testing.T, replicas ...string) *fuseVolume {
	t.Helper()
	needRoot(t)
	c := newCluster(t, "a", "b")
	f := &fuseVolume{cluster: c, a: c.nodes["a"], id: c.volume("vol", 16*mib, 1, replicas...), stop: make(chan struct{}), result: make(chan error, 1)}
	at, err := f.attach()
	if err != nil {
		t.Fatal(err)
	}
	f.device = at.Device
	return f
}

func (f *fuseVolume) attach() (engine.Attached, error) {
	return f.a.engine.Attach(f.ctx, f.id, engine.AttachOptions{Frontend: spec.FrontendFUSE})
}

// attachAgain attaches the volume at an engine that follows another: the device must be the same.
func (f *fuseVolume) attachAgain() {
	f.t.Helper()
	again, err := f.attach()
	if err != nil || again.Device != f.device {
		f.t.Fatalf("after the restart: %+v, %v", again, err)
	}
}

// detachAny detaches the volume if it is attached still, and an engine runs.
func (f *fuseVolume) detachAny() {
	f.t.Helper()
	if f.a.engine != nil {
		f.a.detachAny(f.id)
	}
}

// hammer begins to write to the device, and to read back what it wrote.
func (f *fuseVolume) hammer() {
	go func() { f.result <- hammer(f.device, f.stop, &f.rounds) }()
}

// endHammer ends that; nothing may have gone wrong.
func (f *fuseVolume) endHammer() {
	f.t.Helper()
	close(f.stop)
	if err := <-f.result; err != nil || f.rounds == 0 {
		f.t.Fatalf("after %d rounds: %v", f.rounds, err)
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

// TestFUSEDeviceOutlivesTheEngine writes to the loop device all the time, while the engine is stopped and
// started anew.
func TestFUSEDeviceOutlivesTheEngine(t *testing.T) {
	f := newFUSEVolume(t, "a", "b")
	a := f.a
	defer f.detachAny()
	link := filepath.Join(f.runs, "a", "dev", "vol")
	if target, err := os.Readlink(link); err != nil || target != f.device {
		t.Fatalf("link to %q, %v; the device is %q", target, err, f.device)
	}
	f.hammer()
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		a.stop()
		time.Sleep(50 * time.Millisecond)
		a.start()
		f.attachAgain()
	}
	time.Sleep(100 * time.Millisecond)
	f.endHammer()
	if v := f.record(f.id); v.State.Term != 4 {
		t.Fatalf("term %d after %d rounds", v.State.Term, f.rounds)
	}
	a.detach(f.id)
	if _, err := os.Lstat(link); !os.IsNotExist(err) {
		t.Fatalf("the link is still there: %v", err)
	}
	if len(a.keeper.kept) != 0 {
		t.Fatalf("descriptors are still kept: %v", a.keeper.kept)
	}
}

// TestEngineDiesRightAfterTakingATerm: the record has a term of this node that no engine has served, nor noted with the
// device's session. The device goes on, as no other node had the volume. With two such terms that can't be known.
func TestEngineDiesRightAfterTakingATerm(t *testing.T) {
	f := newFUSEVolume(t, "a", "b")
	a := f.a
	defer f.detachAny()
	f.hammer()
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		a.stop()
		f.change(f.id, func(v *spec.Volume) { v.State.Term++ })
		a.start()
		f.attachAgain()
	}
	time.Sleep(50 * time.Millisecond)
	f.endHammer()
	a.stop()
	f.change(f.id, func(v *spec.Volume) { v.State.Term += 2 })
	a.start()
	again, err := f.attach()
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
	f := newFUSEVolume(t, "a", "b")
	a := f.a
	f.hammer()
	defer close(f.stop)
	time.Sleep(50 * time.Millisecond)
	a.stop()
	f.nodes["b"].attach(f.id)
	a.start()
	select {
	case err := <-f.result:
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
	f := newFUSEVolume(t, "b")
	a, b := f.a, f.nodes["b"]
	defer f.detachAny()
	b.stop()
	f.hammer()
	time.Sleep(300 * time.Millisecond) // the write is on its way, and stays there
	if err := a.stop(); !errors.Is(err, engine.ErrUnanswered) {
		t.Fatalf("Close: %v", err)
	}
	b.start()
	a.start()
	f.attachAgain()
	time.Sleep(100 * time.Millisecond)
	f.endHammer()
}

// TestDeviceOfAVolumeThatIsElsewhereFails: a device of which the volume was attached elsewhere while no engine ran
// must not wait for ever.
func TestDeviceOfAVolumeThatIsElsewhereFails(t *testing.T) {
	f := newFUSEVolume(t, "a", "b")
	a, b := f.a, f.nodes["b"]
	f.hammer()
	time.Sleep(100 * time.Millisecond)
	a.stop()
	d := b.attach(f.id)
	d.write(t, 0, block.Size, 7)
	b.detach(f.id)
	a.start()
	// It's attached here again, and not the same device as before to whoever had that open.
	again, err := f.attach()
	if err != nil {
		t.Fatal(err)
	}
	defer f.detachAny()
	select {
	case err := <-f.result:
		if err == nil {
			t.Fatal("the old device went on")
		}
	case <-f.ctx.Done():
		t.Fatal("whoever uses the old device hangs")
	}
	close(f.stop)
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
	f := newFUSEVolume(t, "a", "b")
	a := f.a
	defer f.detachAny()
	f.hammer()
	time.Sleep(50 * time.Millisecond) // of load
	a.stop()
	held := &heldStore{Store: f.store, armed: true, held: make(chan struct{})}
	a.store = held
	a.start()
	select {
	case <-held.held: // the coordinator has fenced, and wants to say so
	case <-f.ctx.Done():
		t.Fatal("the coordinator writes nothing to the metadata")
	}
	time.Sleep(100 * time.Millisecond) // requests that the kernel sends again arrive
	began := time.Now()
	if err := a.stop(); !errors.Is(err, engine.ErrUnanswered) {
		t.Errorf("Close: %v", err)
	}
	t.Log("ended after", time.Since(began))
	a.store = nil
	a.start()
	f.attachAgain()
	time.Sleep(50 * time.Millisecond)
	f.endHammer()
}
