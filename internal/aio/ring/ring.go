// Package ring is the real aio.Loop: one goroutine, locked to its thread, that owns
// one io_uring and does everything on it: files, sockets, devices, timers, messages.
//
// # A turn
//
// The loop goes round like this, and sleeps at one place only:
//
//	functions that were posted → due timers → operations that failed before they
//	began → each connection's output, as one send → one io_uring_enter that submits
//	everything and waits for one completion → callbacks of all completions
//
// Operations are described in a table of slots, whose index is the completion's user
// data. An operation that finds the submission queue full stays in its slot and is
// queued for the next turn. Nothing on this path allocates.
//
// # Invariants
//
// A callback never runs inside the call that started its operation. All state but the
// posted functions, the workers' queue and the set of dials belongs to the loop's thread. What
// the kernel is given stays reachable and doesn't move: memory of the arena, or heap
// memory that a slot refers to until its completion. A descriptor is closed only when no
// operation on it is in flight.
//
// # Goroutines
//
// The loop itself; up to Config.Workers workers for aio.Loop.Work; one for each
// connection being dialled. A Listener has one that accepts, and one for each
// handshake. Close ends and awaits them.
//
// # Connections
//
// A connection is TCP, and TLS 1.3 in it unless Config.TLS is nil (that is for
// measuring only). Its first bytes, inside TLS, are the dialling side's preamble of 16
// bytes, little-endian:
//
//	0  4  magic "KLSN"
//	4  2  version, 1
//	6  2  number of the shard that is wanted
//	8  2  length of the dialling node's name, which follows; 0 under TLS, where the
//	      certificate says it
//	10 6  zero
//
// Dialling, accepting and the handshake happen on ordinary goroutines. Then the socket
// belongs to the loop, and the connection goes on in records (see record.go).
package ring

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
)

// ErrClosed is why connections end, and dials fail, when their loop is closed.
var ErrClosed = errors.New("ring: loop closed")

// Config describes a Loop.
type Config struct {
	// Node is this node's name.
	Node string
	// Entries is the size of the submission queue; 1024 by default.
	Entries int
	// BufferMemory bounds Buffers, in bytes; 256 MiB by default. It takes memory only
	// as it is used.
	BufferMemory int
	// Workers bounds the goroutines of Work; 4 by default.
	Workers int
	// CPUs is where the loop's thread is pinned to; empty: not pinned.
	CPUs []int
	// Spin lets the loop look for completions for up to this long before it sleeps,
	// while I/O is in flight and as long as that pays; 0: never.
	Spin time.Duration
	// TLS returns the configurations of connections that this node dials and that it
	// accepts. It is called for each connection, so certificates may be renewed. Nil
	// means no encryption: for measuring.
	TLS func() (client, server *tls.Config)
	// PeerName is the node that a certificate names. Needed with TLS.
	PeerName func(tls.ConnectionState) (string, error)
	// DialTimeout bounds dialling and the handshake together; 2 s by default, as TCP asks a node that
	// has come back again only after ever longer pauses.
	DialTimeout time.Duration
	// Log is where the loop tells what it had to do without; slog.Default by default.
	Log *slog.Logger
}

// Validate reports what is wrong with the configuration.
func (c *Config) Validate() error {
	switch {
	case c.Entries < 0 || c.Entries > 32768:
		return fmt.Errorf("ring: %d entries; 1 to 32768 are possible", c.Entries)
	case c.BufferMemory < 0 || c.Workers < 0 || c.Spin < 0 || c.DialTimeout < 0:
		return errors.New("ring: negative BufferMemory, Workers, Spin or DialTimeout")
	case c.TLS != nil && c.PeerName == nil:
		return errors.New("ring: TLS without PeerName")
	}
	return nil
}

func (c *Config) setDefaults() {
	if c.Entries == 0 {
		c.Entries = 1024
	}
	if c.BufferMemory == 0 {
		c.BufferMemory = 256 << 20
	}
	if c.Workers == 0 {
		c.Workers = 4
	}
	if c.DialTimeout == 0 {
		c.DialTimeout = 2 * time.Second
	}
	if c.Log == nil {
		c.Log = slog.Default()
	}
}

