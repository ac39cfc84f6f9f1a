package sim_test

import (
	"time"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// place is where the scheduler wants each volume: where it is, or, when that node is gone, elsewhere.
func (c *cluster) place() {
	c.w.After(300*time.Millisecond, "scheduler", c.place)
	for _, v := range c.vols {
		if v.moving || v.desired < 0 {
			continue
		}
		st := v.rec.State
		if st.Node != "" && c.s.leaseAlive(st.Node) {
			v.desired = c.node(st.Node).idx
			continue
		}
		if n := c.nodes[v.desired]; n.eng == nil || !c.s.reachable(n) || n.name == st.Node {
			v.desired = c.w.Rand().IntN(len(c.nodes))
		}
	}
}

// move detaches the volume cleanly and has it attached elsewhere.
func (v *vol) move() bool {
	c, n := v.c, v.c.node(v.rec.State.Node)
	if n == nil || n.eng == nil || n.eng.atts[v.i].vol == nil || v.moving {
		return false
	}
	v.moving = true
	end := func() { v.moving = false }
	c.w.After(10*time.Second, "move takes too long", end)
	n.eng.detach(v, func(err error) {
		if err == nil {
			v.desired = c.w.Rand().IntN(len(c.nodes))
		}
		end()
	})
	return true
}

// replace adds a replica on a node that has none of its column, in place of another.
func (v *vol) replace() bool {
	c, rng := v.c, v.c.w.Rand()
	col := rng.IntN(v.columns)
	members := v.rec.State.Columns[col].Members
	if len(members) > v.replicas {
		return false // one at a time
	}
	n := c.anyNode()
	for _, m := range members {
		if m.Node == n.name {
			return false
		}
	}
	e := n.eng
	if e == nil || !e.ready {
		return false
	}
	out := members[rng.IntN(len(members))].Replica
	m := v.newMember(n.idx, col, spec.Stale)
	m.Reason = "replacement"
	e.createReplica(c.copies[m.Replica], func() {
		e.meta[v.i].update(false, func(rec *spec.Volume) error {
			list := rec.State.Columns[col].Members
			if len(list) > v.replicas {
				return errHeld // another replacement came first
			}
			found := false
			for i := range list {
				list[i].Removing = list[i].Replica == out
				found = found || list[i].Removing
			}
			if !found {
				return errHeld // it was replaced meanwhile
			}
			rec.State.Columns[col].Members = append(list, m)
			return nil
		}, func(spec.Volume, meta.Rev, error) {})
	})
	return true
}

// reconcile drops replaced replicas once the others are in sync, as the elected leader does.
func (c *cluster) reconcile() {
	c.w.After(500*time.Millisecond, "reconciler", c.reconcile)
	for _, v := range c.vols {
		if !c.s.down {
			v.dropReplaced()
			v.admitGrowth()
		}
	}
}

func (v *vol) dropReplaced() {
	for i, col := range v.rec.State.Columns {
		inSync, removing := 0, -1
		for j, m := range col.Members {
			if m.Removing {
				removing = j
			} else if m.State == spec.InSync {
				inSync++
			}
		}
		if removing < 0 || inSync < v.replicas {
			continue
		}
		if m := col.Members[removing]; m.State == spec.InSync && v.rec.State.Node != "" {
			continue // its coordinator takes it out first
		}
		next := cloneRecord(v.rec)
		members := next.State.Columns[i].Members
		next.State.Columns[i].Members = append(members[:removing:removing], members[removing+1:]...)
		v.c.count("replaced")
		v.c.s.put(v, next)
		return
	}
}

// intact returns the in-sync replicas of a column.
func (v *vol) intact(col int) (good []*replicaCopy) {
	for _, m := range v.rec.State.Columns[col].Members {
		if m.State == spec.InSync {
			good = append(good, v.c.copies[m.Replica])
		}
	}
	return good
}

// flip damages a block of one in-sync copy, if another has it whole.
func (v *vol) flip() bool {
	rng := v.c.w.Rand()
	at := v.hot[rng.IntN(len(v.hot))]
	col, off := v.locate(at * block.Size)
	good := v.intact(col)
	if len(good) < 2 || v.tainted[at] {
		return false
	}
	k := good[rng.IntN(len(good))]
	d := k.n.sn.Disk()
	if rng.IntN(3) == 0 && d.BreakSector(k.head, off) || d.FlipBit(k.head, off+rng.Int64N(block.Size)) {
		v.tainted[at] = true
		return true
	}
	return false
}

// rot damages what a replica keeps beside its data. It is always the same replica of a column: others are whole.
func (v *vol) rot(kind faultKind) bool {
	rng := v.c.w.Rand()
	col := rng.IntN(v.columns)
	good := v.intact(col)
	if len(good) < 2 {
		return false
	}
	k := v.c.copies[v.victims[col]]
	if k == nil {
		k = good[rng.IntN(len(good))]
		v.victims[col] = k.id
	}
	d := k.n.sn.Disk()
	damage := func(name string, off int64) bool {
		switch {
		case rng.IntN(4) == 0:
			return d.BreakSector(k.dir+"/"+name, off)
		case name == "sums":
			return k.flipSum(off + rng.Int64N(block.Size))
		}
		return d.FlipBit(k.dir+"/"+name, off+rng.Int64N(block.Size))
	}
	switch kind {
	case faultRotSums:
		return damage("sums", rng.Int64N(block.Chunks(v.columnSize())*8192)/block.Size*block.Size)
	case faultRotGens:
		return damage("gens", 0)
	case faultRotJournal:
		return damage("journal", rng.Int64N(8)*block.Size)
	}
	return v.rotMeta(k)
}

// rotMeta damages one copy of a replica's meta while its engine is down: for a while it can't be read, and nothing may be decided without
// it; or what it says is gone, and the replica goes back in time.
func (v *vol) rotMeta(k *replicaCopy) bool {
	rng, d, name := v.c.w.Rand(), k.n.sn.Disk(), k.dir+"/meta"
	off := rng.Int64N(4) * block.Size
	if k.n.eng == nil || k.n.eng.replicas[k.wid] == nil {
		return false
	}
	if v.c.p.losesPower() || rng.IntN(2) == 0 {
		if !d.BreakSector(name, off) {
			return false
		}
		v.c.w.After(v.c.somewhile(), "meta can be read again", d.HealSectors)
	} else if k.metaWrites < 2 || k.n.eng.failed || d.Busy(name) || !d.FlipBit(name, off+rng.Int64N(block.Size)) {
		return false // a slot may be torn, and the other is all there is
	} else {
		k.metaWrites, k.fence, k.wentBack = 0, 0, true
	}
	k.n.crash()
	v.c.restartLater(k.n, v.c.somewhile()/2)
	return true
}
