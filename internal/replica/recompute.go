package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

const (
	rcMax  = 4       // chunks that are recomputed at a time
	rcStep = 1 << 20 // bytes read at a time
	// maxUnreadable is how many blocks of a chunk may be unreadable before the disk is taken to be broken.
	maxUnreadable = 64
)

// recomputing reads a chunk to find the sums that its data has.
type recomputing struct {
	r   *Replica
	e   *ent
	op  aio.Op
	buf mem
	at  int64 // bytes of the chunk done
	n   int64 // bytes being read
	end int64
	// careful: up to here, blocks are read one by one, as one of them can't be read.
	careful    int64
	unreadable int
	// missed are blocks that couldn't be read: they are tried once more when the rest of the chunk was read, as a disk may fail
	// for a moment only, and what is given up here is lost if no other copy has it.
	missed []int
	// suspect: a crash or a failed write made the sums unreliable, and the data is taken as it is. Otherwise the sums
	// were damaged at rest: then a block counts only if its stored sum vouches for it.
	suspect bool
	bad     blockMap
	unread  blockMap
}

// recompute makes the sums of e from its data. Nobody holds e.
func (r *Replica) recompute(e *ent) {
	e.state = entRecompute
	if r.rcBusy >= rcMax {
		r.rcQueue = append(r.rcQueue, e)
		return
	}
	r.rcBusy++
	r.background++
	rc := &recomputing{r: r, e: e, suspect: r.suspect.has(e.chunk), buf: r.getBuf(rcStep)}
	rc.end = min(block.ChunkSize, r.desc.Size-e.chunk*block.ChunkSize)
	rc.op.Done = rc.read
	rc.more()
}

func (rc *recomputing) more() {
	rc.n = min(rcStep, rc.end-rc.at)
	if rc.at < rc.careful {
		rc.n = block.Size
	}
	rc.r.files.head.ReadAt(&rc.op, rc.buf.b[:rc.n], rc.e.chunk*block.ChunkSize+rc.at)
}

func (rc *recomputing) read(n int, err error) {
	switch {
	case rc.at >= rc.end:
		rc.readAgain(n, err)
		return
	case err != nil && rc.n > block.Size:
		rc.careful = rc.at + rc.n
		rc.more()
		return
	case err != nil && rc.unreadable == maxUnreadable:
		rc.done(err)
		return
	case err != nil:
		rc.unreadable++
		rc.missed = append(rc.missed, int(rc.at/block.Size))
	default:
		want := int(rc.n)
		clear(rc.buf.b[n:want])
		for off := 0; off < want; off += block.Size {
			i := int(rc.at/block.Size) + off/block.Size
			rc.judge(i, block.Sum(rc.buf.b[off:off+block.Size]))
		}
	}
	if rc.at += rc.n; rc.at < rc.end {
		rc.more()
		return
	}
	rc.tryMissed()
}

// tryMissed reads the next block that couldn't be read.
func (rc *recomputing) tryMissed() {
	if len(rc.missed) == 0 {
		rc.done(nil)
		return
	}
	off := rc.e.chunk*block.ChunkSize + int64(rc.missed[0])*block.Size
	rc.r.files.head.ReadAt(&rc.op, rc.buf.b[:block.Size], off)
}

func (rc *recomputing) readAgain(n int, err error) {
	i := rc.missed[0]
	rc.missed = rc.missed[1:]
	if err != nil {
		rc.lost(i)
	} else {
		clear(rc.buf.b[n:block.Size])
		rc.judge(i, block.Sum(rc.buf.b[:block.Size]))
	}
	rc.tryMissed()
}

// lost notes that block i can't be read: until it can, or is written, reads of it fail.
func (rc *recomputing) lost(i int) {
	rc.r.stats.IOErrors++
	rc.r.log.Error("a block can't be read to recompute its checksum", "chunk", rc.e.chunk, "block", i)
	rc.bad.set(i)
	if rc.suspect && !invariant.Mutant("unread-block-keeps-sum") {
		rc.unread.set(i)
	}
	if stored := &rc.e.sums[i]; *stored == 0 {
		*stored = 1 // not zeros
	}
}

// judge compares block i's computed sum with the stored one.
func (rc *recomputing) judge(i int, sum uint64) {
	stored := &rc.e.sums[i]
	if *stored == sum {
		return
	}
	rc.bad.set(i)
	switch {
	case rc.suspect:
		*stored = sum
	case *stored == 0:
		// Reads would take it for zeros: give it a sum that no data on the disk has, so that they fail.
		if *stored = ^sum; *stored == 0 {
			*stored = 1
		}
	}
}

func (rc *recomputing) done(err error) {
	r, e := rc.r, rc.e
	r.putBuf(rc.buf)
	r.rcBusy--
	r.background--
	e.state = entReady
	if err != nil {
		r.stats.IOErrors++
		r.log.Error("data can't be read to recompute its checksums", "chunk", e.chunk, "error", err)
		r.cache.failed(e, err)
	} else {
		r.stats.Recomputed++
		if !rc.suspect {
			r.log.Error("stored checksums were damaged; blocks that they don't vouch for have to be repaired from another copy", "chunk", e.chunk)
		}
		e.unread = rc.unread
		r.known(e)
		if rc.bad != (blockMap{}) {
			if r.bad == nil {
				r.bad = make(map[int64]*blockMap)
			}
			r.bad[e.chunk] = &rc.bad
		}
		r.cache.wake(e)
	}
	if len(r.rcQueue) > 0 {
		next := r.rcQueue[0]
		r.rcQueue = r.rcQueue[1:]
		r.recompute(next)
	}
}

// known notes that sums of e were found. The chunk is suspect for as long as there are others that weren't.
func (r *Replica) known(e *ent) {
	if e.unread == (blockMap{}) {
		r.suspect.remove(e.chunk)
	}
	e.dirty = true
	if r.cp.o != nil {
		r.cp.late.add(e.chunk)
	}
}

// adopt takes the blocks that couldn't be read when the sums of their chunks were recomputed, and that o has read now from block number
// at on, as they are. Sums are those that o answers with.
func (r *Replica) adopt(o *op, at int64, data []byte, sums []uint64) {
	if r.suspect.count == 0 {
		return
	}
	for k := range len(data) / block.Size {
		b := at + int64(k)
		e, i := o.ent[b/block.PerChunk-o.chunk], int(b%block.PerChunk)
		if e.unread.has(i) && !e.busy.has(i) {
			sums[k] = block.Sum(data[k*block.Size : (k+1)*block.Size])
			e.sums[i] = sums[k]
			e.unread.clear(i, 1)
			r.known(e)
		}
	}
}
