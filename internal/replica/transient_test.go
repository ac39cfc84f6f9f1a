package replica

import (
	"errors"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// A disk that fails for a moment, while a chunk's sums are recomputed after a crash, costs none of its blocks.
func TestRecomputeOutlivesShortFailure(t *testing.T) {
	for wait := 500 * time.Microsecond; wait < 5*time.Millisecond; wait += 500 * time.Microsecond {
		g := newRig(t, 1, testSize)
		g.create()
		g.fence()
		for b := range int64(4) {
			g.write(b*block.Size, fill(uint64(b+1), block.Size))
		}
		g.n.Crash()
		g.reopen()
		g.fence()
		d := g.n.Disk()
		g.w.After(150*time.Microsecond, "the disk fails", func() { d.Fail(true, false, false) })
		g.w.After(wait, "the disk works again", func() { d.Fail(false, false, false) })
		g.read(0, block.Size)
		d.Fail(false, false, false)
		for b := range int64(4) {
			if q := g.read(b*block.Size, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(b+1), block.Size)) {
				t.Fatalf("the disk failed for %v, and block %d can't be read any more: %v", wait, b, q.Status)
			}
		}
	}
}

// slotOf returns where in meta the newer copy is, and where the older one.
func (g *rig) slotOf() (newer, older int64) {
	return int64(g.r.metaSlot) * metaSlotSize, int64(g.r.metaSlot^1) * metaSlotSize
}

// A copy of meta that can't be read isn't decided against: it may be the newer one, and what the other says would be back in
// time. When the disk works again nothing is lost.
func TestUnreadableMetaIsNotRolledBack(t *testing.T) {
	for _, which := range []string{"newer", "older", "both"} {
		for page := range int64(2) {
			g := prepared(t)
			newer, older := g.slotOf()
			d := g.n.Disk()
			meta := func() string {
				b := make([]byte, metaSize)
				d.Peek(file(metaName), b, 0)
				return string(b)
			}
			was := meta()
			for _, off := range map[string][]int64{"newer": {newer}, "older": {older}, "both": {newer, older}}[which] {
				if !d.BreakSector(file(metaName), off+page*block.Size) {
					t.Fatal("nothing to break")
				}
			}
			err := g.tryOpen()
			if g.expectErr(err, syscall.EIO); errors.Is(err, ErrDamaged) || errors.Is(err, ErrUnreadable) != (which != "both") {
				t.Fatalf("%s: %v", which, err)
			}
			d.HealSectors()
			if meta() != was {
				t.Fatalf("%s: meta was changed by an open that failed", which)
			}
			g.reopen()
			if f := g.fence(); f.PrevFence != 1 || f.Checkpoint != 1<<32|1 || f.AllChunks {
				t.Fatalf("%s: after the disk works again: %+v", which, f)
			}
			g.good()
		}
	}
}

// A journal or gens that can't be read for a moment cost nothing; if that lasts they are taken as damaged.
func TestShortFailureOfJournalAndGens(t *testing.T) {
	for _, name := range []string{journalName, gensName} {
		for _, lasts := range []bool{false, true} {
			g := prepared(t)
			d := g.n.Disk()
			if !d.BreakSector(file(name), 0) {
				t.Fatal("nothing to break")
			}
			if !lasts {
				g.w.After(1500*time.Millisecond, "the disk works again", d.HealSectors)
			}
			g.reopen()
			f := g.fence()
			if s := g.r.Stats(); f.AllChunks != (lasts && name == journalName) || !lasts && s.Suspect > 1 {
				t.Fatalf("%s, lasts %v: %+v, %d suspect", name, lasts, f, s.Suspect)
			}
			known := true
			for _, c := range g.r.checks {
				known = known && c != checkUnknown
			}
			if known != (!lasts || name == journalName) {
				t.Fatalf("%s, lasts %v: checks known: %v", name, lasts, known)
			}
			g.good()
		}
	}
}

// What can't be read while the sums of its chunk are recomputed after a crash isn't given up: it was acknowledged, perhaps, and nobody
// else has it. When the disk works again it is there, also after one more crash.
func TestRecomputeOutlivesLongFailure(t *testing.T) {
	for _, crash := range []bool{false, true} {
		g := newRig(t, 1, testSize)
		g.create()
		g.fence()
		g.write(0, fill(100, 8*block.Size))
		g.checkpoint()
		for b := range int64(4) {
			g.write(b*block.Size, fill(uint64(b+1), block.Size))
		}
		g.n.Crash()
		g.reopen()
		g.fence()
		d := g.n.Disk()
		for b := range int64(3) {
			if !d.BreakSector(file(headName), b*block.Size) {
				t.Fatal("nothing to break")
			}
		}
		if q := g.read(0, block.Size); q.Status != wire.StatusIOError {
			t.Fatalf("a block that can't be read: %v", q.Status)
		}
		g.write(2*block.Size, fill(7, block.Size)) // which mends the sector
		if bad := g.sums(0).Bad[0]; bad&0b11 != 0b11 {
			t.Errorf("sums of what can't be read are said to be good: %b", bad)
		}
		g.checkpoint()
		if crash {
			g.n.Crash()
			g.reopen()
			g.fence()
		}
		d.HealSectors()
		for b, seed := range []uint64{1, 2, 7, 4} {
			if q := g.read(int64(b)*block.Size, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(seed, block.Size)) {
				t.Errorf("crash %v: block %d can't be read any more: %v", crash, b, q.Status)
			}
		}
		if g.r.suspect.count > 0 {
			t.Error("the chunk is suspect for ever")
		}
	}
}
