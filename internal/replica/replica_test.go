package replica

import (
	"bytes"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

const testSize = 6*block.ChunkSize + 8*block.Size

func TestWriteRead(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	f := g.fence()
	if f.PrevFence != 0 || f.SinceConfirm >= 0 || !f.Exact || f.AllChunks || len(f.Journal) != 0 || f.Checkpoint != 0 || f.Size != testSize || f.Run != "boot1" {
		t.Fatalf("fence of a new replica: %+v", f)
	}
	off := int64(2*block.ChunkSize - 2*block.Size)
	data := fill(7, 5*block.Size)
	copy(data[block.Size:], make([]byte, block.Size))
	g.write(off, data)
	q := g.read(off-block.Size, 7*block.Size)
	if q.Status != wire.StatusOK || !bytes.Equal(q.Data[block.Size:6*block.Size], data) || !block.IsZero(q.Data[:block.Size]) {
		t.Fatalf("read back: %v", q.Status)
	}
	if q.Sums[0] != 0 || q.Sums[1] != block.Sum(data[:block.Size]) || q.Sums[2] != 0 {
		t.Fatalf("sums %x", q.Sums)
	}
	g.want(&wire.Request{Kind: wire.KindTrim, Off: off, Len: 2 * block.Size, FUA: true}, wire.StatusOK)
	g.want(&wire.Request{Kind: wire.KindZero, Off: off + 2*block.Size, Len: block.Size}, wire.StatusOK)
	if q := g.read(off, 5*block.Size); !block.IsZero(q.Data[:3*block.Size]) || !bytes.Equal(q.Data[3*block.Size:], data[3*block.Size:]) {
		t.Fatal("trim and zero")
	}
	// The last block of the column, in a chunk that is cut short.
	g.write(testSize-block.Size, fill(8, block.Size))
	if q := g.sums(6); q.Status != wire.StatusOK || q.Sums[7] != block.Sum(fill(8, block.Size)) || q.Sums[8] != 0 {
		t.Fatalf("sums of the last chunk: %v", q.Status)
	}
	gens := g.gens()
	for c, want := range []uint64{0, g.period, g.period, 0, 0, 0, g.period} {
		if gens[c] != want {
			t.Errorf("gen of chunk %d is %x, want %x", c, gens[c], want)
		}
	}
	g.close()
	if n := g.n.Loop().Outstanding(); n != 0 {
		t.Errorf("%d buffers leaked", n)
	}
}

func TestSecondWriteIsOneWrite(t *testing.T) {
	g := newRig(t, 2, testSize)
	g.create()
	g.fence()
	for i := range 3 {
		g.write(int64(i)*block.Size, fill(uint64(i), block.Size))
	}
	if s := g.r.Stats(); s.JournalBlocks != 1 || s.SumsReads != 0 || s.SumsWrites != 0 {
		t.Fatalf("%+v", s)
	}
}

func TestBadRequests(t *testing.T) {
	g := newRig(t, 3, testSize)
	g.create()
	g.fence()
	d := fill(1, 2*block.Size)
	bad := writeOf(0, d)
	bad.Sums[1]++
	g.want(bad, wire.StatusBadSum)
	short := writeOf(0, d)
	short.Sums = short.Sums[:1]
	big := make([]uint64, block.PerChunk)
	for _, q := range []*wire.Request{
		short,
		writeOf(testSize-block.Size, d),
		writeOf(-block.Size, d),
		writeOf(512, d),
		{Kind: wire.KindWrite, Data: d, Sums: make([]uint64, 2), Period: 9 << 32},
		{Kind: wire.KindRead, Data: d},
		{Kind: wire.KindRead, Data: nil, Sums: big},
		{Kind: wire.KindRead, Data: d[8 : 8+block.Size], Sums: big},
		{Kind: wire.KindTrim, Off: block.ChunkSize - block.Size, Len: 2 * block.Size},
		{Kind: wire.KindTrim, Off: 0, Len: 2 * block.ChunkSize},
		{Kind: wire.KindTrim, Off: 0, Len: 0},
		{Kind: wire.KindZero, Off: 1 << 62, Len: block.Size},
		{Kind: wire.KindSums, Off: testSize, Sums: big},
		{Kind: wire.KindSums, Off: 0},
		{Kind: wire.KindGens, Off: block.Size, Len: block.Size, Sums: big},
		{Kind: wire.KindGens, Off: 0, Len: testSize},
		{Kind: wire.KindTouch, Off: testSize},
		{Kind: wire.KindCheckpoint, Period: 99 << 32},
		{Kind: 77},
	} {
		g.want(q, wire.StatusBadRequest)
	}
	g.write(0, d)
	g.checkpoint()
	old := writeOf(0, d)
	old.Period = g.period - 1
	g.want(old, wire.StatusBadRequest)
	other := &wire.Request{Kind: wire.KindConfirm}
	g.submit(other, func() {})
	other2 := &wire.Request{Kind: wire.KindConfirm, Term: g.term, Session: 1, Replica: 5, Done: func(*wire.Request) {}}
	g.r.Submit(other2)
	g.w.RunFor(1e9)
	if other2.Status != wire.StatusNotFound {
		t.Fatalf("another replica's request: %v", other2.Status)
	}
	if p := g.r.Stats(); p.Journal != 0 || p.BadWrites != 1 {
		t.Fatalf("%+v", p)
	}
}

func TestOverlapIsRefused(t *testing.T) {
	g := newRig(t, 4, testSize)
	g.create()
	g.fence()
	var got []wire.Status
	for range 2 {
		q := writeOf(block.ChunkSize-block.Size, fill(1, 2*block.Size))
		g.submit(q, func() { got = append(got, q.Status) })
	}
	g.w.Run(func() bool { return len(got) == 2 }, maxStep)
	if got[0]+got[1] != wire.StatusBadRequest {
		t.Fatalf("%v", got)
	}
	g.write(block.ChunkSize-block.Size, fill(1, 2*block.Size))
}

func TestCreate(t *testing.T) {
	g := newRig(t, 5, testSize)
	if err := g.tryOpen(); err == nil {
		t.Fatal("opened what isn't there")
	} else {
		g.expectErr(err, ErrNotFound)
	}
	try := func(d Desc, want error) {
		t.Helper()
		ok := false
		Create(g.cfg(), d, func(_ *Replica, err error) { g.expectErr(err, want); ok = true })
		g.until(&ok)
	}
	for _, size := range []int64{0, -4096, 4097, 1 << 60} {
		d := g.d
		d.Size = size
		try(d, ErrDesc)
	}
	d := g.d
	d.Column = 1
	try(d, ErrDesc)
	d = g.d
	d.Policy = append(append([]byte{'"'}, bytes.Repeat([]byte{'x'}, maxDesc)...), '"')
	try(d, ErrDesc)
	g.create()
	try(g.d, ErrExists)
	g.fence()
	g.write(0, fill(3, block.Size))
	g.close()
	ok := false
	ReadDesc(g.n.Loop(), testDir, func(d Desc, err error) {
		if err != nil || d.Name != "vol" || d.Replica != testID || d.Size != testSize || string(d.Policy) != `{"replicas":2}` {
			t.Errorf("%+v, %v", d, err)
		}
		ok = true
	})
	g.until(&ok)
	ok = false
	ReadDesc(g.n.Loop(), "/pool/none", func(_ Desc, err error) { g.expectErr(err, ErrNotFound); ok = true })
	g.until(&ok)
}

// TestCreateAndRemoveCrash crashes at every possible moment of both: a replica is there whole or not at all.
func TestCreateAndRemoveCrash(t *testing.T) {
	for seed := range uint64(40) {
		g := newRig(t, seed, 1<<30)
		created, removed := false, false
		Create(g.cfg(), g.d, func(r *Replica, err error) { created = err == nil; g.r = r })
		if seed%2 == 0 {
			g.w.Run(func() bool { return created }, maxStep)
			g.close()
			Remove(g.n.Loop(), testDir, func(err error) { removed = err == nil })
		}
		g.w.Run(func() bool { return created && seed%2 == 1 || removed }, g.w.Rand().IntN(60))
		if g.w.Chance(0.5) {
			g.n.PowerLoss()
		} else {
			g.n.Crash()
		}
		l := g.n.Start()
		var names []string
		ok := false
		l.Work(func() { names, _ = l.FS().ReadDir("/pool") }, func() { ok = true })
		g.until(&ok)
		whole := false
		for _, name := range names {
			if name == "replica" {
				whole = true
			} else if name != CreatingPrefix+"replica" && name != DeletingPrefix+"replica" {
				t.Fatalf("seed %d: %q is left", seed, name)
			}
		}
		switch {
		case created && seed%2 == 1 && !whole, removed && whole:
			t.Fatalf("seed %d: created %v, removed %v, there %v", seed, created, removed, whole)
		case whole:
			g.reopen()
			g.fence()
			g.write(0, fill(1, block.Size))
			g.close()
		}
		for _, name := range append(names, "replica") {
			ok = false
			Remove(l, "/pool/"+name, func(err error) {
				if err != nil {
					t.Fatal(err)
				}
				ok = true
			})
			g.until(&ok)
		}
		l.Work(func() { names, _ = l.FS().ReadDir("/pool") }, func() { ok = len(names) == 0 })
		ok = false
		g.until(&ok)
		if g.n.Disk().Used() != 0 {
			t.Fatalf("seed %d: %d bytes still used", seed, g.n.Disk().Used())
		}
	}
}

// TestCloseWaits: Close answers what was accepted, refuses what comes later, and leaves no I/O in flight.
func TestCloseWaits(t *testing.T) {
	for seed := range uint64(60) {
		g := newRig(t, seed, testSize)
		g.cache = 2
		g.create()
		g.fence()
		answered, n := 0, 1+g.w.Rand().IntN(12)
		for i := range n {
			q := writeOf(int64(i%6)*block.ChunkSize+int64(i)*block.Size, fill(1, block.Size))
			q.FUA = i%3 == 0
			g.submit(q, func() {
				if answered++; q.Status != wire.StatusOK {
					t.Fatalf("seed %d: %v", seed, q.Status)
				}
			})
		}
		g.w.Run(func() bool { return false }, g.w.Rand().IntN(30))
		closed := false
		g.r.Close(func() { closed = true })
		g.want(&wire.Request{Kind: wire.KindConfirm}, wire.StatusNotFound)
		g.until(&closed)
		if answered != n || g.n.Loop().Outstanding() != 0 {
			t.Fatalf("seed %d: %d of %d answered, %d buffers out", seed, answered, n, g.n.Loop().Outstanding())
		}
		g.reopen()
		if f := g.fence(); len(f.Journal) != min(n, 6) {
			t.Fatalf("seed %d: %+v", seed, f)
		}
	}
}

// TestIdleGivesMemoryBack: a replica that nothing is asked of keeps no sums.
func TestIdleGivesMemoryBack(t *testing.T) {
	g := newRig(t, 1, testSize)
	g.create()
	g.fence()
	g.write(0, fill(1, block.Size))
	g.w.RunFor(5 * idleAfter)
	if s := g.r.Stats(); s.Cached != 1 {
		t.Fatalf("sums that aren't on disk were dropped: %+v", s)
	}
	g.checkpoint()
	g.w.RunFor(5 * idleAfter)
	if s := g.r.Stats(); s.Cached != 0 || g.r.cache.made != 0 {
		t.Fatalf("%+v, %d entries", s, g.r.cache.made)
	}
	if q := g.read(0, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(1, block.Size)) {
		t.Fatalf("%v", q.Status)
	}
}

// TestCacheEviction: sums that don't fit are written and read again.
func TestCacheEviction(t *testing.T) {
	g := newRig(t, 1, 40*block.ChunkSize)
	g.cache = 3
	g.create()
	g.fence()
	for range 2 {
		out := 0
		for c := range int64(40) {
			q := writeOf((c+1)*block.ChunkSize-block.Size, fill(uint64(c+1), block.Size))
			out++
			g.submit(q, func() {
				if out--; q.Status != wire.StatusOK {
					t.Fatal(q.Status)
				}
			})
		}
		g.w.Run(func() bool { return out == 0 }, maxStep)
	}
	if s := g.r.Stats(); s.Cached > 6 || s.SumsWrites < 60 || s.SumsReads < 30 {
		t.Fatalf("%+v", s)
	}
	g.checkpoint()
	g.n.PowerLoss()
	g.reopen()
	g.fence()
	for c := range int64(40) {
		if q := g.read((c+1)*block.ChunkSize-block.Size, block.Size); q.Status != wire.StatusOK || string(q.Data) != string(fill(uint64(c+1), block.Size)) {
			t.Fatalf("chunk %d: %v", c, q.Status)
		}
	}
}
