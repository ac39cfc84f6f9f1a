package sim_test

import (
	"encoding/binary"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/spec"
)

// snapshots reports whether snapshots are taken in this run. It is drawn apart, so that the other runs are what they were.
func (c *cluster) snapshots() bool {
	return c.p.snapAlways || rand.New(rand.NewPCG(c.seed, 0x736e6170)).IntN(4) == 0
}

// snapsOf is what is known of a volume's snapshots from outside.
type snapsOf struct {
	v     *vol
	next  int
	known map[string]*knownSnap
	jobs  int
	// restoring is set from when a restore is asked for until the record says that it is done: meanwhile clients wait.
	restoring *restoring
	// rotten are blocks in which bits of snapshots were flipped before the last scrub.
	rotten map[int]bool
}

// knownSnap is one snapshot: when it was asked for and recorded, by the history's clock, and what it holds, by block.
type knownSnap struct {
	id     string
	asked  int64
	period uint64
	held   map[int]uint64
	partly bool // held lacks blocks: they were damaged when it was looked at
	// It is what the volume held at a moment from from to to, by what was written first and last.
	from, to    int64
	first, last *hop
}

// snap asks for snapshots, deletions, clones and restores, whatever happens meanwhile.
func (c *cluster) snap() {
	rng := c.w.Rand()
	c.w.After(c.upTo(1500*time.Millisecond)+100*time.Millisecond, "snapshots", c.snap)
	for _, v := range c.vols {
		if c.s.down || v.finished || v.rec.Restore != nil {
			continue
		}
		next := cloneRecord(v.rec)
		if len(next.Clones) > 0 && next.Clones[0].Stale(&next) {
			next.Clones = nil // the leader makes another
		}
		k := rng.IntN(7)
		if !c.faulty {
			k = 7
		}
		switch {
		case k < 3 && len(next.Snapshots) < 6:
			v.snaps.next++
			s := spec.Snapshot{ID: fmt.Sprintf("%016x", v.snaps.next), Name: fmt.Sprintf("s%d", v.snaps.next)}
			if err := next.AddSnapshot(s, 8); err != nil {
				c.fail("%v", err)
				return
			}
			if v.snaps.known == nil {
				v.snaps.known = map[string]*knownSnap{}
			}
			v.snaps.known[s.ID] = &knownSnap{id: s.ID, asked: v.hist.tick()}
		case k < 5 && len(next.Snapshots) > 0:
			x := &next.Snapshots[rng.IntN(len(next.Snapshots))]
			if next.SnapshotInUse(x.ID) != "" {
				continue
			}
			x.State = spec.SnapshotDeleting
		case k == 5 && len(next.Snapshots) > 0 && len(next.Clones) == 0 && v.snaps.jobs < 4:
			x := next.Snapshots[rng.IntN(len(next.Snapshots))]
			if x.State != spec.SnapshotReady {
				continue
			}
			v.snaps.jobs++
			next.Clones = append(next.Clones, v.cloneJob(x))
		case k == 6 && len(next.Snapshots) > 0 && len(next.Clones) == 0:
			if !v.snaps.askRestore(&next) {
				continue
			}
		default:
			if len(next.Clones) == len(v.rec.Clones) {
				continue
			}
		}
		c.s.put(v, next)
	}
}

func (v *vol) cloneJob(x spec.Snapshot) spec.CloneJob {
	j := spec.CloneJob{Volume: fmt.Sprintf("%016x", 0xc000+v.i*16+v.snaps.jobs), Snapshot: x.ID}
	d := replica.Desc{Cluster: "c1", Volume: j.Volume, Name: "clone", Columns: v.columns, Size: spec.ColumnSize(x.Size, v.columns)}
	j.Desc, _ = json.Marshal(d)
	for col, column := range v.rec.State.Columns {
		for i, m := range column.Members {
			j.Members = append(j.Members, spec.CloneMember{Column: col, From: m.Replica,
				Replica: fmt.Sprintf("%016x", 0xc0000000+v.i<<16+v.snaps.jobs<<8+col<<4+i)})
		}
	}
	return j
}

