package replica

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/minio/crc64nvme"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/invariant"
)

// The file meta of a snapshot: a header of one block, framed as the replica's meta is, and a map of sectors, each of
// which stands for 30 chunks and is valid on its own, or all zeros: so a write that a power loss tore leaves every sector as it was or
// as it was to be. Sectors of the older sort know only whole chunks.
const (
	snapMagic  = 0x31534c4b // "KLS1"
	snapMapM   = 0x32504c4b // "KLP2"
	snapMapOld = 0x31504c4b // "KLP1"
	snapHeader = block.Size

	mapPerSector = sectorPayload / 16
	mapPerBlock  = mapPerSector * (block.Size / sectorSize)

	mapHeld = 1 << 0 // in a sector of the older sort: the snapshot has all pieces of the chunk
)

func snapMapBlocks(chunks int64) int64 { return (chunks + mapPerBlock - 1) / mapPerBlock }

func snapMetaSize(chunks int64) int64 { return snapHeader + snapMapBlocks(chunks)*block.Size }

// snapName is the name of a snapshot's directory.
func snapName(period uint64) string { return fmt.Sprintf("%016x", period) }

func parseSnapName(name string) (period uint64, ok bool) {
	period, err := strconv.ParseUint(name, 16, 64)
	return period, err == nil && len(name) == 16
}

// encodeSnapHeader fills the block b.
func encodeSnapHeader(b []byte, period uint64, size int64) {
	clear(b)
	le := binary.LittleEndian
	le.PutUint64(b[sectorHeader:], period)
	le.PutUint64(b[sectorHeader+8:], uint64(size))
	seal(b, snapMagic, period, 16)
}

func decodeSnapHeader(b []byte) (period uint64, size int64, v verdict) {
	_, used, v := unseal(b, snapMagic)
	if v != frameWhole {
		return 0, 0, v
	}
	le := binary.LittleEndian
	period, size = le.Uint64(b[sectorHeader:]), int64(le.Uint64(b[sectorHeader+8:]))
	if used != 16 || size < block.Size || size%block.Size != 0 || size > maxSize || period == 0 {
		return 0, 0, frameDamaged
	}
	return period, size, frameWhole
}

// mapPart is what a block of the map says: for each chunk which pieces the snapshot has, none if it doesn't hold the chunk, and a checksum over
// the chunk's sums.
type mapPart struct {
	pieces [mapPerBlock]pieceSet
	check  [mapPerBlock]uint64
}

// encode fills the block b, which is number index of the map.
func (p *mapPart) encode(b []byte, index int64) {
	clear(b)
	le := binary.LittleEndian
	for s := range block.Size / sectorSize {
		sec := b[s*sectorSize : (s+1)*sectorSize]
		some := false
		for i := range mapPerSector {
			if k := s*mapPerSector + i; p.pieces[k] != 0 {
				some = true
				le.PutUint64(sec[sectorHeader+16*i:], uint64(p.pieces[k]))
				le.PutUint64(sec[sectorHeader+16*i+8:], p.check[k])
			}
		}
		if !some {
			continue
		}
		le.PutUint32(sec, snapMapM)
		sec[4] = formatVersion
		le.PutUint64(sec[8:], uint64(index)*(block.Size/sectorSize)+uint64(s))
		le.PutUint64(sec[24:], sectorSum(sec))
	}
}

// decode reads the block b. The chunks of sectors that are damaged are reported by lost, with their place in the block.
func (p *mapPart) decode(b []byte, index int64, lost func(i int)) verdict {
	le := binary.LittleEndian
	for s := range block.Size / sectorSize {
		sec := b[s*sectorSize : (s+1)*sectorSize]
		if block.IsZero(sec) {
			continue
		}
		magic := le.Uint32(sec)
		damaged := magic != snapMapM && magic != snapMapOld || le.Uint64(sec[24:]) != crc64nvme.Update(crc64nvme.Checksum(sec[:24]), sec[sectorHeader:]) ||
			le.Uint64(sec[8:]) != uint64(index)*(block.Size/sectorSize)+uint64(s)
		if !damaged && sec[4] != formatVersion {
			return frameNewer
		}
		for i := range mapPerSector {
			k := s*mapPerSector + i
			if damaged {
				lost(k)
				continue
			}
			p.pieces[k] = pieceSet(le.Uint64(sec[sectorHeader+16*i:]))
			p.check[k] = le.Uint64(sec[sectorHeader+16*i+8:])
			if magic == snapMapOld {
				p.pieces[k] = allPieces * (p.pieces[k] & mapHeld)
			}
		}
	}
	return frameWhole
}

