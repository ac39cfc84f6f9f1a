package replica

import (
	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/wire"
)

// verifying reads a part of a chunk from the disk and compares every block with its sum.
type verifying struct {
	r   *Replica
	o   *op
	op  aio.Op
	buf mem
	at  int64 // bytes done
	n   int64 // bytes being read
	// careful: up to here, blocks are read one by one, as one of them can't be read.
	careful int64
	status  wire.Status
}

// verify answers a KindVerify. Unlike a read it looks at the disk also where all sums say zeros.
func (r *Replica) verify(o *op) {
	req, e := o.req, o.ent[0]
	from, n := o.blocks(0)
	copy(req.Sums, e.sums[from:from+n])
	v := &verifying{r: r, o: o, buf: r.getBuf(int(req.Len))}
	v.op.Done = v.read
	o.issued = true
	v.more()
}

func (v *verifying) more() {
	v.n = v.o.req.Len - v.at
	if v.at < v.careful {
		v.n = block.Size
	}
	v.r.files.head.ReadAt(&v.op, v.buf.b[:v.n], v.o.req.Off+v.at)
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
		v.r.adopt(v.o, (v.o.req.Off+v.at)/block.Size, v.buf.b[:v.n], v.o.req.Sums[v.at/block.Size:])
		for off := int64(0); off < v.n; off += block.Size {
			i := int((v.at + off) / block.Size)
			if !block.Intact(v.buf.b[off:off+block.Size], v.o.req.Sums[i]) {
				v.bad(i)
			}
		}
	}
	if v.at += v.n; v.at < v.o.req.Len {
		v.more()
		return
	}
	v.r.putBuf(v.buf)
	v.r.stats.Verified += uint64(v.o.req.Len)
	e := v.o.ent[0]
	v.r.finish(v.o, v.status)
	v.r.cache.demote(e)
}

// bad notes that block i isn't intact.
func (v *verifying) bad(i int) {
	v.o.req.Bad[i>>6] |= 1 << (i & 63)
	v.status = wire.StatusBadSum
	v.r.stats.BadBlocks++
	v.r.log.Warn("block doesn't match its checksum", "offset", v.o.req.Off+int64(i)*block.Size)
}
