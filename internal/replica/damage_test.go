package replica

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"testing"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// edit changes a page of one of the files of a replica that isn't open.
func (g *rig) edit(name string, off int64, change func(page []byte)) {
	g.t.Helper()
	g.withFile(name, func(f aio.File, next func()) {
		buf := aligned(block.Size)
		op := &aio.Op{}
		op.Done = func(int, error) {
			change(buf)
			op.Done = func(_ int, err error) {
				if err != nil {
					g.t.Fatal(err)
				}
				next()
			}
			f.WriteSync(op, buf, off)
		}
		f.ReadAt(op, buf, off)
	})
}

func (g *rig) withFile(name string, fn func(f aio.File, next func())) {
	g.t.Helper()
	l := g.n.Loop()
	var f aio.File
	var err error
	ok := false
	l.Work(func() { f, err = l.FS().OpenFile(file(name), 0) }, func() {
		if err != nil {
			g.t.Fatal(err)
		}
		fn(f, func() { l.Work(func() { _ = f.Close() }, func() { ok = true }) })
	})
	g.until(&ok)
}

func flip(at int) func([]byte) { return func(p []byte) { p[at] ^= 0x10 } }

// prepared is a replica with data in chunks 0, 1 and 3, of which 0 and 1 are behind a checkpoint and 3 is in the
// journal. It is closed.
func prepared(t *testing.T) *rig {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	for b := range int64(4) {
		g.write(b*block.Size, fill(uint64(b+1), block.Size))
	}
	g.write(block.ChunkSize, fill(9, 16*block.Size))
	g.checkpoint()
	g.write(3*block.ChunkSize, fill(11, block.Size))
	g.flush()
	g.close()
	return g
}

// repair does what a coordinator does that has the right data from elsewhere.
func (g *rig) repair(q *wire.Request, data func(i int) []byte) {
	g.t.Helper()
	for i := range len(q.Sums) {
		if q.Bad[i>>6]&(1<<(i&63)) != 0 {
			g.write(q.Off+int64(i)*block.Size, data(i))
		}
	}
}

// wantBad reads blocks from off on, and checks which of them are bad.
func (g *rig) wantBad(off int64, n int, want uint64) *wire.Request {
	g.t.Helper()
	q := g.read(off, n*block.Size)
	status := wire.StatusOK
	if want != 0 {
		status = wire.StatusBadSum
	}
	if q.Status != status || q.Bad[0] != want {
		g.t.Fatalf("read: %v, bad blocks %b, want %b", q.Status, q.Bad[0], want)
	}
	return q
}

// good checks that everything is as prepared left it, also after another checkpoint and another start.
func (g *rig) good() {
	g.t.Helper()
	for range 2 {
		for b := range int64(4) {
			if q := g.read(b*block.Size, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(b+1), block.Size)) {
				g.t.Fatalf("block %d: %v", b, q.Status)
			}
		}
		if q := g.read(block.ChunkSize, 16*block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(9, 16*block.Size)) {
			g.t.Fatalf("chunk 1: %v", q.Status)
		}
		if q := g.read(3*block.ChunkSize, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(11, block.Size)) {
			g.t.Fatalf("chunk 3: %v", q.Status)
		}
		for c := range block.Chunks(testSize) {
			g.touch(c)
		}
		g.checkpoint()
		g.n.PowerLoss()
		g.reopen()
		if f := g.fence(); !f.Exact || f.AllChunks || len(f.Journal) != 0 {
			g.t.Fatalf("it isn't healed: %+v", f)
		}
	}
}

func TestDamagedHead(t *testing.T) {
	g := prepared(t)
	g.edit(headName, 2*block.Size, flip(77))
	g.reopen()
	g.fence()
	q := g.wantBad(0, 4, 1<<2)
	if string(q.Data[3*block.Size:]) != string(fill(4, block.Size)) {
		t.Fatal("a good block beside a bad one isn't what it was")
	}
	g.repair(q, func(i int) []byte { return fill(uint64(i+1), block.Size) })
	g.good()
}