// mapChange is what a snapshot's map is to say of a chunk: that it has these pieces too or, if there are none, that it doesn't hold the chunk.
type mapChange struct {
	chunk  int64
	pieces pieceSet
	check  uint64 // of the chunk's sums; it doesn't change while the chunk is held
	lost   bool   // it isn't known whether it is held
}

// mapRound is changes of a map that are made durable together.
type mapRound struct {
	changes []mapChange
	done    []func(error)
}

// commit makes changes of the map durable, then visible, and then calls done. Those who come while a round is under way share the
// next.
func (l *level) commit(changes []mapChange, done func(error)) {
	l.next.changes = append(l.next.changes, changes...)
	l.next.done = append(l.next.done, done)
	if !l.mapBusy {
		l.writeMap()
	}
}

// restate writes once more what memory says of the chunks that a failed write of the map was about.
func (l *level) restate(done func(error)) {
	changes := make([]mapChange, len(l.unsure))
	for i, c := range l.unsure {
		changes[i] = mapChange{chunk: c, pieces: l.pieces(c), check: l.check(c), lost: l.lost.has(c)}
	}
	l.unsure = nil
	l.commit(changes, done)
}

func (l *level) writeMap() {
	round := l.next
	l.next, l.mapBusy = mapRound{}, true
	l.writing = nil
	for _, ch := range round.changes {
		if ch.lost {
			l.lost.add(ch.chunk)
		} else {
			l.writing = append(l.writing, ch)
		}
	}
	parts := map[int64]*mapPart{}
	var order []int64
	for _, ch := range round.changes {
		i := ch.chunk / mapPerBlock
		if parts[i] == nil {
			parts[i] = l.part(i)
			order = append(order, i)
		}
		parts[i].change(ch)
	}
	l.writeParts(order, parts, func(err error) {
		if err == nil {
			for i, p := range parts {
				l.parts[i] = p
			}
			for _, ch := range l.writing {
				if l.pieces(ch.chunk) != 0 {
					l.held.add(ch.chunk)
				} else {
					l.held.remove(ch.chunk)
				}
				l.lost.remove(ch.chunk)
			}
		}
		for _, ch := range round.changes {
			if err != nil && !slices.Contains(l.unsure, ch.chunk) && !invariant.Mutant("failed-map-forgotten") {
				l.unsure = append(l.unsure, ch.chunk)
			}
		}
		l.mapBusy, l.writing = false, nil
		for _, fn := range round.done {
			fn(err)
		}
		if len(l.next.done) > 0 && !l.mapBusy {
			l.writeMap()
		}
	})
}

func (p *mapPart) change(ch mapChange) {
	k := ch.chunk % mapPerBlock
	if ch.lost {
		ch.pieces = 0
	}
	switch {
	case ch.pieces == 0:
		p.pieces[k], p.check[k] = 0, 0
	case p.pieces[k] == 0:
		p.pieces[k], p.check[k] = ch.pieces, ch.check
	default:
		p.pieces[k] |= ch.pieces
	}
}

// keepLost sees to it that sectors of block i of the map that were damaged stay so while some chunk of theirs isn't known: written as it is in
// memory, such a chunk would count as one that the snapshot doesn't hold.
func (l *level) keepLost(b []byte, i int64) {
	for s := range int64(block.Size / sectorSize) {
		first := i*mapPerBlock + s*mapPerSector
		c := l.lost.next(first)
		for slices.ContainsFunc(l.writing, func(ch mapChange) bool { return ch.chunk == c }) {
			c = l.lost.next(c + 1)
		}
		if c >= first && c < first+mapPerSector {
			sec := b[s*sectorSize : (s+1)*sectorSize]
			clear(sec)
			binary.LittleEndian.PutUint32(sec, ^uint32(snapMapM))
		}
	}
}

// part returns a copy of what block i of the map says.
func (l *level) part(i int64) *mapPart {
	if p := l.parts[i]; p != nil {
		c := *p
		return &c
	}
	return &mapPart{}
}

// writeParts writes blocks of the map, all at once.
func (l *level) writeParts(order []int64, parts map[int64]*mapPart, done func(error)) {
	left, failed := len(order)+1, error(nil)
	wrote := func(err error) {
		if err != nil {
			failed = fmt.Errorf("writing the map of snapshot %016x: %w", l.period, err)
		}
		if left--; left == 0 {
			done(failed)
		}
	}
	for _, i := range order {
		buf := getMem(l.r.loop, block.Size)
		parts[i].encode(buf.b, i)
		l.keepLost(buf.b, i)
		op := &aio.Op{}
		op.Done = func(_ int, err error) {
			putMem(l.r.loop, buf)
			wrote(err)
		}
		l.meta.WriteSync(op, buf.b, snapHeader+i*block.Size)
	}
	wrote(nil)
}
