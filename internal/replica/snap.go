package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

// level is one snapshot: the chunks that it holds itself are those of which something was changed after it and before the next newer
// one was taken. Of these it has all checksums, and the data of at least the pieces that were changed. What it doesn't have is found in the
// next newer one that does, at last in the head.
//
// Invariants:
//
//   - What a snapshot has of a chunk that it holds itself never changes, but by KindSnapOpen and what follows it; pieces come to it.
//   - Before the first change of a piece in a period above a snapshot's, that snapshot or a newer one durably has the piece.
//   - That it has a piece is visible only when data, sums and map are durable.
type level struct {
	r      *Replica
	period uint64
	size   int64
	chunks int64

	data, sums, meta aio.File

	held  bitset
	lost  bitset // chunks of which a damaged map doesn't tell whether they are held
	parts map[int64]*mapPart

	next    mapRound
	mapBusy bool
	writing []mapChange // while mapBusy
	unsure  []int64     // chunks of which the file may say something else than memory, as a write of the map failed
	refs    int         // requests that read it
	idle    func()      // called once when refs has become 0
	// closing: it is being deleted. What it holds counts still, but nothing more is preserved in it.
	closing bool
	unnamed bool // its directory is gone, or on its way
}

func newLevel(r *Replica, period uint64, size int64) *level {
	l := &level{r: r, period: period, size: size, chunks: block.Chunks(size), parts: make(map[int64]*mapPart)}
	l.held.size, l.lost.size = l.chunks, l.chunks
	return l
}

func (l *level) files() []aio.File { return []aio.File{l.data, l.sums, l.meta} }

// holds reports whether the snapshot holds the chunk itself; one behind its end needs nothing of anybody.
func (l *level) holds(chunk int64) bool {
	return chunk >= l.chunks || l.held.has(chunk) || l.lost.has(chunk)
}

// pieces returns those of a chunk whose data the snapshot has itself.
func (l *level) pieces(chunk int64) pieceSet {
	if p := l.parts[chunk/mapPerBlock]; p != nil {
		return p.pieces[chunk%mapPerBlock]
	}
	return 0
}

// check returns the checksum over the sums of a chunk that is held.
func (l *level) check(chunk int64) uint64 {
	if p := l.parts[chunk/mapPerBlock]; p != nil {
		return p.check[chunk%mapPerBlock]
	}
	return 0
}

// span returns where the chunk is, cut at the snapshot's end.
func (l *level) span(chunk int64) (off, n int64) {
	off = chunk * block.ChunkSize
	return off, min(block.ChunkSize, l.size-off)
}

func (l *level) release() {
	if l.refs--; l.refs == 0 && l.idle != nil {
		fn := l.idle
		l.idle = nil
		fn()
	}
}

// snapshots are the replica's snapshots, in the order of their periods.
type snapshots struct {
	r      *Replica
	levels []*level
	keep   preserver
	sets   opList // KindSnaps that wait for the one under way
	set    *setting
	settle settler
}

func (s *snapshots) init(r *Replica) {
	s.r = r
	s.keep.r, s.settle.r = r, r
}

func (s *snapshots) find(period uint64) *level {
	for _, l := range s.levels {
		if l.period == period {
			return l
		}
	}
	return nil
}

// holder returns the snapshot in which what snapshot number i has of a chunk is found; nil is the head.
func (s *snapshots) holder(i int, chunk int64) *level {
	for _, l := range s.levels[i:] {
		if chunk < l.chunks && l.holds(chunk) {
			return l
		}
	}
	return nil
}

// view is holder for a snapshot by its period; ok is false if there is none, or it doesn't reach that far.
func (s *snapshots) view(period uint64, chunk int64) (l *level, ok bool) {
	for i, l := range s.levels {
		if l.period == period {
			return s.holder(i, chunk), chunk < l.chunks
		}
	}
	return nil, false
}
