package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

const (
	testDir = "/pool/replica"
	testID  = wire.ReplicaID(0x1234567890abcdef)
	maxStep = 2_000_000
)

// rig is a replica on a simulated node, and a coordinator's place in the protocol.
type rig struct {
	t       testing.TB
	w       *sim.World
	n       *sim.Node
	r       *Replica
	d       Desc
	cache   int
	limit   int
	term    uint64
	session uint32
	period  uint64
}

func newRig(t testing.TB, seed uint64, size int64) *rig {
	t.Helper()
	w := sim.New(sim.Config{Seed: seed})
	g := &rig{t: t, w: w, n: w.NewNode("a")}
	g.d = Desc{Cluster: "c0", Volume: "v0", Name: "vol", Replica: testID, Columns: 1, Size: size, Policy: []byte(`{"replicas":2}`)}
	l := g.n.Start()
	ok := false
	l.Work(func() {
		_ = l.FS().MkdirAll("/pool")
		_ = l.FS().SyncDir("/")
	}, func() { ok = true })
	g.until(&ok)
	return g
}

func (g *rig) until(ok *bool) {
	g.t.Helper()
	if !g.w.Run(func() bool { return *ok }, maxStep) {
		g.t.Fatal("it never ends")
	}
}

func (g *rig) cfg() Config {
	return Config{Loop: g.n.Loop(), Dir: testDir, Run: fmt.Sprint("boot", g.n.Boot()), SumsCache: g.cache}
}

func (g *rig) create() {
	g.t.Helper()
	ok := false
	Create(g.cfg(), g.d, func(r *Replica, err error) {
		if err != nil {
			g.t.Fatal(err)
		}
		g.r, ok = r, true
	})
	g.until(&ok)
	g.tune()
}

func (g *rig) tune() {
	if g.limit > 0 {
		g.r.journal.limit = g.limit
	}
	if g.cache > 0 {
		g.r.cache.over = 0
	}
}

// tryOpen opens the replica in the process that runs.
func (g *rig) tryOpen() (err error) {
	g.t.Helper()
	ok := false
	g.r = nil
	Open(g.cfg(), func(r *Replica, e error) { g.r, err, ok = r, e, true })
	g.until(&ok)
	if g.r != nil {
		g.tune()
	}
	return err
}

func (g *rig) reopen() {
	g.t.Helper()
	if g.n.Loop() == nil {
		g.n.Start()
	}
	if err := g.tryOpen(); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) close() {
	g.t.Helper()
	ok := false
	g.r.Close(func() { ok = true })
	g.until(&ok)
}

// do asks the replica and waits for the answer.
func (g *rig) do(q *wire.Request) *wire.Request {
	g.t.Helper()
	ok := false
	g.submit(q, func() { ok = true })
	g.until(&ok)
	return q
}

// submit asks, in the rig's term and session unless they are set.
func (g *rig) submit(q *wire.Request, done func()) {
	if q.Term == 0 {
		q.Term = g.term
	}
	if q.Session == 0 {
		q.Session = g.session
	}
	if q.Period == 0 && q.Kind != wire.KindFence {
		q.Period = g.period
	}
	q.Replica = testID
	inside := true
	q.Done = func(*wire.Request) {
		if inside {
			g.t.Errorf("%v answered inside Submit", q.Kind)
		}
		done()
	}
	g.r.Submit(q)
	inside = false
}

func (g *rig) want(q *wire.Request, status wire.Status) *wire.Request {
	g.t.Helper()
	if g.do(q); q.Status != status {
		g.t.Fatalf("%v at %d: %v, want %v", q.Kind, q.Off, q.Status, status)
	}
	return q
}

// fence begins the next term.
func (g *rig) fence() *wire.FenceReply {
	g.t.Helper()
	g.term++
	g.session = 1
	g.period = g.term<<32 | 1
	return g.want(&wire.Request{Kind: wire.KindFence}, wire.StatusOK).Fence
}

func (g *rig) write(off int64, data []byte) {
	g.t.Helper()
	g.want(writeOf(off, data), wire.StatusOK)
}

func (g *rig) flush() { g.t.Helper(); g.want(&wire.Request{Kind: wire.KindFlush}, wire.StatusOK) }

// checkpoint ends the period as a coordinator does.
func (g *rig) checkpoint() {
	g.t.Helper()
	p := g.period
	g.period++
	g.flush()
	g.want(&wire.Request{Kind: wire.KindCheckpoint, Period: p}, wire.StatusOK)
}

func (g *rig) touch(chunk int64) {
	g.t.Helper()
	g.want(&wire.Request{Kind: wire.KindTouch, Off: chunk * block.ChunkSize}, wire.StatusOK)
}

func (g *rig) read(off int64, n int) *wire.Request {
	g.t.Helper()
	return g.do(&wire.Request{Kind: wire.KindRead, Off: off, Data: aligned(n), Sums: make([]uint64, n/block.Size)})
}

func (g *rig) sums(chunk int64) *wire.Request {
	g.t.Helper()
	return g.do(&wire.Request{Kind: wire.KindSums, Off: chunk * block.ChunkSize, Sums: make([]uint64, block.PerChunk)})
}

func (g *rig) gens() []uint64 {
	g.t.Helper()
	return g.want(&wire.Request{Kind: wire.KindGens, Len: g.d.Size, Sums: make([]uint64, block.Chunks(g.d.Size))}, wire.StatusOK).Sums
}

// file returns the path of one of the replica's files.
func file(name string) string { return testDir + "/" + name }

func writeOf(off int64, data []byte) *wire.Request {
	sums := make([]uint64, len(data)/block.Size)
	block.SumAll(sums, data)
	return &wire.Request{Kind: wire.KindWrite, Off: off, Data: data, Sums: sums}
}

// fill returns n bytes that are different for every tag and every sector.
func fill(tag uint64, n int) []byte {
	b := aligned(n)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], tag<<20|uint64(i/sectorSize)+1)
	}
	return b
}

func (g *rig) expectErr(err, want error) {
	g.t.Helper()
	if !errors.Is(err, want) {
		g.t.Fatalf("%v, want %v", err, want)
	}
}

func journalHas(f *wire.FenceReply, chunk int64) bool {
	if f.AllChunks {
		return true
	}
	for _, e := range f.Journal {
		if e.Chunk == chunk {
			return true
		}
	}
	return false
}
