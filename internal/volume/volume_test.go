package volume_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/volume"
	"keelson.io/keelson/internal/wire"
)

// cluster is three simulated engines and a record that stands for the metadata.
type cluster struct {
	t     *testing.T
	w     *sim.World
	rec   spec.Volume
	rev   meta.Rev
	nodes map[string]*node
	down  bool // the metadata can't be reached
	// events are those that coordinators recorded.
	events []spec.Event
}

type node struct {
	c     *cluster
	name  string
	n     *sim.Node
	loop  *sim.Loop
	links *link.Links
	reps  map[wire.ReplicaID]*replica.Replica
	vol   *volume.Volume
	lost  error
	ready bool
}

const size = 16 << 20

func newCluster(t *testing.T, seed uint64, replicas, columns int) *cluster {
	var trace io.Writer
	if os.Getenv("TRACE") != "" {
		trace = os.Stderr
	}
	c := &cluster{t: t, w: sim.New(sim.Config{Seed: seed, Trace: trace}), nodes: map[string]*node{}, rev: 1}
	c.rec = spec.Volume{ID: "00000000000000aa", Name: "pg", Size: size, Replicas: replicas, Columns: columns}
	for col := range columns {
		var members []spec.Member
		for i := range replicas {
			members = append(members, spec.Member{Replica: fmt.Sprintf("%016x", col*16+i+1), Node: fmt.Sprintf("n%d", i+1), State: spec.InSync})
		}
		c.rec.State.Columns = append(c.rec.State.Columns, spec.Column{Members: members})
	}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i+1)
		n := &node{c: c, name: name, n: c.w.NewNode(name)}
		c.nodes[name] = n
		n.start(true)
	}
	return c
}

func (n *node) log() *slog.Logger {
	if os.Getenv("TRACE") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("at", n.name)
}

// start starts an engine on the node and opens, or makes, its replicas.
func (n *node) start(create bool) {
	n.loop, n.reps, n.vol, n.ready, n.lost = n.n.Start(), map[wire.ReplicaID]*replica.Replica{}, nil, false, nil
	n.links = link.New(link.Config{Loop: n.loop, Self: n.name, Cluster: "c", Incarnation: uint64(n.c.w.Steps()) + 1, Log: n.log(),
		Local: func(id wire.ReplicaID) (wire.Member, bool) {
			r, ok := n.reps[id]
			return r, ok
		}})
	open := 0
	for ci, col := range n.c.rec.State.Columns {
		for _, m := range col.Members {
			if m.Node != n.name {
				continue
			}
			var id wire.ReplicaID
			fmt.Sscanf(m.Replica, "%x", &id)
			cfg := replica.Config{Loop: n.loop, Dir: "/pool/" + m.Replica, Run: fmt.Sprintf("boot%d", n.n.Boot()), Log: n.log()}
			done := func(r *replica.Replica, err error) {
				if err != nil {
					n.c.t.Fatal(err)
				}
				n.reps[id] = r
				open--
			}
			open++
			if create {
				n.loop.Work(func() { n.loop.FS().MkdirAll("/pool"); n.loop.FS().SyncDir("/") }, func() {
					replica.Create(cfg, replica.Desc{Cluster: "c", Volume: n.c.rec.ID, Name: "pg", Replica: id, Column: ci,
						Columns: n.c.rec.Columns, Size: spec.ColumnSize(size, n.c.rec.Columns)}, done)
				})
			} else {
				replica.Open(cfg, done)
			}
		}
	}
	n.c.until("replicas open", func() bool { return open == 0 })
}

func (c *cluster) until(what string, cond func() bool) {
	c.t.Helper()
	for range 2_000_000 {
		if cond() {
			return
		}
		if !c.w.Step() {
			break
		}
	}
	for _, n := range c.nodes {
		if n.vol != nil {
			c.t.Logf("%s: %+v", n.name, n.vol.Status())
		}
	}
	c.t.Fatalf("%s: not reached by %v", what, c.w.Now())
}

