package replica

import (
	"errors"
	"log/slog"
	"syscall"
	"time"
	"unsafe"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// files are the files of an open replica.
type files struct {
	head, sums, gens, journal, meta aio.File
	snaps                           []aio.File // to be closed with them
}

func (f *files) all() []aio.File {
	return append([]aio.File{f.head, f.sums, f.gens, f.journal, f.meta}, f.snaps...)
}

// Replica is an open replica. Make it with Create or Open. Not safe for concurrent use: its
// methods are called on its loop.
type Replica struct {
	cfg     Config
	loop    aio.Loop
	log     *slog.Logger
	desc    Desc
	rawDesc []byte
	files   files
	chunks  int64

	// Meta: m is what is to be, saved is what is durable. Invariant: saved.fence ≤ m.fence.
	m, saved metaState
	metaSeq  uint64
	metaSlot int // the slot that holds saved
	metaBusy bool
	metaOp   aio.Op
	metaWait []func(error)

	gens   []uint64
	checks []uint64 // checksums over each chunk's sums on disk
	// gensDirty has the blocks of gens that are to be written.
	gensDirty bitset

	// suspect chunks have sums that must be recomputed before anything else. Invariant: a suspect chunk is in
	// the journal, or all of them are.
	suspect bitset
	// unrec are the chunks that an older term, or an engine that died, wrote, and that were not touched
	// since. Invariant: their journal entries outlive checkpoints.
	unrec bitset
	// reconcileTerm is the last term that unrec takes into account.
	reconcileTerm uint64
	// crashed chunks had their sums lost in a crash and were neither touched nor checkpointed since.
	crashed bitset
	// bad has, for chunks whose sums were recomputed, the blocks whose sums were another.
	bad map[int64]*blockMap

	journal journal
	cache   cache
	rcBusy  int    // recomputations running
	rcQueue []*ent // waiting to be recomputed
	snaps   snapshots

	// Sessions. Invariant: no request is accepted while open is false.
	session  uint32
	open     bool
	fences   opList // waiting until inflight is 0 and the fence is durable
	inflight int    // accepted and not yet answered, fences apart

	// Confirmations: when StatusOK was last answered in confirmTerm, and in any lower term.
	confirmTerm uint64
	confirmAt   time.Duration
	lowerAt     time.Duration
	confirmed   bool // confirmAt means something
	lower       bool // lowerAt means something

	flush flusher
	cp    checkpointer

	free       *op
	submitting bool
	answers    opList // completed inside Submit
	posted     bool
	runAnswers func()

	closed     bool
	closing    func()
	idle       aio.Timer
	idleArmed  bool
	activity   uint64
	idleSeen   uint64
	background int // I/O in flight that belongs to no request

	gensLost []int64 // while opening: blocks of gens that are damaged

	stats Stats
}

// op is a request on its way through the replica.
type op struct {
	r      *Replica
	req    *wire.Request
	io     aio.Op
	next   *op
	chunk  int64   // the first chunk
	n      int     // chunks that it touches: 0 … 2
	have   int     // of which so many are held
	ent    [2]*ent // those
	marked bool    // its blocks are claimed
	issued bool    // data I/O was submitted
	syncs  bool    // its data is written, and waits for a sync
	// sums are what the chunk that is being restored gets; clone is the clone that is being made.
	sums   []uint64
	clone  *cloning
	level  *level // the snapshot that it changes, which stays open meanwhile
	status wire.Status
}

type opList struct{ head, tail *op }

func (l *opList) push(o *op) {
	o.next = nil
	if l.tail == nil {
		l.head = o
	} else {
		l.tail.next = o
	}
	l.tail = o
}

func (l *opList) pop() *op {
	o := l.head
	if o != nil {
		if l.head = o.next; l.head == nil {
			l.tail = nil
		}
		o.next = nil
	}
	return o
}

func (l *opList) empty() bool { return l.head == nil }

func newReplica(cfg Config, d Desc, raw []byte, f files) *Replica {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.SumsCache <= 0 {
		cfg.SumsCache = DefaultSumsCache
	}
	r := &Replica{cfg: cfg, loop: cfg.Loop, desc: d, rawDesc: raw, files: f, chunks: block.Chunks(d.Size)}
	r.log = cfg.Log.With("replica", d.Replica.String(), "volume", d.Name)
	r.gens = make([]uint64, r.chunks)
	r.checks = make([]uint64, r.chunks)
	r.gensDirty.size = gensBlocks(r.chunks)
	r.suspect.size, r.unrec.size, r.crashed.size = r.chunks, r.chunks, r.chunks
	r.journal.init(r)
	r.snaps.init(r)
	r.cache.init(r, cfg.SumsCache)
	r.flush.init(r)
	r.cp.r, r.cp.late.size = r, r.chunks
	r.runAnswers = r.answerPosted
	r.idle = r.loop.NewTimer(r.idleCheck)
	return r
}

// Desc returns the replica's description.
func (r *Replica) Desc() Desc { return r.desc }

// Submit implements wire.Member.
func (r *Replica) Submit(req *wire.Request) {
	was := r.submitting
	r.submitting = true
	if req.Kind != wire.KindConfirm { // those come all the time
		r.activity++
		if !r.idleArmed {
			r.idleArmed = true
			r.idle.Reset(idleAfter)
		}
	}
	o := r.getOp()
	o.req = req
	r.accept(o)
	r.submitting = was
}

func (r *Replica) accept(o *op) {
	req := o.req
	if req.Kind == wire.KindFence {
		r.submitFence(o)
		return
	}
	r.inflight++
	if status := r.admit(o); status != wire.StatusOK {
		r.finish(o, status)
		return
	}
	switch req.Kind {
	case wire.KindConfirm:
		r.finish(o, wire.StatusOK)
	case wire.KindFlush:
		r.flush.add(o)
	case wire.KindGens:
		copy(req.Sums, r.gens[o.chunk:])
		r.finish(o, wire.StatusOK)
	case wire.KindCheckpoint:
		r.cp.add(o)
	default:
		if !r.acceptSnap(o) {
			r.step(o)
		}
	}
}

// admit decides whether a request makes sense and is of the present term and session.
func (r *Replica) admit(o *op) wire.Status {
	req := o.req
	switch {
	case r.closed || req.Replica != r.desc.Replica:
		return wire.StatusNotFound
	case !req.Kind.Valid():
		return wire.StatusBadRequest
	case req.Term < r.m.fence && r.plantedAccept(req):
	case req.Term < r.m.fence:
		return wire.StatusFenced
	case req.Term == r.m.fence && r.open && invariant.Mutant("old-session-accepted"):
	case req.Term > r.m.fence || !r.open || req.Session != r.session:
		return wire.StatusOldSession
	}
	if !r.shape(o) {
		return wire.StatusBadRequest
	}
	switch req.Kind {
	case wire.KindWrite, wire.KindTrim, wire.KindZero, wire.KindTouch, wire.KindRestore:
		// A period that the checkpoint covers would leave the journal at once.
		if req.Period <= r.m.checkpoint || req.Period>>32 > req.Term || req.Period <= r.cp.period {
			return wire.StatusBadRequest
		}
	case wire.KindCheckpoint:
		if req.Period>>32 > req.Term {
			return wire.StatusBadRequest
		}
	}
	if req.Kind.Sends() && !sumsMatch(req.Data, req.Sums) {
		r.stats.BadWrites++
		return wire.StatusBadSum
	}
	return wire.StatusOK
}

// shape checks the request's range and memory, and sets which chunks it touches.
func (r *Replica) shape(o *op) bool {
	req := o.req
	length := req.Len
	switch req.Kind {
	case wire.KindConfirm, wire.KindFlush, wire.KindCheckpoint, wire.KindSnaps, wire.KindSnapUsage, wire.KindClone:
		return cap(req.Sums) >= snapSums(req.Kind)
	case wire.KindRead, wire.KindWrite, wire.KindSnapRead, wire.KindSnapWrite, wire.KindSnapMend:
		length = int64(len(req.Data))
		if length > block.MaxIO || length == 0 || uintptr(unsafe.Pointer(&req.Data[0]))%block.Size != 0 {
			return false
		}
		n := int(length / block.Size)
		if req.Kind.Sends() && len(req.Sums) != n || cap(req.Sums) < n {
			return false
		}
		req.Sums = req.Sums[:n]
	case wire.KindSums, wire.KindSnapSums, wire.KindSnapCheck, wire.KindSnapOpen, wire.KindSnapSeal, wire.KindSnapLevels:
		length = block.Size
		if cap(req.Sums) < snapSums(req.Kind) || req.Kind == wire.KindSnapSeal && len(req.Sums) != block.PerChunk {
			return false
		}
	case wire.KindRestore:
		if len(req.Sums) != 1 {
			return false
		}
	case wire.KindTouch, wire.KindSnapDrop:
		length = block.Size
	case wire.KindVerify, wire.KindSnapVerify:
		n := length / block.Size
		if length > block.MaxIO || length <= 0 || int64(cap(req.Sums)) < n {
			return false
		}
		req.Sums = req.Sums[:n]
	case wire.KindGens:
		return r.shapeGens(o)
	}
	if req.Off < 0 || length <= 0 || (req.Off|length)%block.Size != 0 || length > r.desc.Size || req.Off > r.desc.Size-length {
		return false
	}
	o.chunk = req.Off / block.ChunkSize
	o.n = int((req.Off+length-1)/block.ChunkSize-o.chunk) + 1
	return o.n <= 2 && (o.n == 1 || req.Kind == wire.KindRead || req.Kind == wire.KindWrite)
}

func (r *Replica) shapeGens(o *op) bool {
	req := o.req
	if req.Off < 0 || req.Off%block.ChunkSize != 0 || req.Off >= r.desc.Size || req.Len <= 0 {
		return false
	}
	o.chunk = req.Off / block.ChunkSize
	n := min(block.Chunks(req.Len), r.chunks-o.chunk)
	if int64(cap(req.Sums)) < n {
		return false
	}
	req.Sums = req.Sums[:n]
	return true
}

func sumsMatch(data []byte, sums []uint64) bool {
	for i, s := range sums {
		if block.Sum(data[i*block.Size:(i+1)*block.Size]) != s {
			return false
		}
	}
	return true
}

// step takes a request as far as it can go now: it holds its chunks, one after the other, is journaled, and
// does its I/O. It is called again when what it waited for has happened.
func (r *Replica) step(o *op) {
	for o.have < o.n {
		e := r.cache.acquire(o.chunk+int64(o.have), o)
		if e == nil {
			return
		}
		o.ent[o.have] = e
		o.have++
	}
	switch o.req.Kind {
	case wire.KindRead:
		r.read(o)
	case wire.KindSums:
		r.answerSums(o)
	case wire.KindVerify:
		r.verify(o)
	case wire.KindSnapRead, wire.KindSnapSums, wire.KindSnapCheck, wire.KindSnapVerify:
		r.askSnap(o)
	case wire.KindSnapOpen:
		r.openChunk(o)
	case wire.KindClone:
		o.clone.held()
	default:
		r.change(o)
	}
}

// finish ends a request: now, or right after Submit when it is called inside it.
func (r *Replica) finish(o *op, status wire.Status) {
	for i := range o.have {
		e := o.ent[i]
		if o.marked {
			from, n := o.blocks(i)
			e.busy.clear(from, n)
		}
		r.cache.release(e)
	}
	o.have, o.marked = 0, false
	o.status = status
	if !r.submitting {
		r.answer(o)
		return
	}
	r.answers.push(o)
	if !r.posted {
		r.posted = true
		r.loop.Post(r.runAnswers)
	}
}

// answerPosted answers what was completed inside Submit. Only that, not what is added meanwhile.
func (r *Replica) answerPosted() {
	r.posted = false
	last := r.answers.tail
	for o := r.answers.pop(); o != nil; o = r.answers.pop() {
		end := o == last
		r.answer(o)
		if end {
			break
		}
	}
	if !r.answers.empty() && !r.posted {
		r.posted = true
		r.loop.Post(r.runAnswers)
	}
}

func (r *Replica) answer(o *op) {
	req, status := o.req, o.status
	if status == wire.StatusOK {
		r.noteConfirm(req.Term)
	}
	if req.Kind != wire.KindFence {
		r.inflight--
	}
	if l := o.level; l != nil {
		o.level = nil
		l.release()
	}
	r.putOp(o)
	req.Status = status
	req.Done(req)
	if r.inflight == 0 && (!r.fences.empty() || r.closing != nil) {
		r.quiet()
	}
}

func (r *Replica) getOp() *op {
	o := r.free
	if o == nil {
		o = &op{r: r}
		o.io.Done = o.ioDone
		return o
	}
	r.free = o.next
	o.next = nil
	return o
}

func (r *Replica) putOp(o *op) {
	o.req, o.n, o.have, o.issued, o.syncs = nil, 0, 0, false, false
	o.ent[0], o.ent[1] = nil, nil
	o.sums, o.clone = nil, nil
	o.next = r.free
	r.free = o
}

// statusOf says what an error of the disk means to the asker.
func statusOf(err error) wire.Status {
	switch {
	case err == nil:
		return wire.StatusOK
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return wire.StatusNoSpace
	}
	return wire.StatusIOError
}

// mem is page-aligned memory for I/O off the data path.
type mem struct {
	b      []byte
	pooled bool
}

// getBuf takes a buffer of the loop, or makes one if those are used up.
func (r *Replica) getBuf(n int) mem { return getMem(r.loop, n) }

func (r *Replica) putBuf(m mem) { putMem(r.loop, m) }

func getMem(l aio.Loop, n int) mem {
	if b := l.Buffers().Get(n); b != nil {
		return mem{b, true}
	}
	return mem{aligned(n), false}
}

func putMem(l aio.Loop, m mem) {
	if m.pooled {
		l.Buffers().Put(m.b)
	}
}

// aligned returns n bytes of Go's heap that start at a page.
func aligned(n int) []byte {
	b := make([]byte, n+block.Size)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (block.Size - 1)
	return b[skip : skip+n : skip+n]
}
