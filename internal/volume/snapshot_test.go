package volume_test

import (
	"bytes"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// small is a volume of 8 MiB whose copies have room for it to grow to size, attached on n3.
func small(t *testing.T, seed uint64) (c *cluster, n1, n2, n3 *node) {
	t.Helper()
	c = newCluster(t, seed, 2, 1)
	n1, n2, n3 = c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	c.rec.Size = size / 2
	n3.attach(repl.PrevDetached)
	n3.write(0, pattern(1, 8))
	return c, n1, n2, n3
}

// A snapshot is what the volume was at its cut: a volume doesn't grow between the making of the empty snapshot, which has the volume's size, and the
// cut. Otherwise what was written first, behind the old end, would be missing in a snapshot that has what was written later.
func TestGrowthWaitsForTheCut(t *testing.T) {
	c, n1, n2, n3 := small(t, 41)
	for _, n := range []*node{n1, n2} {
		n.n.Disk().SetSlow(200)
	}
	c.ask("s")
	c.w.RunFor(10 * time.Millisecond)
	c.change(func(v *spec.Volume) { v.Size = size })
	c.until("grown", func() bool { return n3.vol.Size() == size })
	if n3.vol.Status().Stats.Snapshots == 0 {
		t.Error("the volume has grown before the cut")
	}
	n3.write(12<<20, pattern(2, 1))
	n3.write(0, pattern(3, 8))
	c.until("snapshot", c.ready("s"))
	x := c.rec.SnapshotByName("s")
	if x.Size != size/2 {
		t.Errorf("the snapshot has %d bytes; the volume had %d when it was asked for", x.Size, size/2)
	}
	c.keeps(x.Period, 0, pattern(1, 8))
}

// A snapshot that was given up isn't made again in the same period after the volume has grown: a member that was away meanwhile has it
// still, of the old size, and could never be made equal.
func TestGivenUpSnapshotHasOneSize(t *testing.T) {
	c, n1, n2, n3 := small(t, 42)
	has := func(n *node) bool { return len(n.n.Disk().Names(n.snaps())) > 0 }
	n3.vol.SetGroups([]spec.Group{{ID: "group", Volumes: []string{c.rec.ID}, Phase: spec.GroupPreparing, Attempt: 1}})
	c.change(func(v *spec.Volume) {
		if err := v.AddSnapshot(spec.Snapshot{ID: "g", Name: "g", Group: "group"}, 0); err != nil {
			t.Fatal(err)
		}
	})
	c.until("the empty snapshot is made", func() bool { return has(n1) && has(n2) })
	c.w.Cut(n3.n, n2.n)
	c.w.Cut(n2.n, n3.n)
	c.until("n2 is out", func() bool { return !c.allInSync() })
	n3.vol.SetGroups(nil)
	c.change(func(v *spec.Volume) { v.Snapshots = nil })
	c.ask("s")
	c.change(func(v *spec.Volume) { v.Size = size })
	c.until("grown", func() bool { return n3.vol.Size() == size })
	n3.write(12<<20, pattern(2, 8))
	c.until("snapshot", c.ready("s"))
	if !has(n2) {
		t.Fatal("n2 has nothing that was given up: this test shows nothing")
	}
	n3.write(12<<20, pattern(3, 8))
	c.w.HealAll()
	c.until("in sync", c.allInSync)
	c.keeps(c.rec.SnapshotByName("s").Period, 12<<20, pattern(2, 8))
}

// What a resync still had to ask of a snapshot's chunk when it was stopped isn't asked in the member's next session: what the member got in the one
// before may be gone with its power, and would be sealed as if it were there.
func TestStoppedResyncSealsNothing(t *testing.T) {
	for seed := uint64(43); seed < 47; seed++ {
		c := newCluster(t, seed, 2, 1)
		n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
		n3.attach(repl.PrevDetached)
		for off := int64(0); off < block.ChunkSize; off += block.MaxIO {
			n3.write(off, pattern(1, block.MaxIO/block.Size))
		}
		n2.n.PowerLoss()
		c.until("n2 is out", func() bool { return !c.allInSync() })
		period := c.take("s")
		n3.write(0, pattern(2, block.MaxIO/block.Size))
		n3.write(block.MaxIO, pattern(2, block.MaxIO/block.Size))
		n2.start(false)
		got := make([]byte, block.Size)
		c.until("part of the snapshot's chunk is on n2", func() bool {
			n2.n.Disk().Peek(n2.level(period, "data"), got, 0)
			return bytes.Equal(got, pattern(1, 1))
		})
		n1.n.Disk().SetSlow(200_000) // what it reads for the next part comes when n2 is in another session
		c.w.RunFor(2 * time.Millisecond)
		n1.n.Disk().SetSlow(1)
		n2.n.PowerLoss()
		c.w.RunFor(time.Second)
		n2.start(false)
		c.until("in sync", c.allInSync)
		c.keeps(period, 0, pattern(1, 2*block.MaxIO/block.Size))
	}
}

// A snapshot that is to be deleted is made equal on a member that catches up as any other, until all are told to delete it: who has deleted it has its chunks in an
// older one. The record says it at another step of the catching up in each turn.
func TestSnapshotIsDeletedWhileCatchingUp(t *testing.T) {
	for at := range 160 {
		c := newCluster(t, 51, 2, 1)
		n2, n3 := c.nodes["n2"], c.nodes["n3"]
		n3.attach(repl.PrevDetached)
		n3.write(0, pattern(1, 8))
		older := c.take("older")
		c.take("newer")
		n3.write(0, pattern(2, 8))
		n2.n.Crash()
		c.until("n2 is out", func() bool { return !c.allInSync() })
		n3.write(0, pattern(3, 8))
		n2.start(false)
		c.until("n2 catches up", func() bool { return c.rec.State.Columns[0].Members[1].State == spec.Syncing })
		for range at {
			c.w.Step()
		}
		c.change(func(v *spec.Volume) {
			for i := range v.Snapshots {
				if v.Snapshots[i].Name == "newer" {
					v.Snapshots[i].State = spec.SnapshotDeleting
				}
			}
		})
		c.until("deleted, and in sync", func() bool { return len(c.rec.Snapshots) == 1 && c.allInSync() })
		c.keeps(older, 0, pattern(1, 8))
		if t.Failed() {
			t.Fatalf("when the record changed %d steps after the catching up began", at)
		}
	}
}

// takeWithoutN2 takes a snapshot of pattern(1, 8) on n while n2 is down, and changes that to pattern(2, 8), durably.
func (c *cluster) takeWithoutN2(n *node) (period uint64) {
	c.t.Helper()
	n.attach(repl.PrevDetached)
	n.write(0, pattern(1, 8))
	c.nodes["n2"].n.Crash()
	c.until("n2 is out", func() bool { return !c.allInSync() })
	period = c.take("s")
	n.write(0, pattern(2, 8))
	c.take("after")
	return period
}

// What the only copy can't read of a snapshot keeps another copy from becoming in sync for a while, all of it for the same while, and not for ever:
// neither blocks nor checksums. It isn't lost if the disk reads it again.
func TestUnreadableSnapshotOfTheOnlyCopy(t *testing.T) {
	const unreadableFor = 10 * time.Minute
	for _, x := range []struct {
		file   string
		at     []int64
		heals  time.Duration
		intact []int // blocks
		lost   int64
	}{
		{"data", []int64{3 * block.Size, 5 * block.Size}, time.Minute, []int{0, 1, 2, 3, 4, 5, 6, 7}, 0},
		{"data", []int64{3 * block.Size, 5 * block.Size}, time.Hour, []int{0, 1, 2, 4, 6, 7}, 2},
		{"sums", []int64{0}, time.Minute, []int{0, 1, 2, 3, 4, 5, 6, 7}, 0},
		{"sums", []int64{0}, time.Hour, nil, block.PerChunk},
	} {
		c := newCluster(t, 52, 2, 1)
		n1, n2 := c.nodes["n1"], c.nodes["n2"]
		period := c.takeWithoutN2(n1)
		disk := n1.n.Disk()
		for _, at := range x.at {
			if !disk.BreakSector(n1.level(period, x.file), at) {
				t.Fatalf("no sector of %s to break at %d", x.file, at)
			}
		}
		n2.start(false)
		healed := false
		c.w.After(x.heals, "the disk reads it again", func() { disk.HealSectors(); healed = true })
		c.w.RunFor(30 * time.Second)
		if c.allInSync() {
			t.Fatalf("%s: in sync without what may be read yet", x.file)
		}
		began := c.w.Now()
		c.until("in sync", c.allInSync)
		if took := c.w.Now() - began; took > min(x.heals, unreadableFor)+time.Minute || took < min(x.heals, unreadableFor)-time.Minute {
			t.Errorf("%s: in sync after %v; the disk reads it again after %v", x.file, took, x.heals)
		}
		n1.want(0, pattern(2, 8))
		got, want := make([]byte, block.Size), pattern(1, 8)
		for _, b := range x.intact {
			n2.n.Disk().Peek(n2.level(period, "data"), got, int64(b)*block.Size)
			if !bytes.Equal(got, want[b*block.Size:(b+1)*block.Size]) {
				t.Errorf("%s: block %d of the snapshot isn't on n2", x.file, b)
			}
		}
		if f := c.scrub(""); f.Unreadable != x.lost {
			t.Errorf("%s: %d blocks are unreadable, want %d: %+v", x.file, f.Unreadable, x.lost, f)
		}
		if c.until("healed", func() bool { return healed }); x.file == "sums" {
			c.w.RunFor(time.Minute)
			continue
		}
		c.scrub("")
		if f := c.scrub(""); f.Unreadable+f.Repaired != 0 {
			t.Errorf("%s: when the disk reads it again: %+v", x.file, f)
		}
		c.keeps(period, 0, pattern(1, 8))
	}
}

// A member that catches up gets of a snapshot what any of the others has intact, block by block: one has this, another that.
func TestSnapshotFromTwoDamagedCopies(t *testing.T) {
	c := newCluster(t, 37, 3, 1)
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	period := c.takeWithoutN2(n1)
	n1.n.Disk().FlipBit(n1.level(period, "data"), 3*block.Size+17)
	n3.n.Disk().FlipBit(n3.level(period, "data"), 6*block.Size+17)
	n2.start(false)
	c.until("in sync", c.allInSync)
	got := make([]byte, 8*block.Size)
	n2.n.Disk().Peek(n2.level(period, "data"), got, 0)
	if !bytes.Equal(got, pattern(1, 8)) {
		t.Error("n2 was given damage although each block is intact somewhere")
	}
}
