package system

import (
	"errors"
	"fmt"
	"syscall"
	"testing"
	"time"
)

// spread makes a volume with two copies on a device of 256 MiB whose data is all written, and attaches it
// where its first copy is. It returns the nodes: holder, other copy, no copy.
func (c *cluster) spread(name string) (w *writer, dev, holder, other, third string) {
	c.T.Helper()
	v := c.create(name, "--size", "256Mi", "--zone-spread")
	holder, other = v.members()[0].Node, v.members()[1].Node
	for _, n := range c.Nodes() {
		if n != holder && n != other {
			third = n
		}
	}
	dev = c.attach(holder, name, "fuse")
	w = newWriter(c.T, 256<<20)
	w.fill(dev, 0, w.blocks)
	return w, dev, holder, other, third
}

func TestFailoverWhenANodeIsCutOff(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, _ := c.spread("over")

	w.start(dev)
	time.Sleep(2 * time.Second) // of load
	began := time.Now()
	if err := c.Cut(holder); err != nil {
		t.Fatal(err)
	}
	next := c.attach(other, "over", "fuse")
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("attached on %s %.1f s after the cut; 15 s is the limit", other, took.Seconds())
	} else {
		t.Logf("attached on %s %.1f s after the cut", other, took.Seconds())
	}
	halted := make(chan error, 1)
	go func() { halted <- w.halt() }() // its writes hang until the old engine knows
	c.refused(unavailable, []string{holder}, other, "volume", "attach", "over", "--node", holder, "--wait", "0s")

	if err := c.Heal(holder); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-halted:
		if err == nil {
			t.Log("the old node noticed nothing before the writer stopped")
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("writes on the old node hang 30 s after it is back; they must fail")
	}
	w.verify(next)
	c.awaitHealthy(other, "over", 30*time.Second)
	if dev != next && lingers(dev, "over", 10*time.Second) {
		t.Errorf("the old device %s is still there", dev)
	}
	w.verify(next)
	c.keelson(other, "volume", "detach", "over")
	// Now from the copy that was away.
	dev = c.attach(holder, "over", "fuse")
	w.verify(dev)
	c.remove(holder, "over")
}

func TestRejoinMovesOnlyWhatChanged(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, _ := c.spread("back")
	if err := c.Cut(other); err != nil {
		t.Fatal(err)
	}
	const changed = 640 // blocks; 2.5 MiB, 1 % of the volume
	w.fill(dev, 1000, 1000+changed)
	before := c.counter(holder, "resynced_bytes")
	if err := c.Heal(other); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	c.awaitHealthy(holder, "back", 30*time.Second)
	moved := c.counter(holder, "resynced_bytes") - before
	t.Logf("in sync %.1f s after heal; %d KiB were moved, %d KiB had changed", time.Since(began).Seconds(), moved>>10, changed*blockSize>>10)
	if moved >= 2*changed*blockSize {
		t.Errorf("%d bytes were moved for %d that changed", moved, changed*blockSize)
	}
	if moved < changed*blockSize {
		t.Errorf("only %d bytes were moved, and %d changed", moved, changed*blockSize)
	}
	c.keelson(holder, "volume", "detach", "back")
	dev = c.attach(other, "back", "fuse")
	w.verify(dev)
	c.remove(other, "back")
}

func TestNodeThatRestartsCatchesUp(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, _ := c.spread("reboot")
	if err := c.Kill(other); err != nil {
		t.Fatal(err)
	}
	w.fill(dev, 5000, 5640)
	before := c.counter(holder, "resynced_bytes")
	if err := c.Start(other); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(holder, "reboot", 60*time.Second)
	moved := c.counter(holder, "resynced_bytes") - before
	t.Logf("%d KiB were moved, 2560 KiB had changed", moved>>10)
	if moved > 64<<20 {
		t.Errorf("%d MiB were moved: that is no catching up", moved>>20)
	}
	c.keelson(holder, "volume", "detach", "reboot")
	dev = c.attach(other, "reboot", "fuse")
	w.verify(dev)
	c.remove(other, "reboot")
}

func TestCrashOfTheHoldersNode(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, _ := c.spread("crash")
	w.start(dev)
	time.Sleep(time.Second) // of load
	if err := c.Kill(holder); err != nil {
		t.Fatal(err)
	}
	if err := w.halt(); err == nil {
		t.Error("a device of a dead node still writes")
	}
	dev = c.attach(other, "crash", "fuse")
	w.verify(dev)
	w.start(dev)
	if err := c.Start(holder); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(other, "crash", 60*time.Second)
	if err := w.halt(); err != nil {
		t.Errorf("under load while the copy catches up: %v", err)
	}
	w.verify(dev)
	c.keelson(other, "volume", "detach", "crash")
	dev = c.attach(holder, "crash", "fuse")
	w.verify(dev)
	c.remove(holder, "crash")
}

