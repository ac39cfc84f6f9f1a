package replica

import (
	"slices"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// levelVerify reads a part of a chunk that a snapshot holds from the disk, as verifying does with the head.
type levelVerify struct {
	levelRead
	buf mem
	at  int64 // bytes done
	n   int64 // bytes being read
	// careful: up to here, blocks are read one by one, as one of them can't be read.
	careful int64
	status  wire.Status
}

func (v *levelVerify) begin() {
	v.l.refs++
	if v.l.lost.has(v.o.chunk) {
		v.end(wire.StatusIOError)
		return
	}
	v.readSums(func() {
		if v.l.check(v.o.chunk) == 0 { // all zeros: what the file has there is nobody's
			clear(v.o.req.Sums)
			v.end(wire.StatusOK)
			return
		}
		from, n := v.o.blocks(0)
		copy(rawSums(v.o.req.Sums), v.sums.b[from*8:(from+n)*8])
		v.buf = v.r.getBuf(int(v.o.req.Len))
		v.op.Done = v.read
		v.more()
	})
}

func (v *levelVerify) more() {
	v.n = v.o.req.Len - v.at
	if v.at < v.careful {
		v.n = block.Size
	}
	v.l.data.ReadAt(&v.op, v.buf.b[:v.n], v.o.req.Off+v.at)
}

func (v *levelVerify) read(n int, err error) {
	req := v.o.req
	switch {
	case err != nil && v.n > block.Size:
		v.careful = v.at + v.n
		v.more()
		return
	case err != nil:
		v.r.ioFailed("verify", v.o, err)
		v.bad(int(v.at / block.Size))
	default:
		clear(v.buf.b[n:v.n])
		for off := int64(0); off < v.n; off += block.Size {
			if i := int((v.at + off) / block.Size); !block.Intact(v.buf.b[off:off+block.Size], req.Sums[i]) {
				v.bad(i)
			}
		}
	}
	if v.at += v.n; v.at < req.Len {
		v.more()
		return
	}
	v.r.putBuf(v.buf)
	v.r.stats.Verified += uint64(req.Len)
	v.end(v.status)
}

// bad notes that block i isn't intact.
func (v *levelVerify) bad(i int) {
	v.o.req.Bad[i>>6] |= 1 << (i & 63)
	v.status = wire.StatusBadSum
	v.r.stats.BadBlocks++
	v.r.log.Warn("block of a snapshot doesn't match its checksum", "snapshot", snapName(v.l.period), "offset", v.o.req.Off+int64(i)*block.Size)
}

// has reports whether sums are those of a chunk that the snapshot is known to hold, as its map says.
func (l *level) has(chunk int64, sums []uint64) bool {
	return l.held.has(chunk) && !l.lost.has(chunk) && checkOf(rawSums(sums)) == l.check(chunk)
}

// mendChunk answers a KindSnapMend. What is about to be written anew for the sake of speed must be over: it may have read what is damaged.
func (r *Replica) mendChunk(o *op) {
	l := r.own(o)
	if l == nil {
		return
	}
	if !l.held.has(o.chunk) || l.lost.has(o.chunk) || o.req.Off+o.req.Length() > l.size {
		r.finish(o, wire.StatusBadRequest)
		return
	}
	q := &levelRead{r: r, o: o, l: l}
	l.refs++
	q.readSums(func() {
		from, n := o.blocks(0)
		have := make([]uint64, n)
		copy(rawSums(have), q.sums.b[from*8:(from+n)*8])
		if !slices.Equal(have, o.req.Sums) || !sumsMatch(o.req.Data, have) {
			q.end(wire.StatusBadRequest)
			return
		}
		r.snaps.apart.cancel(l, o.chunk, func() {
			q.op.Done = func(_ int, err error) {
				if err != nil {
					q.failed(err)
					return
				}
				syncFiles(&q.op, []aio.File{l.data}, func(err error) {
					if err != nil {
						q.failed(err)
						return
					}
					q.end(wire.StatusOK)
				})
			}
			l.data.WriteAt(&q.op, o.req.Data, o.req.Off)
		})
	})
}
