package volume_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// roles returns the members' roles as the coordinator on n sees them.
func (n *node) roles() string {
	var list []string
	for _, m := range n.vol.Status().Members {
		list = append(list, m.Role)
	}
	return strings.Join(list, " ")
}

// hold submits writes all over, two to each chunk, and returns how many of them were answered, and failed.
func (n *node) hold(count int, b byte) (ended, failed *int) {
	ended, failed = new(int), new(int)
	for i := range count {
		r := &block.Request{Op: block.OpWrite, Off: int64(i) * 64 << 10, Data: n.loop.Buffers().Get(2 * block.Size), Len: 2 * block.Size}
		copy(r.Data, pattern(b, 2))
		r.Done = func(*block.Request) {
			*ended++
			if r.Err != nil {
				*failed++
			}
			n.loop.Buffers().Put(r.Data)
		}
		n.vol.Submit(r)
	}
	return ended, failed
}

// A member's disk hangs for minutes behind a living connection, once the other node's and once the coordinator's own:
// it is taken out, I/O goes on, and it comes back by comparing what was written meanwhile, when what hung has ended.
func TestHangingDisk(t *testing.T) {
	for _, hung := range []string{"n1", "n2"} {
		t.Run(hung, func(t *testing.T) {
			c := newCluster(t, 10, 2, 1)
			n1 := c.nodes["n1"]
			n1.attach(repl.PrevDetached)
			n1.write(0, pattern(1, 64))
			before := n1.loop.Outstanding()
			disk := c.nodes[hung].n.Disk()
			disk.SetStuck(true)
			ended, failed := n1.hold(100, 2)
			read, readEnded := n1.submit(block.OpRead, 12<<20, make([]byte, 16*block.Size), 0)
			c.w.RunFor(8 * time.Second)
			if *ended > 0 {
				t.Fatalf("%d writes were answered while an in-sync replica didn't have them", *ended)
			}
			c.until("writes are answered", func() bool { return *ended == 100 && *readEnded })
			if *failed > 0 || read.Err != nil {
				t.Fatalf("%d writes failed; the read: %v", *failed, read.Err)
			}
			n1.loop.Buffers().Put(read.Data)
			n1.want(0, append(pattern(2, 2), pattern(1, 8)...))
			for range 20 {
				n1.write(64<<10, pattern(4, 4))
				c.w.RunFor(10 * time.Second)
			}
			if c.allInSync() {
				t.Fatal("a replica that hangs is in sync")
			}
			disk.SetStuck(false)
			c.until("in sync again", c.allInSync)
			if s := n1.vol.Status(); s.Condition != "" || s.Stats.ResyncedBytes > 4<<20 {
				t.Fatalf("condition %q, %d bytes moved", s.Condition, s.Stats.ResyncedBytes)
			}
			c.w.RunFor(10 * time.Second)
			if left := n1.loop.Outstanding() - before; left > 21 { // those of the helpers
				t.Fatalf("%d buffers are lost", left)
			}
			n1.detach()
			n2 := c.nodes["n2"]
			n2.attach(repl.PrevDetached)
			n2.want(0, append(pattern(2, 2), pattern(1, 8)...))
			n2.want(64<<10, pattern(4, 4))
		})
	}
}

// The last copy hangs: requests wait, the condition says for what and since when, and all goes on with the disk.
func TestHangingLastCopy(t *testing.T) {
	c := newCluster(t, 11, 1, 1)
	n1 := c.nodes["n1"]
	c.rec.State.Columns[0].Members[0].Pool = "fast"
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n1.n.Disk().SetStuck(true)
	ended, failed := n1.hold(10, 2)
	read, readEnded := n1.submit(block.OpRead, 12<<20, make([]byte, block.Size), 0)
	c.w.RunFor(5 * time.Minute)
	if s := n1.vol.Status(); *ended > 0 || !strings.Contains(s.Condition, "pool fast") || !strings.Contains(s.Condition, "hasn't answered for 5m") {
		t.Fatalf("%d answered, condition %q", *ended, s.Condition)
	}
	n1.n.Disk().SetStuck(false)
	c.until("all is answered", func() bool { return *ended == 10 && *readEnded })
	c.w.RunFor(2 * time.Second)
	if s := n1.vol.Status(); *failed > 0 || read.Err != nil || s.Condition != "" {
		t.Fatalf("%d failed, read %v, condition %q", *failed, read.Err, s.Condition)
	}
}

