package volume

import (
	"fmt"
	"math/bits"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/qos"
	"keelson.io/keelson/internal/repl"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// Times and sizes of scrubs.
const (
	scrubPiece = block.MaxIO // what is locked and verified at once
	scrubRetry = time.Second
	// scrubMinCost is what a piece counts against the limits, in bytes, however little is allocated in it.
	scrubMinCost = 64 << 10
	// scrubYield: while the volume is in use, a scrub rests this many times as long as its last piece took, but at most scrubRest: a
	// disk that didn't answer for a while says nothing about the next piece.
	scrubYield = 4
	scrubRest  = 10 * time.Second
	// The position is written down at most every scrubSaveMin, and then only when a hundredth more is done, and at least
	// every scrubSaveMax.
	scrubSaveMin = time.Minute
	scrubSaveMax = 10 * time.Minute
)

// scrubber verifies the volume while its record says that a scrub is active, one piece after the other:
//
//	follow -> step -> (gens of the next chunks) -> piece -> rest -> step … -> end
//
// It has no state of its own that matters: what was found and where it stands goes to the record, now and then.
type scrubber struct {
	v      *Volume
	timer  aio.Timer
	number uint64 // the scrub that position and found belong to; 0: none
	// position is how many chunks are done, in all columns one after the other; at is how many bytes of the next.
	position int64
	at       int64
	found    spec.ScrubFindings
	bucket   *qos.Bucket
	// busy: a piece, a question for gens or the end is under way. Invariant: then the timer isn't armed.
	busy bool
	gens scrubGens
	// levels are what snapshots hold of the chunk whose head is done.
	levels scrubLevels
	moved  bool            // the volume has grown, and positions stand for other chunks
	spoke  map[string]bool // what was reported of this scrub already

	saved   int64 // the position that was written down last
	savedAt time.Duration
	saving  bool
	unsaved bool   // findings or position aren't in the record
	seen    uint64 // requests of the frontend, as of the last piece
}

// scrubGens has, for a run of chunks, whether any in-sync member ever wrote them.
type scrubGens struct {
	first   int64 // position of written[0]
	written []bool
}

func (s *scrubber) init(v *Volume) {
	s.v = v
	s.timer = v.loop.NewTimer(s.step)
}

// chunks is how many chunks there are in all columns.
func (s *scrubber) chunks() int64 {
	return int64(len(s.v.columns)) * block.Chunks(s.v.columns[0].size)
}

// runs reports whether there is something to do now.
func (s *scrubber) runs() bool {
	rec := &s.v.rec.Scrub
	return s.v.phase == serving && rec.Running() && rec.Number == s.number
}

// follow does what the record says now.
func (s *scrubber) follow() {
	rec := &s.v.rec.Scrub
	if s.v.phase != serving || s.busy {
		return // looked at again when what is under way ends
	}
	if rec.Active && rec.Number != s.number {
		s.number, s.position, s.at, s.found = rec.Number, rec.Position, 0, rec.Findings
		s.saved, s.savedAt, s.unsaved = rec.Position, s.v.loop.Now(), false
		s.gens, s.spoke = scrubGens{}, map[string]bool{}
		s.levels = scrubLevels{}
		s.bucket = qos.NewBucket(rec.Bandwidth, 2*scrubPiece)
		s.v.log.Info("scrub goes on", "number", s.number, "chunk", s.position, "of", s.chunks(), "paused", rec.Paused)
	}
	if !s.runs() {
		s.timer.Stop()
		if rec.Active && rec.Number == s.number {
			s.save() // paused
		}
		return
	}
	s.busy = true
	s.rest(0)
}

// rest goes on after a while.
func (s *scrubber) rest(d time.Duration) { s.timer.Reset(d) }

// pause ends what is under way without a result: it is tried again in a while.
func (s *scrubber) pause() { s.rest(scrubRetry) }

// step begins what comes next.
func (s *scrubber) step() {
	if !s.runs() {
		s.busy = false
		s.follow()
		if s.v.phase == detaching {
			s.v.drained()
		}
		return
	}
	s.rewind()
	per := block.Chunks(s.v.columns[0].size)
	if s.at == 0 {
		s.maybeSave()
		if s.position >= s.chunks() {
			s.end()
			return
		}
	}
	c, chunk := s.v.columns[s.position/per], s.position%per
	if !c.verifiable() {
		s.pause()
		return
	}
	if s.levels.on {
		s.levelStep(c, chunk)
		return
	}
	if i := s.position - s.gens.first; i < 0 || i >= int64(len(s.gens.written)) {
		s.askGens(c, chunk)
		return
	} else if !s.gens.written[i] {
		s.headDone() // a damaged map of a snapshot says nothing of chunks that were never written either
		s.rest(0)
		return
	}
	off := chunk*block.ChunkSize + s.at
	p := &piece{s: s, c: c, off: off, n: min(scrubPiece, block.ChunkSize-s.at, c.size-off), began: s.v.loop.Now()}
	p.rng.Granted = p.locked
	p.lock(true)
}

// verifiable reports whether the column's in-sync members can be compared now: they are reconciled and can be asked, and none is
// being brought up to date, which needs the bandwidth more.
func (c *column) verifiable() bool {
	if c.rc.Phase() != repl.PhaseServing || len(c.unreconciled) > 0 || c.rc.InSync() == 0 || c.rc.Everyone() != c.rc.InSync() {
		return false
	}
	for rest := c.rc.InSync(); rest != 0; rest &= rest - 1 {
		if _, open := c.rc.Session(bits.TrailingZeros32(rest)); !open {
			return false
		}
	}
	return true
}

// askGens finds out which of the next chunks of c were ever written, on any in-sync member. One that is written meanwhile is
// the next scrub's.
func (s *scrubber) askGens(c *column, chunk int64) {
	members := c.rc.InSync()
	n := min(block.Chunks(c.size)-chunk, block.PerChunk)
	written := make([]bool, n)
	left, ok := bits.OnesCount32(members), true
	for rest := members; rest != 0; rest &= rest - 1 {
		q := &wire.Request{Kind: wire.KindGens, Off: chunk * block.ChunkSize, Len: n * block.ChunkSize, Sums: make([]uint64, n)}
		c.ask(bits.TrailingZeros32(rest), q, func(*wire.Request) {
			ok = ok && q.Status == wire.StatusOK
			for i := range min(len(q.Sums), len(written)) {
				written[i] = written[i] || q.Sums[i] != 0
			}
			if left--; left > 0 {
				return
			}
			if !ok {
				s.pause()
				return
			}
			s.gens = scrubGens{first: s.position, written: written}
			s.rest(0)
		})
	}
}

// pieceDone takes the end of a piece: what was found in it, and what it counts against the limits.
func (s *scrubber) pieceDone(p *piece, ok bool, found spec.ScrubFindings, cost int64) {
	v := s.v
	if !ok || s.number != v.rec.Scrub.Number {
		s.pause()
		return
	}
	s.count(found, found.Bytes)
	if s.at += p.n; s.at >= block.ChunkSize || p.off+p.n >= p.c.size {
		s.headDone()
	}
	s.restAfter(p, cost)
}

// count takes over what was found in bytes that were verified.
func (s *scrubber) count(found spec.ScrubFindings, bytes int64) {
	s.unsaved = true
	s.found = s.found.Merge(found)
	s.v.Stats.ScrubBytes += uint64(bytes)
	s.v.Stats.ScrubDiffering += uint64(found.Differing)
	s.v.Stats.ScrubUnreadable += uint64(found.Unreadable)
	s.report(found)
}

// restAfter rests after a piece as long as limits, and the load, want it.
func (s *scrubber) restAfter(p *piece, cost int64) {
	v := s.v
	now := v.loop.Now()
	wait := s.bucket.Take(now, cost)
	if v.cfg.ScrubTake != nil {
		wait = max(wait, v.cfg.ScrubTake(cost))
	}
	used := v.Stats.Reads + v.Stats.Writes + v.Stats.Flushes + v.Stats.Trims
	if used != s.seen || v.inFlight > 0 {
		wait = max(wait, min(scrubYield*(now-p.began), scrubRest))
	}
	s.seen = used
	s.rest(wait)
}

// report tells of what can't be mended, the first of each sort at once.
func (s *scrubber) report(found spec.ScrubFindings) {
	for _, b := range found.Bad {
		what, text := "block-unreadable", "no copy is intact"
		if b.Differ {
			what, text = "copies-differ", "the copies are intact and differ; nothing was changed"
		}
		if b.Snapshot != "" {
			text = "snapshot " + b.Snapshot + ": " + text
		}
		s.v.log.Error("scrub: "+text, "off", b.Off, "bytes", b.Len, "pools", b.Pools)
		s.tell(what, spec.Event{What: what, Warning: true, Message: fmt.Sprintf("at %d, %d bytes, in pools %v: %s", b.Off, b.Len, b.Pools, text)})
	}
}

// trouble tells that a copy can't be verified or repaired.
func (s *scrubber) trouble(c *column, m int, what string, off int64) {
	s.found.Partial, s.unsaved = true, true
	c.log(m).Error("scrub: "+what, "off", off)
	if mb := c.rc.Member(m); mb != nil {
		s.tell(what+mb.Replica, spec.Event{What: "scrub-trouble", Warning: true, Node: mb.Node, Pool: c.record(mb.Replica).Pool,
			Message: fmt.Sprintf("replica %s on node %s, pool %s: %s; look at its disk", mb.Replica, mb.Node, c.record(mb.Replica).Pool, what)})
	}
}

// tell records an event, once a scrub for each key.
func (s *scrubber) tell(key string, e spec.Event) {
	if s.spoke[key] || s.v.cfg.Event == nil {
		return
	}
	s.spoke[key] = true
	e.Time, e.Volume = s.v.cfg.Wall().UTC(), s.v.rec.Name
	s.v.cfg.Event(e)
}

// put writes position and findings into a record, if it is still about this scrub.
func (s *scrubber) put(rec *spec.Volume) {
	if sc := &rec.Scrub; sc.Active && sc.Number == s.number && s.number != 0 && sc.Position <= s.position {
		sc.Position, sc.Findings = s.position, s.found.Merge(spec.ScrubFindings{})
	}
}

func (s *scrubber) maybeSave() {
	since := s.v.loop.Now() - s.savedAt
	if since >= scrubSaveMax || since >= scrubSaveMin && s.position-s.saved >= max(1, s.chunks()/100) {
		s.save()
	}
}

// save writes the position down.
func (s *scrubber) save() {
	if s.saving || !s.unsaved && s.saved == s.position {
		return
	}
	at := s.position
	s.saving, s.unsaved = true, false
	s.commit(s.snapshot(false), func(ok bool) {
		s.saving = false
		s.unsaved = s.unsaved || !ok
		s.saved, s.savedAt = at, s.v.loop.Now()
	})
}

// snapshot returns a change of the record as of now; it may be made later.
func (s *scrubber) snapshot(ended bool) func(*spec.Volume) {
	frozen := scrubber{number: s.number, position: s.position, found: s.found.Merge(spec.ScrubFindings{})}
	now := s.v.cfg.Wall()
	return func(rec *spec.Volume) {
		frozen.put(rec)
		if ended && rec.Scrub.Active && rec.Scrub.Number == frozen.number {
			rec.Scrub.End(now)
		}
	}
}

// commit changes the record in this coordinator's term.
func (s *scrubber) commit(change func(*spec.Volume), done func(ok bool)) {
	v := s.v
	v.cfg.Meta.Update(func(rec *spec.Volume) error {
		if rec.State.Term != v.term || rec.State.Node != v.cfg.Self {
			return repl.ErrLost
		}
		change(rec)
		return nil
	}, func(rec spec.Volume, rev meta.Rev, err error) {
		if err == nil {
			v.Update(rec, rev)
		}
		done(err == nil)
		s.follow()
	})
}

// end records the result.
func (s *scrubber) end() {
	f := s.found
	number := s.number
	s.commit(s.snapshot(true), func(ok bool) {
		s.busy, s.number = false, 0
		if !ok {
			return
		}
		warn := f.Unreadable+f.Differing > 0 || f.Partial
		text := fmt.Sprintf("scrub %d: %s verified, %d blocks repaired, %d unreadable, %d differ", number, spec.FormatSize(f.Bytes), f.Repaired, f.Unreadable, f.Differing)
		if f.Chosen > 0 {
			text += fmt.Sprintf(", %d made what the preferred copy has", f.Chosen)
		}
		if f.Partial {
			text += "; not every copy was verified"
		}
		s.v.log.Info(text)
		delete(s.spoke, "ended")
		s.tell("ended", spec.Event{What: "scrub-ended", Warning: warn, Message: text})
	})
}

// ScrubStatus is how far a scrub is. Bytes are of the volume.
type ScrubStatus struct {
	Number      uint64
	Done, Total int64
	Findings    spec.ScrubFindings
}

// status returns the progress of the active scrub; nil if there is none.
func (s *scrubber) status() *ScrubStatus {
	if s.number == 0 || !s.v.rec.Scrub.Active || s.v.rec.Scrub.Number != s.number {
		return nil
	}
	total := s.v.size
	done := min(total, s.position*block.ChunkSize+s.at)
	return &ScrubStatus{Number: s.number, Done: done, Total: total, Findings: s.found}
}
