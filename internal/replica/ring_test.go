package replica

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

const ringSize = 64 << 20

// ringReplica is a replica on a real file system and loop, fenced in term 1.
func ringReplica(t testing.TB) (*ring.Loop, *Replica) {
	t.Helper()
	l, err := ring.New(ring.Config{})
	if err != nil {
		t.Skipf("no io_uring here: %v", err)
	}
	l.Start()
	t.Cleanup(func() { _ = l.Close() })
	dir := filepath.Join(t.TempDir(), "replica")
	r := onLoop(t, l, func(done func(*Replica, error)) {
		d := Desc{Replica: testID, Columns: 1, Size: ringSize}
		Create(Config{Loop: l, Dir: dir, Run: "boot"}, d, done)
	})
	t.Cleanup(func() {
		onLoop(t, l, func(done func(*Replica, error)) { r.Close(func() { done(nil, nil) }) })
	})
	ask(t, l, r, &wire.Request{Kind: wire.KindFence})
	return l, r
}

func onLoop(t testing.TB, l aio.Loop, fn func(done func(*Replica, error))) *Replica {
	t.Helper()
	type result struct {
		r   *Replica
		err error
	}
	ch := make(chan result, 1)
	l.Post(func() { fn(func(r *Replica, err error) { ch <- result{r, err} }) })
	got := <-ch
	if got.err != nil {
		t.Fatal(got.err)
	}
	return got.r
}

func ask(t testing.TB, l aio.Loop, r *Replica, q *wire.Request) *wire.Request {
	t.Helper()
	q.Replica, q.Term, q.Session = testID, 1, 1
	if q.Period == 0 && q.Kind != wire.KindFence {
		q.Period = 1<<32 | 1
	}
	ch := make(chan struct{})
	q.Done = func(*wire.Request) { close(ch) }
	l.Post(func() { r.Submit(q) })
	<-ch
	if q.Status != wire.StatusOK {
		t.Fatalf("%v: %v", q.Kind, q.Status)
	}
	return q
}

func TestOnRing(t *testing.T) {
	l, r := ringReplica(t)
	data := fill(3, block.MaxIO)
	off := int64(block.ChunkSize - 10*block.Size)
	ask(t, l, r, writeOf(off, data))
	ask(t, l, r, &wire.Request{Kind: wire.KindTrim, Off: off, Len: 5 * block.Size})
	ask(t, l, r, &wire.Request{Kind: wire.KindFlush})
	ask(t, l, r, &wire.Request{Kind: wire.KindCheckpoint})
	onLoop(t, l, func(done func(*Replica, error)) { r.Close(func() { done(nil, nil) }) })
	r2 := onLoop(t, l, func(done func(*Replica, error)) { Open(Config{Loop: l, Dir: r.cfg.Dir, Run: "boot"}, done) })
	f := ask(t, l, r2, &wire.Request{Kind: wire.KindFence}).Fence
	if f.PrevFence != 1 || f.Checkpoint != 1<<32|1 || len(f.Journal) != 0 || !f.Exact {
		t.Fatalf("%+v", f)
	}
	q := ask(t, l, r2, &wire.Request{Kind: wire.KindRead, Off: off, Data: aligned(block.MaxIO), Sums: make([]uint64, block.MaxBlocks)})
	if !block.IsZero(q.Data[:5*block.Size]) || string(q.Data[5*block.Size:]) != string(data[5*block.Size:]) {
		t.Fatal("not what was written")
	}
	onLoop(t, l, func(done func(*Replica, error)) { r2.Close(func() { done(nil, nil) }) })
	onLoop(t, l, func(done func(*Replica, error)) { Remove(l, r.cfg.Dir, func(err error) { done(nil, err) }) })
	if names, _ := os.ReadDir(filepath.Dir(r.cfg.Dir)); len(names) != 0 {
		t.Fatalf("%v is left", names)
	}
}

// pump keeps depth requests in flight until n are done.
type pump struct {
	l     aio.Loop
	r     *Replica
	reqs  []*wire.Request
	left  int
	out   int
	bad   int
	done  chan struct{}
	begin func()
	rng   *rand.Rand
}