// local is a replica of the coordinator's own engine.
type local struct{ *replica.Replica }

func (local) Up() bool                    { return true }
func (local) Subscribe(func(bool)) func() { return func() {} }

// Update implements volume.Metadata for one node.
func (n *node) Update(mutate func(*spec.Volume) error, done func(spec.Volume, meta.Rev, error)) {
	loop := n.loop
	try := loop.NewTimer(nil)
	attempt := func() {
		if n.c.down || n.c.w.IsCut(n.n, n.c.nodes["n3"].n) {
			try.Reset(50 * time.Millisecond)
			return
		}
		rec := clone(n.c.rec)
		err := mutate(&rec)
		if err == nil {
			n.c.rec = rec
			n.c.rev++
		}
		done(clone(n.c.rec), n.c.rev, err)
	}
	try = loop.NewTimer(attempt)
	try.Reset(time.Millisecond)
}

func clone(v spec.Volume) spec.Volume {
	cols := make([]spec.Column, len(v.State.Columns))
	for i, c := range v.State.Columns {
		cols[i].Members = append([]spec.Member(nil), c.Members...)
	}
	v.State.Columns = cols
	return v
}

// attach attaches the volume on n, whoever had it, and waits until it serves.
func (n *node) attach(prev repl.Prev) {
	n.c.rec.State.Term++
	n.c.rec.State.Node = n.name
	n.c.rev++
	n.vol = volume.Attach(volume.Config{
		Loop: n.loop, Log: n.log(), Volume: clone(n.c.rec), Rev: n.c.rev, Self: n.name, Prev: prev, Meta: n,
		Members: func(m spec.Member) volume.Link {
			var id wire.ReplicaID
			fmt.Sscanf(m.Replica, "%x", &id)
			if m.Node == n.name {
				return local{n.reps[id]}
			}
			return n.links.Peer(m.Node, m.Node, 0)
		},
		Alive: func(node string) bool { return n.c.nodes[node].n.Loop() != nil && !n.c.w.IsCut(n.c.nodes[node].n, n.n) },
		Wall:  func() time.Time { return time.Unix(0, 0).Add(n.c.w.Now()) },
		Ready: func() { n.ready = true },
		Lost:  func(err error) { n.lost = err },
		Event: func(e spec.Event) { n.c.events = append(n.c.events, e) },
	})
	n.c.until("attached", func() bool { return n.ready })
}

var _ aio.Loop = (*sim.Loop)(nil)

// do runs one request to its end.
func (n *node) do(op block.Op, off int64, data []byte, length int64) error {
	n.c.t.Helper()
	r, ended := n.submit(op, off, data, length)
	n.c.until(fmt.Sprintf("%v at %d", op, off), func() bool { return *ended })
	return r.Err
}

func (n *node) submit(op block.Op, off int64, data []byte, length int64) (*block.Request, *bool) {
	ended := false
	r := &block.Request{Op: op, Off: off, Len: length, Done: func(*block.Request) { ended = true }}
	if data != nil {
		r.Data = n.loop.Buffers().Get(len(data))
		copy(r.Data, data)
		r.Len = int64(len(data))
	}
	n.vol.Submit(r)
	return r, &ended
}

func (n *node) write(off int64, data []byte) {
	n.c.t.Helper()
	if err := n.do(block.OpWrite, off, data, 0); err != nil {
		n.c.t.Fatalf("write at %d: %v", off, err)
	}
}

func (n *node) want(off int64, data []byte) {
	n.c.t.Helper()
	r, ended := n.submit(block.OpRead, off, make([]byte, len(data)), 0)
	n.c.until("read", func() bool { return *ended })
	if r.Err != nil {
		n.c.t.Fatalf("read at %d: %v", off, r.Err)
	}
	if !bytes.Equal(r.Data, data) {
		n.c.t.Fatalf("read at %d: got %x…, want %x…", off, r.Data[:8], data[:8])
	}
}

