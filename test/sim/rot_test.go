package sim_test

import (
	"encoding/binary"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// rotten is what a flipped bit has made of a replica's stored sums, until it is met.
//
// A sum that rots where nobody reads may lie there to the end: clients read one copy, and not every run is scrubbed. The replica
// doesn't take it for right: a read there is a bad sum, from then on as before. So such a block, and only that, is let pass
// at the end, and only
//
//   - while the stored sum still is what the flip made of it: one that was written since has to match the data;
//   - unless the replica was read there when all faults were over, and answered with a bad sum, in the session and term that ended
//     with the detachment: whoever read it has mended it, as a detachment waits for that.
type rotten struct {
	// sums has every value that a flip made: a power loss may bring an older one back.
	sums map[rottenSum]bool
	met  map[int64]uint64 // blocks of the replica that were read and found bad: the term of that
}

type rottenSum struct {
	block int64 // of the replica
	sum   uint64
}

// flipSum flips a bit of a replica's sums, and notes what it makes of them.
func (k *replicaCopy) flipSum(off int64) bool {
	if !k.n.sn.Disk().FlipBit(k.dir+"/sums", off) {
		return false
	}
	blk := off / 8
	if k.rotten.sums == nil {
		k.rotten.sums, k.rotten.met = map[rottenSum]bool{}, map[int64]uint64{}
	}
	k.rotten.sums[rottenSum{blk, k.storedSum(blk)}] = true
	return true
}

// storedSum is what the file of sums says of a block of the replica.
func (k *replicaCopy) storedSum(blk int64) uint64 {
	var b [8]byte
	k.n.sn.Disk().Peek(k.dir+"/sums", b[:], blk*8)
	return binary.LittleEndian.Uint64(b[:])
}

// metRot notes which rotten sums the answer to a request of a coordinator has met. A fence begins a session: what the one
// before met may not have been mended.
func (k *replicaCopy) metRot(q *wire.Request) {
	if len(k.rotten.sums) == 0 || q.Term > k.v.rec.State.Term {
		return // the last check's own have a term that nobody recorded
	}
	switch {
	case q.Kind == wire.KindFence:
		clear(k.rotten.met)
	case q.Kind == wire.KindRead && q.Status == wire.StatusBadSum:
		for i := range q.Len / block.Size {
			if q.Bad[i/64]&(1<<(i%64)) != 0 {
				k.rotten.met[q.Off/block.Size+i] = q.Term
			}
		}
	}
}

// latent reports whether a block of a replica doesn't match its sum only because that rotted and nobody has met it.
func (k *replicaCopy) latent(blk int64) bool {
	if k.rotten.met[blk] == k.v.rec.State.Term {
		return false
	}
	stored := k.storedSum(blk)
	if k.rotten.sums[rottenSum{blk, stored}] {
		return true
	}
	// A sum that became 0 would say zeros: the replica, once it had seen that the sums are damaged, made it one that the data hasn't.
	data := block.Sum(k.n.sn.Disk().Page(k.head, blk*block.Size, false))
	return k.rotten.sums[rottenSum{blk, 0}] && stored == max(^data, 1)
}

// excused reports whether every block that a replica found bad in a read at the end may be: it is one whose data was damaged, or a
// rotten sum that nobody has met.
func (k *replicaCopy) excused(q *wire.Request) bool {
	if q.Status != wire.StatusBadSum {
		return false
	}
	for i := range q.Len / block.Size {
		off := q.Off + i*block.Size
		if q.Bad[i/64]&(1<<(i%64)) != 0 && !k.v.tainted[int64(k.v.blockAt(k.col, off))] && !k.latent(off/block.Size) {
			return false
		}
	}
	return true
}

// givenLost judges that a replica was given a lost block in place of the one at off: that is right only if a copy was damaged
// there. Nothing more is asked of that block.
func (k *replicaCopy) givenLost(off int64) {
	v := k.v
	blk := int64(v.blockAt(k.col, off))
	v.c.count("lost blocks")
	damaged := v.tainted[blk]
	for _, o := range v.c.copies {
		for r := range o.rotten.sums {
			damaged = damaged || o.v == v && o.col == k.col && r.block == off/block.Size
		}
	}
	if !damaged {
		v.c.fail("block %d was given up on replica %s on %s, and no copy of it was ever damaged", blk, k.id, k.n.name)
	}
	v.tainted[blk] = true
}