// Reads of a disk that hangs are given to the other copy, in memory of their own.
func TestHangingRead(t *testing.T) {
	c := newCluster(t, 12, 2, 2)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(1<<20-8*block.Size, pattern(7, 16))
	n1.n.Disk().SetStuck(true)
	r, ended := n1.submit(block.OpRead, 1<<20-8*block.Size, make([]byte, 16*block.Size), 0)
	c.until("read", func() bool { return *ended })
	if r.Err != nil || !bytes.Equal(r.Data, pattern(7, 16)) {
		t.Fatalf("read: %v, %x", r.Err, r.Data[:4])
	}
	clear(r.Data)
	n1.n.Disk().SetStuck(false)
	c.w.RunFor(time.Second)
	if !bytes.Equal(r.Data, pattern(0, 16)) {
		t.Fatal("a late answer was written into memory that had been given back")
	}
	c.until("in sync again", c.allInSync)
}

// A member that isn't needed any more, and hasn't flushed, leaves while it may be the only one that has what was
// acknowledged: the others flush before the record says so.
func TestSurplusLeavesAfterFlush(t *testing.T) {
	c := newCluster(t, 13, 3, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	c.rec.Replicas = 2
	c.rec.State.Columns[0].Members[2].Removing = true
	c.rev++
	n1.vol.Update(clone(c.rec), c.rev)
	c.until("out of the in-sync set", func() bool { return c.rec.State.Columns[0].Members[2].State == spec.Stale })
	for i, name := range []string{"n1", "n2"} {
		got := make([]byte, 8*block.Size)
		c.nodes[name].n.Disk().PeekDurable(fmt.Sprintf("/pool/%016x/head", i+1), got, 0)
		if !bytes.Equal(got, pattern(1, 8)) {
			t.Fatalf("%s hasn't flushed", name)
		}
	}
	c.w.RunFor(20 * time.Second)
	if s := n1.roles(); s != "in in out" {
		t.Fatalf("roles: %s", s)
	}
	c.rec.State.Columns[0].Members = c.rec.State.Columns[0].Members[:2]
	c.rev++
	n1.vol.Update(clone(c.rec), c.rev)
	n1.write(0, pattern(2, 8))
	n1.detach()
}

// Settings that change while a volume is attached count at once: for members that hang already, and for resyncs under way.
func TestSetLimits(t *testing.T) {
	c := newCluster(t, 14, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	hangs := func(limit time.Duration) time.Duration {
		n1.vol.SetLimits(spec.Settings{AnswerLimit: limit})
		n2.n.Disk().SetStuck(true)
		began := c.w.Now()
		n1.write(0, pattern(1, 8))
		took := c.w.Now() - began
		n2.n.Disk().SetStuck(false)
		c.until("in sync again", c.allInSync)
		return took
	}
	for _, x := range []struct{ limit, want time.Duration }{{2 * time.Second, 2 * time.Second}, {time.Minute, time.Minute}, {0, repl.AnswerLimit}} {
		if took := hangs(x.limit); took < x.want || took > x.want+2*time.Second {
			t.Errorf("limit %v: a write was answered after %v", x.limit, took)
		}
	}
	n1.vol.SetLimits(spec.Settings{AnswerLimit: time.Minute})
	n2.n.Disk().SetStuck(true)
	ended, _ := n1.hold(1, 2)
	if c.w.RunFor(10 * time.Second); *ended > 0 {
		t.Fatal("answered before the limit")
	}
	n1.vol.SetLimits(spec.Settings{AnswerLimit: 2 * time.Second})
	c.w.RunFor(3 * time.Second)
	if *ended == 0 {
		t.Fatal("a lower limit doesn't count for what was asked before")
	}

	moved := func() uint64 { return n1.vol.Status().Stats.ResyncedBytes }
	var before uint64
	n1.vol.SetLimits(spec.Settings{RebuildBandwidth: 64 << 10, AnswerLimit: 2 * time.Second})
	for round := range 2 { // the first takes what may be moved ahead of the limit
		for i := range int64(size >> 20) {
			n1.write(i<<20, pattern(byte(i)+byte(round)*100, 256))
		}
		before = moved()
		n2.n.Disk().SetStuck(false)
		c.w.RunFor(20 * time.Second)
		if round == 0 {
			c.until("in sync again", c.allInSync)
			n2.n.Disk().SetStuck(true)
		}
	}
	if n := moved() - before; n > 9<<20 || c.allInSync() { // two chunks are begun before anything was moved
		t.Fatalf("at 64 KiB a second %d bytes were moved in 20 s", n)
	}
	n1.vol.SetLimits(spec.Settings{RebuildBandwidth: 100 << 20})
	began := c.w.Now()
	c.until("in sync", c.allInSync)
	if took := c.w.Now() - began; took > 15*time.Second {
		t.Fatalf("at 100 MiB a second the rest took %v", took)
	}
	n1.vol.SetLimits(spec.Settings{RebuildBandwidth: 0}) // no limit
	n1.detach()
}
