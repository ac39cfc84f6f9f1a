package replica

import (
	"time"

	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/wire"
)

// submitFence refuses everything older from now on, and answers when the fence is durable and all
// requests that were accepted before are answered.
func (r *Replica) submitFence(o *op) {
	req := o.req
	switch {
	case r.closed || req.Replica != r.desc.Replica:
		r.finish(o, wire.StatusNotFound)
		return
	case req.Term < r.m.fence:
		r.finish(o, wire.StatusFenced)
		return
	case req.Term == r.m.fence && req.Session < r.session:
		r.finish(o, wire.StatusOldSession)
		return
	}
	req.Fence = &wire.FenceReply{Run: r.cfg.Run, PrevFence: r.saved.fence, Size: r.desc.Size}
	if req.Period > r.m.fence && !invariant.Mutant("rollback-not-noticed") {
		r.log.Warn("the replica was rolled back: it doesn't know a term that it had promised", "fence", r.m.fence, "known", req.Period)
		req.Fence.SinceConfirm, req.Fence.AllChunks = 0, true
		r.finish(o, wire.StatusOK)
		return
	}
	r.open = false
	r.session = req.Session
	r.supersede(req.Term)
	r.fences.push(o)
	if req.Term > r.saved.fence {
		r.m.fence = req.Term
		if invariant.Mutant("fence-not-durable") {
			r.saved.fence = req.Term
			r.loop.Post(r.quiet)
			return
		}
		r.saveMeta(func(err error) {
			if err != nil {
				r.fenceFailed(err)
			}
			r.quiet()
		})
		return
	}
	r.background++
	r.loop.Post(func() {
		r.background--
		r.quiet()
	})
}

// supersede ends the fences that wait: a newer one has come. So there is never more than one, however long a disk hangs.
func (r *Replica) supersede(term uint64) {
	for o := r.fences.pop(); o != nil; o = r.fences.pop() {
		status := wire.StatusOldSession
		if o.req.Term < term {
			status = wire.StatusFenced
		}
		o.req.Fence = nil
		r.finish(o, status)
	}
}

// quiet is called when something that a fence or Close waits for has happened.
func (r *Replica) quiet() {
	if (r.inflight == 0 || r.plantedHaste()) && r.saved.fence == r.m.fence {
		for last := r.fences.tail; last != nil; {
			o := r.fences.pop()
			if o == nil {
				break
			}
			r.answerFence(o)
			if o == last {
				break
			}
		}
	}
	if r.closing != nil {
		r.tryClose()
	}
}

func (r *Replica) fenceFailed(err error) {
	for o := r.fences.pop(); o != nil; o = r.fences.pop() {
		o.req.Fence = nil
		r.finish(o, statusOf(err))
	}
}

func (r *Replica) answerFence(o *op) {
	req := o.req
	f := req.Fence
	switch {
	case req.Term < r.m.fence:
		req.Fence = nil
		r.finish(o, wire.StatusFenced)
		return
	case req.Session != r.session:
		req.Fence = nil
		r.finish(o, wire.StatusOldSession)
		return
	}
	if r.reconcileTerm < req.Term {
		r.reconcileTerm = req.Term
		r.mustReconcile()
	}
	f.Checkpoint = r.m.checkpoint
	f.SinceConfirm = r.sinceConfirm(req.Term)
	f.Exact = r.suspect.count == 0 && r.crashed.count == 0
	f.Journal, f.AllChunks = r.journaled()
	r.open = true
	r.log.Info("fenced", "term", req.Term, "session", req.Session, "journal", len(f.Journal), "all_chunks", f.AllChunks, "exact", f.Exact)
	r.finish(o, wire.StatusOK)
}

// mustReconcile marks every chunk in the journal: a new term must make it identical everywhere.
func (r *Replica) mustReconcile() {
	for c := range r.journal.live {
		r.unrec.add(c)
	}
	for c := r.suspect.next(0); c >= 0; c = r.suspect.next(c + 1) {
		r.unrec.add(c)
	}
	if r.m.all > r.m.checkpoint {
		for c, g := range r.gens {
			if g > r.m.checkpoint {
				r.unrec.add(int64(c))
			}
		}
	}
}

// journaled lists the chunks written since the checkpoint; or says that it may be any.
func (r *Replica) journaled() (list []wire.JournalEntry, all bool) {
	set := bitset{size: r.chunks}
	for c := range r.journal.live {
		set.add(c)
	}
	for _, s := range []*bitset{&r.unrec, &r.suspect} {
		for c := s.next(0); c >= 0; c = s.next(c + 1) {
			set.add(c)
		}
	}
	everything := r.m.all > r.m.checkpoint
	if everything {
		for c, g := range r.gens {
			if g > r.m.checkpoint {
				set.add(int64(c))
			}
		}
	}
	if set.count > wire.MaxJournal || everything && set.count == r.chunks {
		return nil, true
	}
	for c := set.next(0); c >= 0; c = set.next(c + 1) {
		p := r.gens[c]
		if rec, ok := r.journal.live[c]; ok && rec.period > p {
			p = rec.period
		}
		list = append(list, wire.JournalEntry{Chunk: c, Period: p})
	}
	return list, false
}

// noteConfirm remembers that a term was confirmed now.
func (r *Replica) noteConfirm(term uint64) {
	now := r.loop.Now()
	switch {
	case term == r.confirmTerm:
		r.confirmAt, r.confirmed = now, true
	case term > r.confirmTerm:
		if r.confirmed {
			r.lowerAt, r.lower = r.confirmAt, true
		}
		r.confirmTerm, r.confirmAt, r.confirmed = term, now, true
	default:
		r.lowerAt, r.lower = now, true
	}
}

// sinceConfirm is how long ago a term below the given one was confirmed; negative if never.
func (r *Replica) sinceConfirm(term uint64) time.Duration {
	at, ok := r.lowerAt, r.lower
	if term > r.confirmTerm && r.confirmed {
		at, ok = r.confirmAt, true
		if r.lower {
			at = max(at, r.lowerAt)
		}
	}
	if !ok {
		return -1
	}
	return max(r.loop.Now()-at, 0)
}
