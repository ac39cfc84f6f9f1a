package replica

import (
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/wire"
)

// idleAfter is how long nothing must be asked of a replica until it gives its memory back.
const idleAfter = 10 * time.Second

// Stats are a replica's counters, since it was opened, and its state.
type Stats struct {
	Reads, Writes uint64 // answered by data I/O, or from the sums
	BadBlocks     uint64 // blocks read that didn't match their sums
	BadWrites     uint64 // writes refused because data and sums didn't match
	IOErrors      uint64
	Verified      uint64 // bytes read to be verified
	Recomputed    uint64 // chunks whose sums were recomputed
	JournalBlocks uint64
	SumsReads     uint64
	SumsWrites    uint64
	Syncs         uint64 // of the head
	Checkpoints   uint64
	Preserved     uint64 // pieces of chunks that snapshots got before they were changed
	Settled       uint64 // how often the head was settled, as it shared nothing any more

	Fence      uint64
	Checkpoint uint64
	Chunks     int64
	Journal    int64 // chunks in the journal
	AllChunks  bool  // the journal names all of them
	Suspect    int64 // chunks whose sums have to be recomputed
	Unrec      int64 // chunks that a new term has to reconcile
	Cached     int   // chunks whose sums are in memory
	InFlight   int
	Snapshots  int
}

// Stats returns the counters and the state.
func (r *Replica) Stats() Stats {
	s := r.stats
	s.Fence, s.Checkpoint = r.saved.fence, r.saved.checkpoint
	s.Chunks, s.Journal = r.chunks, int64(len(r.journal.live))
	s.AllChunks = r.saved.all > r.saved.checkpoint
	s.Suspect, s.Unrec = r.suspect.count, r.unrec.count
	s.Cached, s.InFlight = len(r.cache.ents), r.inflight
	s.Snapshots = len(r.snaps.levels)
	return s
}

// idleCheck gives memory back when nothing was asked since the last look.
func (r *Replica) idleCheck() {
	if r.closed {
		return
	}
	if r.activity != r.idleSeen || r.inflight > 0 {
		r.idleSeen = r.activity
		r.idle.Reset(idleAfter)
		return
	}
	r.idleArmed = false
	if r.cp.o == nil {
		r.cache.shrink()
		r.free = nil
	}
}

// Close refuses what comes from now on, waits for what is in flight, and closes the files. It makes no checkpoint:
// the next Open recovers as after a crash, unless one was made before. done is called later, on the loop.
func (r *Replica) Close(done func()) {
	if r.closed {
		r.loop.Post(done)
		return
	}
	r.closed, r.open = true, false
	r.idle.Stop()
	r.closing = done
	r.loop.Post(r.quiet)
}

// tryClose closes the files once nothing is in flight.
func (r *Replica) tryClose() {
	if r.inflight > 0 || r.background > 0 || r.metaBusy || r.journal.writing || !r.fences.empty() || !r.answers.empty() {
		return
	}
	done := r.closing
	r.closing = nil
	files := r.files
	for _, l := range r.snaps.levels {
		files.snaps = append(files.snaps, l.files()...)
	}
	r.loop.Work(func() { closeFiles(files.all()) }, done)
}

func closeFiles(fs []aio.File) {
	for _, f := range fs {
		if f != nil {
			_ = f.Close()
		}
	}
}

var _ wire.Member = (*Replica)(nil)
