// Package engine is a node's data plane: it keeps the replicas that the metadata puts
// into this node's pools, serves them to the coordinators of other nodes, coordinates the
// volumes that are attached here, and shows these to the host through frontends.
//
// An Engine has one shard for each event loop. A volume, and its replicas on every node,
// belong to the shard that the hash of the volume's id gives: all their state is touched on that
// loop only. What blocks (the metadata, frontends, waiting) happens on goroutines, which
// reach a shard by posting to its loop.
//
// What holds:
//
//   - A volume is served only in a term that this engine took for it in the metadata.
//   - Two calls that attach or detach the same volume don't run at once.
//   - A replica's directory is removed only after the metadata, seen whole, said that its volume
//     is deleted or no longer has that member. So it is after a deletion while this node was
//     away, by the pool's record. Directories of volumes that nobody ever heard of are reported, and left alone.
//   - A replica is created only where nothing can be lost by its being empty.
//
// Goroutines: one that watches the metadata, and short-lived ones for what blocks. Close waits for all.
package engine

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/volume"
)

// What an Engine answers besides success. Test with errors.Is.
var (
	// ErrClosed: the engine is closing.
	ErrClosed = errors.New("the engine is stopping")
	// ErrAttached: the volume is attached, on another node or with another frontend.
	ErrAttached = errors.New("volume is attached already")
	// ErrNotAttached: the volume isn't attached on this node.
	ErrNotAttached = errors.New("volume isn't attached on this node")
	// ErrDeleting: the volume is being deleted.
	ErrDeleting = errors.New("volume is being deleted")
	// ErrFrontend: there is no such frontend.
	ErrFrontend = errors.New("unknown frontend")
	// ErrUnanswered: the engine stopped while requests of devices that outlive it wait for their replicas.
	ErrUnanswered = errors.New("requests are unanswered: the next engine answers them")
	// ErrLost: the volume was attached elsewhere meanwhile.
	ErrLost = errors.New("volume was lost to another attachment")
)

// Config is what an Engine needs.
type Config struct {
	Node    string // this node's name
	Cluster string // the cluster's id
	// Run names the boot of this machine; the kernel's boot id if "".
	Run   string
	Store meta.Store
	Log   *slog.Logger
	// Loops are the event loops, one for each shard. They run already, and are closed by their owner
	// after Close. The node's record must have as many shards.
	Loops []aio.Loop
	// Complete returns when all pools of this node are in service, as far as they are to be; nil: they are. It is asked after the
	// metadata was recovered.
	Complete func(ctx context.Context) error
	// Frontends are the ways to show a volume, by name.
	Frontends map[string]OpenFrontend
	// Keys opens the data keys of encrypted volumes; nil if this node has no wrapping keys.
	Keys Keys
	// Keeper keeps data keys for the next engine, KeptKeys are those that the one before left, by the names for which KeptKey is.
	// Without a keeper every engine asks Keys.
	Keeper   Keeper
	KeptKeys map[string]Kept
}

// Engine is a node's data plane. Its methods are safe for concurrent use, and must not be
// called on a loop.
type Engine struct {
	cfg    Config
	log    *slog.Logger
	view   *view
	shards []*shard

	opened chan struct{}   // closed when what was attached before is being attached again
	ctx    context.Context // ends when Close begins
	cancel context.CancelFunc

	mu       sync.Mutex
	closing  bool
	work     sync.WaitGroup           // goroutines; Add only under mu and before closing
	pools    map[string]*pool         // by id
	attached map[string]*attachment   // by volume id
	lost     map[string]string        // why volumes that were served here are no more, by volume id
	busy     map[string]chan struct{} // volumes that are being attached or detached, by id
	retired  volume.Stats             // what attachments that ended have counted

	keysTaken map[string]bool               // of Config.KeptKeys
	keyless   map[string]error              // why data keys can't be opened, by volume id
	keyWaits  map[string]context.CancelFunc // takeovers that wait for a key, by volume id

	scrubs scrubLimit
	events events
}

// closePatience is how long Close waits for requests in flight; attachPatience for those of volumes that don't serve yet, and
// hardly can any more.
const (
	closePatience  = 3 * time.Second
	attachPatience = 100 * time.Millisecond
)

// New makes an Engine that does nothing yet.
func New(cfg Config) (*Engine, error) {
	if cfg.Node == "" || cfg.Cluster == "" || cfg.Store == nil || len(cfg.Loops) == 0 {
		return nil, errors.New("engine: node, cluster, store and loops are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Run == "" {
		id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return nil, fmt.Errorf("engine: which boot of the machine this is: %w", err)
		}
		cfg.Run = strings.TrimSpace(string(id))
	}
	e := &Engine{
		cfg: cfg, log: cfg.Log, view: newView(), opened: make(chan struct{}),
		pools:    make(map[string]*pool),
		attached: make(map[string]*attachment),
		lost:     make(map[string]string),
		busy:     make(map[string]chan struct{}),

		keysTaken: make(map[string]bool),
		keyless:   make(map[string]error),
		keyWaits:  make(map[string]context.CancelFunc),
	}
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e, nil
}