func (n *node) detach() {
	n.c.t.Helper()
	var err error
	ended := false
	n.vol.Detach(func(e error) { err, ended = e, true })
	n.c.until("detached", func() bool { return ended })
	if err != nil {
		n.c.t.Fatal(err)
	}
}

func pattern(b byte, blocks int) []byte { return bytes.Repeat([]byte{b}, blocks*block.Size) }

func (c *cluster) allInSync() bool {
	for _, col := range c.rec.State.Columns {
		for _, m := range col.Members {
			if m.State != spec.InSync {
				return false
			}
		}
	}
	return true
}

func TestWriteReadDetachAttach(t *testing.T) {
	for _, columns := range []int{1, 3} {
		t.Run(fmt.Sprintf("columns=%d", columns), func(t *testing.T) {
			c := newCluster(t, 1, 2, columns)
			n1, n2 := c.nodes["n1"], c.nodes["n2"]
			n1.attach(repl.PrevDetached)
			n1.want(0, pattern(0, 4))
			n1.write(0, pattern(1, 1))
			n1.write(4<<20-8192, pattern(2, 256))
			if err := n1.do(block.OpFlush, 0, nil, 0); err != nil {
				t.Fatal(err)
			}
			if err := n1.do(block.OpTrim, 4<<20, nil, 8<<20); err != nil {
				t.Fatal(err)
			}
			n1.detach()
			if c.rec.State.Node != "" || !c.allInSync() {
				t.Fatalf("after detach: %+v", c.rec.State)
			}
			n2.attach(repl.PrevDetached)
			n2.want(0, append(pattern(1, 1), pattern(0, 1)...))
			n2.want(4<<20-8192, append(pattern(2, 2), pattern(0, 4)...))
			n2.detach()
		})
	}
}

func TestBadRequests(t *testing.T) {
	c := newCluster(t, 1, 1, 1)
	n := c.nodes["n1"]
	n.attach(repl.PrevDetached)
	for _, r := range []struct{ off, n int64 }{{-4096, 4096}, {1, 4096}, {0, 0}, {0, 100}, {size, 4096}, {size - 4096, 8192}, {1 << 62, 4096}} {
		if err := n.do(block.OpTrim, r.off, nil, r.n); err == nil {
			t.Errorf("trim of %d at %d was taken", r.n, r.off)
		}
	}
}

func TestFailoverAndRejoin(t *testing.T) {
	c := newCluster(t, 2, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	for _, other := range []string{"n2", "n3"} {
		c.w.Cut(n1.n, c.nodes[other].n)
		c.w.Cut(c.nodes[other].n, n1.n)
	}
	blocked, ended := n1.submit(block.OpWrite, 0, pattern(9, 1), 0)
	n2.attach(repl.PrevOther)
	n2.want(0, pattern(1, 8))
	n2.write(0, pattern(3, 1))
	if *ended {
		t.Fatalf("the cut node answered a write: %v", blocked.Err)
	}
	c.w.HealAll()
	c.until("old holder stops", func() bool { return *ended && n1.lost != nil })
	if blocked.Err == nil || !errors.Is(n1.lost, repl.ErrLost) {
		t.Fatalf("old holder: write %v, lost %v", blocked.Err, n1.lost)
	}
	c.until("in sync again", c.allInSync)
	if s := n2.vol.Status().Stats; s.ResyncedBytes > 64<<10 {
		t.Fatalf("resync moved %d bytes for one block", s.ResyncedBytes)
	}
	n2.want(0, append(pattern(3, 1), pattern(1, 7)...))
	n2.detach()
	n1.attach(repl.PrevDetached)
	n1.want(0, append(pattern(3, 1), pattern(1, 7)...))
}

func TestMemberLossWaitsForMetadata(t *testing.T) {
	c := newCluster(t, 3, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 1))
	c.down = true
	n2.n.Crash()
	_, ended := n1.submit(block.OpWrite, 0, pattern(2, 1), 0)
	c.w.RunFor(10 * time.Second)
	if *ended {
		t.Fatal("a write was answered while a member was missing and couldn't be made stale")
	}
	c.down = false
	c.until("write goes on", func() bool { return *ended })
	if c.rec.State.Columns[0].Members[1].State != spec.Stale {
		t.Fatalf("the lost member isn't stale: %+v", c.rec.State)
	}
	n2.start(false)
	c.until("in sync again", c.allInSync)
}