func newPump(l aio.Loop, r *Replica, kind wire.Kind, depth int) *pump {
	p := &pump{l: l, r: r, done: make(chan struct{}, 1), rng: rand.New(rand.NewPCG(1, 2))}
	for i := range depth {
		q := writeOf(0, fill(uint64(i+1), block.Size))
		q.Kind, q.Replica, q.Term, q.Session, q.Period, q.Tag = kind, testID, 1, 1, 1<<32|1, uint64(i)
		q.Done = p.next
		p.reqs = append(p.reqs, q)
	}
	p.begin = func() {
		for _, q := range p.reqs {
			if p.left > 0 {
				p.left--
				p.out++
				p.r.Submit(p.place(q))
			}
		}
	}
	return p
}

// place chooses a block that no other request in flight has.
func (p *pump) place(q *wire.Request) *wire.Request {
	each := ringSize / block.Size / len(p.reqs)
	q.Off = int64(int(q.Tag)*each+p.rng.IntN(each)) * block.Size
	q.Bad = [16]uint64{}
	return q
}

func (p *pump) next(q *wire.Request) {
	if q.Status != wire.StatusOK {
		p.bad++
	}
	if p.left > 0 {
		p.left--
		p.r.Submit(p.place(q))
		return
	}
	if p.out--; p.out == 0 {
		p.done <- struct{}{}
	}
}

func (p *pump) run(n int) {
	p.left = n
	p.l.Post(p.begin)
	<-p.done
}

// written fills the whole column, so that later writes overwrite.
func written(t testing.TB, l aio.Loop, r *Replica) {
	data := fill(1, block.MaxIO)
	for off := int64(0); off < ringSize; off += block.MaxIO {
		ask(t, l, r, writeOf(off, data))
	}
}

// TestSteadyState: an overwrite is one write, a read one read, and neither allocates.
func TestSteadyState(t *testing.T) {
	l, r := ringReplica(t)
	written(t, l, r)
	for _, kind := range []wire.Kind{wire.KindWrite, wire.KindRead} {
		p := newPump(l, r, kind, 16)
		p.run(200)
		before := r.Stats()
		const n = 4000
		allocs := testing.AllocsPerRun(1, func() { p.run(n) })
		after := r.Stats()
		if allocs > n/100 {
			t.Errorf("%v: %.0f allocations for %d requests", kind, allocs, n)
		}
		if p.bad > 0 || after.JournalBlocks != before.JournalBlocks || after.SumsReads != before.SumsReads || after.SumsWrites != before.SumsWrites || after.Syncs != before.Syncs {
			t.Errorf("%v: %+v, then %+v", kind, before, after)
		}
	}
}

func BenchmarkReplica(b *testing.B) {
	for _, kind := range []wire.Kind{wire.KindWrite, wire.KindRead} {
		for _, depth := range []int{1, 32} {
			b.Run(fmt.Sprintf("%v/depth=%d", kind, depth), func(b *testing.B) {
				l, r := ringReplica(b)
				written(b, l, r)
				p := newPump(l, r, kind, depth)
				p.run(1000)
				b.ReportAllocs()
				b.ResetTimer()
				p.run(b.N)
				b.StopTimer()
				if p.bad > 0 {
					b.Fatalf("%d requests failed", p.bad)
				}
			})
		}
	}
}

// BenchmarkRawFile is the same load on a file without a replica around it.
func BenchmarkRawFile(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("write/depth=%d", depth), func(b *testing.B) {
			l, r := ringReplica(b)
			written(b, l, r)
			rng := rand.New(rand.NewPCG(1, 2))
			done := make(chan struct{})
			left, out := b.N, 0
			submit := func(op *aio.Op, data []byte, i int) {
				left--
				each := ringSize / block.Size / depth
				r.files.head.WriteAt(op, data, int64(i*each+rng.IntN(each))*block.Size)
			}
			b.ResetTimer()
			l.Post(func() {
				for i := range min(depth, b.N) {
					data := fill(1, block.Size)
					op := &aio.Op{}
					op.Done = func(int, error) {
						if left > 0 {
							submit(op, data, i)
						} else if out--; out == 0 {
							close(done)
						}
					}
					out++
					submit(op, data, i)
				}
			})
			<-done
		})
	}
}
