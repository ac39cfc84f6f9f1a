package sim

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
)

// busy is a process that writes, reads and syncs a file and talks to a peer until it
// dies.
type busy struct {
	l    *Loop
	file aio.File
	peer string
	conn aio.Conn
	echo int
	ops  int
}

func startBusy(n *Node, peer string) *busy {
	b := &busy{l: n.Start(), peer: peer}
	b.l.OnAccept(func(aio.Conn) aio.ConnHandler { return echoer{} })
	b.l.Work(func() {
		_ = b.l.FS().MkdirAll("/d")
		f, err := b.l.FS().OpenFile("/d/f", os.O_CREATE)
		if err != nil {
			panic(err)
		}
		b.file = f
	}, func() {
		for i := range 4 {
			b.loop(i)
		}
		b.dial()
	})
	return b
}

func (b *busy) dial() { b.l.Dial(b.peer, "", 0, b) }

func (b *busy) Opened(c aio.Conn) { b.conn = c; c.Write([]byte("hello")) }

func (b *busy) Data(c aio.Conn, p []byte) int {
	b.echo += len(p)
	c.Write(bytes.Repeat([]byte{1}, 1+b.echo%900))
	return len(p)
}

func (b *busy) Closed(aio.Conn, error) {
	t := b.l.NewTimer(b.dial)
	t.Reset(time.Millisecond)
}

type echoer struct{}

func (echoer) Opened(aio.Conn) {}
func (echoer) Data(c aio.Conn, p []byte) int {
	n := (len(p) + 1) / 2
	c.Write(p[:n])
	return n
}
func (echoer) Closed(aio.Conn, error) {}

func (b *busy) loop(i int) {
	mem := b.l.Buffers().Get(8192)
	op := &aio.Op{}
	step := 0
	op.Done = func(int, error) {
		b.ops++
		step++
		off := int64((i*7+step)%50) * 4096
		switch step % 5 {
		case 0:
			b.file.Sync(op)
		case 1:
			b.file.ReadAt(op, mem, off)
		case 2:
			mem[0]++
			b.file.WriteAt(op, mem, off)
		case 3:
			b.file.WriteSync(op, mem[:4096], off)
		case 4:
			b.file.Punch(op, off, 4096*3)
		}
	}
	b.file.Sync(op)
}

func busyRun(seed uint64) (uint64, *World, int) {
	w := New(Config{Seed: seed})
	var nodes []*Node
	for i := range 3 {
		nodes = append(nodes, w.NewNode(fmt.Sprint("n", i)))
	}
	var all []*busy
	start := func(i int) { all = append(all, startBusy(nodes[i], nodes[(i+1)%3].Name())) }
	for i := range nodes {
		start(i)
	}
	for range 60 {
		w.RunFor(time.Duration(w.Rand().IntN(40)) * time.Millisecond)
		i := w.Rand().IntN(3)
		n := nodes[i]
		switch w.Rand().IntN(8) {
		case 0:
			n.Crash()
		case 1:
			n.PowerLoss()
		case 2:
			w.Cut(n, nodes[w.Rand().IntN(3)])
		case 3:
			w.HealAll()
		case 4:
			w.BreakConns(n, nodes[w.Rand().IntN(3)])
		case 5:
			n.CrashInWork()
		case 6:
			n.SetClock(float64(w.Rand().IntN(400) - 200))
		}
		for i, n := range nodes {
			if n.Loop() == nil && w.Chance(0.7) {
				start(i)
			}
		}
	}
	ops := 0
	for _, b := range all {
		ops += b.ops
	}
	return w.TraceHash(), w, ops
}

func TestSameSeedSameTrace(t *testing.T) {
	hashes := map[uint64]bool{}
	for seed := range uint64(15) {
		h, w, ops := busyRun(seed)
		if again, _, _ := busyRun(seed); again != h {
			t.Fatalf("seed %d: trace %x, then %x", seed, h, again)
		}
		if w.Steps() < 1000 || ops < 300 {
			t.Fatalf("seed %d: %d steps, %d operations: not busy", seed, w.Steps(), ops)
		}
		hashes[h] = true
	}
	if len(hashes) != 15 {
		t.Fatalf("%d different traces of 15 seeds", len(hashes))
	}
}

