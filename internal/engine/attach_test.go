package engine_test

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/spec"
)

const mib = 1 << 20

func TestAttachWriteMove(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	for _, columns := range []int{1, 3} {
		id := c.volume(strings.Repeat("v", columns), 64*mib, columns, "a", "b")
		d := c.nodes["a"].attach(id)
		for i := range int64(40) {
			d.write(t, i*mib+i*block.Size, 8*block.Size, int(i))
		}
		d.write(t, 60*mib, mib, 99)
		d.flush(t)
		if _, err := c.nodes["b"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); !errors.Is(err, engine.ErrAttached) || !strings.Contains(err.Error(), `"a"`) {
			t.Fatalf("attached twice: %v", err)
		}
		if at, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); err != nil || at.Device != d.Path() {
			t.Fatalf("attach again: %+v, %v", at, err)
		}
		d.busy = true
		if err := c.nodes["a"].engine.Detach(c.ctx, id); !errors.Is(err, frontend.ErrBusy) {
			t.Fatalf("detach of a busy device: %v", err)
		}
		d.busy = false
		c.nodes["a"].detach(id)
		if v := c.record(id); v.State.Node != "" || v.State.Term != 1 || !d.isClosed() {
			t.Fatalf("after the detach: %+v", v.State)
		}
		if err := c.nodes["a"].engine.Detach(c.ctx, id); !errors.Is(err, engine.ErrNotAttached) {
			t.Fatalf("detached twice: %v", err)
		}
		// c has no replica: everything comes over the links.
		d = c.nodes["c"].attach(id)
		for i := range int64(40) {
			d.verify(t, i*mib+i*block.Size, 8*block.Size, int(i))
		}
		d.verify(t, 60*mib, mib, 99)
		c.nodes["c"].detach(id)
	}
}

func TestFailover(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	id := c.volume("vol", 64*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	for i := range int64(20) {
		d.write(t, i*2*mib, 4*block.Size, 1)
	}
	d.flush(t)
	c.nodes["a"].stop()
	// The lease is gone with the node; b takes over without a.
	d = c.nodes["b"].attach(id)
	for i := range int64(20) {
		d.verify(t, i*2*mib, 4*block.Size, 1)
		d.write(t, i*2*mib, 4*block.Size, 2)
	}
	if v := c.record(id); v.State.Node != "b" || v.State.Term != 2 || v.State.Columns[0].Members[0].State != spec.Stale {
		t.Fatalf("after the failover: %+v", v.State)
	}
	// a comes back, catches up, and can serve.
	c.nodes["a"].start()
	c.until("a is in sync again", func() bool { return c.inSync(id) })
	c.nodes["b"].detach(id)
	c.nodes["b"].stop()
	d = c.nodes["a"].attach(id)
	for i := range int64(20) {
		d.verify(t, i*2*mib, 4*block.Size, 2)
	}
	st, err := c.nodes["a"].engine.Status(c.ctx)
	if err != nil || len(st.Volumes) != 1 || !st.Volumes[0].Serving || st.Volumes[0].Term != 3 || len(st.Pools) != 1 || st.Pools[0].Replicas != 1 {
		t.Fatalf("status %+v, %v", st, err)
	}
}

func TestFencedVolumeIsTornDown(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	d.write(t, 0, block.Size, 1)
	// a's lease goes, but its engine lives on: b takes the volume.
	c.store.Cut("a")
	c.until("a's lease is gone", func() bool {
		alive, err := c.store.Alive(c.ctx)
		return err == nil && !alive["a"]
	})
	e := c.nodes["b"].attach(id)
	e.verify(t, 0, block.Size, 1)
	e.write(t, 0, block.Size, 2)
	c.until("a's device is gone", d.isClosed)
	if err := d.do(block.OpRead, 0, block.Size, false, nil, nil); err == nil {
		t.Fatal("a still answers reads")
	}
	st, err := c.nodes["a"].engine.Status(c.ctx)
	if err != nil || len(st.Volumes) != 1 || st.Volumes[0].Serving || !strings.Contains(st.Volumes[0].Condition, "elsewhere") {
		t.Fatalf("status %+v, %v", st.Volumes, err)
	}
	c.store.Heal("a")
	c.nodes["b"].detach(id)
	c.nodes["a"].attach(id).verify(t, 0, block.Size, 2)
}

func TestEngineRestartTakesOver(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 1, "a", "b")
	c.nodes["a"].attach(id).write(t, mib, 16*block.Size, 5)
	c.nodes["a"].stop()
	c.nodes["a"].start()
	c.until("attached again", func() bool {
		at, ok := c.nodes["a"].engine.Attachment(id)
		return ok && at.Device != ""
	})
	d := c.nodes["a"].attach(id)
	if !d.p.Takeover || d.p.Term != 2 {
		t.Fatalf("taken over as %+v", d.p)
	}
	d.verify(t, mib, 16*block.Size, 5)
	c.nodes["a"].detach(id)
}

