package system

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
)

type scrub struct {
	Number uint64 `json:"number"`
	State  string `json:"state"`
	Last   struct {
		Findings struct {
			Bytes      int64 `json:"bytes"`
			Repaired   int   `json:"repaired"`
			Unreadable int   `json:"unreadable"`
			Differing  int   `json:"differing"`
			Chosen     int   `json:"chosen"`
			Bad        []struct {
				Off    int64    `json:"off"`
				Len    int64    `json:"len"`
				Differ bool     `json:"differ"`
				Pools  []string `json:"pools"`
			} `json:"bad"`
		} `json:"findings"`
	} `json:"last"`
}

// scrub scrubs a volume and waits. What the command prints when it fails is not JSON: the result is read from the volume.
func (c *cluster) scrub(node, name string, well bool, more ...string) scrub {
	c.T.Helper()
	_, err := c.Keelson(c.ctx(), node, append([]string{"volume", "scrub", name, "--wait"}, more...)...)
	if (err == nil) != well {
		c.T.Errorf("scrub of %s: %v", name, err)
	}
	var v struct {
		Scrub scrub `json:"scrub"`
	}
	if err := c.JSON(c.ctx(), node, &v, "volume", "show", name); err != nil {
		c.T.Fatal(err)
	}
	return v.Scrub
}

// heads returns the file with the data of each copy, and the node that it is on, as the node sees it.
func (c *cluster) heads(v volume) map[string]string {
	c.T.Helper()
	out := map[string]string{}
	for _, m := range v.members() {
		out[m.Node] = c.shell(m.Node, "find $(awk '$3 == \"xfs\" && index($2, \""+c.NodeDir(m.Node)+"/\") == 1 {print $2}' /proc/mounts) -path '*"+m.Replica+"/head'")
		if out[m.Node] == "" {
			c.T.Fatalf("no head of %s on %s", m.Replica, m.Node)
		}
	}
	return out
}

// rot replaces block n of a file by noise, around the page cache and whoever has the file open.
func (c *cluster) rot(node, head string, n int) {
	c.T.Helper()
	c.shell(node, fmt.Sprintf("dd if=/dev/urandom of=%s bs=4096 count=1 seek=%d conv=notrunc oflag=direct 2>/dev/null", head, n))
}

// Blocks that rot below a volume that is in use are found and repaired before anybody reads them. Where no copy is left that is
// reported, and the scrub goes on.
func TestScrub(t *testing.T) {
	c := shared(t)
	v := c.create("scrub", "--size", "64Mi", "--zone-spread")
	node := v.members()[0].Node
	w := newWriter(t, 64<<20)
	dev := c.attach(node, "scrub", "fuse")
	w.fill(dev, 0, w.blocks)
	if f := c.scrub(node, "scrub", true).Last.Findings; f.Repaired+f.Unreadable+f.Differing != 0 || f.Bytes != 64<<20 {
		t.Fatalf("of a good volume: %+v", f)
	}
	heads := c.heads(v)
	a, b := v.members()[0].Node, v.members()[1].Node
	for i := range 20 {
		c.rot(a, heads[a], 100*i)
		c.rot(b, heads[b], 100*i+50)
	}
	if f := c.scrub(node, "scrub", true).Last.Findings; f.Repaired != 40 || f.Unreadable+f.Differing != 0 {
		t.Fatalf("after 40 blocks rotted: %+v", f)
	}
	w.verify(dev)
	for n, head := range heads {
		if n := c.shell(n, fmt.Sprintf("cmp -n %d %s %s | wc -l", 64<<20, dev, head)); n != "0" {
			t.Error("a copy isn't what the volume is")
		}
	}
	if n := c.counter(node, "scrub_bytes"); n < 128<<20 {
		t.Errorf("%d bytes counted", n)
	}

	c.rot(a, heads[a], 7000)
	c.rot(b, heads[b], 7000)
	c.rot(b, heads[b], 9000)
	s := c.scrub(node, "scrub", false)
	if f := s.Last.Findings; f.Unreadable != 1 || f.Repaired != 1 || len(f.Bad) != 1 || f.Bad[0].Off != 7000*4096 || len(f.Bad[0].Pools) != 2 {
		t.Fatalf("after a block rotted everywhere: %+v", f)
	}
	if v := c.volume("n1", "scrub"); v.Health != "Degraded" || !strings.Contains(v.Condition, "no copy is intact") {
		t.Errorf("%v", v)
	}
	if out := c.keelson("n1", "events", "--volume", "scrub", "--warnings"); !strings.Contains(out, "block-unreadable") {
		t.Errorf("events: %s", out)
	}
	if out, err := c.tryShell(node, "dd if="+dev+" of=/dev/null bs=4096 count=1 skip=7000 iflag=direct"); err == nil {
		t.Errorf("what no copy has can be read: %s", out)
	}
	w.fill(dev, 7000, 7001)
	c.scrub(node, "scrub", true)
	w.verify(dev)
	c.awaitHealthy("n1", "scrub", 30*time.Second)

	// The next one of a detached volume: some node serves it for that.
	c.keelson(node, "volume", "detach", "scrub")
	c.rot(b, heads[b], 3)
	if f := c.scrub("n1", "scrub", true).Last.Findings; f.Repaired != 1 {
		t.Errorf("detached: %+v", f)
	}
	c.Eventually(30*time.Second, "it is detached again", func() error {
		if v := c.volume("n1", "scrub"); v.Node != "" {
			return fmt.Errorf("%v", v)
		}
		return nil
	})
	c.keelson("n1", "volume", "delete", "scrub")
}