// Loop is an aio.Loop on an io_uring of its own. Make it with New, start it with
// Start, or run it with Run.
type Loop struct {
	cfg     Config
	u       *uring
	buffers *arena
	workers workers
	epoch   time.Time

	slots    slotTable
	backlog  []int32 // slots that found the submission queue full
	writes   []int32 // slots of writes that wait for the end of the turn
	ready    []failure
	inFlight int // operations in the kernel or the backlog, all kinds

	now      time.Duration
	timers   timerHeap
	timerSeq uint64

	accept   func(aio.Conn) aio.ConnHandler
	fds      map[*descriptor]struct{}
	conns    map[*conn]struct{}
	dirty    []*conn  // with output to send
	ended    []*conn  // to be finished at the end of the turn
	regions  [][]byte // free receive memory
	chunks   [][]byte // free output memory
	spin     spinner
	streak   int  // of turns with completions that came soon after each other; up to rawAfter
	stopping bool // Run is to return
	closing  bool // operations that are started now are never called back

	// mu guards what other goroutines post, and whether the loop still takes it.
	mu     sync.Mutex
	posted []func()
	gone   bool
	spare  []func()      // the loop's: what posted is swapped with
	nPost  atomic.Int32  // length of posted
	asleep atomic.Bool   // the loop sleeps or is about to: Post must wake it
	wakeFD int           // eventfd
	wakeN  *[8]byte      // what is read from it
	state  atomic.Int32  // of the lifecycle
	done   chan struct{} // closed when Run has returned
	ctx    context.Context
	quit   context.CancelFunc
	dials  sync.WaitGroup
}

var _ aio.Loop = (*Loop)(nil)

// rawMost is the longest wait that Go's scheduler isn't told of, and only after rawAfter turns in a row that were no further apart: a
// message now and then has a few completions of its own, and no more come soon. While a wait is hidden, Go's monitor looks every
// 20 µs whether the thread hangs.
const (
	rawMost  = time.Millisecond
	rawAfter = 8
)

// The lifecycle of a Loop.
const (
	stateNew int32 = iota
	stateRunning
	stateClosed
)

// New makes a loop. Until Start or Run, its methods may be called by the goroutine
// that made it.
func New(cfg Config) (*Loop, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg.setDefaults()
	u, err := newUring(uint32(cfg.Entries))
	if err != nil {
		return nil, err
	}
	a, err := newArena(cfg.BufferMemory)
	if err != nil {
		u.close()
		return nil, err
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		u.close()
		a.close()
		return nil, fmt.Errorf("ring: eventfd: %w", err)
	}
	l := &Loop{
		cfg: cfg, u: u, buffers: a, epoch: time.Now(), wakeFD: wake, wakeN: new([8]byte),
		fds: make(map[*descriptor]struct{}), conns: make(map[*conn]struct{}), done: make(chan struct{}),
	}
	l.ctx, l.quit = context.WithCancel(context.Background())
	l.workers.init(cfg.Workers)
	l.spin.open(cfg.Spin)
	return l, nil
}

// Start runs the loop on a goroutine of its own. It does nothing on a loop that was
// started or closed.
func (l *Loop) Start() {
	if !l.state.CompareAndSwap(stateNew, stateRunning) {
		return
	}
	go func() {
		if err := l.run(context.Background()); err != nil {
			l.cfg.Log.Error("the I/O loop failed", "node", l.cfg.Node, "error", err)
		}
	}()
}

// Run runs the loop until ctx is done or Close is called. It returns an error if the
// kernel refuses the ring; the loop is closed in any case.
func (l *Loop) Run(ctx context.Context) error {
	if !l.state.CompareAndSwap(stateNew, stateRunning) {
		return ErrClosed
	}
	return l.run(ctx)
}

func (l *Loop) run(ctx context.Context) error {
	defer close(l.done)
	runtime.LockOSThread()
	// A thread that was pinned isn't fit for other goroutines: it ends with this one.
	if len(l.cfg.CPUs) == 0 {
		defer runtime.UnlockOSThread()
	}
	l.pin()
	defer context.AfterFunc(ctx, l.requestStop)()
	err := l.u.enable()
	if err == nil {
		l.armWake()
		for err == nil && !l.stopping {
			err = l.turn()
		}
	}
	l.shutdown(err == nil)
	return err
}

// Close stops the loop, cancels what is in flight (those operations are still called
// back), ends its connections and descriptors, and waits for every goroutine of the
// loop. Files aren't closed by it, and buffers are gone. It must not be called on the
// loop.
func (l *Loop) Close() error {
	if l.state.CompareAndSwap(stateNew, stateClosed) {
		l.shutdown(false)
		close(l.done)
		return nil
	}
	l.requestStop()
	<-l.done
	return nil
}

func (l *Loop) requestStop() {
	l.Post(func() { l.stopping = true })
}

func (l *Loop) pin() {
	if len(l.cfg.CPUs) == 0 {
		return
	}
	var set unix.CPUSet
	for _, c := range l.cfg.CPUs {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		l.cfg.Log.Warn("the I/O loop can't be pinned to its CPUs; it goes on without", "node", l.cfg.Node, "cpus", l.cfg.CPUs, "error", err)
	}
}