func TestRebuildAttachmentEndsByItself(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b", "c")
	id := c.volume("vol", 32*mib, 1, "a", "b")
	d := c.nodes["a"].attach(id)
	for i := range int64(16) {
		d.write(t, i*2*mib, 64*block.Size, 7)
	}
	c.nodes["a"].detach(id)
	c.change(id, func(v *spec.Volume) {
		m := &v.State.Columns[0].Members
		*m = append((*m)[:1], c.member(500, "c", spec.Stale)) // b's replica is replaced by one at c
	})
	c.until("b's replica is gone", func() bool { return c.nodes["b"].replicaDirs() == 0 })
	if _, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNone}); err != nil {
		t.Fatal(err)
	}
	c.until("rebuilt and detached", func() bool { return c.inSync(id) && c.record(id).State.Node == "" })
	c.nodes["a"].stop()
	d = c.nodes["c"].attach(id)
	for i := range int64(16) {
		d.verify(t, i*2*mib, 64*block.Size, 7)
	}
}

func TestDeletion(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 16*mib, 2, "a", "b")
	c.nodes["a"].attach(id).write(t, 0, mib, 1)
	c.nodes["a"].detach(id)
	if n := c.nodes["a"].replicaDirs(); n != 2 {
		t.Fatalf("%d replicas", n)
	}
	c.nodes["b"].stop()
	c.change(id, func(v *spec.Volume) { v.Deleting = true })
	if _, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: "test"}); !errors.Is(err, engine.ErrDeleting) {
		t.Fatalf("attach of a volume that is being deleted: %v", err)
	}
	members := func() int {
		v := c.record(id)
		return len(v.State.Columns[0].Members) + len(v.State.Columns[1].Members)
	}
	c.until("a's replicas are gone", func() bool { return c.nodes["a"].replicaDirs() == 0 && members() == 2 })
	c.nodes["b"].start()
	c.until("all replicas are gone", func() bool { return c.nodes["b"].replicaDirs() == 0 && members() == 0 })
}

func TestUnknownReplicasAreLeftAlone(t *testing.T) {
	c := newCluster(t, "a")
	id := c.volume("vol", 16*mib, 1, "a")
	c.nodes["a"].attach(id)
	c.nodes["a"].detach(id)
	c.nodes["a"].stop()
	v, err := c.store.Volume(c.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.store.DeleteVolume(c.ctx, id, v.Rev); err != nil {
		t.Fatal(err)
	}
	c.nodes["a"].start()
	st, err := c.nodes["a"].engine.Status(c.ctx)
	if err != nil || len(st.Replicas) != 1 || !st.Replicas[0].Orphan || st.Replicas[0].Volume != id || c.nodes["a"].replicaDirs() != 1 {
		t.Fatalf("status %+v, %v", st.Replicas, err)
	}
}

// What a deleted volume left in a pool while its node was away is removed when it is back, if the pool's record says that
// it was deleted; and not if a volume has it after all.
func TestLeftoversAreRemoved(t *testing.T) {
	c := newCluster(t, "a")
	a := c.nodes["a"]
	id, kept := c.volume("vol", 16*mib, 1, "a"), c.volume("kept", 16*mib, 1, "a")
	for _, v := range []string{id, kept} {
		a.attach(v)
		a.detach(v)
	}
	a.stop()
	v, err := c.store.Volume(c.ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	left := []string{v.Value.State.Columns[0].Members[0].Replica, c.record(kept).State.Columns[0].Members[0].Replica, "00000000000000ff"}
	if _, err := c.store.PutPool(c.ctx, spec.Pool{ID: "pool-a", Node: "a", Leftovers: left}, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.store.DeleteVolume(c.ctx, id, v.Rev); err != nil {
		t.Fatal(err)
	}
	a.start()
	c.until("the leftover is removed, and no longer named", func() bool {
		p, err := c.store.Pool(c.ctx, "pool-a")
		return err == nil && a.replicaDirs() == 1 && slices.Equal(p.Value.Leftovers, left[1:2])
	})
	a.attach(kept)
}

func TestNBD(t *testing.T) {
	frontendtest.NeedTool(t, "qemu-io")
	t.Parallel()
	c := newCluster(t, "a", "b")
	id := c.volume("vol", 64*mib, 1, "a", "b")
	at, err := c.nodes["a"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNBD})
	if err != nil {
		t.Fatal(err)
	}
	qemu(t, at.Device, "write -P 17 0 1M", "write -P 34 1M 4k", "flush")
	c.nodes["a"].stop()
	at, err = c.nodes["b"].engine.Attach(c.ctx, id, engine.AttachOptions{Frontend: spec.FrontendNBD})
	if err != nil {
		t.Fatal(err)
	}
	qemu(t, at.Device, "read -P 17 0 1M", "read -P 34 1M 4k", "read -P 0 2M 1M")
	c.nodes["b"].detach(id)
}

func qemu(t *testing.T, uri string, commands ...string) {
	t.Helper()
	args := []string{"-f", "raw"}
	for _, cmd := range commands {
		args = append(args, "-c", cmd)
	}
	out, err := exec.Command("qemu-io", append(args, uri)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "verification failed") {
		t.Fatalf("qemu-io %v: %v\n%s", commands, err, out)
	}
}
