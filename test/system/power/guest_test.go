package power

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/replica"
	"keelson.io/keelson/internal/wire"
)

const (
	replicaID   = 7
	replicaSize = 24 << 20
	rounds      = 260
)

// writer is the process in the guest that uses a replica. Each line of its journey says what happened, for the
// host to know what must be on the disk at each mark:
//
//	w BLOCK SEQ PERIOD  a write begins;  t …  a trim
//	a BLOCK SEQ         it was answered
//	d BLOCK SEQ         it was answered, with FUA: it is durable
//	f N                 a flush begins: what was answered before is durable at mark N
//	c PERIOD, F TERM    a checkpoint, a fence was answered
//	m N                 all above happened before the mark N in the log
type writer struct {
	loop    *ring.Loop
	r       *replica.Replica
	journey bytes.Buffer
	rng     *rand.Rand
	marks   int
	term    uint64
	period  uint64
	seqs    map[int64]uint32
}

// runGuest writes to a replica in dir, which is on the logged disk.
func runGuest(dir, journey string, seed uint64) error {
	l, err := ring.New(ring.Config{})
	if err != nil {
		return err
	}
	l.Start()
	w := &writer{loop: l, rng: rand.New(rand.NewPCG(seed, 1)), seqs: map[int64]uint32{}, term: 1, period: 1<<32 | 1}
	err = w.live(dir)
	return errors.Join(err, os.WriteFile(journey, w.journey.Bytes(), 0o600))
}

func (w *writer) say(format string, a ...any) { fmt.Fprintf(&w.journey, format+"\n", a...) }

func (w *writer) live(dir string) error {
	var err error
	w.r, err = onLoop(w.loop, func(done func(*replica.Replica, error)) {
		replica.Create(replica.Config{Loop: w.loop, Dir: filepath.Join(dir, "replica"), Run: "before"},
			replica.Desc{Replica: replicaID, Columns: 1, Size: replicaSize}, done)
	})
	if err != nil {
		return err
	}
	if err := w.ask(&wire.Request{Kind: wire.KindFence}); err != nil {
		return err
	}
	w.say("F %d", w.term)
	if err := w.mark(); err != nil {
		return err
	}
	for i := range rounds {
		if err := w.round(i); err != nil {
			return fmt.Errorf("round %d: %w", i, err)
		}
	}
	return nil
}

// round has some writes in flight at a time, maybe beside a flush, a checkpoint or a new fence.
func (w *writer) round(i int) error {
	var beside *flight
	if i%9 == 8 { // as a coordinator does: a new period, older writes awaited, flushed, then the checkpoint
		if err := w.ask(&wire.Request{Kind: wire.KindFlush}); err != nil {
			return err
		}
		beside = w.begin(&wire.Request{Kind: wire.KindCheckpoint, Period: w.period})
		w.period++
	} else if w.rng.IntN(3) == 0 {
		w.say("f %d", w.marks+1)
		beside = w.begin(&wire.Request{Kind: wire.KindFlush})
	}
	err := w.writes()
	if beside != nil {
		err = errors.Join(err, beside.wait())
		if beside.q.Kind == wire.KindCheckpoint {
			w.say("c %d", beside.q.Period)
		}
	}
	if err != nil {
		return err
	}
	if i%40 == 39 {
		w.term++
		w.period = w.term<<32 | 1
		if err := w.ask(&wire.Request{Kind: wire.KindFence}); err != nil {
			return err
		}
		w.say("F %d", w.term)
	}
	if w.rng.IntN(2) == 0 {
		w.say("f %d", w.marks+1)
		if err := w.ask(&wire.Request{Kind: wire.KindFlush}); err != nil {
			return err
		}
	} else if beside == nil {
		return nil
	}
	return w.mark()
}