// turn goes round once. It sleeps only if there is nothing to do.
func (l *Loop) turn() error {
	l.runPosted()
	l.runTimers()
	l.runReady()
	l.finishConns()
	l.flushConns()
	l.queueWrites()
	l.drainBacklog()
	if err := l.enter(); err != nil {
		return err
	}
	// Here, as what the callbacks arm counts from after the sleep.
	before := l.now
	l.now = time.Since(l.epoch)
	l.streak = nextStreak(l.streak, l.now-before, l.u.ready() > 0)
	for n := l.u.ready(); n > 0; n-- {
		c, ok := l.u.pop()
		if !ok {
			break
		}
		l.complete(c)
	}
	return nil
}

// nextStreak is the streak after a turn that took so long. After a long one it isn't nothing: a callback may have taken that long.
func nextStreak(streak int, took time.Duration, completed bool) int {
	switch {
	case took > rawMost:
		return streak / 2
	case completed:
		return min(streak+1, rawAfter)
	}
	return streak
}

// enter submits and, if nothing else is to be done, sleeps until something completes,
// a timer is due or a function is posted.
func (l *Loop) enter() error {
	ns := int64(-1)
	switch {
	case l.stopping != l.closing || len(l.ready)+len(l.backlog)+len(l.dirty)+len(l.ended) > 0 || l.u.ready() > 0:
		ns = 0
	case len(l.timers) > 0:
		ns = max(0, int64(l.timers[0].when-time.Since(l.epoch)))
	}
	if ns == 0 {
		return l.u.enter(0)
	}
	if done, err := l.trySpin(ns); done || err != nil {
		return err
	}
	// While operations complete one after the other the next one likely isn't far.
	if l.streak == rawAfter && (ns < 0 || ns > int64(rawMost)) {
		ns = int64(rawMost)
	}
	l.asleep.Store(true)
	if l.nPost.Load() > 0 {
		ns = 0
	}
	err := l.u.enter(ns)
	l.asleep.Store(false)
	return err
}

// Now implements aio.Loop.
func (l *Loop) Now() time.Duration { return l.now }

// Buffers implements aio.Loop.
func (l *Loop) Buffers() aio.Buffers { return l.buffers }

// FS implements aio.Loop.
func (l *Loop) FS() aio.FS { return fileSystem{l} }

// OnAccept implements aio.Loop.
func (l *Loop) OnAccept(fn func(c aio.Conn) aio.ConnHandler) { l.accept = fn }

// Post implements aio.Loop. Functions that are posted to a closed loop are dropped.
func (l *Loop) Post(fn func()) { l.post(fn) }

// post reports whether fn will be called.
func (l *Loop) post(fn func()) bool {
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return false
	}
	l.posted = append(l.posted, fn)
	l.nPost.Store(int32(len(l.posted)))
	// The wake-up is written under the lock: the eventfd isn't closed meanwhile.
	if l.asleep.CompareAndSwap(true, false) {
		one := [8]byte{1}
		unix.Write(l.wakeFD, one[:])
	}
	l.mu.Unlock()
	return true
}

// runPosted calls what was posted before; what is posted meanwhile waits a turn.
func (l *Loop) runPosted() {
	if l.nPost.Load() == 0 {
		return
	}
	l.mu.Lock()
	fns := l.posted
	l.posted = l.spare[:0]
	l.nPost.Store(0)
	l.mu.Unlock()
	for i, fn := range fns {
		fns[i] = nil
		fn()
	}
	l.spare = fns
}

// armWake reads the eventfd, whose completion ends the loop's sleep.
func (l *Loop) armWake() {
	i, s := l.slots.take(kindWake)
	s.fd, s.addr, s.n = int32(l.wakeFD), uintptr(unsafe.Pointer(l.wakeN)), 8
	l.again(i)
}

// shutdown ends everything. usable says whether the ring still works.
func (l *Loop) shutdown(usable bool) {
	l.state.Store(stateClosed)
	l.quit()
	for c := range l.conns {
		c.fail(ErrClosed)
	}
	for d := range l.fds {
		d.Close()
	}
	l.closing = true
	// Dials that are under way post their failure, and workers what they did.
	l.dials.Wait()
	l.workers.close()
	for usable && (l.inFlight > 0 || len(l.ready)+len(l.conns)+len(l.ended) > 0 || l.nPost.Load() > 0) {
		l.cancelAll()
		usable = l.turn() == nil
	}
	l.mu.Lock()
	l.gone = true
	l.posted = nil
	unix.Close(l.wakeFD)
	l.mu.Unlock()
	l.u.close()
	l.spin.close()
	l.buffers.close()
	for _, r := range l.regions {
		unix.Munmap(r)
	}
}
