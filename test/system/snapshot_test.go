package system

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// content is a checksum of all that a device holds.
func (c *cluster) content(node, dev string) string {
	c.T.Helper()
	sum, _, _ := strings.Cut(c.shell(node, "sha256sum "+dev), " ")
	return sum
}

// cloned makes a volume, attaches it and returns what it holds; then it is deleted again.
func (c *cluster) cloned(node, name string, from ...string) string {
	c.T.Helper()
	c.keelson(node, append([]string{"volume", "create", name}, from...)...)
	sum := c.content(node, c.attach(node, name, "fuse"))
	c.remove(node, name)
	return sum
}

// Snapshots are the same on the copy that was away when one was taken and others were changed, and don't change when the ones beside
// them are deleted.
func TestSnapshots(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, _ := c.spread("snap")
	sums := map[string]string{}
	take := func(name string) {
		t.Helper()
		sums[name] = c.content(holder, dev)
		c.keelson(holder, "snapshot", "create", "snap", name)
	}
	take("s1")
	w.fill(dev, 1000, 1640)
	if err := c.Cut(other); err != nil {
		t.Fatal(err)
	}
	w.fill(dev, 5000, 5640)
	take("s2")
	w.fill(dev, 1200, 1400)
	take("s3")
	w.fill(dev, 5000, 5300)
	if err := c.Heal(other); err != nil {
		t.Fatal(err)
	}
	c.awaitHealthy(holder, "snap", 60*time.Second)
	if n := strings.Count(c.keelson(holder, "snapshot", "list", "snap"), "Ready"); n != 3 {
		t.Errorf("%d snapshots are ready, want 3", n)
	}
	now := c.content(holder, dev)
	for name, want := range sums {
		for _, node := range []string{holder, other} {
			if got := c.cloned(node, "copy-"+name, "--from-snapshot", "snap/"+name); got != want {
				t.Errorf("a clone of %s on %s differs", name, node)
			}
		}
	}
	if got := c.cloned(other, "copy-now", "--from-volume", "snap", "--size", "1Gi"); got == "" {
		t.Error("a clone of the volume holds nothing")
	}
	w.start(dev)
	c.keelson(holder, "snapshot", "delete", "snap", "s2")
	if err := w.halt(); err != nil {
		t.Error(err)
	}
	w.verify(dev)
	for _, name := range []string{"s1", "s3"} {
		if got := c.cloned(other, "again-"+name, "--from-snapshot", "snap/"+name); got != sums[name] {
			t.Errorf("%s isn't what it was since s2 was deleted", name)
		}
	}
	if c.content(holder, dev) == now {
		t.Error("nothing was written meanwhile")
	}
	c.refused(4, []string{"snap", "attached", "detach"}, holder, "snapshot", "restore", "snap", "s1")
	c.keelson(holder, "volume", "detach", "snap")
	c.refused(4, []string{"snap", "snapshots"}, holder, "volume", "delete", "snap")
	c.keelson(holder, "snapshot", "restore", "snap", "s1")
	for _, node := range []string{other, holder} {
		if got := c.content(node, c.attach(node, "snap", "fuse")); got != sums["s1"] {
			t.Errorf("restored, it differs on %s", node)
		}
		c.keelson(node, "volume", "detach", "snap")
	}
	for _, name := range []string{"s1", "s3"} {
		c.keelson(holder, "snapshot", "delete", "snap", name)
	}
	c.keelson(holder, "volume", "delete", "snap")
	c.wantNoReplicas()
}

// What makes no sense is refused, with what would be legal.
func TestBadRequestsForSnapshots(t *testing.T) {
	c := shared(t)
	c.create("nosnap", "--size", "64Mi")
	for text, a := range map[string][]string{
		"DNS label":         {"snapshot", "create", "nosnap", "A_b"},
		"no volume":         {"snapshot", "create", "nothing"},
		"no snapshot":       {"snapshot", "delete", "nosnap", "s"},
		"has no snapshot":   {"snapshot", "restore", "nosnap", "s"},
		"VOLUME/SNAPSHOT":   {"volume", "create", "x", "--from-snapshot", "nosnap"},
		"periodic=MINUTES":  {"snapshot", "schedule", "nosnap", "hourly"},
		fmt.Sprint(512):     {"settings", "set", "snapshots-max", "513"},
		"snapshots-max \"0": {"settings", "set", "snapshots-max", "0"},
	} {
		if out, err := c.Keelson(c.ctx(), "n1", a...); err == nil || !strings.Contains(err.Error()+string(out), text) {
			t.Errorf("%v: %s, %v; want %q in it", a, out, err, text)
		}
	}
	c.keelson("n1", "volume", "delete", "nosnap")
}
