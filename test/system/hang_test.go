package system

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// mountOf returns where a node has the pool of a member mounted.
func (c *cluster) mountOf(m member) string {
	c.T.Helper()
	return c.shell(m.Node, "awk '$3 == \"xfs\" && index($2, \""+c.NodeDir(m.Node)+"/\") == 1 && index($2, \""+m.Pool+"\") {print $2}' /proc/mounts")
}

// freeze makes the pool of a member hang: everything that would change its file system waits. The test's end thaws it in any case.
func (c *cluster) freeze(m member) (thaw func()) {
	c.T.Helper()
	dir := c.mountOf(m)
	if dir == "" {
		c.T.Fatalf("pool %s isn't mounted on %s", m.Pool, m.Node)
	}
	c.shell(m.Node, "fsfreeze -f "+dir)
	frozen := true
	thaw = func() {
		if frozen {
			frozen = false
			c.shell(m.Node, "fsfreeze -u "+dir)
		}
	}
	c.T.Cleanup(thaw)
	return thaw
}

// A disk that hangs stops a volume no longer than answer-limit, if there is another copy. Once it goes on, the copy catches up by what was
// written meanwhile. If it is the last copy, requests wait, and none fails.
func TestHangingDisk(t *testing.T) {
	c := shared(t)
	const limit = 2 * time.Second
	c.keelson("n1", "settings", "set", "answer-limit", limit.String())
	t.Cleanup(func() { c.keelson("n1", "settings", "set", "answer-limit", "10s") })
	_, dev, holder, other, _ := c.spread("hang")
	const hot = 16 << 20 // of 256 MiB are written to
	w := newWriter(t, hot)
	w.fill(dev, 0, w.blocks)
	members := c.volume("n1", "hang").members()
	writes := func() int64 { return c.counter(holder, "writes") }

	w.start(dev)
	c.Eventually(10*time.Second, "the load runs", func() error { return atLeast(writes(), 200) })
	thaw := c.freeze(members[1])
	began := time.Now()
	c.Eventually(limit+5*time.Second, "the volume goes on without the copy that hangs", func() error {
		v := c.volume(holder, "hang")
		if v.Health != "Degraded" || v.members()[1].State != "Stale" {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	before := writes()
	c.Eventually(3*time.Second, "writes are answered", func() error { return atLeast(writes(), before+200) })
	t.Logf("writes go on %.1f s after the disk of %s began to hang", time.Since(began).Seconds(), other)
	c.Eventually(10*time.Second, "the condition says what hangs, and for how long", func() error {
		v := c.volume(holder, "hang")
		if !strings.Contains(v.Condition, "(pool "+members[1].Pool+") hasn't answered for") {
			return fmt.Errorf("%s", v.Condition)
		}
		return nil
	})
	if err := w.halt(); err != nil {
		t.Fatalf("a write failed: %v", err)
	}
	w.verify(dev)
	resynced := c.counter(holder, "resynced_bytes")
	thaw()
	c.awaitHealthy(holder, "hang", 30*time.Second)
	if n := c.counter(holder, "resynced_bytes") - resynced; n == 0 || n > hot {
		t.Errorf("%d KiB were moved: that is no catching up", n>>10)
	} else {
		t.Logf("%d KiB were moved", n>>10)
	}

	// The last copy in sync.
	w.start(dev)
	thaws := []func(){c.freeze(members[1]), c.freeze(members[0])}
	c.Eventually(limit+10*time.Second, "the condition says that the last copy hangs", func() error {
		v := c.volume(holder, "hang")
		if !strings.Contains(v.Condition, "(pool "+members[0].Pool+") hasn't answered for") {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	time.Sleep(2 * limit) // nothing may give up
	thaws[1]()
	thaws[0]()
	before = writes()
	c.Eventually(10*time.Second, "writes go on", func() error { return atLeast(writes(), before+200) })
	if err := w.halt(); err != nil {
		t.Fatalf("a write failed: %v", err)
	}
	c.awaitHealthy(holder, "hang", 30*time.Second)
	w.verify(dev)
	c.keelson(holder, "volume", "detach", "hang")
	w.verify(c.attach(other, "hang", "fuse"))
	c.remove(other, "hang")
}

func atLeast(n, want int64) error {
	if n < want {
		return fmt.Errorf("%d of %d", n, want)
	}
	return nil
}
