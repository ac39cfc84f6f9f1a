package replica

import (
	"math"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/invariant"
)

// flusher syncs the head. All who come while a sync is under way share the next one.
type flusher struct {
	r       *Replica
	op      aio.Op
	busy    bool
	queue   opList // waiting for the next sync
	flying  opList // waiting for the one under way
	waiting []func(error)
	now     []func(error)
	// dirty: something was written since the last sync began.
	dirty bool
	// oldest is the lowest period of what was written since then.
	oldest uint64
	was    uint64 // oldest, as of when the sync under way began
}

func (f *flusher) init(r *Replica) {
	f.r = r
	f.oldest = math.MaxUint64
	f.op.Done = f.done
}

// wrote notes that data of the period was written, and isn't known to be durable.
func (f *flusher) wrote(period uint64) {
	f.dirty = true
	f.oldest = min(f.oldest, period)
}

// add makes everything durable that was answered up to now, and then finishes o.
func (f *flusher) add(o *op) {
	if f.busy && invariant.Mutant("flush-joins-running-sync") {
		f.flying.push(o)
		return
	}
	f.queue.push(o)
	f.start()
}

// call makes everything durable that was answered up to now, and then calls done.
func (f *flusher) call(done func(error)) {
	f.waiting = append(f.waiting, done)
	f.start()
}

func (f *flusher) start() {
	if f.busy || f.queue.empty() && len(f.waiting) == 0 {
		return
	}
	f.flying, f.queue = f.queue, opList{}
	f.now, f.waiting = f.waiting, nil
	if !f.dirty || invariant.Mutant("flush-without-sync") {
		f.release(nil)
		return
	}
	f.busy, f.dirty = true, false
	f.was, f.oldest = f.oldest, math.MaxUint64
	f.r.stats.Syncs++
	f.r.files.head.Sync(&f.op)
}

func (f *flusher) done(_ int, err error) {
	f.busy = false
	if invariant.Mutant("sync-error-ignored") {
		err = nil
	}
	if err != nil {
		f.dirty = true
		f.oldest = min(f.oldest, f.was)
		f.r.stats.IOErrors++
		f.r.log.Error("data can't be made durable", "error", err)
	}
	f.release(err)
}

// release lets go on who waited for the sync that ended; the next one is on its way by then.
func (f *flusher) release(err error) {
	flying, now := f.flying, f.now
	f.flying, f.now = opList{}, nil
	f.start()
	for o := flying.pop(); o != nil; o = flying.pop() {
		f.r.finish(o, statusOf(err))
	}
	for _, fn := range now {
		fn(err)
	}
}