func TestHeadUnreadable(t *testing.T) {
	g := prepared(t)
	g.n.Disk().BreakSector(file(headName), 2*block.Size)
	g.reopen()
	g.fence()
	if q := g.read(0, 4*block.Size); q.Status != wire.StatusIOError {
		t.Fatalf("%v", q.Status)
	}
	g.write(2*block.Size, fill(3, block.Size))
	g.good()
}

func TestDamagedSums(t *testing.T) {
	g := prepared(t)
	g.edit(sumsName, 0, flip(2*8))                          // of a block with data
	g.edit(sumsName, 0, flip(5*8+3))                        // of a block of zeros
	g.edit(sumsName, sumsSize, func(p []byte) { clear(p) }) // all of chunk 1: its data must not read as zeros
	g.reopen()
	if f := g.fence(); len(f.Journal) != 1 {
		t.Fatalf("%+v", f)
	}
	g.wantBad(0, 8, 1<<2|1<<5)
	if s := g.sums(0); s.Status != wire.StatusOK || s.Bad[0] != 1<<2|1<<5 {
		t.Fatalf("%v %b", s.Status, s.Bad[0])
	}
	g.wantBad(block.ChunkSize, 16, 1<<16-1)
	// It stays so, also when a checkpoint writes the sums.
	g.checkpoint()
	g.n.PowerLoss()
	g.reopen()
	g.fence()
	q := g.wantBad(0, 8, 1<<2|1<<5)
	g.repair(q, func(i int) []byte {
		if i == 5 {
			return aligned(block.Size)
		}
		return fill(uint64(i+1), block.Size)
	})
	q = g.wantBad(block.ChunkSize, 16, 1<<16-1)
	g.repair(q, func(i int) []byte { return fill(9, 16*block.Size)[i*block.Size : (i+1)*block.Size] })
	g.good()
}

func TestSumsUnreadable(t *testing.T) {
	g := prepared(t)
	g.n.Disk().BreakSector(file(sumsName), 0)
	g.reopen()
	g.fence()
	if q := g.read(0, block.Size); q.Status != wire.StatusIOError {
		t.Fatalf("%v", q.Status)
	}
	g.wantBad(block.ChunkSize, 16, 0)
}

func TestDamagedGens(t *testing.T) {
	for _, change := range []func([]byte){flip(0), flip(4), flip(9), flip(30), flip(gensHeader + 16*2), flip(4095), func(p []byte) { clear(p) }} {
		g := prepared(t)
		last := g.period
		g.edit(gensName, 0, change)
		g.reopen()
		g.fence()
		for c, gen := range g.gens() {
			if gen < last {
				t.Fatalf("chunk %d has gen %x, but %x is the last known", c, gen, last)
			}
		}
		g.good()
	}
}

func TestDamagedJournal(t *testing.T) {
	for at := 3; at < block.Size; at += 101 {
		g := prepared(t)
		slot := int64(1 + at%3) // the older block, the newest, one that was never written
		g.edit(journalName, slot*block.Size, flip(at))
		g.reopen()
		f := g.fence()
		if !f.AllChunks || f.Exact || f.PrevFence != 1 {
			t.Fatalf("byte %d of block %d: %+v", at, slot, f)
		}
		if s := g.sums(3); s.Status != wire.StatusOK || s.Sums[0] == 0 {
			t.Fatal("sums of a chunk that was in the journal")
		}
		g.good()
	}
}

// TestJournalBlockLost: a block that reads as zeros, or as it was a round ago, is found missing.
func TestJournalBlockLost(t *testing.T) {
	for lost := 1; lost < 3; lost++ {
		g := prepared(t)
		for slot := range int64(lost) {
			g.edit(journalName, (3-slot)*block.Size, func(p []byte) { clear(p) })
		}
		g.edit(journalName, block.Size, func(p []byte) { clear(p) })
		g.reopen()
		if f := g.fence(); !f.AllChunks {
			t.Fatalf("%+v", f)
		}
		g.good()
	}
}

