package replica

import (
	"encoding/binary"
	"encoding/json"
	"fmt"

	"keelson.io/keelson/internal/invariant"
)

// The file meta: two slots, written in turn.
const (
	metaMagic    = 0x314d4c4b // "KLM1"
	metaSlotSize = 8192
	metaSize     = 2 * metaSlotSize
	metaFixed    = 40
	maxDesc      = metaSlotSize/sectorSize*sectorPayload - metaFixed

	metaAllKept = 1 << 0
)

// metaState is what meta says besides the description.
type metaState struct {
	fence      uint64
	checkpoint uint64
	// all is a journal entry for every chunk of the replica: each may have been written in this
	// period, and in those before it. It counts while it is above checkpoint.
	all uint64
	// allKept says that the chunks of all aren't reconciled.
	allKept bool
	// journalSeq is a block number that the journal had reached when meta was written. One that ends before it
	// has lost blocks.
	journalSeq uint64
}

// encodeMeta fills the slot b.
func encodeMeta(b []byte, seq uint64, m metaState, desc []byte) {
	clear(b)
	var p [metaSlotSize]byte
	le := binary.LittleEndian
	le.PutUint64(p[0:], m.fence)
	le.PutUint64(p[8:], m.checkpoint)
	le.PutUint64(p[16:], m.all)
	if m.allKept {
		le.PutUint32(p[24:], metaAllKept)
	}
	le.PutUint32(p[28:], uint32(len(desc)))
	le.PutUint64(p[32:], m.journalSeq)
	copy(p[metaFixed:], desc)
	used := metaFixed + len(desc)
	for s, rest := 0, p[:used]; len(rest) > 0; s += sectorSize {
		rest = rest[copy(b[s+sectorHeader:s+sectorSize], rest):]
	}
	seal(b, metaMagic, seq, used)
}

// decodeMeta decodes the slot b. desc is a copy.
func decodeMeta(b []byte) (seq uint64, m metaState, desc []byte, v verdict) {
	seq, used, v := unseal(b, metaMagic)
	if v != frameWhole {
		return seq, m, nil, v
	}
	p := make([]byte, 0, len(b))
	for s := 0; s < len(b); s += sectorSize {
		p = append(p, b[s+sectorHeader:s+sectorSize]...)
	}
	le := binary.LittleEndian
	n := int64(le.Uint32(p[28:]))
	flags := le.Uint32(p[24:])
	if int64(used) != metaFixed+n || n > maxDesc || flags&^metaAllKept != 0 {
		return 0, metaState{}, nil, frameDamaged
	}
	m = metaState{le.Uint64(p[0:]), le.Uint64(p[8:]), le.Uint64(p[16:]), flags&metaAllKept != 0, le.Uint64(p[32:])}
	return seq, m, p[metaFixed:used], frameWhole
}

// openedMeta is what was found in meta.
type openedMeta struct {
	state metaState
	desc  Desc
	raw   []byte
	seq   uint64
	slot  int // that holds it
	// damaged: the other slot was damaged, and may have been the newer one.
	damaged bool
	// unread: the other slot could not be read. What this one says may be back in time.
	unread bool
}

// readMeta judges the whole file. Of a slot that is nil it is not known what it holds.
func readMeta(slots [2][]byte) (o openedMeta, err error) {
	found := false
	for slot, b := range slots {
		if b == nil {
			o.unread = true
			continue
		}
		seq, m, raw, v := decodeMeta(b)
		switch {
		case v == frameNewer:
			return o, ErrVersion
		case v == frameDamaged || v == frameEmpty:
			o.damaged = true
		case v == frameWhole && (!found || seq > o.seq):
			found = true
			o.state, o.raw, o.seq, o.slot = m, raw, seq, slot
		}
	}
	if !found && o.unread {
		return o, ErrUnreadable
	}
	if !found {
		return o, fmt.Errorf("%w: neither copy of meta is valid", ErrDamaged)
	}
	if err := json.Unmarshal(o.raw, &o.desc); err != nil {
		return o, fmt.Errorf("%w: its description: %w", ErrDamaged, err)
	}
	if err := o.desc.validate(); err != nil {
		return o, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return o, nil
}

// saveMeta writes the present r.m to disk. done is called when what r.m says now is
// durable, or with an error.
func (r *Replica) saveMeta(done func(error)) {
	r.metaWait = append(r.metaWait, done)
	if !r.metaBusy {
		r.writeMeta()
	}
}

func (r *Replica) writeMeta() {
	r.m.journalSeq = r.journal.seq
	waiting, m := r.metaWait, r.m
	r.metaWait, r.metaBusy = nil, true
	r.metaSeq++
	buf := r.getBuf(metaSlotSize)
	encodeMeta(buf.b, r.metaSeq, m, r.rawDesc)
	r.metaOp.Done = func(_ int, err error) {
		r.putBuf(buf)
		r.metaBusy = false
		if err == nil {
			if !invariant.Mutant("meta-in-one-slot") {
				r.metaSlot ^= 1
			}
			r.saved = m
		} else {
			err = fmt.Errorf("replica %v: writing meta: %w", r.desc.Replica, err)
			r.log.Error("meta can't be written", "error", err)
		}
		for _, fn := range waiting {
			fn(err)
		}
		if len(r.metaWait) > 0 && !r.metaBusy {
			r.writeMeta()
		}
	}
	if invariant.Mutant("meta-not-durable") {
		r.files.meta.WriteAt(&r.metaOp, buf.b, int64(r.metaSlot^1)*metaSlotSize)
		return
	}
	r.files.meta.WriteSync(&r.metaOp, buf.b, int64(r.metaSlot^1)*metaSlotSize)
}
