package sim_test

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/spec"
	"keelson.io/keelson/internal/wire"
)

// replicaCopy is what is known of a replica from outside: it outlives engines.
type replicaCopy struct {
	v    *vol
	col  int
	n    *node
	id   string
	wid  wire.ReplicaID
	dir  string
	head string
	made bool
	// entered says that it was in the in-sync set at some time.
	entered bool

	running []*wire.Request // executing in the present engine
	fence   uint64          // the highest that it answered with OK
	// barred is the highest term it ever fenced at: damage to meta may take fence back, not this.
	barred uint64
	// touched has the chunks that were changed in a period that no checkpoint of the replica covers.
	touched map[int64]uint64
	// metaWrites counts how often meta was written since an engine was started or meta was damaged.
	metaWrites int
	// wentBack: damage to meta took the replica back in time. It knows less than the record says, and must not serve.
	wentBack bool
	rotten   rotten
}

func newReplicaCopy(v *vol, col int, n *node, id string) *replicaCopy {
	return &replicaCopy{v: v, col: col, n: n, id: id, wid: replicaID(id), dir: poolDir + "/" + id, head: poolDir + "/" + id + "/head", touched: map[int64]uint64{}}
}

func replicaID(s string) wire.ReplicaID {
	id, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		panic(err)
	}
	return wire.ReplicaID(id)
}

func (e *engine) replicaConfig(k *replicaCopy) replica.Config {
	return replica.Config{Loop: e.l, Dir: k.dir, Run: e.n.run(), Log: e.log()}
}

// openReplica opens a replica that was made before, or makes it when the run begins.
func (e *engine) openReplica(k *replicaCopy, done func()) {
	c := e.n.c
	if !k.made {
		e.createReplica(k, done)
		return
	}
	replica.Open(e.replicaConfig(k), func(r *replica.Replica, err error) {
		if err == nil {
			e.use(k, r)
			done()
			return
		}
		if errors.Is(err, replica.ErrDamaged) || errors.Is(err, replica.ErrNotFound) || errors.Is(err, replica.ErrVersion) {
			c.fail("replica %s on %s doesn't open: %v", k.id, e.n.name, err)
			return
		}
		c.w.Tracef("replica %s on %s: %v", k.id, e.n.name, err)
		c.w.After(500*time.Millisecond, "open again", func() {
			if !e.l.Dead() {
				e.l.Post(func() { e.openReplica(k, done) })
			}
		})
	})
}

// createReplica makes a new replica. done is called only when that worked.
func (e *engine) createReplica(k *replicaCopy, done func()) {
	c, v := e.n.c, k.v
	d := replica.Desc{Cluster: "c1", Volume: v.rec.ID, Name: v.rec.Name, Replica: k.wid, Column: k.col, Columns: v.columns, Size: spec.ColumnSize(v.rec.Planned(), v.columns)}
	replica.Create(e.replicaConfig(k), d, func(r *replica.Replica, err error) {
		if err != nil {
			c.w.Tracef("replica %s on %s can't be made: %v", k.id, e.n.name, err)
			return
		}
		k.made = true
		e.use(k, r)
		done()
	})
}

// use takes an open replica over, and watches what is done to it.
func (e *engine) use(k *replicaCopy, r *replica.Replica) {
	k.running, k.metaWrites = nil, 0
	d := k.n.sn.Disk()
	d.Watch(k.head, k.headChanged)
	d.Watch(k.dir+"/meta", func(int64, int64) { k.metaWrites++ })
	e.replicas[k.wid] = &watched{e: e, k: k, r: r}
}

// watched is an open replica. It sees every request and every answer.
type watched struct {
	e *engine
	k *replicaCopy
	r *replica.Replica

	growing bool // or its size is being recorded
}

// Submit implements wire.Member.
func (w *watched) Submit(q *wire.Request) {
	k := w.k
	done, mark, healed := q.Done, uint64(0), !k.v.c.faulty
	switch q.Kind {
	case wire.KindFlush:
		mark = k.n.sn.Disk().Answered(k.head)
	case wire.KindFence:
		k.v.reach(phaseFence)
	case wire.KindCheckpoint:
		k.v.reach(phaseCheckpoint)
	case wire.KindGens:
		k.v.compared()
	}
	k.running = append(k.running, q)
	q.Done = func(*wire.Request) {
		q.Done = done
		if i := slices.Index(k.running, q); i >= 0 && !w.e.l.Dead() {
			k.running = slices.Delete(k.running, i, i+1)
			if healed {
				k.metRot(q)
			}
			if q.Status == wire.StatusOK {
				k.answered(q, mark)
			}
		}
		done(q)
	}
	w.r.Submit(q)
}