func TestDamagedMeta(t *testing.T) {
	for slot := range int64(2) {
		for at := 1; at < metaSlotSize; at += 1021 {
			g := prepared(t)
			off := slot*metaSlotSize + int64(at)
			g.edit(metaName, off&^4095, flip(at&4095))
			g.reopen()
			f := g.fence()
			if !f.AllChunks || f.Exact || f.Checkpoint > g.period {
				t.Fatalf("%+v", f)
			}
			g.good()
		}
	}
	g := prepared(t)
	g.edit(metaName, 0, flip(100))
	g.edit(metaName, metaSlotSize, flip(100))
	g.expectErr(g.tryOpen(), ErrDamaged)
	ok := false
	ReadDesc(g.n.Loop(), testDir, func(_ Desc, err error) { g.expectErr(err, ErrDamaged); ok = true })
	g.until(&ok)
}

// reversion gives the first sector's block a newer version, with valid checksums.
func reversion(p []byte) {
	for s := 0; s < len(p); s += sectorSize {
		q := p[s : s+sectorSize]
		if !block.IsZero(q) {
			q[4] = formatVersion + 1
			binary.LittleEndian.PutUint64(q[24:], sectorSum(q))
		}
	}
}

func TestNewerVersion(t *testing.T) {
	for name, change := range map[string]func(g *rig){
		"meta": func(g *rig) {
			g.edit(metaName, 0, reversion)
			g.edit(metaName, block.Size, reversion)
		},
		"journal": func(g *rig) { g.edit(journalName, block.Size, reversion) },
		"gens": func(g *rig) {
			g.edit(gensName, 0, func(p []byte) {
				p[4]++
				binary.LittleEndian.PutUint64(p[24:], gensSum(p))
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := prepared(t)
			change(g)
			g.expectErr(g.tryOpen(), ErrVersion)
		})
	}
}

func TestFilesMissingOrShort(t *testing.T) {
	for _, name := range []string{headName, sumsName, gensName, journalName} {
		g := prepared(t)
		l := g.n.Loop()
		ok := false
		l.Work(func() { _ = l.FS().RemoveAll(file(name)) }, func() { ok = true })
		g.until(&ok)
		g.expectErr(g.tryOpen(), ErrDamaged)
	}
	for _, name := range []string{headName, sumsName, gensName, journalName} {
		g := prepared(t)
		g.withFile(name, func(f aio.File, next func()) {
			g.n.Loop().Work(func() { _ = f.Truncate(0) }, next)
		})
		g.reopen()
		f := g.fence()
		q := g.read(0, 4*block.Size)
		switch name {
		case headName, sumsName:
			if q.Status != wire.StatusBadSum || bits.OnesCount64(q.Bad[0]) != 4 {
				t.Fatalf("%s: %v", name, q.Status)
			}
		case gensName:
			if gen := g.gens()[0]; q.Status != wire.StatusOK || gen < 1<<32|2 {
				t.Fatalf("%s: %v, gen %x", name, q.Status, gen)
			}
		case journalName:
			if !f.AllChunks {
				t.Fatalf("%+v", f)
			}
		}
	}
}

// TestNoSpace: a full disk loses nothing, and what it refused can be asked again when there is space.
func TestNoSpace(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, 4*block.Size))
	g.checkpoint()
	d := g.n.Disk()
	d.SetQuota(d.Used() + block.Size)
	g.want(writeOf(4*block.Size, fill(2, 4*block.Size)), wire.StatusNoSpace)
	g.write(0, fill(3, block.Size)) // what is allocated can be written
	if q := g.read(0, 8*block.Size); q.Status != wire.StatusOK || !block.IsZero(q.Data[4*block.Size:]) {
		t.Fatalf("%v", q.Status)
	}
	d.SetQuota(d.Used())
	p := g.period
	g.period++
	g.write(2*block.Size, fill(4, block.Size))
	g.want(&wire.Request{Kind: wire.KindZero, Off: 2 * block.ChunkSize, Len: block.Size}, wire.StatusNoSpace)
	g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, wire.StatusOK)
	g.n.PowerLoss()
	d.SetQuota(1 << 30)
	g.reopen()
	g.fence()
	g.write(4*block.Size, fill(2, 4*block.Size))
	for i, want := range [][]byte{fill(3, block.Size), fill(1, 4*block.Size)[block.Size : 2*block.Size]} {
		if q := g.read(int64(i)*block.Size, block.Size); q.Status != wire.StatusOK {
			t.Fatalf("block %d: %v", i, q.Status)
		} else if i == 1 && string(q.Data) != string(want) {
			t.Fatalf("block %d was changed", i)
		}
	}
}

