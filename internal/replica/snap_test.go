package replica

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// snapModel plays random histories of writes, snapshots, deletions, restores, clones and crashes against one replica.
type snapModel struct {
	*rig
	rng    *rand.Rand
	places []int64            // offsets of the blocks that are used
	cur    map[int64][]uint64 // what a block may hold: the last is what was written last; 0 is zeros
	snaps  map[uint64]map[int64]uint64
	tag    uint64
	clones int
	// older is the period of half of the changes, if it isn't 0: an ordinary checkpoint doesn't wait for those of the period before.
	older uint64
}

func newSnapModel(t *testing.T, seed uint64) *snapModel {
	const size = 4*block.ChunkSize + 16*block.Size
	m := &snapModel{rig: newRig(t, seed, size), rng: rand.New(rand.NewPCG(seed, 3)),
		cur: map[int64][]uint64{}, snaps: map[uint64]map[int64]uint64{}}
	for c := range int64(5) {
		for _, b := range []int64{0, 3, 15, 16, 31, 512, 1023} {
			if off := c*block.ChunkSize + b*block.Size; off < size {
				m.places = append(m.places, off)
				m.cur[off] = []uint64{0}
			}
		}
	}
	m.create()
	m.fence()
	return m
}

func content(tag uint64) []byte {
	if tag == 0 {
		return aligned(block.Size)
	}
	return fill(tag, block.Size)
}

func (m *snapModel) now(off int64) uint64 { l := m.cur[off]; return l[len(l)-1] }

// settled says that what was answered is durable.
func (m *snapModel) settled() {
	for off := range m.cur {
		m.cur[off] = []uint64{m.now(off)}
	}
}

func (m *snapModel) periods() []uint64 { return slices.Sorted(maps.Keys(m.snaps)) }

// change writes or trims some blocks at once; with crash set, the machine or the engine dies meanwhile.
func (m *snapModel) change(crash bool) {
	perm := m.rng.Perm(len(m.places))[:1+m.rng.IntN(8)]
	left := len(perm)
	for _, i := range perm {
		off := m.places[i]
		m.tag++
		tag := m.tag
		q := writeOf(off, content(tag))
		if m.rng.IntN(4) == 0 {
			tag, q = 0, &wire.Request{Kind: wire.KindTrim, Off: off, Len: block.Size}
		}
		m.cur[off] = append(m.cur[off], tag)
		if m.rng.IntN(2) == 0 {
			q.Period = m.older
		}
		m.submit(q, func() {
			if q.Status != wire.StatusOK {
				m.t.Fatalf("%v: %v", q.Kind, q.Status)
			}
			left--
		})
	}
	if !crash {
		done := false
		m.w.Run(func() bool { done = left == 0; return done }, maxStep)
		if !done {
			m.t.Fatal("writes never end")
		}
		return
	}
	m.crash()
}

// crash lets some time pass, and kills.
func (m *snapModel) crash() {
	n := m.rng.IntN(400)
	m.w.Run(func() bool { n--; return n < 0 }, maxStep)
	if m.rng.IntN(2) == 0 {
		m.n.PowerLoss()
	} else {
		m.n.Crash()
	}
	m.recover()
}

func (m *snapModel) recover() {
	m.t.Helper()
	m.reopen()
	f := m.fence()
	m.set()
	for c := range block.Chunks(m.d.Size) {
		if journalHas(f, c) {
			m.touch(c)
		}
	}
	for _, off := range m.places {
		q := m.read(off, block.Size)
		i := slices.IndexFunc(m.cur[off], func(tag uint64) bool { return bytes.Equal(content(tag), q.Data) })
		if q.Status == wire.StatusOK && i < 0 && m.torn(off, q.Data) {
			m.tag++
			m.cur[off] = append(m.cur[off], m.tag)
			m.write(off, content(m.tag))
			continue
		}
		if q.Status != wire.StatusOK || i < 0 {
			m.t.Fatalf("offset %d after a crash: %v, none of %v", off, q.Status, m.cur[off])
		}
		m.cur[off] = append(m.cur[off], m.cur[off][i])
	}
}

// torn reports whether every sector is of a version that the block may hold.
func (m *snapModel) torn(off int64, data []byte) bool {
	for s := 0; s < block.Size; s += sectorSize {
		if !slices.ContainsFunc(m.cur[off], func(tag uint64) bool { return bytes.Equal(content(tag)[s:s+sectorSize], data[s:s+sectorSize]) }) {
			return false
		}
	}
	return true
}

func (m *snapModel) setTo(periods ...uint64) *wire.Request {
	q := &wire.Request{Kind: wire.KindSnaps}
	for _, p := range periods {
		q.Sums = append(q.Sums, p, uint64(m.d.Size))
	}
	return q
}

