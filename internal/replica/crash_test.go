package replica

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// seeds is how many histories the crash tests play: KEELSON_SEEDS, or a few.
func seeds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("KEELSON_SEEDS")); err == nil {
		return n
	}
	return few
}

// version is what a block held at some time.
type version struct {
	tag uint64 // unique
	b   []byte
}

// cell is what the model knows of one block.
type cell struct {
	durable version   // a power loss can't undo it
	since   []version // written after that, oldest first
	acked   int       // how many of those were answered
}

// now is what the block must hold while nothing is in flight.
func (c *cell) now() version {
	if c.acked > 0 {
		return c.since[c.acked-1]
	}
	return c.durable
}

// possible is what the block may hold while nothing is in flight: the last version that was answered, and those of
// writes after it that failed.
func (c *cell) possible() []version {
	return append([]version{c.durable}, c.since...)[c.acked:]
}

// settle makes the version with that tag the durable one, if it isn't past already.
func (c *cell) settle(tag uint64) {
	for i := range c.since {
		if c.since[i].tag == tag {
			c.durable, c.since = c.since[i], slices.Clone(c.since[i+1:])
			c.acked = max(c.acked-i-1, 0)
			return
		}
	}
}

// model plays random histories against a replica, and knows what must be there.
type model struct {
	*rig
	cells    []cell
	busy     []bool // blocks of requests in flight
	flying   int
	tag      uint64
	touched  map[int64]uint64 // chunk -> period of the last write that may have reached the disk, since the checkpoint
	gen      map[int64]uint64 // chunk -> period of the last write that was answered
	unrec    map[int64]bool   // named by a fence, and not touched since
	cp       uint64           // the last checkpoint that was answered
	cpAsked  uint64
	fenced   uint64 // the last fence that was answered
	life     int    // counts crashes: answers of an earlier life don't come
	inCp     bool
	powerCut bool
	failing  bool // the disk fails just now
}

func newModel(t *testing.T, seed uint64, limit, cache int) *model {
	const size = 5*block.ChunkSize + 16*block.Size
	m := &model{rig: newRig(t, seed, size)}
	m.limit, m.cache = limit, cache
	m.cells = make([]cell, size/block.Size)
	for i := range m.cells {
		m.cells[i].durable.b = make([]byte, block.Size)
	}
	m.busy = make([]bool, len(m.cells))
	m.touched, m.gen, m.unrec = map[int64]uint64{}, map[int64]uint64{}, map[int64]bool{}
	m.create()
	m.fenceAll()
	return m
}

// pick returns a range of blocks that nothing in flight touches.
func (m *model) pick(whole bool) (first, n int, ok bool) {
	rng := m.w.Rand()
	chunk := rng.IntN(6)
	first = chunk*block.PerChunk + rng.IntN(12)
	if rng.IntN(4) == 0 && chunk < 5 {
		first = (chunk+1)*block.PerChunk - 1 - rng.IntN(3)
	}
	n = 1 + rng.IntN(5)
	if whole {
		n = min(n, block.PerChunk-first%block.PerChunk)
	}
	n = min(n, len(m.cells)-first)
	for i := first; i < first+n; i++ {
		if m.busy[i] {
			return 0, 0, false
		}
	}
	return first, n, true
}

func (m *model) claim(first, n int, b bool) {
	for i := first; i < first+n; i++ {
		m.busy[i] = b
	}
}

// ok reports whether the request succeeded. It fails the test if it had to.
func (m *model) ok(q *wire.Request) bool {
	if q.Status != wire.StatusOK && (!m.failing || q.Status != wire.StatusIOError && q.Status != wire.StatusNoSpace) {
		m.t.Fatalf("%v at %d: %v, bad %x", q.Kind, q.Off, q.Status, q.Bad[0])
	}
	return q.Status == wire.StatusOK
}

