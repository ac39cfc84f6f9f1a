// Package volume is the coordinator: the only writer of a volume, on the node where the volume is attached.
// It takes requests from a frontend, stripes them over the volume's columns, keeps those that
// overlap apart, sends them to the members through the protocol of package repl, and
// brings members back that were away. docs/design/protocol.md gives the rules.
//
// Everything of a Volume happens on its shard's loop: there are no locks and no goroutines here, and the
// steady-state paths allocate nothing. Invariants are stated where the code keeps them; package repl
// has those of membership.
package volume

import (
	"errors"
	"fmt"
	"log/slog"
	"syscall"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/qos"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// Link is how the coordinator reaches a member: a replica of the same engine, or a connection to
// the engine that has it. All methods are called on the loop.
type Link interface {
	wire.Member
	// Up reports whether the member can be reached now.
	Up() bool
	// Subscribe has fn called, later and on the loop, whenever Up changes.
	Subscribe(fn func(up bool)) (cancel func())
}

// Metadata is the coordinator's access to its own volume's record.
type Metadata interface {
	// Update reads the record, has mutate change it, and writes it if nobody else did
	// meanwhile; else it begins again. It goes on for as long as the store can't be
	// reached or the outcome isn't known. An error of mutate ends it and is passed to done. done is
	// called later, on the loop, with the record as it is then.
	Update(mutate func(*spec.Volume) error, done func(v spec.Volume, rev meta.Rev, err error))
}

// Config is what an attachment is made from.
type Config struct {
	Loop aio.Loop
	Log  *slog.Logger
	// Volume is the record as the attach transaction left it: at the new term, with Node == Self.
	Volume spec.Volume
	Rev    meta.Rev
	Self   string
	// Prev says how the volume was held before the new term.
	Prev repl.Prev
	// AcceptLoss is an operator's decision to go on with what can be reached.
	AcceptLoss bool
	Meta       Metadata
	// Members returns how to reach a member. It's asked once for each.
	Members func(m spec.Member) Link
	// Alive reports whether a node holds its lease.
	Alive func(node string) bool
	// RebuildBandwidth limits what resync moves, in bytes a second; 0 is no limit.
	RebuildBandwidth int64
	// AnswerLimit is how long a member may leave a request unanswered before it is taken out of the in-sync set; 0 is
	// repl.AnswerLimit.
	AnswerLimit time.Duration
	// CheckpointEvery is how often a volume that is written to all the time makes a checkpoint; 0 is 30 s.
	CheckpointEvery time.Duration
	// Wall is the wall clock, for what people read in the record; time.Now if nil.
	Wall func() time.Time
	// ScrubTake asks for leave to verify so many bytes, and says how long to wait after it; nil is no limit. Called on the loop.
	ScrubTake func(bytes int64) time.Duration
	// Event records something that people should find later; nil drops it. Called on the loop; it must not block.
	Event func(spec.Event)
	// Resized is called, on the loop, when the volume has become larger; nil is nobody.
	Resized func()
	// Ready is called once when the volume serves. Lost is called at most once, when it must not be served by
	// this node any more: every request that is open then, and every later one, fails.
	Ready func()
	Lost  func(err error)
}

// Times of the coordinator's housekeeping.
const (
	tickEvery       = 100 * time.Millisecond
	checkpointEvery = 30 * time.Second
	checkpointIdle  = time.Second
	// checkpointChunks bounds what a member has to keep in its journal.
	checkpointChunks = 4096
	// trimWindow is how many pieces of one large trim are under way at once.
	trimWindow = 8
)

type phase uint8

const (
	attaching phase = iota
	serving
	detaching
	detached
	lost
)

// Volume is an attached volume.
type Volume struct {
	cfg     Config
	log     *slog.Logger
	loop    aio.Loop
	rec     spec.Volume // the newest record that was seen
	rev     meta.Rev
	term    uint64
	size    int64
	phase   phase
	lostErr error
	columns []*column

	// period is the current one. mut counts changes of data in flight in it, oldMut those of older periods.
	period  uint64
	mut     int
	oldMut  int
	ckpt    checkpointer
	tick    aio.Timer
	ticking bool
	watch   watch

	queue    reqQueue // requests that came before the volume served
	inFlight int      // requests taken and not answered
	resent   int      // changes that an engine before this one had too, and that aren't answered
	reads    reqQueue // that wait for those. Invariant: empty if resent is 0
	calls    *call
	ops      *op
	detach   func(error)
	// releasing: nothing is in flight any more, and the detachment is at its checkpoint or transaction.
	releasing bool

	committing bool
	poor       []*call // ended, and wait for memory to be answered in

	limiter *qos.Bucket // of resync, in bytes
	scrub   scrubber
	snaps   snapshotter
	limits  throttle
	Stats   Stats
}

// Stats counts what a volume did since it was attached.
type Stats struct {
	Reads, Writes, Flushes, Trims uint64
	ReadBytes, WriteBytes         uint64
	Repaired                      uint64 // blocks that were repaired from another copy
	Unreadable                    uint64 // blocks of which no copy was good
	Checkpoints                   uint64
	Snapshots                     uint64        // that were taken
	SnapshotPause                 time.Duration // the longest that one held changes up
	ResyncedChunks                uint64
	ResyncedBytes                 uint64
	ScrubBytes                    uint64 // of the volume that were verified
	ScrubUnreadable               uint64 // blocks of which a scrub found no copy intact
	ScrubDiffering                uint64 // blocks whose copies a scrub found intact and different
	Held                          uint64 // times that the limits made requests wait
}

// Attach begins to serve a volume whose term was already raised in the metadata for this node. It must be
// called on the loop.
func Attach(cfg Config) *Volume {
	rec := cfg.Volume
	if cfg.CheckpointEvery == 0 {
		cfg.CheckpointEvery = checkpointEvery
	}
	if cfg.Wall == nil {
		cfg.Wall = time.Now
	}
	v := &Volume{
		cfg: cfg, loop: cfg.Loop, rec: rec, rev: cfg.Rev, term: rec.State.Term, size: rec.Size,
		log:     cfg.Log.With("volume", rec.Name, "term", rec.State.Term),
		period:  rec.State.Term<<32 | 1,
		limiter: qos.NewBucket(cfg.RebuildBandwidth, resyncBurst),
	}
	v.tick = v.loop.NewTimer(v.onTick)
	v.watch.init(v)
	v.ckpt.init(v)
	v.scrub.init(v)
	v.snaps.init(v)
	v.limits.init(v)
	prev := cfg.Prev
	if prev == repl.PrevOwnDead && rec.State.Fenced+1 != rec.State.Term && !invariant.Mutant("any-own-dead-engine") {
		// The dead engine may itself not have waited yet for whoever held the volume before it.
		prev = repl.PrevOther
	}
	for i, c := range rec.State.Columns {
		v.columns = append(v.columns, newColumn(v, i, c, prev))
	}
	for _, c := range v.columns {
		c.start()
	}
	v.armTick()
	return v
}

// Size returns the volume's size in bytes.
func (v *Volume) Size() int64 { return v.size }

// Term returns the attachment's term.
func (v *Volume) Term() uint64 { return v.term }

// errno is what a request fails with once the volume doesn't serve.
func (v *Volume) errno() error {
	if v.phase == detached {
		return syscall.ESHUTDOWN
	}
	return syscall.EIO
}

// Submit starts a request. Its Done is called later.
func (v *Volume) Submit(r *block.Request) {
	r.Err = v.check(r)
	switch {
	case r.Err != nil:
		v.loop.Post(func() { r.Done(r) })
	case v.phase == serving:
		v.resend(r)
		v.admit(r)
	case v.phase == attaching:
		v.resend(r)
		v.queue.push(r)
	default:
		r.Err = v.errno()
		v.loop.Post(func() { r.Done(r) })
	}
}

func (v *Volume) resend(r *block.Request) {
	if r.Resent && r.Op.Changes() {
		v.resent++
	}
}

// admit begins a request; a read only when no change waits to be executed again. The dead engine may have executed a part
// of one: who reads that, before another change of the same place is answered and then the first one executed as a whole, sees
// it twice, with the other in between.
func (v *Volume) admit(r *block.Request) {
	if r.Op == block.OpRead && v.resent > 0 && !invariant.Mutant("reads-before-resent") {
		v.reads.push(r)
		return
	}
	v.limits.pass(r)
}

// resentDone is called when a resent change was answered.
func (v *Volume) resentDone() {
	if v.resent--; v.resent > 0 {
		return
	}
	for r := v.reads.pop(); r != nil; r = v.reads.pop() {
		v.limits.pass(r)
	}
}

func (v *Volume) check(r *block.Request) error {
	if r.Op == block.OpFlush {
		return nil
	}
	if v.rec.ReadOnly != nil && r.Op.Changes() {
		return syscall.EROFS
	}
	if r.Off < 0 || r.Len <= 0 || r.Off%block.Size != 0 || r.Len%block.Size != 0 || r.Off > v.size-r.Len {
		return syscall.EINVAL
	}
	if (r.Op == block.OpRead || r.Op == block.OpWrite) && (r.Len > block.MaxIO || int64(len(r.Data)) != r.Len) {
		return syscall.EINVAL
	}
	return nil
}

// Update tells the volume what its record has become, as of revision rev.
func (v *Volume) Update(rec spec.Volume, rev meta.Rev) {
	if rev <= v.rev || v.phase == lost || v.phase == detached {
		return
	}
	v.rec, v.rev = rec, rev
	if rec.State.Term != v.term { // a lower one: the metadata was recovered, without counting this attachment
		v.lose(fmt.Errorf("%w (term %d at node %q)", repl.ErrLost, rec.State.Term, rec.State.Node))
		return
	}
	v.membersChanged()
}

// membersChanged hands the newest record's members to columns that are free to take it, and its scrub to the scrubber.
func (v *Volume) membersChanged() {
	v.scrub.follow()
	v.snaps.follow()
	v.limits.follow()
	if (v.phase != serving && v.phase != attaching) || v.committing {
		return
	}
	v.grow()
	for i, c := range v.columns {
		if i < len(v.rec.State.Columns) {
			c.update(v.rec.State.Columns[i].Members, v.rec.Replicas)
		}
	}
	v.armTick()
}

// Stop ends the attachment without touching the metadata: the engine ends. Requests in flight fail.
func (v *Volume) Stop() { v.lose(errStopped) }

var errStopped = errors.New("the engine is stopping")

// lose ends serving: another term has begun, or the engine ends.
func (v *Volume) lose(err error) {
	if v.phase == lost || v.phase == detached {
		return
	}
	v.phase, v.lostErr = lost, err
	for _, c := range v.columns {
		c.rc.Stop(err)
		c.abandon()
	}
	for _, q := range []*reqQueue{&v.queue, &v.reads} {
		for r := q.pop(); r != nil; r = q.pop() {
			r.Err = syscall.EIO
			v.loop.Post(func() { r.Done(r) })
		}
	}
	v.limits.fail()
	v.tick.Stop()
	v.ckpt.timer.Stop()
	v.scrub.timer.Stop()
	v.snaps.stop()
	if done := v.detach; done != nil {
		v.detach = nil
		v.loop.Post(func() { done(err) })
	}
	if !errors.Is(err, errStopped) {
		v.log.Warn("volume lost", "reason", err)
		v.loop.Post(func() { v.cfg.Lost(err) })
	}
}

// served is called by a column that may serve; the volume serves when all may.
func (v *Volume) served() {
	for _, c := range v.columns {
		if c.rc.Phase() != repl.PhaseServing {
			return
		}
	}
	if v.phase != attaching {
		return
	}
	v.phase = serving
	v.log.Info("volume serves")
	v.loop.Post(v.cfg.Ready)
	for r := v.queue.pop(); r != nil; r = v.queue.pop() {
		v.admit(r)
	}
	v.membersChanged()
}

// armTick keeps the tick going while anything may become due.
func (v *Volume) armTick() {
	if v.ticking || v.phase == lost || v.phase == detached {
		return
	}
	for _, c := range v.columns {
		if c.needsTick() || v.phase == detaching {
			v.ticking = true
			v.tick.Reset(tickEvery)
			return
		}
	}
}

func (v *Volume) onTick() {
	v.ticking = false
	for _, c := range v.columns {
		if v.phase == lost || v.phase == detached {
			return
		}
		c.onTick()
	}
	v.armTick()
	v.drained()
}

// reqQueue is a list of frontends' requests.
type reqQueue struct{ head, tail *block.Request }

func (q *reqQueue) push(r *block.Request) {
	r.Next = nil
	if q.tail == nil {
		q.head, q.tail = r, r
		return
	}
	q.tail.Next, q.tail = r, r
}

func (q *reqQueue) pop() *block.Request {
	r := q.head
	if r != nil {
		if q.head = r.Next; q.head == nil {
			q.tail = nil
		}
		r.Next = nil
	}
	return r
}