func TestEngineRestartReconciles(t *testing.T) {
	c := newCluster(t, 4, 2, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n1.submit(block.OpWrite, 0, pattern(2, 8), 0)
	c.w.RunFor(200 * time.Microsecond)
	n1.n.Crash()
	n1.start(false)
	n1.attach(repl.PrevOwnDead)
	r, ended := n1.submit(block.OpRead, 0, pattern(0, 8), 0)
	c.until("read", func() bool { return *ended })
	for i := range 8 {
		if b := r.Data[i*block.Size]; b != 1 && b != 2 {
			t.Fatalf("block %d is %d", i, b)
		}
	}
	c.until("reconciled", func() bool { return n1.vol.Status().Unreconciled == 0 })
	n1.detach()
}

func TestRepairOnRead(t *testing.T) {
	c := newCluster(t, 5, 2, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(7, 4))
	n1.do(block.OpFlush, 0, nil, 0)
	if !n1.n.Disk().FlipBit("/pool/0000000000000001/head", 4096+17) {
		t.Fatal("no bit to flip")
	}
	n1.want(0, pattern(7, 4))
	if s := n1.vol.Status().Stats; s.Repaired != 1 {
		t.Fatalf("repaired %d blocks", s.Repaired)
	}
	n1.want(0, pattern(7, 4))
	if s := n1.vol.Status().Stats; s.Repaired != 1 {
		t.Fatal("the repair didn't last")
	}
}

// The damaged copy is mended also where an intact one comes before it in the record: the one that was read is asked again first.
func TestRepairOnReadOfALaterMember(t *testing.T) {
	c := newCluster(t, 5, 3, 1)
	n3 := c.nodes["n3"]
	n3.attach(repl.PrevDetached)
	n3.write(0, pattern(7, 4))
	n3.do(block.OpFlush, 0, nil, 0)
	if !n3.n.Disk().FlipBit("/pool/0000000000000003/head", 4096+17) {
		t.Fatal("no bit to flip")
	}
	for range 2 {
		n3.want(0, pattern(7, 4))
		if s := n3.vol.Status().Stats; s.Repaired != 1 {
			t.Fatalf("repaired %d blocks", s.Repaired)
		}
	}
	c.same(0, 0, pattern(7, 4))
}

// A write that spans two columns, one of whose chunks isn't reconciled yet, and a large trim that came before it: neither
// may hold a part of what the other waits for.
func TestStripedWriteAndTrimWhileReconciling(t *testing.T) {
	c := newCluster(t, 6, 2, 2)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 1))
	n1.n.Crash()
	n1.start(false)
	n1.attach(repl.PrevOwnDead)
	if n1.vol.Status().Unreconciled == 0 {
		t.Fatal("nothing is to be reconciled")
	}
	_, trimmed := n1.submit(block.OpTrim, 0, nil, 8<<20)
	_, written := n1.submit(block.OpWrite, spec.StripeUnit-block.Size, pattern(2, 2), 0)
	c.w.RunFor(10 * time.Second)
	if !*trimmed || !*written {
		t.Fatalf("after 10 s: trimmed %v, written %v", *trimmed, *written)
	}
}

// The local copy of a block is damaged, and the connection to the only other one has just broken: the read waits for it.
func TestRepairWaitsForOtherCopy(t *testing.T) {
	c := newCluster(t, 7, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(7, 4))
	n1.do(block.OpFlush, 0, nil, 0)
	n1.n.Disk().FlipBit("/pool/0000000000000001/head", 4096+17)
	n2.n.Crash()
	c.until("connection down", func() bool { return n1.vol.Status().Condition != "" })
	r, ended := n1.submit(block.OpRead, 0, make([]byte, 4*block.Size), 0)
	n2.start(false)
	c.until("read", func() bool { return *ended })
	if r.Err != nil || !bytes.Equal(r.Data, pattern(7, 4)) {
		t.Fatalf("read: %v", r.Err)
	}
}