// TestCheckpointNoSpace: sums that find no space make the checkpoint wait, not lie.
func TestCheckpointNoSpace(t *testing.T) {
	g := newRig(t, 2, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, block.Size))
	d := g.n.Disk()
	d.SetQuota(d.Used())
	g.flush()
	p := g.period
	g.period++
	g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, wire.StatusNoSpace)
	if s := g.r.Stats(); s.Checkpoint != 0 || s.Journal != 1 {
		t.Fatalf("%+v", s)
	}
	d.SetQuota(1 << 30)
	g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, wire.StatusOK)
	g.n.PowerLoss()
	g.reopen()
	if f := g.fence(); f.Checkpoint != p || len(f.Journal) != 0 {
		t.Fatalf("%+v", f)
	}
	g.wantBad(0, 1, 0)
}

// TestWriteFails: after a write that failed, the sums are those of whatever is on the disk.
func TestWriteFails(t *testing.T) {
	g := newRig(t, 3, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, 2*block.Size))
	g.n.Disk().Fail(false, true, false)
	g.want(writeOf(0, fill(2, 2*block.Size)), wire.StatusIOError)
	g.n.Disk().Fail(false, false, true)
	g.want(&wire.Request{Kind: wire.KindFlush}, wire.StatusIOError)
	g.n.Disk().Fail(false, false, false)
	g.flush()
	g.wantBad(0, 2, 0)
	g.edit(headName, 0, func(p []byte) { copy(p, fill(2, block.Size)) }) // as if a part of it had reached the disk
	g.n.Disk().Fail(false, true, false)
	g.want(writeOf(block.Size, fill(2, block.Size)), wire.StatusIOError)
	g.n.Disk().Fail(false, false, false)
	if s := g.r.Stats(); s.Suspect != 1 {
		t.Fatalf("%+v", s)
	}
	if q := g.wantBad(0, 2, 0); string(q.Data[:block.Size]) != string(fill(2, block.Size)) {
		t.Fatal("not what is on the disk")
	}
}

// TestTornBlockIsReported: a block whose data a power loss tore is readable, and named by KindSums until it is written
// again or the chunk is touched.
func TestTornBlockIsReported(t *testing.T) {
	for _, touched := range []bool{false, true} {
		tornBlock(t, touched)
	}
}

func tornBlock(t *testing.T, touched bool) {
	t.Helper()
	g := prepared(t)
	g.edit(headName, 3*block.ChunkSize, flip(1000)) // chunk 3 is in the journal
	g.reopen()
	f := g.fence()
	if f.Exact || fmt.Sprint(f.Journal) != fmt.Sprint([]wire.JournalEntry{{Chunk: 3, Period: 1<<32 | 2}}) {
		t.Fatalf("%+v", f)
	}
	g.wantBad(3*block.ChunkSize, 1, 0)
	if q := g.sums(3); q.Status != wire.StatusOK || q.Bad[0] != 1 {
		t.Fatalf("%v %b", q.Status, q.Bad[0])
	}
	if touched {
		g.touch(3)
	} else {
		g.write(3*block.ChunkSize, fill(12, block.Size))
	}
	if q := g.sums(3); q.Bad[0] != 0 {
		t.Fatalf("%b", q.Bad[0])
	}
}
