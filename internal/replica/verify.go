package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// verifying reads a part of a chunk from the disk, of the head or of a snapshot, and compares every block with its sum in the request.
type verifying struct {
	r    *Replica
	o    *op
	file aio.File
	have pieceSet // of the chunk; the others aren't looked at
	done func(wire.Status)
	op   aio.Op
	buf  mem
	at   int64 // bytes done
	n    int64 // bytes being read
	// careful: up to here, blocks are read one by one, as one of them can't be read.
	careful int64
	status  wire.Status
}

// verify answers a KindVerify. Unlike a read it looks at the disk also where all sums say zeros.
func (r *Replica) verify(o *op) {
	req, e := o.req, o.ent[0]
	from, n := o.blocks(0)
	copy(req.Sums, e.sums[from:from+n])
	o.issued = true
	r.compare(o, r.files.head, allPieces, func(status wire.Status) {
		r.finish(o, status)
		r.cache.demote(e)
	})
}

// compare calls done when every block of the request that is in a piece of have was compared; those that aren't intact are in its Bad.
func (r *Replica) compare(o *op, file aio.File, have pieceSet, done func(wire.Status)) {
	v := &verifying{r: r, o: o, file: file, have: have, done: done, buf: r.getBuf(int(o.req.Len))}
	v.op.Done = v.read
	v.more()
}

func (v *verifying) more() {
	in := v.o.req.Off - v.o.chunk*block.ChunkSize // of the chunk
	for v.at < v.o.req.Len && v.have&piecesOf(in+v.at, 1) == 0 {
		v.at = min((in+v.at)/pieceSize*pieceSize+pieceSize-in, v.o.req.Len)
	}
	if v.at == v.o.req.Len {
		v.end()
		return
	}
	first := (in + v.at) / pieceSize
	_, run := (v.have >> first).run()
	v.n = min(v.o.req.Len, first*pieceSize+run-in) - v.at
	if v.at < v.careful {
		v.n = block.Size
	}
	v.file.ReadAt(&v.op, v.buf.b[:v.n], v.o.req.Off+v.at)
}

func (v *verifying) read(n int, err error) {
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
		if v.file == v.r.files.head {
			v.r.adopt(v.o, (v.o.req.Off+v.at)/block.Size, v.buf.b[:v.n], v.o.req.Sums[v.at/block.Size:])
		}
		for off := int64(0); off < v.n; off += block.Size {
			i := int((v.at + off) / block.Size)
			if !block.Intact(v.buf.b[off:off+block.Size], v.o.req.Sums[i]) {
				v.bad(i)
			}
		}
	}
	v.r.stats.Verified += uint64(v.n)
	v.at += v.n
	v.more()
}

func (v *verifying) end() {
	v.r.putBuf(v.buf)
	v.done(v.status)
}

// bad notes that block i isn't intact.
func (v *verifying) bad(i int) {
	v.o.req.Bad[i>>6] |= 1 << (i & 63)
	v.status = wire.StatusBadSum
	v.r.stats.BadBlocks++
	v.r.log.Warn("block doesn't match its checksum", "operation", v.o.req.Kind.String(), "period", v.o.req.Period, "offset", v.o.req.Off+int64(i)*block.Size)
}