// answered judges an OK of the replica.
func (k *replicaCopy) answered(q *wire.Request, mark uint64) {
	c := k.v.c
	if q.Kind == wire.KindFence {
		k.fenced(q)
		return
	}
	if q.Term < k.fence {
		c.fail("invariant 3: replica %s on %s has fenced at term %d, and executed a %v of term %d", k.id, k.n.name, k.fence, q.Kind, q.Term)
	}
	switch q.Kind {
	case wire.KindFlush:
		if !k.n.sn.Disk().Synced(k.head, mark) {
			c.fail("invariant 2: replica %s on %s answered a flush of term %d, and what it had answered before isn't durable", k.id, k.n.name, q.Term)
		}
	case wire.KindWrite:
		k.wrote(q)
	case wire.KindCheckpoint:
		for chunk, period := range k.touched {
			if period <= q.Period {
				delete(k.touched, chunk)
			}
		}
	}
}

// wrote checks that a write which was answered is there: and durable, if that was asked.
func (k *replicaCopy) wrote(q *wire.Request) {
	for _, o := range k.running {
		if changes(o.Kind) && o.Off < q.Off+int64(len(q.Data)) && q.Off < o.Off+o.Length() {
			return // another coordinator's, which is going to be refused
		}
	}
	for at := 0; at < len(q.Data); at += block.Size {
		off := q.Off + int64(at)
		if b := q.Data[at : at+block.Size]; !block.Intact(b, block.Sum(b)) {
			k.givenLost(off)
		}
		page := k.n.sn.Disk().Page(k.head, off, q.FUA)
		if string(page) != string(q.Data[at:at+block.Size]) && !k.v.tainted[int64(k.v.blockAt(k.col, off))] {
			k.v.c.fail("replica %s on %s answered a write of term %d (FUA %v) at %d that isn't there", k.id, k.n.name, q.Term, q.FUA, off)
			return
		}
	}
}

func changes(k wire.Kind) bool {
	return k == wire.KindWrite || k == wire.KindTrim || k == wire.KindZero
}

// fenced judges the answer to a fence: what the replica promises by it, and that its journal names every chunk that was
// changed and that no checkpoint covers.
func (k *replicaCopy) fenced(q *wire.Request) {
	c := k.v.c
	k.v.reach(phaseFenced)
	if f := q.Fence; f != nil && f.PrevFence < q.Period && !invariant.Mutant("rollback-not-noticed") {
		return // it was rolled back: it answers, and keeps the fence that it has
	}
	if q.Term < k.fence {
		c.fail("invariant 3: replica %s on %s has fenced at term %d, and then at %d", k.id, k.n.name, k.fence, q.Term)
	}
	k.v.bar(k, k.barred, q.Term)
	k.fence, k.barred = q.Term, max(k.barred, q.Term)
	if q.Fence == nil || q.Fence.AllChunks {
		return
	}
	listed := map[int64]bool{}
	for _, e := range q.Fence.Journal {
		listed[e.Chunk] = true
	}
	for chunk, period := range k.touched {
		if period > q.Fence.Checkpoint && !listed[chunk] {
			c.fail("chunk %d of replica %s on %s was changed in period %x, its checkpoint is %x, and its journal doesn't have it", chunk, k.id, k.n.name, period, q.Fence.Checkpoint)
			return
		}
	}
}

// headChanged checks what a change has made of the head: a copy in the in-sync set holds nothing that was not written, or
// has been overwritten.
func (k *replicaCopy) headChanged(from, to int64) {
	v := k.v
	d := k.n.sn.Disk()
	for _, q := range k.running {
		if !changes(q.Kind) {
			continue
		}
		first, last := max(q.Off/block.Size, from), min((q.Off+q.Length())/block.Size, to)
		for at := first; at < last; at = (at/block.PerChunk + 1) * block.PerChunk {
			chunk := at / block.PerChunk
			if p, ok := k.touched[chunk]; !ok || q.Period > p {
				k.touched[chunk] = q.Period
			}
		}
	}
	m := v.member(k.col, k.id)
	if m == nil || !k.counts(*m) || v.loss[k.col] {
		return
	}
	for i := from; i < to; i++ {
		blk := v.blockAt(k.col, i*block.Size)
		if !v.tainted[int64(blk)] && !v.hist.mayHold(d.Page(k.head, i*block.Size, false), blk) {
			v.c.fail("invariant 1: in-sync replica %s on %s: block %d became what it must not hold any more (it begins %x; allowed are writes %v): %s",
				k.id, k.n.name, blk, d.Page(k.head, i*block.Size, false)[:8], v.hist.blocks[blk].maybe, describe(v.rec))
			return
		}
	}
}