// The volume is lost while a damaged block is being fetched from another copy: the read ends.
func TestLostDuringRepair(t *testing.T) {
	for wait := 50 * time.Microsecond; wait < 3*time.Millisecond; wait += 50 * time.Microsecond {
		c := newCluster(t, 8, 2, 1)
		n1 := c.nodes["n1"]
		n1.attach(repl.PrevDetached)
		n1.write(0, pattern(7, 4))
		n1.n.Disk().FlipBit("/pool/0000000000000001/head", 4096+17)
		_, ended := n1.submit(block.OpRead, 0, make([]byte, 4*block.Size), 0)
		c.w.RunFor(wait)
		n1.vol.Stop()
		c.w.RunFor(10 * time.Second)
		if !*ended {
			t.Fatalf("stopped after %v: the read hangs", wait)
		}
	}
}

// A detachment that begins while a member is being brought back doesn't wait until all of it is copied.
func TestDetachWhileRejoining(t *testing.T) {
	c := newCluster(t, 9, 2, 1)
	n1 := c.nodes["n1"]
	c.rec.State.Columns[0].Members[1].State = spec.Stale
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 4))
	c.until("rejoining", func() bool { return n1.vol.Status().Members[1].Role != "out" })
	n1.detach()
	role := c.rec.State.Columns[0].Members[1].State
	c.w.RunFor(10 * time.Second)
	if now := c.rec.State.Columns[0].Members[1].State; now != role || n1.lost != nil {
		t.Fatalf("after the detachment: %s, lost %v", now, n1.lost)
	}
}

// Blocks of the only copy that its disk can't read keep another copy from becoming in sync for a while, all of them for the same while, and not for
// ever. They aren't lost by that: when the disk reads them again, they are there on both.
func TestUnreadableBlockOfTheOnlyCopy(t *testing.T) {
	const unreadableFor = 10 * time.Minute
	for _, heals := range []time.Duration{time.Minute, time.Hour} {
		c := newCluster(t, 8, 2, 1)
		n1, n2 := c.nodes["n1"], c.nodes["n2"]
		n1.attach(repl.PrevDetached)
		n1.write(0, pattern(1, 8))
		n2.n.Crash()
		n1.write(0, pattern(2, 8))
		disk := n1.n.Disk()
		if err := n1.do(block.OpFlush, 0, nil, 0); err != nil || !disk.BreakSector(n1.head(0), 3*block.Size) || !disk.BreakSector(n1.head(0), 6*block.Size) {
			t.Fatalf("no sector to break: %v", err)
		}
		n2.start(false)
		c.w.After(heals, "the disk reads it again", disk.HealSectors)
		c.w.RunFor(30 * time.Second)
		if c.allInSync() {
			t.Fatal("in sync without a block that may be read yet")
		}
		began := c.w.Now()
		c.until("in sync", c.allInSync)
		if took := c.w.Now() - began; took > unreadableFor+time.Minute || took < min(heals, unreadableFor)-time.Minute {
			t.Errorf("in sync after %v; the disk reads the block again after %v", took, heals)
		}
		n1.want(0, pattern(2, 3))
		n1.want(4*block.Size, pattern(2, 8)[4*block.Size:6*block.Size])
		if heals > unreadableFor {
			for _, b := range []int64{3, 6} {
				if err := n1.do(block.OpRead, b*block.Size, make([]byte, block.Size), 0); !errors.Is(err, syscall.EIO) {
					t.Errorf("read of what nobody can read: %v", err)
				}
			}
			c.w.RunFor(heals)
		}
		n1.want(0, pattern(2, 8))
		n1.detach()
		n2.attach(repl.PrevDetached)
		n2.want(0, pattern(2, 8))
		c.same(0, 0, pattern(2, 8))
	}
}

