package engine_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/engine"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/pki/pkitest"
	"keelson.io/keelson/internal/spec"
)

const clusterID = "00112233445566ff"

// cluster is several engines in this process, joined by TLS on loopback.
type cluster struct {
	t     testing.TB
	ctx   context.Context
	store *mem.Store
	nodes map[string]*node
	ids   map[string]func() (client, server *tls.Config)
	runs  string
}

// node is a machine: its pool and its lease outlive its engine.
type node struct {
	c      *cluster
	name   string
	pool   string // directory
	shards int
	run    string
	loops  []*ring.Loop
	listen *ring.Listener
	engine *engine.Engine
	addr   string
	disks  *disks
	keeper *keeper
	keys   engine.Keys
	store  meta.Store // what its engine uses; nil is the cluster's
	lease  context.CancelFunc
	log    *logWriter
}

// keeper is the supervisor's part: it outlives engines.
type keeper struct {
	mu   sync.Mutex
	kept map[string]engine.Kept
}

func (k *keeper) Put(name string, state []byte, fds []int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropLocked(name)
	own, err := dup(fds)
	k.kept[name] = engine.Kept{State: state, FDs: own}
	return err
}

func (k *keeper) Remove(name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.dropLocked(name)
	return nil
}

func (k *keeper) dropLocked(name string) {
	for _, fd := range k.kept[name].FDs {
		unix.Close(fd)
	}
	delete(k.kept, name)
}

// handOut gives duplicates of everything to an engine that starts.
func (k *keeper) handOut() map[string]engine.Kept {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make(map[string]engine.Kept)
	for name, e := range k.kept {
		if _, ok := engine.KeptKey(name); ok {
			continue
		}
		if fds, err := dup(e.FDs); err == nil {
			out[name] = engine.Kept{State: e.State, FDs: fds}
		}
	}
	return out
}

func dup(fds []int) (out []int, err error) {
	for _, fd := range fds {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return out, err
		}
		out = append(out, n)
	}
	return out, nil
}

// logWriter passes log lines on to the test while it runs.
type logWriter struct {
	mu   sync.Mutex
	name string
	text strings.Builder
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.text, "%s: %s", w.name, p)
	return len(p), nil
}

func newCluster(t testing.TB, names ...string) *cluster {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	c := &cluster{t: t, ctx: ctx, store: mem.New(), nodes: map[string]*node{}, ids: pkitest.Identities(t, clusterID, names...), runs: t.TempDir()}
	if _, err := c.store.PutCluster(ctx, spec.Cluster{ID: clusterID, Name: "test", Settings: spec.DefaultSettings()}, 0); err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		n := &node{c: c, name: name, pool: t.TempDir(), shards: 1 + i%2, run: "boot-1", log: &logWriter{name: name}, keeper: &keeper{kept: map[string]engine.Kept{}}}
		c.nodes[name] = n
		n.start()
	}
	t.Cleanup(func() {
		for _, n := range c.nodes {
			n.stop()
			if t.Failed() {
				t.Log(n.log.text.String())
			}
		}
		cancel()
		c.store.Close()
	})
	return c
}