// set says which snapshots there are.
func (m *snapModel) set(more ...uint64) {
	m.t.Helper()
	m.want(m.setTo(append(m.periods(), more...)...), wire.StatusOK)
}

func (m *snapModel) take() {
	p := m.period
	m.set(p)
	m.change(false) // before the barrier
	m.checkpoint()
	m.settled()
	s := map[int64]uint64{}
	for off := range m.cur {
		s[off] = m.now(off)
	}
	m.snaps[p] = s
}

func (m *snapModel) readSnap(p uint64, off int64) *wire.Request {
	m.t.Helper()
	return m.do(&wire.Request{Kind: wire.KindSnapRead, Period: p, Off: off, Data: aligned(block.Size), Sums: make([]uint64, 1)})
}

func (m *snapModel) check() {
	m.t.Helper()
	for p, s := range m.snaps {
		for off, tag := range s {
			if q := m.readSnap(p, off); q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(tag)) {
				m.t.Fatalf("snapshot %x at %d: %v, %x; want %d", p, off, q.Status, q.Data[:16], tag)
			}
		}
	}
	for off := range m.cur {
		if q := m.read(off, block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(m.now(off))) {
			m.t.Fatalf("head at %d: %v, %x; want %d", off, q.Status, q.Data[:16], m.now(off))
		}
	}
}

func (m *snapModel) pick() (uint64, bool) {
	list := m.periods()
	if len(list) == 0 {
		return 0, false
	}
	return list[m.rng.IntN(len(list))], true
}

func (m *snapModel) restoreAll(p uint64) {
	for c := range block.Chunks(m.d.Size) {
		off := c * block.ChunkSize
		m.want(&wire.Request{Kind: wire.KindRestore, Off: off, Len: min(block.ChunkSize, m.d.Size-off), Sums: []uint64{p}}, wire.StatusOK)
	}
	for off, tag := range m.snaps[p] {
		m.cur[off] = append(m.cur[off], tag)
	}
}

// cloneOf makes a clone, opens it and compares.
func (m *snapModel) cloneOf(p uint64) {
	m.t.Helper()
	d := m.d
	m.clones++
	d.Replica, d.Name = wire.ReplicaID(m.clones), fmt.Sprint("clone", m.clones)
	text, _ := json.Marshal(d)
	ask := func() { m.want(&wire.Request{Kind: wire.KindClone, Period: p, Text: text}, wire.StatusOK) }
	ask()
	m.change(false) // doesn't concern it
	if m.rng.IntN(4) == 0 {
		m.n.PowerLoss()
		m.recover()
	}
	ask() // again is no error
	cfg := m.cfg()
	cfg.Dir = "/pool/" + d.Replica.String()
	var c *Replica
	ok := false
	Open(cfg, func(r *Replica, err error) {
		if err != nil {
			m.t.Fatal(err)
		}
		c, ok = r, true
	})
	m.until(&ok)
	g := &rig{t: m.t, w: m.w, n: m.n, r: c, d: d}
	g.term = 0
	q := &wire.Request{Kind: wire.KindFence, Replica: d.Replica, Term: 1, Session: 1}
	done := false
	q.Done = func(*wire.Request) { done = true }
	c.Submit(q)
	m.until(&done)
	if q.Status != wire.StatusOK || len(q.Fence.Journal) > 0 || q.Fence.Checkpoint == 0 {
		m.t.Fatalf("fence of a clone: %v %+v", q.Status, q.Fence)
	}
	for off, tag := range m.snaps[p] {
		q := &wire.Request{Kind: wire.KindRead, Replica: d.Replica, Term: 1, Session: 1, Off: off, Data: aligned(block.Size), Sums: make([]uint64, 1)}
		done = false
		q.Done = func(*wire.Request) { done = true }
		c.Submit(q)
		m.until(&done)
		if q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(tag)) {
			m.t.Fatalf("clone of %x at %d: %v %x, want %d", p, off, q.Status, q.Data[:16], tag)
		}
	}
	done = false
	c.Close(func() { done = true })
	m.until(&done)
}

// step does one thing.
func (m *snapModel) step() {
	p, some := m.pick()
	switch k := m.rng.IntN(20); {
	case k < 6:
		m.change(false)
	case k < 8:
		m.change(true)
	case k < 11 && len(m.snaps) < 6:
		m.take()
	case k == 11: // one that never is committed
		m.set(m.period)
		m.change(false)
		m.period++
		m.change(true)
	case k == 17: // one that is given up before the cut
		m.set(m.period)
		m.older = m.period
		m.period++
		m.change(false)
		m.change(false)
		m.older = 0
		m.set()
	case k == 12 && some: // a deletion that is interrupted, and then done
		delete(m.snaps, p)
		m.submit(m.setTo(m.periods()...), func() {})
		m.change(true)
	case k == 13 && some: // under load
		delete(m.snaps, p)
		done := false
		m.submit(m.setTo(m.periods()...), func() { done = true })
		m.change(false)
		m.change(false)
		m.until(&done)
	case k == 14 && some:
		m.restoreAll(p)
	case k == 15 && some:
		m.cloneOf(p)
	case k == 16:
		m.close()
		m.recover()
	default:
		m.check()
	}
}