// Open begins to serve: it waits until the metadata was seen whole, and then attaches the volumes
// again that the metadata says are attached here, in the background. ctx bounds the waiting.
func (e *Engine) Open(ctx context.Context) error {
	incarnation := rand.Uint64()
	for i, l := range e.cfg.Loops {
		s := newShard(e, i, l)
		if err := s.do(ctx, func() { s.start(incarnation) }); err != nil {
			return err
		}
		e.shards = append(e.shards, s)
	}
	if !e.begin() {
		return ErrClosed
	}
	go func() {
		defer e.end()
		e.watch(e.ctx)
	}()
	select {
	case <-e.view.synced:
	case <-ctx.Done():
		return fmt.Errorf("engine: waiting for the metadata: %w", ctx.Err())
	case <-e.ctx.Done():
		return ErrClosed
	}
	e.attachAgain()
	close(e.opened)
	return nil
}

// waitOpen waits until the volumes that were attached before are locked by who attaches them again.
func (e *Engine) waitOpen(ctx context.Context, volumeID string) error {
	select {
	case <-e.opened:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume %s: waiting for the engine to open: %w", volumeID, ctx.Err())
	case <-e.ctx.Done():
		return ErrClosed
	}
}

// Close stops serving, without detaching anything: the next engine of this node takes the volumes
// over. It waits for everything that the engine started. Idempotent.
//
// If requests on a device that outlives the engine stay unanswered (their replicas can't be reached), Close
// answers ErrUnanswered and leaves their shards alone: to fail them would show errors to a device that only has to
// wait. The process must then end without closing the loops.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closing {
		e.mu.Unlock()
		e.work.Wait()
		return nil
	}
	e.closing = true
	list := make([]*attachment, 0, len(e.attached))
	for _, a := range e.attached {
		list = append(list, a)
	}
	e.mu.Unlock()
	e.cancel()
	stuck, suspended := e.suspendAll(list)
	waiting := make(map[*shard]bool)
	for _, a := range stuck {
		e.log.Warn("requests are still unanswered; stopping anyway", "volume", a.name, "term", a.term)
		if !closed(a.ready) || a.outlives() { // before it is ready, what frontend it has isn't known
			waiting[a.s] = true
		}
	}
	for _, s := range e.shards {
		if !waiting[s] {
			s.stop()
		}
	}
	if len(waiting) > 0 {
		return ErrUnanswered
	}
	<-suspended
	e.work.Wait()
	return nil
}

// suspendAll suspends the frontends. It returns those that weren't done in time, and what is closed when all are.
func (e *Engine) suspendAll(list []*attachment) (stuck []*attachment, all <-chan struct{}) {
	served, done := make(chan struct{}), make(chan struct{})
	var serving, attaching sync.WaitGroup
	for _, a := range list {
		if closed(a.serves) {
			serving.Go(a.suspend)
		} else {
			attaching.Go(a.suspend)
		}
	}
	go func() {
		serving.Wait()
		close(served)
		attaching.Wait()
		close(done)
	}()
	select {
	case <-served:
	case <-time.After(closePatience):
	}
	select {
	case <-done:
		return nil, done
	case <-time.After(attachPatience):
	}
	for _, a := range list {
		if !a.suspended.Load() {
			stuck = append(stuck, a)
		}
	}
	return stuck, done
}

// begin registers a goroutine; false if the engine is closing.
func (e *Engine) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closing {
		return false
	}
	e.work.Add(1)
	return true
}

func (e *Engine) end() { e.work.Done() }

// spawn runs fn on a goroutine that Close waits for.
func (e *Engine) spawn(fn func()) {
	if e.begin() {
		go func() {
			defer e.end()
			fn()
		}()
	}
}

// shardIndex is the shard, of n, that a volume belongs to on every node.
func shardIndex(volumeID string, n int) int {
	h := fnv.New32a()
	h.Write([]byte(volumeID))
	return int(h.Sum32() % uint32(max(n, 1)))
}

func (e *Engine) shardOf(volumeID string) *shard {
	return e.shards[shardIndex(volumeID, len(e.shards))]
}

// lock waits until nobody else attaches or detaches the volume.
func (e *Engine) lock(ctx context.Context, volumeID string) (unlock func(), err error) {
	for {
		e.mu.Lock()
		wait, taken := e.busy[volumeID]
		if !taken {
			done := make(chan struct{})
			e.busy[volumeID] = done
			e.mu.Unlock()
			return func() {
				e.mu.Lock()
				delete(e.busy, volumeID)
				e.mu.Unlock()
				close(done)
			}, nil
		}
		e.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for another operation on volume %s: %w", volumeID, ctx.Err())
		case <-e.ctx.Done():
			return nil, ErrClosed
		}
	}
}