func (n *node) start() {
	t := n.c.t
	t.Helper()
	log := slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	var loops []aio.Loop
	for range n.shards {
		l, err := ring.New(ring.Config{Node: n.name, BufferMemory: 64 << 20, TLS: n.c.ids[n.name], PeerName: pki.PeerName, Log: log})
		if err != nil {
			t.Fatal(err)
		}
		l.Start()
		n.loops, loops = append(n.loops, l), append(loops, l)
	}
	n.disks = &disks{open: map[string]*disk{}}
	fronts := engine.Frontends(engine.FrontendConfig{RunDir: filepath.Join(n.c.runs, n.name), Keeper: n.keeper, Kept: n.keeper.handOut()})
	fronts["test"] = n.disks.attach
	var err error
	store := n.store
	if store == nil {
		store = n.c.store
	}
	n.engine, err = engine.New(engine.Config{
		Node: n.name, Cluster: clusterID, Run: n.run, Store: store, Log: log, Loops: loops, Frontends: fronts,
		Keys: n.keys, Keeper: n.keeper, KeptKeys: n.keeper.keys(),
	})
	if err != nil {
		t.Fatal(err)
	}
	addr := n.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	if n.listen, err = ring.Listen(ring.ListenConfig{Addr: addr, Loops: n.loops}); err != nil {
		t.Fatal(err)
	}
	if n.addr == "" {
		n.addr = n.listen.Addr().String()
		rec := spec.Node{Name: n.name, ID: "0000000000000001", Roles: []spec.Role{spec.RoleStorage}, EngineAddr: n.addr, APIAddr: n.addr, Shards: n.shards}
		if _, err := n.c.store.PutNode(n.c.ctx, rec, 0); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(n.c.ctx)
	n.lease = cancel
	go n.c.store.HoldLease(ctx, n.name, func() {}, func() {})
	if err := n.engine.Open(n.c.ctx); err != nil {
		t.Fatal(err)
	}
	if err := n.engine.AddPool(n.c.ctx, "pool-"+n.name, n.pool); err != nil {
		t.Fatal(err)
	}
}

// stop ends the engine as an upgrade would, and returns what Close does; the lease goes too.
func (n *node) stop() error {
	if n.engine == nil {
		return nil
	}
	n.lease()
	err := n.engine.Close()
	n.listen.Close()
	for _, l := range n.loops {
		l.Close()
	}
	n.engine, n.loops = nil, nil
	return err
}

// volume makes a record with a replica on each of the nodes.
func (c *cluster) volume(name string, size int64, columns int, nodes ...string) string {
	c.t.Helper()
	v := spec.Volume{ID: fmt.Sprintf("%016x", len(name)*7919+columns), Name: name, Size: size, Replicas: len(nodes), Columns: columns}
	for col := range columns {
		var members []spec.Member
		for i, n := range nodes {
			members = append(members, c.member(len(name)*1000+col*10+i, n, spec.InSync))
		}
		v.State.Columns = append(v.State.Columns, spec.Column{Members: members})
	}
	if _, err := c.store.CreateVolume(c.ctx, v); err != nil {
		c.t.Fatal(err)
	}
	return v.ID
}

func (c *cluster) member(n int, node string, state spec.MemberState) spec.Member {
	return spec.Member{Replica: fmt.Sprintf("%016x", n+1), Node: node, Pool: "pool-" + node, State: state, Since: time.Now(), Reason: "test"}
}

func (c *cluster) record(id string) spec.Volume {
	c.t.Helper()
	v, err := c.store.Volume(c.ctx, id)
	if err != nil {
		c.t.Fatal(err)
	}
	return v.Value
}

func (c *cluster) change(id string, fn func(v *spec.Volume)) {
	c.t.Helper()
	for {
		v, err := c.store.Volume(c.ctx, id)
		if err != nil {
			c.t.Fatal(err)
		}
		fn(&v.Value)
		_, err = c.store.PutVolume(c.ctx, v.Value, v.Rev, meta.Cond{})
		if err == nil {
			return
		}
		if !errors.Is(err, meta.ErrConflict) {
			c.t.Fatal(err)
		}
	}
}

// until polls a condition that other goroutines bring about.
func (c *cluster) until(what string, cond func() bool) {
	c.t.Helper()
	for !cond() {
		if c.ctx.Err() != nil {
			c.t.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *cluster) inSync(id string) bool {
	for _, col := range c.record(id).State.Columns {
		for _, m := range col.Members {
			if m.State != spec.InSync {
				return false
			}
		}
	}
	return true
}

func (n *node) attach(id string) *disk {
	n.c.t.Helper()
	at, err := n.engine.Attach(n.c.ctx, id, engine.AttachOptions{Frontend: "test"})
	if err != nil {
		n.c.t.Fatal(err)
	}
	return n.disks.get(at.Device)
}

func (n *node) detach(id string) {
	n.c.t.Helper()
	if err := n.engine.Detach(n.c.ctx, id); err != nil {
		n.c.t.Fatal(err)
	}
}

func (n *node) replicaDirs() int {
	list, err := os.ReadDir(filepath.Join(n.pool, "replicas"))
	if err != nil {
		n.c.t.Fatal(err)
	}
	return len(list)
}

// disks is a frontend that shows volumes to the test itself.
type disks struct {
	mu   sync.Mutex
	open map[string]*disk
	fail error // why none can be opened
}

type disk struct {
	p      engine.FrontendParams
	mu     sync.Mutex
	busy   bool
	closed bool
}

func (d *disks) attach(_ context.Context, p engine.FrontendParams) (frontend.Frontend, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.Discard || p.Prepare {
		return nil, nil
	}
	if d.fail != nil {
		return nil, d.fail
	}
	k := &disk{p: p}
	d.open[k.Path()] = k
	return k, nil
}

func (d *disks) get(path string) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[path]
}

func (d *disk) Path() string { return fmt.Sprintf("%s@%d", d.p.Name, d.p.Term) }

func (d *disk) InUse() error {
	if d.busy {
		return &frontend.BusyError{Volume: d.p.Name, Path: d.Path(), By: "the test"}
	}
	return nil
}

func (d *disk) Detach() error {
	if err := d.InUse(); err != nil {
		return err
	}
	return d.Close()
}

func (d *disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	return nil
}

func (d *disk) isClosed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.closed
}

// do runs one request and waits for it. fill makes the data of a write, check looks at that of a read.
func (d *disk) do(op block.Op, off, n int64, fua bool, fill, check func([]byte)) error {
	done := make(chan error, 1)
	l := d.p.Loop
	l.Post(func() {
		r := &block.Request{Op: op, Off: off, Len: n, FUA: fua}
		if op == block.OpRead || op == block.OpWrite {
			r.Data = l.Buffers().Get(int(n))
		}
		if fill != nil {
			fill(r.Data)
		}
		r.Done = func(r *block.Request) {
			if check != nil && r.Err == nil {
				check(r.Data)
			}
			if r.Data != nil {
				l.Buffers().Put(r.Data)
			}
			done <- r.Err
		}
		d.p.Device.Submit(r)
	})
	return <-done
}

// pattern fills p with what version v of the bytes at off is.
func pattern(p []byte, off int64, v int) {
	for i := range p {
		p[i] = byte(int(off/512)*31 + i/7 + i%251 + v*17)
	}
}

func (d *disk) write(t *testing.T, off, n int64, v int) {
	t.Helper()
	if err := d.do(block.OpWrite, off, n, false, func(p []byte) { pattern(p, off, v) }, nil); err != nil {
		t.Fatalf("write at %d: %v", off, err)
	}
}

func (d *disk) flush(t *testing.T) {
	t.Helper()
	if err := d.do(block.OpFlush, 0, 0, false, nil, nil); err != nil {
		t.Fatal(err)
	}
}

func (d *disk) verify(t *testing.T, off, n int64, v int) {
	t.Helper()
	same := false
	err := d.do(block.OpRead, off, n, false, nil, func(p []byte) {
		want := make([]byte, n)
		pattern(want, off, v)
		same = string(want) == string(p)
	})
	if err != nil || !same {
		t.Fatalf("read of %d bytes at %d: same %v, %v", n, off, same, err)
	}
}