// A scrub pauses, says how far it is, survives the engine, and goes on.
func TestScrubPause(t *testing.T) {
	c := shared(t)
	v := c.create("slow", "--size", "64Mi")
	node := v.members()[0].Node
	w := newWriter(t, 64<<20)
	dev := c.attach(node, "slow", "fuse")
	w.fill(dev, 0, w.blocks)
	c.keelson(node, "volume", "scrub", "slow", "--bandwidth", "4Mi")
	state := func() (s scrub, done int64) {
		var v struct {
			Scrub struct {
				scrub
				Done int64 `json:"done"`
			} `json:"scrub"`
		}
		if err := c.JSON(c.ctx(), node, &v, "volume", "show", "slow"); err != nil {
			t.Fatal(err)
		}
		return v.Scrub.scrub, v.Scrub.Done
	}
	c.Eventually(30*time.Second, "some of it is done", func() error {
		if s, done := state(); s.State != "Running" || done < 8<<20 {
			return fmt.Errorf("%+v", s)
		}
		return nil
	})
	c.keelson("n1", "volume", "scrub", "slow", "--pause")
	c.refused(4, []string{"active"}, "n1", "volume", "scrub", "slow", "--prefer", node)
	s, _ := state()
	if s.State != "Paused" {
		t.Errorf("paused: %+v", s)
	}
	c.keelson("n1", "volume", "scrub", "slow", "--resume")
	c.keelson("n1", "volume", "scrub", "slow", "--wait") // one that is active: only its limit changes
	if s, _ := state(); s.Number != 1 || s.State != "Idle" || s.Last.Findings.Bytes < 48<<20 {
		t.Errorf("ended: %+v", s)
	}
	c.refused(4, []string{"isn't being scrubbed"}, "n1", "volume", "scrub", "slow", "--cancel")
	w.verify(dev)
	c.remove(node, "slow")
}

// Two copies that are intact and differ: nobody can know which is right, so a scrub says so and changes nothing, until a person
// decides.
func TestScrubOfForkedCopies(t *testing.T) {
	c := shared(t)
	v := c.create("fork", "--size", "16Mi", "--zone-spread")
	a, b := v.members()[0], v.members()[1]
	w := newWriter(t, 16<<20)
	dev := c.attach(a.Node, "fork", "fuse")
	w.fill(dev, 0, w.blocks)
	c.keelson(a.Node, "volume", "detach", "fork")
	term := c.volume("n1", "fork").Term
	other := bytes.Repeat([]byte("other "), block.Size)[:block.Size]
	c.offline(b.Node, func(pool string) { forkCopy(t, pool, b.Replica, term, 5*block.Size, other) })
	dev = c.attach(a.Node, "fork", "fuse")
	f := c.scrub(a.Node, "fork", false).Last.Findings
	if f.Differing != 1 || f.Repaired+f.Unreadable != 0 || len(f.Bad) != 1 || f.Bad[0].Off != 5*block.Size || !f.Bad[0].Differ {
		t.Fatalf("%+v", f)
	}
	if v := c.volume("n1", "fork"); v.Health != "Degraded" || !strings.Contains(v.Condition, "copies differ") {
		t.Errorf("%v", v)
	}
	w.verify(dev) // which reads the local copy
	if f := c.scrub(a.Node, "fork", true, "--prefer", a.Node).Last.Findings; f.Chosen != 1 || f.Differing != 0 {
		t.Errorf("%+v", f)
	}
	if f := c.scrub(a.Node, "fork", true).Last.Findings; f.Repaired+f.Differing != 0 {
		t.Errorf("after the choice: %+v", f)
	}
	c.awaitHealthy("n1", "fork", 30*time.Second)
	c.keelson(a.Node, "volume", "detach", "fork")
	w.verify(c.attach(b.Node, "fork", "fuse"))
	c.remove(b.Node, "fork")
}