// A disk that reads nothing any more isn't asked for all of a volume again and again; what it can't read is given up in groups.
func TestUnreadableDisk(t *testing.T) {
	c := newCluster(t, 8, 2, 1)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n1.attach(repl.PrevDetached)
	n2.n.Crash()
	const blocks = 100
	n1.write(0, pattern(1, blocks))
	if err := n1.do(block.OpFlush, 0, nil, 0); err != nil {
		t.Fatal(err)
	}
	for b := range int64(blocks) {
		if !n1.n.Disk().BreakSector(n1.head(0), b*block.Size) {
			t.Fatal("no sector to break")
		}
	}
	n2.start(false)
	c.w.RunFor(9 * time.Minute)
	if n := n1.vol.Stats.Unreadable; n > 300 {
		t.Errorf("blocks were asked for in vain %d times in 9 minutes", n)
	}
	c.w.RunFor(5 * time.Minute)
	if c.allInSync() {
		t.Fatal("all of them were given up at once")
	}
	c.until("in sync", c.allInSync)
	n1.n.Disk().HealSectors()
	n1.want(0, pattern(1, blocks))
}

// unread is a volume of pattern(2, 8) that n1 alone serves. It has crashed since, and can't read block 3 to recompute its sum. n2 is down, and has pattern(1, 8).
func unread(t *testing.T, seed uint64) *cluster {
	t.Helper()
	c := newCluster(t, seed, 2, 1)
	n1 := c.nodes["n1"]
	n1.attach(repl.PrevDetached)
	n1.write(0, pattern(1, 8))
	n1.detach()
	n1.attach(repl.PrevDetached)
	c.nodes["n2"].n.Crash()
	n1.write(0, pattern(2, 8))
	if err := n1.do(block.OpFlush, 0, nil, 0); err != nil {
		t.Fatal(err)
	}
	n1.n.Crash()
	if !n1.n.Disk().BreakSector(n1.head(0), 3*block.Size) {
		t.Fatal("no sector to break")
	}
	n1.start(false)
	n1.attach(repl.PrevOwnDead)
	return c
}

// What the only copy can't read after a crash isn't taken for equal to what another copy has: the sum that it has of it is of what was there
// before, and so is that of a copy that was away.
func TestUnreadBlockIsNoProofOfBeingEqual(t *testing.T) {
	c := unread(t, 9)
	n1, n2 := c.nodes["n1"], c.nodes["n2"]
	n2.start(false)
	c.w.RunFor(time.Minute)
	if c.allInSync() {
		t.Fatal("in sync although nobody knows whether a block is the same")
	}
	n1.n.Disk().HealSectors()
	c.until("in sync", c.allInSync)
	n1.want(0, pattern(2, 8))
	n1.detach()
	c.same(0, 0, pattern(2, 8))
	n2.attach(repl.PrevDetached)
	n2.want(0, pattern(2, 8))
}

// What was written since the last checkpoint, while a member was away, is told to it also if the others crashed before the next one: their journals say which
// chunks, and those get a new gen.
func TestJournaledChunksGetAGen(t *testing.T) {
	c := newCluster(t, 10, 2, 1)
	n1, n2, n3 := c.nodes["n1"], c.nodes["n2"], c.nodes["n3"]
	n3.attach(repl.PrevDetached)
	n3.write(0, pattern(1, 8))
	n3.detach()
	n3.attach(repl.PrevDetached)
	n2.n.Crash()
	c.until("n2 is out", func() bool { return !c.allInSync() })
	n3.write(0, pattern(2, 8))
	if err := n3.do(block.OpFlush, 0, nil, 0); err != nil {
		t.Fatal(err)
	}
	n1.n.Crash()
	n3.n.Crash()
	n1.start(false)
	n3.start(false)
	n3.attach(repl.PrevOwnDead)
	n3.want(0, pattern(2, 8))
	n2.start(false)
	c.until("in sync", c.allInSync)
	n3.detach()
	c.same(0, 0, pattern(2, 8))
}