// recorded looks at a change of the record: a snapshot that has become ready is read from every in-sync copy, and from then on
// must stay what it was; so must its clones be.
func (s *snapsOf) recorded(prev, next spec.Volume) {
	if len(next.Snapshots)+len(prev.Snapshots) == 0 {
		return
	}
	if prev.Restore != nil && next.Restore == nil {
		s.restored()
	}
	for _, x := range next.Snapshots {
		if k := s.known[x.ID]; x.State == spec.SnapshotReady && k != nil && k.period == 0 {
			k.period = x.Period
			s.v.c.count("snapshots")
			s.v.c.w.Tracef("snapshot %s of %s is ready: %x", x.ID, s.v.rec.Name, x.Period)
			s.judge(k, x.Size)
		}
	}
	for _, j := range next.Clones {
		if j.Done {
			s.cloned(j)
			s.v.c.w.After(0, "clone done", func() {
				rec := cloneRecord(s.v.rec)
				rec.Clones = nil
				s.v.c.s.put(s.v, rec)
			})
		}
	}
	if len(prev.Snapshots) > len(next.Snapshots) {
		s.v.c.count("snapshots deleted")
	}
	s.check("the record changed")
}

// copies calls fn with every in-sync copy of a column. What is in a snapshot that is ready is durable, so also one whose machine
// has lost its power since has it.
func (s *snapsOf) copies(col int, fn func(k *replicaCopy)) {
	for _, m := range s.v.rec.State.Columns[col].Members {
		if k := s.v.c.copies[m.Replica]; m.State == spec.InSync && !k.wentBack {
			fn(k)
		}
	}
}

// page returns what a copy has of a snapshot at an offset.
func (k *replicaCopy) page(period uint64, off int64) []byte {
	d := k.n.sn.Disk()
	chunk := off / block.ChunkSize
	var list []uint64
	for _, name := range d.Names(k.dir + "/snaps") {
		if p, err := strconv.ParseUint(name, 16, 64); err == nil && len(name) == 16 && p >= period {
			list = append(list, p)
		}
	}
	slices.Sort(list)
	if len(list) == 0 || list[0] != period {
		return nil
	}
	for _, p := range list {
		dir := fmt.Sprintf("%s/snaps/%016x", k.dir, p)
		pieces, check := k.mapEntry(p, chunk)
		if pieces != 0 && check == 0 { // all zeros: what the file has there is nobody's
			return make([]byte, block.Size)
		}
		if pieces>>(off%block.ChunkSize/(64<<10))&1 != 0 {
			return d.Page(dir+"/data", off, false)
		}
	}
	return d.Page(k.head, off, false)
}

// mapEntry is what a copy's snapshot says of a chunk: which pieces of 64 KiB it has itself, and a checksum over the sums of all.
func (k *replicaCopy) mapEntry(period uint64, chunk int64) (pieces, check uint64) {
	page := k.n.sn.Disk().Page(fmt.Sprintf("%s/snaps/%016x/meta", k.dir, period), block.Size+chunk/240*block.Size, false)
	if len(page) == 0 {
		return 0, 0
	}
	entry := page[chunk%240/30*512:][32+chunk%30*16:]
	return binary.LittleEndian.Uint64(entry), binary.LittleEndian.Uint64(entry[8:])
}

// judge reads a snapshot that has just become ready, and checks that it is one cut.
func (s *snapsOf) judge(x *knownSnap, size int64) {
	v := s.v
	x.held = map[int]uint64{}
	from, to := x.asked, int64(never)
	var first, last *hop
	for _, blk := range v.hist.written {
		if int64(blk) >= size/block.Size { // nothing had been written there yet
			if op := v.hist.firstWrite(blk); op != nil && op.ret < to && !v.tainted[int64(blk)] {
				to, last = op.ret, op
			}
			continue
		}
		if v.tainted[int64(blk)] {
			x.partly = true
			continue
		}
		col, off := v.locate(int64(blk) * block.Size)
		s.copies(col, func(k *replicaCopy) {
			p := k.page(x.period, off)
			if p == nil {
				v.c.fail("snapshot %s: replica %s on %s doesn't have it", x.id, k.id, k.n.name)
				return
			}
			val, err := v.hist.value(p, blk)
			if err != nil {
				v.c.fail("snapshot %s: replica %s on %s: %v", x.id, k.id, k.n.name, err)
				return
			}
			if was, ok := x.held[blk]; ok && was != val {
				v.c.fail("snapshot %s: replica %s on %s has write %d in block %d, another in-sync one write %d", x.id, k.id, k.n.name, val, blk, was)
			}
			x.held[blk] = val
		})
		val, ok := x.held[blk]
		x.partly = x.partly || !ok
		if !ok || val&tornBit != 0 || v.loss[col] {
			continue
		}
		born, gone, ops := v.hist.bounds(blk, val)
		if born > from {
			from, first = born, ops[0]
		}
		if gone < to {
			to, last = gone, ops[1]
		}
	}
	x.from, x.to, x.first, x.last = from, to, first, last
	if from > to && v.c.err == nil {
		v.c.fail("snapshot %s, asked for at %d, is no cut: it has %+v and not %+v", x.id, x.asked, first, last)
	}
}

