package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/spec"
)

func (n *node) tryAttach(id string, o engine.AttachOptions, d time.Duration) (engine.Attached, error) {
	ctx, cancel := context.WithTimeout(n.c.ctx, d)
	defer cancel()
	return n.engine.Attach(ctx, id, o)
}

func TestAttachWithoutReplicasGoesOnInTheBackground(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	id := c.volume("vol", 16*mib, 1, "a")
	c.nodes["a"].attach(id).write(t, 0, block.Size, 1)
	c.nodes["a"].detach(id)
	c.nodes["a"].stop()
	_, err := c.nodes["b"].tryAttach(id, engine.AttachOptions{Frontend: "test"}, 200*time.Millisecond)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "background") {
		t.Fatalf("attach without any replica: %v", err)
	}
	st, err := c.nodes["b"].engine.Status(c.ctx)
	if err != nil || len(st.Volumes) != 1 || st.Volumes[0].Serving || st.Volumes[0].Condition == "" {
		t.Fatalf("status %+v, %v", st.Volumes, err)
	}
	// Whoever gives up makes place for another node.
	c.nodes["b"].detach(id)
	if v := c.record(id); v.State.Frontend != spec.FrontendNone {
		t.Fatalf("given up as %+v", v.State)
	}
	if _, err = c.nodes["c"].tryAttach(id, engine.AttachOptions{Frontend: "test"}, 100*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("attach without any replica: %v", err)
	}
	// The replica comes back: so does the volume, by itself.
	c.nodes["a"].start()
	c.nodes["c"].attach(id).verify(t, 0, block.Size, 1)
}

func TestAcceptLoss(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	d.write(t, 0, block.Size, 1)
	d.flush(t)
	// Both machines are restarted, and one doesn't come back: what wasn't flushed may be on that one.
	c.nodes["a"].stop()
	c.nodes["b"].stop()
	c.nodes["b"].run = "boot-2"
	c.nodes["b"].start()
	if _, err := c.nodes["b"].tryAttach(id, engine.AttachOptions{Frontend: "test"}, 5*time.Second); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("attach without a replica in its run: %v", err)
	}
	at, err := c.nodes["b"].tryAttach(id, engine.AttachOptions{Frontend: "test", AcceptLoss: true}, 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	c.nodes["b"].disks.get(at.Device).verify(t, 0, block.Size, 1)
}

func (n *node) replicaDir() string {
	list, err := filepath.Glob(filepath.Join(n.pool, "replicas", "*"))
	if err != nil || len(list) != 1 {
		n.c.t.Fatalf("%v, %v", list, err)
	}
	return list[0]
}

func TestDamagedAndMissingReplicasAreReplaced(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		damage func(dir string) error
	}{
		{"missing", os.RemoveAll},
		{"damaged meta", func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "meta"), make([]byte, 16384), 0o600)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			cl := newCluster(t, "a", "b")
			id := cl.volume("vol", 16*mib, 1, "a", "b")
			d := cl.nodes["a"].attach(id)
			for i := range int64(8) {
				d.write(t, i*2*mib, 8*block.Size, 3)
			}
			b := cl.nodes["b"]
			dir := b.replicaDir()
			b.stop()
			if err := c.damage(dir); err != nil {
				t.Fatal(err)
			}
			b.start()
			cl.until("b is found stale", func() bool { return !cl.inSync(id) })
			cl.until("b is in sync again", func() bool { return cl.inSync(id) })
			cl.nodes["a"].stop()
			d = b.attach(id)
			for i := range int64(8) {
				d.verify(t, i*2*mib, 8*block.Size, 3)
			}
		})
	}
}

func TestFrontendThatCantBeOpened(t *testing.T) {
	c := newCluster(t, "a")
	id := c.volume("vol", 16*mib, 1, "a")
	a := c.nodes["a"]
	broken := errors.New("no device today")
	a.disks.fail = broken
	if _, err := a.tryAttach(id, engine.AttachOptions{Frontend: "test"}, 10*time.Second); !errors.Is(err, broken) {
		t.Fatalf("attach: %v", err)
	}
	if v := c.record(id); v.State.Node != "" {
		t.Fatalf("still attached: %+v", v.State)
	}
	if _, err := a.tryAttach(id, engine.AttachOptions{Frontend: "floppy"}, time.Second); !errors.Is(err, engine.ErrFrontend) {
		t.Fatalf("attach: %v", err)
	}
	a.disks.fail = nil
	a.attach(id).write(t, 0, block.Size, 1)
	a.detach(id)
}