// fail lets the disk fail for a moment, or fill up.
func (m *model) fail() {
	d := m.n.Disk()
	switch m.w.Rand().IntN(4) {
	case 0:
		d.Fail(true, false, false)
	case 1:
		d.Fail(false, true, false)
	case 2:
		d.Fail(false, false, true)
	case 3:
		d.SetQuota(d.Used() + int64(m.w.Rand().IntN(4))*block.Size)
	}
	m.failing = true
	for range 1 + m.w.Rand().IntN(4) {
		m.act()
	}
	m.w.Run(func() bool { return m.flying == 0 }, maxStep)
	m.heal()
}

func (m *model) heal() {
	m.failing = false
	m.n.Disk().Fail(false, false, false)
	m.n.Disk().SetQuota(1 << 40)
}

// submitOp counts the request as in flight for as long as this life of the process lasts.
func (m *model) submitOp(q *wire.Request, done func()) {
	life := m.life
	m.flying++
	m.submit(q, func() {
		if m.life != life {
			m.t.Fatal("an answer of a process that is dead")
		}
		m.flying--
		done()
	})
}

func (m *model) change() {
	rng := m.w.Rand()
	kind := wire.KindWrite
	if rng.IntN(5) == 0 {
		kind = wire.KindTrim
		if rng.IntN(2) == 0 {
			kind = wire.KindZero
		}
	}
	first, n, ok := m.pick(kind != wire.KindWrite)
	if !ok {
		return
	}
	m.claim(first, n, true)
	q := &wire.Request{Kind: kind, Off: int64(first) * block.Size, Len: int64(n) * block.Size, FUA: rng.IntN(5) == 0}
	data := aligned(n * block.Size)
	m.tag++
	tag := m.tag
	if kind == wire.KindWrite {
		copy(data, fill(tag, n*block.Size))
		w := writeOf(q.Off, data)
		w.FUA = q.FUA
		q = w
	}
	period := m.period
	for i := first; i < first+n; i++ {
		m.cells[i].since = append(m.cells[i].since, version{tag, data[(i-first)*block.Size : (i-first+1)*block.Size]})
		c := int64(i / block.PerChunk)
		m.touched[c] = max(m.touched[c], period)
	}
	m.submitOp(q, func() {
		m.claim(first, n, false)
		if !m.ok(q) {
			return // what it wrote may be there
		}
		for i := first; i < first+n; i++ {
			c := &m.cells[i]
			c.acked = len(c.since)
			if q.FUA {
				c.settle(tag)
			}
			m.gen[int64(i/block.PerChunk)] = max(m.gen[int64(i/block.PerChunk)], period)
		}
	})
}

func (m *model) readSome() {
	first, n, ok := m.pick(false)
	if !ok {
		return
	}
	m.claim(first, n, true)
	q := &wire.Request{Kind: wire.KindRead, Off: int64(first) * block.Size, Data: aligned(n * block.Size), Sums: make([]uint64, n)}
	m.submitOp(q, func() {
		m.claim(first, n, false)
		if !m.ok(q) {
			return
		}
		for i := range n {
			got := q.Data[i*block.Size : (i+1)*block.Size]
			if !slices.ContainsFunc(m.cells[first+i].possible(), func(v version) bool { return string(v.b) == string(got) }) {
				m.t.Fatalf("block %d holds something else", first+i)
			}
		}
	})
}

func (m *model) flushAll() {
	tags := make([]uint64, len(m.cells))
	for i := range m.cells {
		tags[i] = m.cells[i].now().tag
	}
	q := &wire.Request{Kind: wire.KindFlush}
	m.submitOp(q, func() {
		if !m.ok(q) {
			return
		}
		for i := range m.cells {
			m.cells[i].settle(tags[i])
		}
	})
}