func TestSnapshotsAgainstModel(t *testing.T) {
	for seed := range seeds(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newSnapModel(t, uint64(seed))
			for range 40 {
				m.step()
			}
			m.check()
			if len(m.snaps) > 0 {
				m.snaps = nil
				m.set()
			}
			for _, name := range []string{"snaps"} {
				var list []string
				ok := false
				m.n.Loop().Work(func() { list, _ = m.n.Loop().FS().ReadDir(file(name)) }, func() { ok = true })
				m.until(&ok)
				if len(list) > 0 {
					t.Fatalf("left in %s: %v", name, list)
				}
			}
		})
	}
}

// TestLostSnapshotIsRefused checks that a snapshot which the replica must have isn't made anew, empty.
func TestLostSnapshotIsRefused(t *testing.T) {
	m := newSnapModel(t, 1)
	p := m.period
	m.change(false)
	m.checkpoint()
	m.want(m.setTo(p), wire.StatusBadRequest)
	m.want(m.setTo(m.period, m.period), wire.StatusBadRequest)
	m.take()
	m.check()
}

// TestReplacedChunk checks the calls by which a member that was away gets what a snapshot holds.
func TestReplacedChunk(t *testing.T) {
	m := newSnapModel(t, 2)
	m.change(false)
	m.take()
	p := m.periods()[0]
	m.write(0, content(77))
	levels := m.want(&wire.Request{Kind: wire.KindSnapLevels, Sums: make([]uint64, 0, wire.MaxSnaps)}, wire.StatusOK)
	if !slices.Equal(levels.Sums, []uint64{p}) {
		t.Fatalf("held by %x", levels.Sums)
	}
	data := content(99)
	m.want(&wire.Request{Kind: wire.KindSnapWrite, Period: p, Data: data, Sums: []uint64{block.Sum(data)}}, wire.StatusBadRequest)
	base := m.want(&wire.Request{Kind: wire.KindSnapOpen, Period: p, Sums: make([]uint64, block.PerChunk)}, wire.StatusOK)
	if base.Sums[0] != block.Sum(content(77)) {
		t.Fatal("the base isn't the head's")
	}
	m.want(&wire.Request{Kind: wire.KindSnapWrite, Period: p, Off: 3 * block.Size, Data: data, Sums: []uint64{block.Sum(data)}}, wire.StatusOK)
	sums := slices.Clone(base.Sums)
	clear(sums[512:])
	sums[3] = block.Sum(data)
	m.want(&wire.Request{Kind: wire.KindSnapSeal, Period: p, Sums: sums}, wire.StatusOK)
	m.checkpoint()
	m.n.PowerLoss()
	m.reopen()
	m.fence()
	got := m.want(&wire.Request{Kind: wire.KindSnapSums, Period: p, Sums: make([]uint64, block.PerChunk)}, wire.StatusOK)
	if !slices.Equal(got.Sums, sums) {
		t.Fatal("the sums are others")
	}
	for b, want := range map[int64]uint64{0: 77, 3: 99, 512: 0} {
		if q := m.readSnap(p, b*block.Size); q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(want)) {
			t.Fatalf("block %d: %v", b, q.Status)
		}
	}
	m.want(&wire.Request{Kind: wire.KindSnapDrop, Period: p}, wire.StatusOK)
	if q := m.readSnap(p, 0); !bytes.Equal(q.Data, content(77)) {
		t.Fatal("a dropped chunk isn't the head's")
	}
}