func TestIOGoesOnWithoutMetadata(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	c.store.SetUnavailable(true)
	for i := range int64(50) {
		d.write(t, i%16*mib, block.Size, int(i))
		d.verify(t, i%16*mib, block.Size, int(i))
		time.Sleep(10 * time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(c.ctx, 300*time.Millisecond)
	defer cancel()
	if err := c.nodes["a"].engine.Detach(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("detach without metadata: %v", err)
	}
	c.store.SetUnavailable(false)
	c.nodes["a"].detachAny(id)
	if v := c.record(id); v.State.Node != "" {
		t.Fatalf("still attached: %+v", v.State)
	}
}

// detachAny detaches a volume that may be detached by now.
func (n *node) detachAny(id string) {
	n.c.t.Helper()
	if err := n.engine.Detach(n.c.ctx, id); err != nil && !errors.Is(err, engine.ErrNotAttached) {
		n.c.t.Fatal(err)
	}
}

func TestCloseEndsWhateverWaits(t *testing.T) {
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "b")
	c.nodes["b"].stop()
	result := make(chan error, 1)
	go func() {
		_, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"})
		result <- err
	}()
	c.until("attaching", func() bool { return c.record(id).State.Node == "a" })
	e := c.nodes["a"].engine
	c.nodes["a"].stop()
	if err := <-result; err == nil {
		t.Fatal("attached by a closed engine")
	}
	if _, err := e.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); !errors.Is(err, engine.ErrClosed) {
		t.Fatalf("attach after Close: %v", err)
	}
}

func TestManyVolumesLeaveNothing(t *testing.T) {
	c := newCluster(t, "a", "b")
	const workers = 3 * 4 // of the loops, which keep them
	before := runtime.NumGoroutine()
	const n = 60
	ids := make([]string, n)
	for i := range ids {
		v := spec.Volume{ID: fmt.Sprintf("%016x", i+1), Name: fmt.Sprintf("v%d", i), Size: 16 * mib, Replicas: 2, Columns: 1}
		v.State.Columns = []spec.Column{{Members: []spec.Member{c.member(10*i, "a", spec.InSync), c.member(10*i+1, "b", spec.InSync)}}}
		if _, err := c.store.CreateVolume(c.ctx, v); err != nil {
			t.Fatal(err)
		}
		ids[i] = v.ID
	}
	errs := make(chan error, n)
	each := func(fn func(id string) error) {
		for _, id := range ids {
			go func() { errs <- fn(id) }()
		}
		for range ids {
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
		}
	}
	a := c.nodes["a"]
	each(func(id string) error {
		at, err := a.engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"})
		if err != nil {
			return err
		}
		return a.disks.get(at.Device).do(block.OpWrite, mib, block.Size, true, func(p []byte) { pattern(p, 0, 1) }, nil)
	})
	each(func(id string) error { return a.engine.Detach(c.ctx, id) })
	for _, id := range ids {
		c.change(id, func(v *spec.Volume) { v.Deleting = true })
	}
	c.until("all replicas are gone", func() bool {
		return a.replicaDirs() == 0 && c.nodes["b"].replicaDirs() == 0
	})
	for _, id := range ids {
		c.until("no members", func() bool { return len(c.record(id).State.Columns[0].Members) == 0 })
		v, err := c.store.Volume(c.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.store.DeleteVolume(c.ctx, id, v.Rev); err != nil {
			t.Fatal(err)
		}
	}
	c.until("nothing is left", func() bool {
		for _, name := range []string{"a", "b"} {
			st, err := c.nodes[name].engine.Status(c.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(st.Volumes)+len(st.Replicas) > 0 {
				return false
			}
		}
		return runtime.NumGoroutine() <= before+workers
	})
}

var _ frontend.Frontend = (*disk)(nil)