// do runs one file operation to its end.
func do(t *testing.T, w *World, start func(op *aio.Op)) (int, error) {
	t.Helper()
	var n int
	var err error
	done := false
	start(&aio.Op{Done: func(k int, e error) { n, err, done = k, e, true }})
	if !w.Run(func() bool { return done }, 1000) {
		t.Fatal("the operation doesn't end")
	}
	return n, err
}

func open(t *testing.T, l *Loop, name string) aio.File {
	t.Helper()
	f, err := l.FS().OpenFile(name, os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// keptAfter writes two blocks of the same place, one synced, one not, and counts what a
// fault leaves.
func keptAfter(t *testing.T, fault func(*Node)) map[string]int {
	t.Helper()
	seen := map[string]int{}
	for seed := range uint64(200) {
		w := New(Config{Seed: seed})
		n := w.NewNode("a")
		l := n.Start()
		f := open(t, l, "/f")
		if err := l.FS().SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		one, two := l.Buffers().Get(4096), l.Buffers().Get(4096)
		copy(one, bytes.Repeat([]byte{1}, 4096))
		copy(two, bytes.Repeat([]byte{2}, 4096))
		_, _ = do(t, w, func(op *aio.Op) { f.WriteAt(op, one, 0) })
		_, _ = do(t, w, func(op *aio.Op) { f.Sync(op) })
		_, _ = do(t, w, func(op *aio.Op) { f.WriteAt(op, two, 0) })
		fault(n)
		got := make([]byte, 4096)
		if k := n.Disk().Peek("/f", got, 0); k != 4096 {
			t.Fatalf("seed %d: %d bytes left", seed, k)
		}
		switch {
		case bytes.Equal(got, one):
			seen["old"]++
		case bytes.Equal(got, two):
			seen["new"]++
		default:
			for i := range got {
				if got[i] != got[i/512*512] || got[i] == 0 {
					t.Fatalf("seed %d: a torn sector", seed)
				}
			}
			seen["torn"]++
		}
	}
	return seen
}

// A write that wasn't synced reaches the disk far behind anything that was there before: what is seen after the loss of power is what is
// durable, there too.
func TestPowerLossFarOut(t *testing.T) {
	kept := 0
	for seed := range uint64(40) {
		w := New(Config{Seed: seed})
		n := w.NewNode("a")
		l := n.Start()
		f := open(t, l, "/f")
		if err := l.FS().SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		far := int64(64 << 20)
		b := l.Buffers().Get(4096)
		copy(b, bytes.Repeat([]byte{1}, 4096))
		f.WriteAt(&aio.Op{Done: func(int, error) {}}, b, far) // on its way
		n.PowerLoss()
		seen, durable := n.Disk().Page("/f", far, false), n.Disk().Page("/f", far, true)
		if !bytes.Equal(seen, durable) {
			t.Fatalf("seed %d: one thing is seen, and another durable", seed)
		}
		if seen[0] == 1 {
			kept++
		}
	}
	if kept == 0 {
		t.Fatal("no write was ever kept")
	}
}

func TestPowerLossKeepsWhatWasSynced(t *testing.T) {
	seen := keptAfter(t, (*Node).PowerLoss)
	if seen["old"] < 20 || seen["new"] < 20 || seen["torn"] < 20 {
		t.Fatalf("left after power loss: %v", seen)
	}
}

func TestCrashKeepsWhatWasWritten(t *testing.T) {
	if seen := keptAfter(t, (*Node).Crash); seen["new"] != 200 {
		t.Fatalf("left after a crash: %v", seen)
	}
}

func TestWriteOfDeadProcess(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(200) {
		w := New(Config{Seed: seed})
		n := w.NewNode("a")
		l := n.Start()
		f := open(t, l, "/f")
		mem := l.Buffers().Get(4096)
		f.WriteAt(&aio.Op{Done: func(int, error) { t.Fatal("a dead process was called back") }}, mem, 0)
		n.Crash()
		state := func() bool { return n.Disk().Peek("/f", make([]byte, 1), 0) == 1 }
		if state() {
			seen["at once"]++
			continue
		}
		l = n.Start()
		if err := open(t, l, "/f").Drain(); err != nil {
			t.Fatal(err)
		}
		drained := state()
		w.RunFor(10 * time.Second)
		if state() != drained {
			t.Fatalf("seed %d: a write arrived after Drain", seed)
		}
		if drained {
			seen["drained"]++
		} else {
			seen["never"]++
		}
	}
	if seen["at once"] < 20 || seen["drained"] < 20 || seen["never"] < 20 {
		t.Fatalf("writes of dead processes: %v", seen)
	}
}

func TestDirectoriesNeedSync(t *testing.T) {
	seen := map[string]int{}
	for seed := range uint64(100) {
		w := New(Config{Seed: seed})
		n := w.NewNode("a")
		fs := n.Start().FS()
		open(t, n.Loop(), "/old")
		if err := fs.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		open(t, n.Loop(), "/tmp")
		if err := fs.Rename("/tmp", "/old"); err != nil {
			t.Fatal(err)
		}
		if err := fs.MkdirAll("/dir/sub"); err != nil {
			t.Fatal(err)
		}
		if err := fs.SyncDir("/dir"); err != nil {
			t.Fatal(err)
		}
		n.PowerLoss()
		names, err := n.Start().FS().ReadDir("/")
		if err != nil {
			t.Fatal(err)
		}
		seen[strings.Join(names, " ")]++
	}
	for _, want := range []string{"old", "old tmp", "dir old"} {
		if seen[want] == 0 {
			t.Errorf("never left: %q (%v)", want, seen)
		}
	}
	if len(seen) != 3 {
		t.Errorf("left: %v", seen)
	}
}

func TestFullDisk(t *testing.T) {
	w := New(Config{})
	n := w.NewNode("a")
	l := n.Start()
	f := open(t, l, "/f")
	n.Disk().SetQuota(8192)
	mem := l.Buffers().Get(8192)
	write := func(off int64) error {
		_, err := do(t, w, func(op *aio.Op) { f.WriteAt(op, mem, off) })
		return err
	}
	if err := write(0); err != nil {
		t.Fatal(err)
	}
	if err := write(8192); err == nil || err.Error() != "no space left on device" {
		t.Fatalf("a write to a full disk: %v", err)
	}
	if err := write(0); err != nil {
		t.Fatalf("overwriting on a full disk: %v", err)
	}
	_, _ = do(t, w, func(op *aio.Op) { f.Punch(op, 0, 8192) })
	if n.Disk().Used() != 0 {
		t.Fatalf("%d bytes used after a punch", n.Disk().Used())
	}
	if err := write(8192); err != nil {
		t.Fatal(err)
	}
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name string
		fn   func(w *World, l *Loop, f aio.File)
	}{
		{"memory changed in flight", func(w *World, l *Loop, f aio.File) {
			mem := l.Buffers().Get(4096)
			f.WriteAt(&aio.Op{Done: func(int, error) {}}, mem, 0)
			mem[7] ^= 1
			w.RunFor(time.Second)
		}},
		{"busy op", func(_ *World, l *Loop, f aio.File) {
			op := &aio.Op{Done: func(int, error) {}}
			f.Sync(op)
			f.Sync(op)
		}},
		{"blocking call on the loop", func(w *World, l *Loop, f aio.File) {
			l.Post(func() { _, _ = f.Size() })
			w.RunFor(time.Second)
		}},
		{"loop call on a worker", func(w *World, l *Loop, f aio.File) {
			l.Work(func() { l.Now() }, func() {})
			w.RunFor(time.Second)
		}},
		{"put twice", func(_ *World, l *Loop, _ aio.File) {
			mem := l.Buffers().Get(4096)
			l.Buffers().Put(mem)
			l.Buffers().Put(mem)
		}},
		{"put in flight", func(_ *World, l *Loop, f aio.File) {
			mem := l.Buffers().Get(4096)
			f.ReadAt(&aio.Op{Done: func(int, error) {}}, mem, 0)
			l.Buffers().Put(mem)
		}},
		{"close in flight", func(_ *World, l *Loop, f aio.File) {
			f.Sync(&aio.Op{Done: func(int, error) {}})
			_ = f.Close()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := New(Config{})
			l := w.NewNode("a").Start()
			f := open(t, l, "/f")
			defer func() {
				if recover() == nil {
					t.Fatal("the rule was broken and nothing happened")
				}
			}()
			c.fn(w, l, f)
		})
	}
}

func TestClockDrift(t *testing.T) {
	w := New(Config{})
	n := w.NewNode("a")
	l := n.Start()
	n.SetClock(200)
	from := l.Now()
	w.RunFor(1000 * time.Second)
	if d := l.Now() - from - 1000*time.Second; d < 190*time.Millisecond || d > 210*time.Millisecond {
		t.Fatalf("a clock that is 200 ppm fast gained %v in 1000 s", d)
	}
}