// forkCopy changes a block of a copy, with its checksum, as nothing but a bug of the protocol, or an old image of the disk, would.
func forkCopy(t *testing.T, pool, id string, term uint64, off int64, data []byte) {
	t.Helper()
	var dir string
	err := filepath.WalkDir(pool, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == id {
			dir = p
		}
		return err
	})
	if err != nil || dir == "" {
		t.Fatalf("no replica %s in the pool: %v", id, err)
	}
	l, err := ring.New(ring.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	defer l.Close()
	var r *replica.Replica
	wait := func(fn func(done func())) {
		ch := make(chan struct{})
		l.Post(func() { fn(func() { close(ch) }) })
		<-ch
	}
	wait(func(done func()) {
		replica.Open(replica.Config{Loop: l, Dir: dir, Run: "test"}, func(got *replica.Replica, e error) { r, err = got, e; done() })
	})
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 0)
	wait(func(done func()) { buf = l.Buffers().Get(block.Size); copy(buf, data); done() })
	for _, q := range []*wire.Request{
		{Kind: wire.KindFence},
		{Kind: wire.KindWrite, Off: off, Data: buf, Sums: []uint64{block.Sum(buf)}, FUA: true},
		{Kind: wire.KindFlush},
		{Kind: wire.KindTouch, Off: off / block.ChunkSize * block.ChunkSize, Len: block.ChunkSize},
		{Kind: wire.KindCheckpoint},
	} {
		q.Replica, q.Term, q.Session = wire.ReplicaID(n), term, 1<<20
		if q.Kind != wire.KindFence {
			q.Period = term<<32 | 1<<30
		}
		wait(func(done func()) {
			q.Done = func(*wire.Request) { done() }
			r.Submit(q)
		})
		if q.Status != wire.StatusOK {
			t.Fatalf("%v: %v", q.Kind, q.Status)
		}
	}
	wait(func(done func()) { l.Buffers().Put(buf); r.Close(done) })
}

// Blocks of pieces that were changed since a snapshot rot in it on one copy, and are repaired from the other; the snapshot is what it was from either copy.
func TestScrubOfSnapshots(t *testing.T) {
	c := shared(t)
	v := c.create("kept", "--size", "64Mi", "--zone-spread")
	a, b := v.members()[0].Node, v.members()[1].Node
	w := newWriter(t, 64<<20)
	dev := c.attach(a, "kept", "fuse")
	w.fill(dev, 0, w.blocks)
	before := c.content(a, dev)
	c.keelson(a, "snapshot", "create", "kept", "s1")
	w.fill(dev, 100, 102)
	w.fill(dev, 2100, 2102)
	for node, head := range c.heads(v) {
		data := c.shell(node, "ls "+filepath.Dir(head)+"/snaps/*/data")
		if node == a {
			c.rot(node, data, 100)
			c.rot(node, data, 110)
		} else {
			c.rot(node, data, 2108)
		}
	}
	if f := c.scrub(a, "kept", true).Last.Findings; f.Repaired != 3 || f.Unreadable+f.Differing != 0 {
		t.Errorf("%+v", f)
	}
	for _, node := range []string{a, b} {
		if got := c.cloned(node, "copy-of-kept", "--from-snapshot", "kept/s1"); got != before {
			t.Errorf("a clone of the snapshot, read on %s, differs", node)
		}
	}
	w.verify(dev)
	c.keelson(a, "snapshot", "delete", "kept", "s1")
	c.remove(a, "kept")
}
