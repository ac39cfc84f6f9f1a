package volume_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
)

// ask has a snapshot taken, some time.
func (c *cluster) ask(name string) {
	c.t.Helper()
	c.change(func(v *spec.Volume) {
		if err := v.AddSnapshot(spec.Snapshot{ID: name, Name: name}, 0); err != nil {
			c.t.Fatal(err)
		}
	})
}

// ready reports whether a snapshot is there.
func (c *cluster) ready(name string) func() bool {
	return func() bool { return c.rec.SnapshotByName(name).State == spec.SnapshotReady }
}

// take has a snapshot taken and returns its period.
func (c *cluster) take(name string) uint64 {
	c.t.Helper()
	c.ask(name)
	c.until("snapshot "+name, c.ready(name))
	return c.rec.SnapshotByName(name).Period
}

// snaps is where column 0's snapshots are.
func (n *node) snaps() string { return fmt.Sprintf("/pool/%016x/snaps", int(n.name[1]-'0')) }

// level is a file of a snapshot of column 0.
func (n *node) level(period uint64, file string) string {
	return fmt.Sprintf("%s/%016x/%s", n.snaps(), period, file)
}

// keeps checks that the copies of a snapshot hold the same, in chunks that they hold themselves.
func (c *cluster) keeps(period uint64, off int64, want []byte) {
	c.t.Helper()
	for _, name := range []string{"n1", "n2"} {
		got := make([]byte, len(want))
		c.nodes[name].n.Disk().Peek(c.nodes[name].level(period, "data"), got, off)
		if !bytes.Equal(got, want) {
			c.t.Errorf("snapshot %x at %d: the copy on %s isn't what the volume held", period, off, name)
		}
	}
}

// reboot crashes the machine of a member, and waits until it is in sync again.
func (c *cluster) reboot(n *node) {
	c.t.Helper()
	n.n.Crash()
	c.until(n.name+" is out", func() bool { return !c.allInSync() })
	n.start(false)
	c.until(n.name+" is back", c.allInSync)
}

