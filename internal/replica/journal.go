package replica

import (
	"encoding/binary"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

// The file journal: a ring of blocks. Block number seq, counted from 1, is in slot seq mod journalSlots.
const (
	journalMagic    = 0x314a4c4b // "KLJ1"
	journalSlots    = 256
	journalSize     = journalSlots * block.Size
	entrySize       = 16
	entriesInSector = sectorPayload / entrySize
	entriesInBlock  = block.Size / sectorSize * entriesInSector

	// maxLive bounds the chunks in the journal. With more of them, all chunks count as being in it. It leaves
	// most of the ring free, so that moving live entries always gets ahead.
	maxLive = 16384

	chunkBits = 56
	entryKept = 1 << chunkBits // the chunk is not reconciled
)

// entry is one entry of the journal.
type entry struct {
	chunk  int64
	period uint64
	kept   bool
}

// encodeJournal fills the block b.
func encodeJournal(b []byte, seq uint64, entries []entry) {
	clear(b)
	le := binary.LittleEndian
	for i, e := range entries {
		p := entryAt(b, i)
		c := uint64(e.chunk)
		if e.kept {
			c |= entryKept
		}
		le.PutUint64(p, c)
		le.PutUint64(p[8:], e.period)
	}
	seal(b, journalMagic, seq, len(entries)/entriesInSector*sectorPayload+len(entries)%entriesInSector*entrySize)
}

func entryAt(b []byte, i int) []byte {
	off := i/entriesInSector*sectorSize + sectorHeader + i%entriesInSector*entrySize
	return b[off : off+entrySize]
}

// decodeJournal appends the entries of block b to dst.
func decodeJournal(dst []entry, b []byte, chunks int64) (seq uint64, entries []entry, v verdict) {
	seq, used, v := unseal(b, journalMagic)
	if v != frameWhole {
		return seq, dst, v
	}
	if used%entrySize != 0 {
		return 0, dst, frameDamaged
	}
	le := binary.LittleEndian
	for i := range used / entrySize {
		p := entryAt(b, i)
		c := le.Uint64(p)
		e := entry{int64(c & (1<<chunkBits - 1)), le.Uint64(p[8:]), c&entryKept != 0}
		if e.chunk >= chunks || c>>chunkBits > 1 || e.period == 0 {
			return 0, dst, frameDamaged
		}
		dst = append(dst, e)
	}
	return seq, dst, frameWhole
}

// record is what memory holds of a chunk in the journal.
type record struct {
	period uint64 // durable
	pend   uint64 // in the block that is being written; 0 if none
	slot   int16  // where the durable entry is
}

// journal is the activity log. One block is written at a time; all that comes meanwhile shares the next.
//
// Invariant: the slot after the one that was written last has no live entry, so a torn write harms none.
type journal struct {
	r    *Replica
	live map[int64]record
	// slots has, for each slot, the chunks whose entries were written there; stale ones too.
	slots [][]int64
	seq   uint64 // of the last durable block

	op      aio.Op
	writing bool
	buf     mem
	block   []entry // in flight
	queue   opList  // waiting for a block to be built
	flying  opList  // waiting for the block in flight
	adds    []entry // the replica's own
	addDone []func(error)
	addsNow []func(error) // of the block in flight
	allBusy bool          // meta is being told that all chunks are in the journal
	limit   int           // chunks in the journal before it overflows
}

func (j *journal) init(r *Replica) {
	j.r = r
	j.limit = maxLive
	j.live = make(map[int64]record)
	j.op.Done = j.written
}

// covers reports whether the journal durably names the chunks of o for its period, or a later one.
func (j *journal) covers(o *op) bool {
	period := o.req.Period
	if j.r.saved.all >= period {
		j.r.setGens(o)
		return true
	}
	for i := range o.n {
		rec := j.live[o.chunk+int64(i)]
		if rec.period > 0 && invariant.Mutant("journal-keyed-by-chunk") || i > 0 && invariant.Mutant("journal-first-chunk-only") {
			continue
		}
		if rec.period < period {
			return false
		}
	}
	j.r.setGens(o)
	return true
}

// setGens gives the chunks that o changes the gen of its period.
func (r *Replica) setGens(o *op) {
	for i := range o.n {
		c := o.chunk + int64(i)
		if r.gens[c] < o.req.Period {
			r.gens[c] = o.req.Period
			r.gensDirty.add(c / gensPerBlock)
		}
	}
}

// wait queues o until covers(o) may have become true; then it is stepped again.
func (j *journal) wait(o *op) {
	if j.writing {
		flying := true
		for i := range o.n {
			rec := j.live[o.chunk+int64(i)]
			flying = flying && max(rec.period, rec.pend) >= o.req.Period
		}
		if flying {
			j.flying.push(o)
			return
		}
	}
	j.queue.push(o)
	j.write()
}

// add journals entries of the replica's own, and calls done when they are durable.
func (j *journal) add(entries []entry, done func(error)) {
	j.adds = append(j.adds, entries...)
	j.addDone = append(j.addDone, done)
	j.write()
}

// write builds and writes the next block, unless one is being written.
func (j *journal) write() {
	if j.writing || j.allBusy || j.queue.empty() && len(j.addDone) == 0 {
		return
	}
	j.block = j.block[:0]
	j.moveLive(int((j.seq + 2) % journalSlots))
	j.takeAdds()
	if full := j.takeQueue(); full {
		j.overflow()
	}
	if len(j.block) == 0 {
		j.release(nil)
		return
	}
	j.writing = true
	j.buf = j.r.getBuf(block.Size)
	seq := j.seq + 1
	encodeJournal(j.buf.b, seq, j.block)
	j.r.stats.JournalBlocks++
	if invariant.Mutant("journal-not-durable") {
		j.r.files.journal.WriteAt(&j.op, j.buf.b, int64(seq%journalSlots)*block.Size)
		return
	}
	j.r.files.journal.WriteSync(&j.op, j.buf.b, int64(seq%journalSlots)*block.Size)
}

// moveLive takes the live entries of a slot into the block that is being built, as the block
// after this one will overwrite that slot.
func (j *journal) moveLive(slot int) {
	if slot >= len(j.slots) {
		return
	}
	for _, c := range j.slots[slot] {
		if rec := j.live[c]; rec.period > 0 && int(rec.slot) == slot {
			j.put(c, rec.period)
		}
	}
}

func (j *journal) put(chunk int64, period uint64) {
	rec := j.live[chunk]
	period = max(period, rec.period)
	if rec.pend >= period {
		return
	}
	was := rec.pend
	rec.pend = period
	j.live[chunk] = rec
	if was > 0 { // it is in the block with an older period
		for i := range j.block {
			if j.block[i].chunk == chunk {
				j.block[i].period = period
			}
		}
		return
	}
	j.block = append(j.block, entry{chunk, period, j.r.unrec.has(chunk)})
}

func (j *journal) takeAdds() {
	n := 0
	for ; n < len(j.adds) && len(j.block) < entriesInBlock; n++ {
		a := j.adds[n]
		if rec := j.live[a.chunk]; rec.period >= a.period {
			continue
		}
		j.put(a.chunk, a.period)
	}
	if j.adds = j.adds[n:]; len(j.adds) == 0 {
		j.addsNow, j.addDone, j.adds = j.addDone, nil, nil
	}
}

// takeQueue moves requests from the queue to the block, in order, while there is room. It
// reports whether a request was left because the journal has no room for another chunk.
func (j *journal) takeQueue() (full bool) {
	for o := j.queue.head; o != nil; o = j.queue.head {
		need, fresh := 0, 0
		for i := range o.n {
			if rec, ok := j.live[o.chunk+int64(i)]; max(rec.period, rec.pend) < o.req.Period {
				need++
				if !ok {
					fresh++
				}
			}
		}
		if len(j.live)+fresh > j.limit {
			return true
		}
		if len(j.block)+need > entriesInBlock {
			return false
		}
		for i := range o.n {
			if rec := j.live[o.chunk+int64(i)]; max(rec.period, rec.pend) < o.req.Period {
				j.put(o.chunk+int64(i), o.req.Period)
			}
		}
		j.flying.push(j.queue.pop())
	}
	return false
}

// written is called when the block's write has ended.
func (j *journal) written(_ int, err error) {
	j.r.putBuf(j.buf)
	j.writing = false
	if err == nil {
		j.seq++
		j.landed()
	} else {
		j.r.log.Error("the journal can't be written", "error", err)
		for _, e := range j.block {
			rec := j.live[e.chunk]
			if rec.pend = 0; rec.period == 0 {
				delete(j.live, e.chunk)
			} else {
				j.live[e.chunk] = rec
			}
		}
		j.addsNow = append(j.addsNow, j.addDone...)
		j.adds, j.addDone = nil, nil
	}
	j.release(err)
}

// release lets go on who waited for the block that was written; the next block is on its way by then.
func (j *journal) release(err error) {
	flying, adds := j.flying, j.addsNow
	j.flying, j.addsNow = opList{}, nil
	j.write()
	for o := flying.pop(); o != nil; o = flying.pop() {
		if err != nil {
			j.r.finish(o, statusOf(err))
			continue
		}
		j.r.step(o)
	}
	for _, fn := range adds {
		fn(err)
	}
}

// landed notes that the block is durable.
func (j *journal) landed() {
	slot := int(j.seq % journalSlots)
	for len(j.slots) <= slot {
		j.slots = append(j.slots, nil)
	}
	list := j.slots[slot][:0]
	for _, e := range j.block {
		j.live[e.chunk] = record{period: e.period, slot: int16(slot)}
		list = append(list, e.chunk)
	}
	j.slots[slot] = list
}

// overflow makes it durable that every chunk is in the journal, for the period of whoever waits.
func (j *journal) overflow() {
	r := j.r
	period := uint64(0)
	for o := j.queue.head; o != nil; o = o.next {
		period = max(period, o.req.Period)
	}
	r.m.all = max(r.m.all, period)
	r.m.allKept = r.m.allKept && r.saved.all > r.m.checkpoint || r.unrec.count > 0
	j.allBusy = true
	r.log.Info("more chunks are being written than the journal names: it names all of them until the next checkpoint", "period", period)
	r.saveMeta(func(err error) {
		j.allBusy = false
		if err == nil {
			j.forget(r.saved.all)
		}
		queue := j.queue
		j.queue = opList{}
		for o := queue.pop(); o != nil; o = queue.pop() {
			if err != nil {
				r.finish(o, statusOf(err))
			} else {
				r.step(o)
			}
		}
		j.write()
	})
}

// forget drops the entries of the given period and older ones.
func (j *journal) forget(period uint64) {
	for c, rec := range j.live {
		if rec.period > period || rec.pend > period {
			continue
		}
		if rec.pend > 0 {
			continue // it is being written: the next one will find it
		}
		delete(j.live, c)
	}
	if len(j.live) == 0 {
		j.live = make(map[int64]record)
		j.slots = nil
	}
}

// journalFound is what was read from the journal's file.
type journalFound struct {
	entries map[int64]entry // the latest of each chunk
	slots   map[int64]int   // and where it is
	seq     uint64
	damaged bool
}

// readJournal judges the whole file.
func readJournal(b []byte, chunks int64) (f journalFound, err error) {
	f.entries, f.slots = make(map[int64]entry), make(map[int64]int)
	type slotState struct {
		seq uint64
		v   verdict
	}
	var state [journalSlots]slotState
	var at [journalSlots]uint64 // block number that gave the chunk's entry, by slot
	var list []entry
	for s := range journalSlots {
		var seq uint64
		var v verdict
		seq, list, v = decodeJournal(list[:0], b[s*block.Size:(s+1)*block.Size], chunks)
		if v == frameNewer {
			return f, ErrVersion
		}
		if v == frameWhole && seq%journalSlots != uint64(s) {
			v = frameDamaged
		}
		state[s] = slotState{seq, v}
		at[s] = seq
		if v != frameWhole {
			continue
		}
		f.seq = max(f.seq, seq)
		for _, e := range list {
			old, ok := f.entries[e.chunk]
			if !ok || e.period > old.period || e.period == old.period && seq > at[f.slots[e.chunk]] {
				e.kept = e.kept || ok && old.kept
				f.entries[e.chunk], f.slots[e.chunk] = e, s
			} else if e.kept {
				old.kept = true
				f.entries[e.chunk] = old
			}
		}
	}
	next := int((f.seq + 1) % journalSlots)
	for s, st := range state {
		back := (f.seq - uint64(s)) % journalSlots // blocks since this slot was written
		switch {
		case st.v == frameDamaged:
			f.damaged = true
		case s == next && st.v == frameTorn:
		case s == next && st.v == frameWhole && st.seq+journalSlots == f.seq+1:
		case back >= f.seq && st.v == frameEmpty:
		case back < f.seq && st.v == frameWhole && st.seq == f.seq-back:
		default:
			f.damaged = true
		}
	}
	return f, nil
}