// Killing any one process of any node, the supervisor included, must not be noticed by who uses the volume.
func TestKillingProcessesUnderLoad(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, third := c.spread("kills")
	for _, victim := range []struct{ node, process string }{
		{holder, "engine"}, {other, "engine"}, {holder, "control"}, {holder, "etcd"}, {third, "etcd"},
		{other, "control"}, {other, "server"}, {holder, "engine"}, {holder, "engine"}, {holder, "server"},
	} {
		t.Run(victim.process+" of "+role(victim.node, holder, other), func(t *testing.T) {
			w.t = t
			w.start(dev)
			time.Sleep(500 * time.Millisecond) // of load
			if err := c.KillProcess(victim.node, victim.process); err != nil {
				t.Error(err)
			}
			time.Sleep(2 * time.Second) // of load
			if err := w.halt(); err != nil {
				t.Errorf("whoever uses the volume saw: %v", err)
			}
			if w.total() == 0 {
				t.Error("nothing was written")
			}
			c.awaitHealthy(holder, "kills", 60*time.Second)
		})
	}
	w.t = t
	w.verify(dev)
	c.remove(holder, "kills")
}

func role(node, holder, other string) string {
	switch node {
	case holder:
		return "the holder"
	case other:
		return "the other copy"
	}
	return "a bystander"
}

// As long as no decision is needed the volume works without the metadata, also for longer than leases last.
func TestIOGoesOnWithoutTheMetadata(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, third := c.spread("noquorum")
	freeze := func(sig syscall.Signal) {
		for _, n := range c.Status() {
			if n.Name != other && n.Name != third {
				continue
			}
			if err := syscall.Kill(n.PIDs["etcd"], sig); err != nil {
				t.Fatalf("etcd of %s: %v", n.Name, err)
			}
		}
	}
	freeze(syscall.SIGSTOP)
	t.Cleanup(func() { freeze(syscall.SIGCONT) })
	w.start(dev)
	time.Sleep(8 * time.Second) // longer than a lease
	if err := w.halt(); err != nil {
		t.Errorf("I/O failed without a majority of the metadata: %v", err)
	}
	if n := w.total(); n < 100 {
		t.Errorf("only %d writes were done in 8 s without the metadata", n)
	}
	w.verify(dev)
	freeze(syscall.SIGCONT)
	c.mend()
	w.start(dev)
	time.Sleep(time.Second) // of load
	if err := w.halt(); err != nil {
		t.Errorf("I/O failed when the metadata was back: %v", err)
	}
	w.verify(dev)
	c.awaitHealthy(holder, "noquorum", 30*time.Second)
	c.remove(holder, "noquorum")
}

func TestReplicaIsRebuiltElsewhere(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, third := c.spread("rebuild")
	before := c.keelson("n1", "settings", "get", "-o", "json")
	c.keelson("n1", "settings", "set", "rebuild-after", "3s")
	t.Cleanup(func() {
		if _, err := c.Keelson(c.ctx(), "n1", "settings", "set", "rebuild-after", "10m"); err != nil {
			t.Errorf("settings were %s and can't be set back: %v", before, err)
		}
	})
	if err := c.Kill(other); err != nil {
		t.Fatal(err)
	}
	w.start(dev)
	c.Eventually(60*time.Second, "there are two copies again", func() error {
		v, err := c.tryVolume(holder, "rebuild")
		if err != nil {
			return err
		}
		inSync := map[string]bool{}
		for _, m := range v.members() {
			inSync[m.Node] = m.State == "InSync" && m.Alive
		}
		if !inSync[holder] || !inSync[third] {
			return errors.New(v.String())
		}
		return nil
	})
	if err := w.halt(); err != nil {
		t.Errorf("under load during the rebuild: %v", err)
	}
	if err := c.Start(other); err != nil {
		t.Fatal(err)
	}
	v := c.awaitHealthy(holder, "rebuild", 60*time.Second)
	if fmt.Sprint(len(v.members())) != "2" {
		t.Errorf("after the rebuild: %v", v)
	}
	c.keelson(holder, "volume", "detach", "rebuild")
	dev = c.attach(third, "rebuild", "fuse")
	w.verify(dev)
	c.remove(third, "rebuild")
	c.wantNoReplicas()
}

// A cluster whose every node crashes at once comes back, with all that was flushed.
func TestAllNodesCrashAtOnce(t *testing.T) {
	c := shared(t)
	w, dev, holder, _, _ := c.spread("blackout")
	w.start(dev)
	time.Sleep(time.Second) // of load
	for _, n := range c.Nodes() {
		if err := c.Kill(n); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.halt()
	for _, n := range c.Nodes() {
		if err := c.Start(n); err != nil {
			t.Fatal(err)
		}
	}
	c.mend()
	c.Eventually(60*time.Second, "it can be attached again", func() error {
		var err error
		dev, err = c.Keelson(c.ctx(), holder, "volume", "attach", "blackout")
		return err
	})
	dev = c.attach(holder, "blackout", "fuse")
	w.verify(dev) // nothing was powered off, so nothing may be missing
	c.awaitHealthy(holder, "blackout", 60*time.Second)
	c.remove(holder, "blackout")
}