// twoLevels is a volume whose chunk 0 is in two snapshots of their own, and whose chunk 1 only the head has.
func twoLevels(t *testing.T, seed uint64) (c *cluster, older, newer uint64) {
	t.Helper()
	c = newCluster(t, seed, 2, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n1.write(5<<20, pattern(2, 8))
	older = c.take("older")
	n1.write(0, pattern(3, 8))
	newer = c.take("newer")
	n1.write(0, pattern(4, 8))
	if f := c.scrub(""); f.Repaired+f.Unreadable+f.Differing != 0 || f.Partial || f.Bytes != 16*block.Size {
		t.Fatalf("of a good volume: %+v", f)
	}
	c.keeps(older, 0, pattern(1, 8))
	c.keeps(newer, 0, pattern(3, 8))
	return c, older, newer
}

// What only snapshots hold is verified, and repaired from another copy: data, sectors that can't be read, checksums.
func TestScrubRepairsSnapshots(t *testing.T) {
	c, older, newer := twoLevels(t, 31)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.n.Disk().FlipBit(n1.level(older, "data"), 4096+17)
	n2.n.Disk().FlipBit(n2.level(older, "data"), 3*4096+1)
	n2.n.Disk().BreakSector(n2.level(newer, "data"), 6*4096)
	n1.n.Disk().FlipBit(n1.level(newer, "sums"), 11)
	f := c.scrub("")
	if f.Repaired != 4 || f.Unreadable+f.Differing != 0 || f.Partial {
		t.Fatalf("%+v", f)
	}
	c.keeps(older, 0, pattern(1, 8))
	c.keeps(newer, 0, pattern(3, 8))
	c.same(0, 0, pattern(4, 8))
	if f := c.scrub(""); f.Repaired != 0 || f.Partial {
		t.Fatalf("the repair didn't last: %+v", f)
	}
}

// A block that is damaged in the head is damaged in what the repair of the head preserves for the snapshot; the same scrub mends both.
func TestScrubRepairsWhatItPreserves(t *testing.T) {
	c, _, newer := twoLevels(t, 32)
	n2 := c.nodes["n2"]
	n2.n.Disk().FlipBit(n2.head(0), 5<<20+100)
	if f := c.scrub(""); f.Repaired != 2 || f.Unreadable+f.Differing != 0 || f.Partial {
		t.Fatalf("%+v", f)
	}
	got := make([]byte, 8*block.Size)
	n2.n.Disk().Peek(n2.level(newer, "data"), got, 5<<20)
	if !bytes.Equal(got, pattern(2, 8)) {
		t.Error("what was preserved is damaged still")
	}
	c.same(0, 5<<20, pattern(2, 8))
}

// What no copy of a snapshot has intact is told, with the snapshot's name; a map that can't be read on one copy is told too.
func TestScrubOfDamagedSnapshots(t *testing.T) {
	c, older, _ := twoLevels(t, 33)
	for _, name := range []string{"n1", "n2"} {
		c.nodes[name].n.Disk().FlipBit(c.nodes[name].level(older, "data"), 2*4096+17)
	}
	f := c.scrub("")
	if f.Unreadable != 1 || f.Repaired+f.Differing != 0 || len(f.Bad) != 1 || f.Bad[0].Snapshot != "older" || f.Bad[0].Off != 2*4096 || len(f.Bad[0].Pools) != 2 {
		t.Fatalf("%+v", f)
	}
	var told bool
	for _, e := range c.events {
		told = told || e.What == "block-unreadable" && strings.Contains(e.Message, "snapshot older")
	}
	if !told {
		t.Errorf("%+v", c.events)
	}
	c.same(0, 0, pattern(4, 8))

	// Deleted, it is nobody's any more.
	c.change(func(v *spec.Volume) { v.SnapshotByName("older").State = spec.SnapshotDeleting })
	c.until("deleted", func() bool { return c.rec.SnapshotByName("older") == nil })
	if f := c.scrub(""); f.Unreadable+f.Repaired+f.Differing != 0 || f.Partial {
		t.Fatalf("%+v", f)
	}
}

// A part of a snapshot's map that is damaged on one copy is made anew from the others: also of the chunks that aren't held, and for good.
func TestScrubMendsMaps(t *testing.T) {
	c, older, newer := twoLevels(t, 34)
	n2 := c.nodes["n2"]
	n2.n.Disk().FlipBit(n2.level(older, "meta"), 4096+40)
	n2.n.Disk().FlipBit(n2.level(newer, "meta"), 4096+41)
	n2.n.Disk().FlipBit(n2.level(newer, "data"), 4096)
	c.reboot(n2)
	f := c.scrub("")
	if f.Repaired == 0 || f.Unreadable+f.Differing != 0 || f.Partial {
		t.Fatalf("%+v", f)
	}
	c.keeps(older, 0, pattern(1, 8))
	c.keeps(newer, 0, pattern(3, 8))
	c.reboot(n2)
	if f := c.scrub(""); f.Repaired+f.Unreadable+f.Differing != 0 || f.Partial {
		t.Fatalf("the repair didn't last: %+v", f)
	}
}

// A snapshot that was taken while a block couldn't be read has checksums of what was there before, and finds, in the head, what is there. No copy has that block: the
// scrub tells so, and ends.
func TestScrubOfWhatWasUnread(t *testing.T) {
	c := unread(t, 35)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	c.take("older")
	n1.write(1<<20, pattern(3, 1)) // another piece: with it the chunk's checksums are preserved
	n1.n.Disk().HealSectors()
	n2.start(false)
	c.until("in sync", c.allInSync)
	f := c.scrub("")
	if f.Unreadable != 1 || f.Differing != 0 || len(f.Bad) != 1 || f.Bad[0].Snapshot != "older" || f.Bad[0].Off != 3*block.Size || len(f.Bad[0].Pools) != 2 {
		t.Fatalf("%+v", f)
	}
	c.same(0, 0, pattern(2, 8))
}

// What a copy got in place of a snapshot's chunk of which nobody could say the checksums isn't given to the copy that had the chunk: with its map
// damaged that one would take any.
func TestScrubGivesNoLostSums(t *testing.T) {
	c := newCluster(t, 36, 2, 1)
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	period := c.takeWithoutN2(n3)
	n1.n.Disk().FlipBit(n1.level(period, "meta"), 4096+40)
	n1.n.Crash()
	n1.start(false)
	sums := func(n *node) []byte {
		b := make([]byte, 8*8)
		n.n.Disk().Peek(n.level(period, "sums"), b, 0)
		return b
	}
	before := sums(n1)
	n2.start(false)
	c.until("in sync", c.allInSync)
	lost := bytes.Repeat(binary.LittleEndian.AppendUint64(nil, block.LostSum), 8)
	if !bytes.Equal(sums(n2), lost) || bytes.Equal(before, lost) {
		t.Fatalf("n1 had %x, n2 got %x", before, sums(n2))
	}
	f := c.scrub("")
	if f.Unreadable == 0 || !f.Partial || !bytes.Equal(sums(n1), before) {
		t.Fatalf("n1 has %x, and had %x: %+v", sums(n1), before, f)
	}
	n3.want(0, pattern(2, 8))
}