// writes has up to 8 writes and trims in flight, of blocks that don't overlap.
func (w *writer) writes() error {
	const lanes = 8
	var flights []*flight
	each := int64(replicaSize/block.Size) / lanes
	for lane := range int64(1 + w.rng.IntN(lanes)) {
		n := int64(1)
		if w.rng.IntN(3) == 0 {
			n += w.rng.Int64N(24)
		}
		b := lane*each + w.rng.Int64N(each-n)
		if w.rng.IntN(3) > 0 {
			b = lane*each + w.rng.Int64N(8) // some blocks again and again
		}
		if cross := (b/block.PerChunk + 1) * block.PerChunk; n > 1 && cross+n < (lane+1)*each && w.rng.IntN(2) == 0 {
			b = cross - 1 - w.rng.Int64N(n-1) // in two chunks
		}
		q := &wire.Request{Kind: wire.KindWrite, Off: b * block.Size, FUA: w.rng.IntN(12) == 0}
		verb := "w"
		if w.rng.IntN(10) == 0 && b/block.PerChunk == (b+n-1)/block.PerChunk {
			q.Kind, q.Len, verb = wire.KindTrim, n*block.Size, "t"
		} else {
			q.Data, q.Sums = aligned(int(n)*block.Size), make([]uint64, n)
		}
		for i := range n {
			w.seqs[b+i]++
			w.say("%s %d %d %d", verb, b+i, w.seqs[b+i], w.period)
			if q.Kind == wire.KindWrite {
				stamp(q.Data[i*block.Size:(i+1)*block.Size], b+i, w.seqs[b+i])
			}
		}
		if q.Kind == wire.KindWrite {
			block.SumAll(q.Sums, q.Data)
		}
		flights = append(flights, w.begin(q))
	}
	for _, f := range flights {
		if err := f.wait(); err != nil {
			return err
		}
		verb, n := "a", max(f.q.Len, int64(len(f.q.Data)))/block.Size
		if f.q.FUA {
			verb = "d"
		}
		for i := range n {
			b := f.q.Off/block.Size + i
			w.say("%s %d %d", verb, b, w.seqs[b])
		}
	}
	return nil
}

// flight is a request on its way.
type flight struct {
	q    *wire.Request
	done chan struct{}
}

func (w *writer) begin(q *wire.Request) *flight {
	q.Replica, q.Term, q.Session = replicaID, w.term, 1
	if q.Period == 0 && q.Kind != wire.KindFence {
		q.Period = w.period
	}
	f := &flight{q, make(chan struct{})}
	q.Done = func(*wire.Request) { close(f.done) }
	w.loop.Post(func() { w.r.Submit(q) })
	return f
}

func (f *flight) wait() error {
	<-f.done
	if f.q.Status != wire.StatusOK {
		return fmt.Errorf("%v at %d: %v", f.q.Kind, f.q.Off, f.q.Status)
	}
	return nil
}

func (w *writer) ask(q *wire.Request) error { return w.begin(q).wait() }

// mark writes a mark into the log of the disk.
func (w *writer) mark() error {
	w.marks++
	w.say("m %d", w.marks)
	f, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct dm_ioctl, then struct dm_target_msg.
	b := make([]byte, 1024)
	le := binary.NativeEndian
	le.PutUint32(b[0:], 4)
	le.PutUint32(b[12:], uint32(len(b)))
	le.PutUint32(b[16:], 312)
	copy(b[48:], logged)
	copy(b[312+8:], fmt.Sprintf("mark m%d", w.marks))
	const targetMessage = 0xc138fd0e
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), targetMessage, uintptr(unsafe.Pointer(&b[0]))); e != 0 {
		return fmt.Errorf("mark %d: %w", w.marks, e)
	}
	return nil
}

func onLoop(l aio.Loop, fn func(done func(*replica.Replica, error))) (*replica.Replica, error) {
	type result struct {
		r   *replica.Replica
		err error
	}
	ch := make(chan result, 1)
	l.Post(func() { fn(func(r *replica.Replica, err error) { ch <- result{r, err} }) })
	got := <-ch
	return got.r, got.err
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp fills a block: sum, number of the write, number of the block, noise that follows from both.
func stamp(buf []byte, b int64, seq uint32) {
	noise := rand.NewPCG(uint64(b), uint64(seq))
	for i := 16; i < block.Size; i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], noise.Uint64())
	}
	binary.LittleEndian.PutUint64(buf[8:], uint64(b))
	binary.LittleEndian.PutUint32(buf[4:], seq)
	binary.LittleEndian.PutUint32(buf, crc32.Checksum(buf[4:], castagnoli))
}

// readStamp returns which write of block b that is; ok is false for what isn't any.
func readStamp(buf []byte, b int64) (seq uint32, ok bool) {
	ok = binary.LittleEndian.Uint32(buf) == crc32.Checksum(buf[4:], castagnoli) && int64(binary.LittleEndian.Uint64(buf[8:])) == b
	return binary.LittleEndian.Uint32(buf[4:]), ok
}

func aligned(n int) []byte {
	b := make([]byte, n+block.Size)
	off := block.Size - int(uintptr(unsafe.Pointer(&b[0]))%block.Size)
	return b[off : off+n : off+n]
}