// checkpointAll ends the period, as a coordinator does.
func (m *model) checkpointAll() {
	if m.inCp {
		return
	}
	m.inCp = true
	p := m.period
	m.period++
	// Wait for older requests, while nothing new begins.
	if !m.w.Run(func() bool { return m.flying == 0 }, maxStep) {
		m.t.Fatal("requests don't end")
	}
	if !m.ok(m.do(&wire.Request{Kind: wire.KindFlush})) {
		m.inCp = false
		return
	}
	for i := range m.cells {
		m.cells[i].settle(m.cells[i].now().tag)
	}
	m.cpAsked = p
	q := &wire.Request{Kind: wire.KindCheckpoint, Period: p}
	m.submitOp(q, func() {
		m.inCp = false
		if !m.ok(q) {
			return
		}
		m.cp = p
		for c, period := range m.touched {
			if period <= p {
				delete(m.touched, c)
			}
		}
	})
}

func (m *model) touchOne() {
	for c := range int64(6) {
		if m.unrec[c] {
			q := &wire.Request{Kind: wire.KindTouch, Off: c * block.ChunkSize}
			m.touched[c] = max(m.touched[c], m.period)
			m.submitOp(q, func() {
				if m.ok(q) {
					delete(m.unrec, c)
				}
			})
			return
		}
	}
}

// crash ends the process, or the machine too, at whatever moment it is.
func (m *model) crash(power bool) {
	m.life++
	m.flying, m.inCp, m.powerCut = 0, false, power
	if power {
		m.n.PowerLoss()
	} else {
		m.n.Crash()
	}
	clear(m.busy)
	m.r = nil
	if m.w.Chance(0.3) { // also while it recovers
		m.n.Start()
		Open(m.cfg(), func(*Replica, error) {})
		m.w.Run(func() bool { return false }, m.w.Rand().IntN(60))
		if power {
			m.n.PowerLoss()
		} else {
			m.n.Crash()
		}
	}
	m.reopen()
	m.checkContent()
	if !power && m.w.Chance(0.4) {
		m.fenceAgain()
	} else {
		m.fenceAll()
	}
	if m.w.Chance(0.7) {
		m.checkSums()
	}
}

// fenceAgain opens a new session in the same term: the member's engine died, the coordinator lives on.
func (m *model) fenceAgain() {
	m.session++
	m.checkFence(m.want(&wire.Request{Kind: wire.KindFence}, wire.StatusOK).Fence)
}

// checkContent compares the head with what the model allows, and takes over what is there.
func (m *model) checkContent() {
	got := make([]byte, block.Size)
	for i := range m.cells {
		c := &m.cells[i]
		if m.n.Disk().Peek(file(headName), got, int64(i)*block.Size) != block.Size {
			m.t.Fatal("head is too short")
		}
		allowed := append([]version{c.durable}, c.since...)
		if !m.powerCut {
			allowed = c.possible()
		}
		m.fits(i, got, allowed)
		if len(c.since) == 0 {
			continue
		}
		m.tag++
		is := version{m.tag, slices.Clone(got)}
		if m.powerCut {
			*c = cell{durable: is}
		} else {
			c.since = append(c.since, is)
			c.acked = len(c.since)
		}
	}
}

// fits checks that every sector is of an allowed value, and the whole block after the death of a process alone.
func (m *model) fits(i int, got []byte, allowed []version) {
	if !m.powerCut {
		if !slices.ContainsFunc(allowed, func(a version) bool { return string(a.b) == string(got) }) {
			m.t.Fatalf("block %d after a crash: none of %d values that are possible", i, len(allowed))
		}
		return
	}
	for s := 0; s < block.Size; s += sectorSize {
		if !slices.ContainsFunc(allowed, func(a version) bool { return string(a.b[s:s+sectorSize]) == string(got[s:s+sectorSize]) }) {
			m.t.Fatalf("block %d, sector %d after a power loss: none of %d values that are possible", i, s/sectorSize, len(allowed))
		}
	}
}

// fenceAll begins a new term, and checks what the replica says.
func (m *model) fenceAll() {
	f := m.fence()
	if f.PrevFence >= m.term {
		m.t.Fatalf("fence %d was asked, and now it was %d", m.term, f.PrevFence)
	}
	m.checkFence(f)
	for c := range int64(6) {
		if journalHas(f, c) {
			m.unrec[c] = true
		}
	}
}

