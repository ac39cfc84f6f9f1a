package replica

import (
	"encoding/json"
	"errors"
	"fmt"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/block"
)

var errClosing = errors.New("the replica is being closed")

// Grow makes an open replica larger, to d.Size, and takes the rest of d over, also if it has that size already; the replica goes on serving. The steps, each durable
// before the next:
//
//	head, sums and gens get longer -> the new part of gens says "never written" -> all three are synced
//	-> both copies of meta have the new description -> requests for the new range are accepted
//
// A crash before meta leaves a replica of the old size whose files are longer, which growing again puts right. What was never
// written reads as zeros: the files are longer by holes only. done is called later, on the loop. Growing to the size that it has
// already is no error; one growth at a time.
func (r *Replica) Grow(d Desc, done func(error)) {
	fail := func(err error) {
		r.loop.Post(func() { done(fmt.Errorf("grow replica %s to %d bytes: %w", r.cfg.Dir, d.Size, err)) })
	}
	raw, err := json.Marshal(d)
	switch verr := d.validate(); {
	case verr != nil:
		fail(verr)
		return
	case err != nil:
		fail(fmt.Errorf("%w: %w", ErrDesc, err))
		return
	case len(raw) > maxDesc:
		fail(fmt.Errorf("%w: it takes %d bytes, %d are possible", ErrDesc, len(raw), maxDesc))
		return
	case d.Size < r.desc.Size || d.Replica != r.desc.Replica || d.Columns != r.desc.Columns || d.Column != r.desc.Column:
		fail(fmt.Errorf("%w: it is another replica, or a smaller one, than that of %d bytes", ErrDesc, r.desc.Size))
		return
	case r.closed || r.closing != nil:
		fail(errClosing)
		return
	}
	g := &growth{r: r, desc: d, raw: raw, chunks: block.Chunks(d.Size), done: done}
	r.background++
	g.begin()
}

// growth is one on its way. While it lasts, it counts as I/O of the replica, so that it is not closed underneath.
type growth struct {
	r      *Replica
	desc   Desc
	raw    []byte
	chunks int64
	t      task
	done   func(error)
}

func (g *growth) begin() {
	r := g.r
	g.t.loop = r.loop
	var err error
	r.loop.Work(func() {
		for _, x := range []struct {
			f    aio.File
			size int64
		}{{r.files.head, g.desc.Size}, {r.files.sums, g.chunks * sumsSize}, {r.files.gens, gensBlocks(g.chunks) * block.Size}} {
			n, e := x.f.Size()
			if e == nil && n < x.size {
				e = x.f.Truncate(x.size)
			}
			if e != nil {
				err = e
				return
			}
		}
	}, func() {
		if err != nil {
			g.end(err)
			return
		}
		g.writeGens(gensBlocks(r.chunks))
	})
}

// writeGens writes empty blocks of gens from block at on. The last block that is there has room for more chunks, whose gens
// are 0 in it.
func (g *growth) writeGens(at int64) {
	r := g.r
	total := gensBlocks(g.chunks)
	if at >= total {
		syncFiles(&g.t.op, []aio.File{r.files.head, r.files.sums, r.files.gens}, g.synced)
		return
	}
	n := min(total-at, gensBatch)
	buf := r.getBuf(int(n) * block.Size)
	var none [gensPerBlock]uint64
	for i := range n {
		encodeGens(buf.b[i*block.Size:(i+1)*block.Size], at+i, none[:], none[:])
	}
	g.t.op.Done = func(_ int, err error) {
		r.putBuf(buf)
		if err != nil {
			g.end(err)
			return
		}
		g.writeGens(at + n)
	}
	r.files.gens.WriteAt(&g.t.op, buf.b, at*block.Size)
}

// synced writes the new description to both copies of meta: with one copy of the old size, damage to the other would hide
// what was written to the new range.
func (g *growth) synced(err error) {
	r := g.r
	if err != nil {
		g.end(err)
		return
	}
	was := r.rawDesc
	r.rawDesc = g.raw
	r.saveMeta(func(err error) {
		if err != nil {
			r.rawDesc = was
			g.end(err)
			return
		}
		// Not in this call: the copy that was just written is in service only after it.
		r.loop.Post(func() {
			r.saveMeta(func(err error) {
				if err == nil {
					r.enlarge(g.desc, g.chunks)
				}
				g.end(err)
			})
		})
	})
}

// enlarge accepts requests for the new range.
func (r *Replica) enlarge(d Desc, chunks int64) {
	more, grown := chunks-r.chunks, d.Size > r.desc.Size
	r.gens = append(r.gens, make([]uint64, more)...)
	r.checks = append(r.checks, make([]uint64, more)...)
	r.desc, r.chunks = d, chunks
	r.gensDirty.enlarge(gensBlocks(chunks))
	for _, s := range []*bitset{&r.suspect, &r.unrec, &r.crashed, &r.cp.late} {
		s.enlarge(chunks)
	}
	if grown {
		r.log.Info("replica grown", "size", d.Size)
	}
}

// enlarge makes room for members below size.
func (s *bitset) enlarge(size int64) {
	s.size = size
	if s.words != nil {
		s.words = append(s.words, make([]uint64, max(0, (size+63)/64-int64(len(s.words))))...)
	}
}

func (g *growth) end(err error) {
	r := g.r
	if err != nil {
		err = fmt.Errorf("grow replica %s to %d bytes: %w", r.cfg.Dir, g.desc.Size, err)
	}
	r.background--
	g.done(err)
	r.quiet()
}