// TestForgottenChunkIsHandedDown replaces a snapshot's chunk, and drops it, of which an older one that holds the chunk too lacks pieces: it has them then.
func TestForgottenChunkIsHandedDown(t *testing.T) {
	m := newSnapModel(t, 3)
	const piece = 20 * pieceSize
	m.write(0, content(1))
	m.write(piece, content(2))
	older := m.period
	m.set(older)
	m.checkpoint()
	m.snaps[older] = map[int64]uint64{0: 1, piece: 2}
	m.write(0, content(3))
	newer := m.period
	m.set(newer)
	m.checkpoint()
	m.snaps[newer] = map[int64]uint64{0: 3, piece: 2}
	m.write(piece, content(4))
	open := m.want(&wire.Request{Kind: wire.KindSnapOpen, Period: newer, Sums: make([]uint64, block.PerChunk)}, wire.StatusOK)
	data := content(5)
	sums := open.Sums
	sums[piece/block.Size] = block.Sum(data)
	m.want(&wire.Request{Kind: wire.KindSnapWrite, Period: newer, Off: piece, Data: data, Sums: sums[piece/block.Size : piece/block.Size+1]}, wire.StatusOK)
	m.want(&wire.Request{Kind: wire.KindSnapSeal, Period: newer, Sums: sums}, wire.StatusOK)
	want := map[int64]uint64{0: 1, piece: 2}
	for off, tag := range want {
		if q := m.readSnap(older, off); q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(tag)) {
			t.Errorf("the older snapshot at %d: %v, %x", off, q.Status, q.Data[:16])
		}
	}
	m.want(&wire.Request{Kind: wire.KindSnapDrop, Period: newer}, wire.StatusOK)
	m.n.PowerLoss()
	m.reopen()
	m.fence()
	m.touch(0)
	for off, tag := range want {
		if q := m.readSnap(older, off); q.Status != wire.StatusOK || !bytes.Equal(q.Data, content(tag)) {
			t.Errorf("the older snapshot at %d after a crash: %v, %x", off, q.Status, q.Data[:16])
		}
	}
}

// TestSnapshotOfALostHead has a replica lose with its power what a snapshot finds in the head, as one may that is catching up: it says so when it is checked, also after
// what is in the head instead was changed.
func TestSnapshotOfALostHead(t *testing.T) {
	const piece = 20 * pieceSize
	lost := 0
	for seed := range uint64(12) {
		m := newSnapModel(t, seed)
		p := m.period
		m.write(0, content(1))
		m.write(piece, content(2))
		m.set(p)
		m.period++
		m.write(0, content(3))
		check := func(want wire.Status) {
			t.Helper()
			m.want(&wire.Request{Kind: wire.KindSnapCheck, Period: p, Sums: make([]uint64, block.PerChunk)}, want)
		}
		check(wire.StatusOK)
		m.n.PowerLoss()
		m.reopen()
		m.fence()
		m.touch(0)
		if q := m.read(piece, block.Size); bytes.Equal(q.Data, content(2)) {
			check(wire.StatusOK)
			continue
		}
		lost++
		check(wire.StatusIOError)
		m.write(piece, content(4))
		check(wire.StatusIOError)
	}
	if lost == 0 {
		t.Fatal("nothing was lost: the test shows nothing")
	}
}

// TestFailedMapIsWrittenAgain has the disk fail when a snapshot's map is written, which may have reached it even so: once the replica is told its snapshots again,
// the file says what was known.
func TestFailedMapIsWrittenAgain(t *testing.T) {
	for seed := range uint64(16) {
		m := newSnapModel(t, seed)
		p := m.period
		m.set(p)
		m.checkpoint()
		m.n.Disk().Fail(false, true, false)
		m.want(writeOf(0, content(1)), wire.StatusIOError) // the chunk is all zeros: only the map is written
		m.n.Disk().Fail(false, false, false)
		m.want(m.setTo(p), wire.StatusOK)
		m.n.Crash()
		m.reopen()
		m.fence()
		if q := m.want(&wire.Request{Kind: wire.KindSnapLevels, Sums: make([]uint64, 0, wire.MaxSnaps)}, wire.StatusOK); len(q.Sums) > 0 {
			t.Errorf("seed %d: the snapshot holds a chunk that was never preserved", seed)
		}
	}
}

// TestRestorePreservesWhatItChanges restores a chunk of which one piece was changed: the rest is neither preserved nor written.
func TestRestorePreservesWhatItChanges(t *testing.T) {
	const piece = 20 * pieceSize
	m := newSnapModel(t, 4)
	m.write(0, content(1))
	m.write(piece, content(2))
	first := m.period
	m.set(first)
	m.checkpoint()
	m.write(piece, content(3))
	second := m.period
	m.set(first, second)
	m.checkpoint()
	before := m.r.Stats().Preserved
	m.want(&wire.Request{Kind: wire.KindRestore, Off: 0, Len: block.ChunkSize, Sums: []uint64{first}}, wire.StatusOK)
	if n := m.r.Stats().Preserved - before; n != 1 {
		t.Errorf("%d pieces were preserved for one that a restore changes", n)
	}
	for off, tag := range map[int64]uint64{0: 1, piece: 2} {
		if q := m.read(off, block.Size); !bytes.Equal(q.Data, content(tag)) {
			t.Errorf("restored at %d: %x", off, q.Data[:16])
		}
	}
	if q := m.readSnap(second, piece); !bytes.Equal(q.Data, content(3)) {
		t.Errorf("the newer snapshot at %d: %x", piece, q.Data[:16])
	}
}