func (m *model) checkFence(f *wire.FenceReply) {
	if f.PrevFence < m.fenced {
		m.t.Fatalf("fence %d was answered, and now it was %d", m.fenced, f.PrevFence)
	}
	m.fenced = m.term
	if f.Checkpoint < m.cp || f.Checkpoint > max(m.cp, m.cpAsked) {
		m.t.Fatalf("checkpoint %x; %x was answered, %x asked", f.Checkpoint, m.cp, m.cpAsked)
	}
	m.cp = f.Checkpoint
	for c, p := range m.touched {
		if p <= f.Checkpoint {
			delete(m.touched, c)
		} else if p > f.Checkpoint && m.wrote(c) && !journalHas(f, c) {
			m.t.Fatalf("chunk %d was written in %x after checkpoint %x, and isn't in the journal", c, p, f.Checkpoint)
		}
	}
	for c := range m.unrec {
		if !journalHas(f, c) {
			m.t.Fatalf("chunk %d was never reconciled, and isn't in the journal", c)
		}
	}
	if f.AllChunks || len(f.Journal) > 0 {
		if m.life > 0 && f.Exact && m.r.Stats().Suspect > 0 {
			m.t.Fatal("exact, with suspects")
		}
	}
}

// wrote reports whether a write to the chunk was answered, so that it must be in the journal.
func (m *model) wrote(c int64) bool { return m.gen[c] > m.cp }

// checkSums compares the sums and gens of every chunk with its data.
func (m *model) checkSums() {
	gens := m.gens()
	got := make([]byte, block.Size)
	for c := range int64(6) {
		if gens[c] < m.gen[c] {
			m.t.Fatalf("gen of chunk %d is %x; it was written in %x", c, gens[c], m.gen[c])
		}
		q := m.want(&wire.Request{Kind: wire.KindSums, Off: c * block.ChunkSize, Sums: make([]uint64, block.PerChunk)}, wire.StatusOK)
		for i, s := range q.Sums {
			n := m.n.Disk().Peek(file(headName), got, c*block.ChunkSize+int64(i)*block.Size)
			if n <= 0 {
				break
			}
			if block.Sum(got) != s {
				m.t.Fatalf("chunk %d block %d: sum %x, data has %x", c, i, s, block.Sum(got))
			}
		}
	}
}

// act does something at random, and lets some time go by.
func (m *model) act() {
	switch k := m.w.Rand().IntN(100); {
	case k < 55:
		m.change()
	case k < 70:
		m.readSome()
	case k < 80:
		m.flushAll()
	case k < 90:
		m.checkpointAll()
	default:
		m.touchOne()
	}
	if m.flying > 8 || m.w.Rand().IntN(3) == 0 {
		m.w.Run(func() bool { return m.flying == 0 }, m.w.Rand().IntN(40))
	}
}

// TestHistories plays random histories with crashes and power losses at random moments.
func TestHistories(t *testing.T) {
	for seed := range seeds(60) {
		limit, cache := 0, 0
		if seed%3 == 1 {
			limit = 3 // of six chunks: the journal overflows
		}
		if seed%2 == 1 {
			cache = 1 + seed%3
		}
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, uint64(seed), limit, cache)
			for range 120 {
				m.act()
				switch k := m.w.Rand().IntN(100); {
				case k < 3:
					m.crash(m.w.Rand().IntN(2) == 0)
				case k < 4 && m.flying == 0:
					m.fenceAll()
				case k < 8 && seed%4 == 3:
					m.fail()
				}
			}
			m.w.Run(func() bool { return m.flying == 0 }, maxStep)
			m.crash(true)
			m.close()
			if n := m.n.Loop().Outstanding(); n != 0 {
				t.Errorf("%d buffers leaked", n)
			}
		})
	}
}
