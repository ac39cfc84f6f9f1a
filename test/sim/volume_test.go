package sim_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// vol is one volume of a run: its record in the metadata, what is wanted of it, and what its clients saw.
type vol struct {
	c *cluster
	i int
	volParams

	rec spec.Volume
	rev meta.Rev
	// loss is set for a column when the in-sync set was recorded anew after every member of the
	// old one had lost its run: only then may acknowledged writes that weren't flushed be missing.
	loss map[int]bool

	hist      *history
	hot       []int64        // blocks that are used most
	tainted   map[int64]bool // blocks with a copy that was damaged
	victims   []string       // for each column, the replica whose other files rot, or ""
	desired   int            // where the volume shall be attached
	moving    bool           // it is being detached there
	servedNow uint64         // the newest term that served
	leased    bool           // the holder's lease was alive when it was looked at last
	readOnly  bool           // clients don't write any more
	ending    bool           // it is being detached for good
	finished  bool           // the run is over for it
	sizes     []int64        // that it comes to have, by growing
	healed    bool           // the last scrub left nothing to be mended
	snaps     snapsOf
}

func (c *cluster) newVolume(rng *rand.Rand, i int, p volParams) *vol {
	p.size = int64(p.columns) * spec.ColumnSize(p.size, p.columns)
	v := &vol{c: c, i: i, volParams: p, rev: 1, loss: map[int]bool{}, tainted: map[int64]bool{}, victims: make([]string, p.columns)}
	for range 12 {
		v.hot = append(v.hot, rng.Int64N(v.size/block.Size))
	}
	v.hot = append(v.hot, block.PerChunk, spec.StripeUnit/block.Size)
	if v.seam {
		v.hot = []int64{spec.StripeUnit / block.Size}
	}
	v.snaps.v = v
	v.growSteps()
	v.hist = newHistory(int(v.full()/block.Size), uint64(i), &c.clock)
	v.rec = spec.Volume{ID: fmt.Sprintf("%016x", 0xaa+i), Name: fmt.Sprintf("vol%d", i), Size: v.size, Replicas: v.replicas, Columns: v.columns}
	for k := range v.columns {
		var col spec.Column
		for _, at := range rng.Perm(c.p.nodes)[:v.replicas] {
			col.Members = append(col.Members, v.newMember(at, k, spec.InSync))
		}
		v.rec.State.Columns = append(v.rec.State.Columns, col)
	}
	for at, n := range c.nodes {
		if v.diskless && !slices.ContainsFunc(v.rec.State.Columns[0].Members, func(m spec.Member) bool { return m.Node == n.name }) {
			v.desired = at
		}
	}
	return v
}

// newMember makes up a replica of a column.
func (v *vol) newMember(at, col int, st spec.MemberState) spec.Member {
	c := v.c
	n := c.nodes[at]
	m := spec.Member{Replica: fmt.Sprintf("%016x", c.nextRep), Node: n.name, Pool: "pool", State: st, Since: n.wall()}
	c.nextRep++
	k := newReplicaCopy(v, col, n, m.Replica)
	k.entered = st == spec.InSync
	c.copies[m.Replica] = k
	return m
}

// member returns the record of a replica, or nil.
func (v *vol) member(col int, id string) *spec.Member {
	members := v.rec.State.Columns[col].Members
	for i := range members {
		if members[i].Replica == id {
			return &members[i]
		}
	}
	return nil
}

// locate returns the column of a byte of the volume, and where in it it is.
func (v *vol) locate(off int64) (col int, colOff int64) {
	stripe := off / spec.StripeUnit
	n := int64(v.columns)
	return int(stripe % n), stripe/n*spec.StripeUnit + off%spec.StripeUnit
}

// blockAt is the opposite of locate: which block of the volume is at an offset of a column.
func (v *vol) blockAt(col int, colOff int64) int {
	stripe := colOff / spec.StripeUnit
	return int((stripe*int64(v.columns)+int64(col))*spec.StripeUnit+colOff%spec.StripeUnit) / block.Size
}

func (v *vol) columnSize() int64 { return v.size / int64(v.columns) }

// holder is the node where the volume is attached, or any.
func (v *vol) holder() *node {
	if n := v.c.node(v.rec.State.Node); n != nil {
		return n
	}
	return v.c.anyNode()
}

// attachment is the engine that has the volume, if that lives.
func (v *vol) attachment() *attachment {
	if n := v.c.node(v.rec.State.Node); n != nil && n.eng != nil && n.eng.atts[v.i].vol != nil {
		return &n.eng.atts[v.i]
	}
	return nil
}

// describe prints a record in one line.
func describe(v spec.Volume) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: term %d at %q, fenced %d", v.Name, v.State.Term, v.State.Node, v.State.Fenced)
	for i, col := range v.State.Columns {
		fmt.Fprintf(&b, "; column %d:", i)
		for _, m := range col.Members {
			fmt.Fprintf(&b, " %s@%s=%s(%s)", strings.TrimLeft(m.Replica, "0"), m.Node, m.State, m.Run)
			if m.Removing {
				b.WriteString("-")
			}
		}
	}
	return b.String()
}