// bounds returns when a write to a block began, and by when one that came after it had happened; and the two. It looks no further
// back than to the last loss. Which of several trims made a block zeros isn't known.
func (h *history) bounds(blk int, val uint64) (born, gone int64, ops [2]*hop) {
	gone = never
	segs := h.blocks[blk].segs
	seg := &segs[len(segs)-1]
	ret := int64(-1)
	for _, op := range seg.ops {
		if !op.write || op.val != val {
			continue
		}
		if val == 0 || !op.acked {
			return 0, never, ops
		}
		born, ret, ops[0] = op.call, op.ret, op
	}
	for _, op := range seg.ops {
		if op.write && op.acked && op.call > ret && op.ret < gone {
			gone, ops[1] = op.ret, op
		}
	}
	return born, gone, ops
}

// firstWrite returns the write that was the first to be answered; nil if none was.
func (h *history) firstWrite(blk int) (first *hop) {
	for _, op := range h.blocks[blk].segs[0].ops {
		if op.write && op.acked && (first == nil || op.ret < first.ret) {
			first = op
		}
	}
	return first
}

// check compares every snapshot that is ready, on every in-sync copy, with what it was when it became that.
func (s *snapsOf) check(when string) {
	v := s.v
	for _, x := range v.rec.Snapshots {
		k := s.known[x.ID]
		if x.State != spec.SnapshotReady || k == nil || v.c.err != nil {
			continue
		}
		for blk, want := range k.held {
			if v.tainted[int64(blk)] || s.rotten[blk] {
				continue
			}
			col, off := v.locate(int64(blk) * block.Size)
			s.copies(col, func(c *replicaCopy) {
				p := c.page(x.Period, off)
				if p == nil {
					v.c.fail("snapshot %s: replica %s on %s has lost it (%s): %s", x.ID, c.id, c.n.name, when, describe(v.rec))
				} else if val, err := v.hist.value(p, blk); err != nil || val != want {
					v.c.fail("snapshot %s: block %d of replica %s on %s was write %d and is %d, %v (%s): %s", x.ID, blk, c.id, c.n.name, want, val, err, when, describe(v.rec))
				}
			})
		}
	}
}

// cloned compares the clone's copies with the snapshot.
func (s *snapsOf) cloned(j spec.CloneJob) {
	v, x := s.v, s.known[j.Snapshot]
	made := map[int]int{}
	for _, m := range j.Members {
		if !m.Made {
			continue
		}
		made[m.Column]++
		n := v.c.copies[m.From].n
		for blk, want := range x.held {
			col, off := v.locate(int64(blk) * block.Size)
			if col != m.Column || v.tainted[int64(blk)] {
				continue
			}
			p := n.sn.Disk().Page(poolDir+"/"+m.Replica+"/head", off, true)
			if val, err := v.hist.value(p, blk); err != nil || val != want {
				v.c.fail("clone of snapshot %s: block %d of replica %s on %s is write %d, %v; the snapshot has %d", j.Snapshot, blk, m.Replica, n.name, val, err, want)
			}
		}
	}
	if len(made) != v.columns {
		v.c.fail("clone of snapshot %s: not every column has a copy", j.Snapshot)
	}
	v.c.count("clones")
}

// settledSnaps reports whether nothing that was asked for is left to do.
func (s *snapsOf) settled() bool { return !s.v.rec.SnapshotWork() && len(s.v.c.groups.list) == 0 }

var (
	snapBase  = flag.Uint64("snap-base", 1, "the first seed of TestSnapshots")
	snapSeeds = flag.Uint64("snap-seeds", 30, "how many runs TestSnapshots plays")
)

// TestSnapshots plays runs in which snapshots are taken, deleted, cloned and restored while everything goes wrong.
func TestSnapshots(t *testing.T) {
	counts := map[string]int{}
	for seed := *snapBase; seed < *snapBase+*snapSeeds; seed++ {
		if err := playSnaps(seed, counts); err != nil {
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	t.Log(counts)
	for name, each := range map[string]float64{"snapshots": 4, "snapshots deleted": 2, "clones": 0.4, "restores": 0.2} {
		if least := int(each * float64(*snapSeeds)); counts[name] < least {
			t.Errorf("%s: %d, want %d at least: the test shows too little", name, counts[name], least)
		}
	}
}

func playSnaps(seed uint64, counts map[string]int) error {
	d := directedBy(seed)
	c := newClusterWith(seed, nil, func(p *params) { d.prepare(p); p.snapAlways = true })
	c.script, c.blesses = d.script, c.blesses || d.kills
	err := c.run()
	for _, k := range slices.Sorted(maps.Keys(c.counts)) {
		counts[k] += c.counts[k]
	}
	return err
}
