package volume_test

import (
	"bytes"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// change changes the record as the API does, and tells the coordinators.
func (c *cluster) change(fn func(v *spec.Volume)) {
	next := clone(c.rec)
	fn(&next)
	c.rec = next
	c.rev++
	for _, n := range c.nodes {
		if n.vol != nil {
			n.vol.Update(clone(c.rec), c.rev)
		}
	}
}

func (c *cluster) wall() time.Time { return time.Unix(0, 0).Add(c.w.Now()) }

// scrub has the volume scrubbed and returns what was found.
func (c *cluster) scrub(prefer string) spec.ScrubFindings {
	c.t.Helper()
	c.change(func(v *spec.Volume) { v.Scrub.Begin(c.wall(), false); v.Scrub.Prefer = prefer })
	number := c.rec.Scrub.Number
	c.until("scrubbed", func() bool { return !c.rec.Scrub.Active })
	if c.rec.Scrub.Last.Number != number {
		c.t.Fatalf("scrub %d has no result: %+v", number, c.rec.Scrub)
	}
	return c.rec.Scrub.Last.Findings
}

func (n *node) head(col int) string {
	return fmt.Sprintf("/pool/%016x/head", col*16+int(n.name[1]-'0'))
}

// same checks that the copies on two nodes are the same and are what they should be.
func (c *cluster) same(col int, off int64, want []byte) {
	c.t.Helper()
	for _, m := range c.rec.State.Columns[col].Members {
		n := c.nodes[m.Node]
		got := make([]byte, len(want))
		n.n.Disk().Peek(n.head(col), got, off)
		if !bytes.Equal(got, want) {
			c.t.Errorf("column %d at %d: the copy on %s isn't what was written", col, off, n.name)
		}
	}
}

// fork writes to one copy behind the coordinator's back.
func (n *node) fork(id wire.ReplicaID, off int64, data []byte) {
	n.c.t.Helper()
	for session := uint32(1); session < 20; session++ {
		r := &wire.Request{Kind: wire.KindWrite, Replica: id, Term: n.c.rec.State.Term, Session: session,
			Period: n.c.rec.State.Term<<32 | 1000, Off: off, Data: n.loop.Buffers().Get(len(data)), Sums: make([]uint64, len(data)/block.Size)}
		copy(r.Data, data)
		block.SumAll(r.Sums, r.Data)
		done := false
		r.Done = func(*wire.Request) { done = true }
		n.reps[id].Submit(r)
		n.c.until("forked", func() bool { return done })
		if r.Status == wire.StatusOK {
			return
		}
	}
	n.c.t.Fatal("the replica doesn't take the write")
}

func TestScrubRepairs(t *testing.T) {
	for _, columns := range []int{1, 2} {
		t.Run(fmt.Sprintf("columns=%d", columns), func(t *testing.T) {
			c := newCluster(t, 11, 2, columns)
			n1, n2 := c.nodes["n1"], c.nodes["n2"]
			n1.attach(repl.PrevDetached)
			n1.write(0, pattern(1, 8))
			n1.write(5<<20, pattern(2, 64))
			n1.do(block.OpTrim, 5<<20, nil, 4*block.Size)
			if f := c.scrub(""); f.Repaired+f.Unreadable+f.Differing != 0 || f.Partial || f.Bytes != 68*block.Size {
				t.Fatalf("of a good volume: %+v", f)
			}
			n1.n.Disk().FlipBit(n1.head(0), 4096+17)
			n2.n.Disk().FlipBit(n2.head(0), 3*4096+1)
			n2.n.Disk().BreakSector(n2.head(0), 6*4096)
			f := c.scrub("")
			if f.Repaired != 3 || f.Unreadable+f.Differing != 0 || f.Partial {
				t.Fatalf("%+v", f)
			}
			c.same(0, 0, pattern(1, 8))
			if f := c.scrub(""); f.Repaired != 0 {
				t.Fatalf("the repair didn't last: %+v", f)
			}
			last := c.events[len(c.events)-1]
			if last.What != "scrub-ended" || last.Warning || !strings.Contains(c.events[1].Message, "3 blocks repaired") {
				t.Fatalf("%v", c.events)
			}
			n1.detach()
		})
	}
}

// A block that should be zeros, in a chunk that has data, and isn't, is found, though reads never look at it.
func TestScrubOfZeros(t *testing.T) {
	c := newCluster(t, 12, 2, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(0, 4))
	n1.write(4*block.Size, pattern(1, 1))
	n1.n.Disk().FlipBit(n1.head(0), 4096+17)
	if f := c.scrub(""); f.Repaired != 1 {
		t.Fatalf("%+v", f)
	}
	c.same(0, 0, append(pattern(0, 4), pattern(1, 1)...))
}

func TestScrubUnreadable(t *testing.T) {
	c := newCluster(t, 13, 2, 2)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n1.write(spec.StripeUnit, pattern(2, 8))
	for _, n := range []*node{n1, n2} {
		n.n.Disk().FlipBit(n.head(1), 2*4096)
		n.n.Disk().FlipBit(n.head(1), 3*4096)
	}
	n2.n.Disk().FlipBit(n2.head(1), 5*4096)
	f := c.scrub("")
	if f.Unreadable != 2 || f.Repaired != 1 || len(f.Bad) != 1 || f.Bad[0].Off != spec.StripeUnit+2*4096 || f.Bad[0].Len != 8192 || f.Bad[0].Differ {
		t.Fatalf("%+v", f)
	}
	if e := c.events[0]; e.What != "block-unreadable" || !e.Warning || !c.events[len(c.events)-1].Warning {
		t.Fatalf("%v", c.events)
	}
	if err := n1.do(block.OpRead, spec.StripeUnit+2*4096, make([]byte, block.Size), 0); err != syscall.EIO {
		t.Fatalf("reading what no copy has: %v", err)
	}
	n1.want(spec.StripeUnit+5*4096, pattern(2, 3))
	n1.write(spec.StripeUnit+2*4096, pattern(3, 2)) // which mends it
	if f := c.scrub(""); f.Unreadable != 0 || f.Repaired != 0 {
		t.Fatalf("after it was written: %+v", f)
	}
}

func TestScrubOfForkedCopies(t *testing.T) {
	c := newCluster(t, 14, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n2.fork(2, 4096, pattern(9, 1))
	f := c.scrub("")
	if f.Differing != 1 || f.Repaired != 0 || len(f.Bad) != 1 || !f.Bad[0].Differ {
		t.Fatalf("%+v", f)
	}
	got := make([]byte, block.Size)
	if n2.n.Disk().Peek(n2.head(0), got, 4096); !bytes.Equal(got, pattern(9, 1)) {
		t.Fatal("a copy was changed though nobody can know which is right")
	}
	if f := c.scrub("n3"); f.Differing != 1 || f.Chosen != 0 {
		t.Fatalf("a node without a copy is preferred: %+v", f)
	}
	if f := c.scrub("n2"); f.Differing != 0 || f.Chosen != 1 {
		t.Fatalf("n2 is preferred: %+v", f)
	}
	c.same(0, 0, append(append(pattern(1, 1), pattern(9, 1)...), pattern(1, 6)...))
	if f := c.scrub(""); f.Differing+f.Repaired != 0 {
		t.Fatalf("%+v", f)
	}
}

// What a person chose where copies differed reaches also a copy that was away meanwhile.
func TestScrubChoiceReachesWhoWasAway(t *testing.T) {
	c := newCluster(t, 15, 3, 1)
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n2.fork(2, 4096, pattern(9, 1))
	c.until("a checkpoint", func() bool { return n1.vol.Status().Stats.Checkpoints > 0 })
	n3.n.Crash()
	c.until("n3 is out", func() bool { return c.rec.State.Columns[0].Members[2].State == spec.Stale })
	if f := c.scrub("n2"); f.Chosen != 1 || !f.Partial {
		t.Fatalf("%+v", f)
	}
	n3.start(false)
	c.until("in sync again", c.allInSync)
	c.same(0, 4096, pattern(9, 1))
}

// Everything of a scrub goes on while the volume is written to all the time, and nothing wrong is seen.
func TestScrubUnderWrites(t *testing.T) {
	for seed := uint64(20); seed < 26; seed++ {
		c := newCluster(t, seed, 3, 1)
		n1 := c.nodes["n1"]
		n1.attach(repl.PrevDetached)
		for off := int64(0); off < size; off += 1 << 20 {
			n1.write(off, pattern(1, 256))
		}
		stop := false
		for w := range 4 {
			var again func()
			buf := n1.loop.Buffers().Get(64 << 10)
			again = func() {
				if stop {
					return
				}
				for i := range buf {
					buf[i] = (byte(c.w.Now()) + byte(w)) | 1 // not zeros
				}
				n1.vol.Submit(&block.Request{Op: block.OpWrite, Off: c.w.Rand().Int64N(size-64<<10) / block.Size * block.Size, Len: 64 << 10, Data: buf,
					Done: func(*block.Request) { c.w.After(time.Millisecond, "again", again) }})
			}
			again()
		}
		if f := c.scrub(""); f.Repaired+f.Unreadable+f.Differing != 0 || f.Bytes != size {
			t.Fatalf("seed %d: %+v", seed, f)
		}
		stop = true
	}
}

// A scrub is as slow as it was told to be, stops when it is paused, and goes on where it was: also at another node.
func TestScrubPauseMoveResume(t *testing.T) {
	c := newCluster(t, 16, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	for off := int64(0); off < size; off += 1 << 20 {
		n1.write(off, pattern(1, 256))
	}
	began := c.w.Now()
	c.change(func(v *spec.Volume) { v.Scrub.Begin(c.wall(), false); v.Scrub.Bandwidth = 1 << 20 })
	c.until("half", func() bool { s := n1.vol.Status().Scrub; return s != nil && s.Done > size/2 })
	if took := c.w.Now() - began; took < 5*time.Second || took > 10*time.Second {
		t.Fatalf("half of 16 MiB at 1 MiB/s took %v", took)
	}
	c.change(func(v *spec.Volume) { v.Scrub.Paused = true })
	c.until("written down", func() bool { return c.rec.Scrub.Position >= 2 })
	at := c.rec.Scrub.Position
	c.w.RunFor(30 * time.Second)
	if c.rec.Scrub.Position != at {
		t.Fatal("it went on though it was paused")
	}
	c.change(func(v *spec.Volume) { v.Scrub.Paused = false })
	c.until("three chunks", func() bool { return n1.vol.Status().Scrub.Done >= 3*block.ChunkSize })
	n1.detach()
	if c.rec.Scrub.Position != 3 {
		t.Fatalf("after the detachment: %+v", c.rec.Scrub)
	}
	n2.attach(repl.PrevDetached)
	c.until("ended", func() bool { return !c.rec.Scrub.Active })
	if f := c.rec.Scrub.Last.Findings; f.Bytes != size || c.rec.Scrub.Last.Number != 1 {
		t.Fatalf("%+v", c.rec.Scrub)
	}
	c.change(func(v *spec.Volume) { v.Scrub.Begin(c.wall(), false) })
	c.w.RunFor(5 * time.Millisecond)
	c.change(func(v *spec.Volume) { v.Scrub.Cancel(c.wall()) })
	c.w.RunFor(5 * time.Second)
	if c.rec.Scrub.Last.Number != 1 || n2.vol.Status().Scrub != nil {
		t.Fatalf("after it was cancelled: %+v", c.rec.Scrub)
	}
	n2.detach()
}

// The coordinator dies in the middle: the next one goes on from what was written down, and ends it.
func TestScrubSurvivesTheCoordinator(t *testing.T) {
	c := newCluster(t, 17, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 256))
	n1.write(12<<20, pattern(1, 256))
	n2.n.Disk().FlipBit(n2.head(0), 12<<20)
	c.change(func(v *spec.Volume) { v.Scrub.Begin(c.wall(), false); v.Scrub.Bandwidth = 1 << 20 })
	c.until("it is under way", func() bool { s := n1.vol.Status().Scrub; return s != nil && s.Done > 0 })
	n1.n.Crash()
	n2.attach(repl.PrevOther)
	n1.start(false)
	c.until("ended", func() bool { return !c.rec.Scrub.Active })
	if f := c.rec.Scrub.Last.Findings; f.Unreadable+f.Differing != 0 {
		t.Fatalf("%+v", f)
	}
	c.until("in sync again", c.allInSync)
	if f := c.scrub(""); f.Repaired+f.Unreadable+f.Differing != 0 || f.Partial {
		t.Fatalf("%+v", f)
	}
	c.same(0, 12<<20, pattern(1, 256))
}
