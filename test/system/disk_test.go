package system

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// writer overwrites random blocks of a device, several at a time, and remembers what it was told is
// written. Blocks say which they are and which write of them that was, so that after any fault
// a reader can tell a lost write, one that went elsewhere, and one that was made up.
type writer struct {
	t       *testing.T
	blocks  int64
	workers int
	// A block must hold a write of a number in [acked, tried]: the last one that was acknowledged, or
	// seen, and the last one begun since. last is the last one begun ever. A block belongs to
	// one worker, so they need no lock while it runs.
	acked, tried, last []uint32
	acks               []int64 // by worker

	stop chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error // guarded by mu
}

func newWriter(t *testing.T, size int64) *writer {
	n := size / blockSize
	return &writer{t: t, blocks: n, workers: 8, acked: make([]uint32, n), tried: make([]uint32, n), last: make([]uint32, n)}
}

// start begins to write to the device, until halt, or until a write fails.
func (w *writer) start(path string) {
	w.stop, w.errs, w.acks = make(chan struct{}), nil, make([]int64, w.workers)
	for i := range w.workers {
		w.wg.Add(1)
		go func() {
			defer w.wg.Done()
			if err := w.work(path, i); err != nil {
				w.mu.Lock()
				w.errs = append(w.errs, err)
				w.mu.Unlock()
			}
		}()
	}
}

// halt stops the workers and returns what failed. A worker whose write hangs is waited for.
func (w *writer) halt() error {
	close(w.stop)
	w.wg.Wait()
	return errors.Join(w.errs...)
}

// total is how many writes were acknowledged; only after halt.
func (w *writer) total() int64 {
	var n int64
	for _, a := range w.acks {
		n += a
	}
	return n
}

func (w *writer) work(path string, worker int) error {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := aligned(blockSize)
	for {
		select {
		case <-w.stop:
			return nil
		default:
		}
		b := rand.Int64N(w.blocks/int64(w.workers))*int64(w.workers) + int64(worker)
		stamp(buf, b, w.begin(b))
		if _, err := f.WriteAt(buf, b*blockSize); err != nil {
			return fmt.Errorf("write of block %d: %w", b, err)
		}
		w.acked[b] = w.tried[b]
		w.acks[worker]++
	}
}

// begin returns the number of the next write of the block.
func (w *writer) begin(b int64) uint32 {
	w.last[b]++
	w.tried[b] = w.last[b]
	return w.last[b]
}

// fill writes every block in [from, to) once.
func (w *writer) fill(path string, from, to int64) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	const run = 256
	buf := aligned(run * blockSize)
	for b := from; b < to; b += run {
		n := min(run, to-b)
		for i := range n {
			stamp(buf[i*blockSize:(i+1)*blockSize], b+i, w.begin(b+i))
		}
		if _, err := f.WriteAt(buf[:n*blockSize], b*blockSize); err != nil {
			w.t.Fatalf("fill of block %d: %v", b, err)
		}
		for i := range n {
			w.acked[b+i] = w.tried[b+i]
		}
	}
}

// verify reads the whole device: each block must hold the last write that was acknowledged, or
// a later one that was begun.
func (w *writer) verify(path string) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	const run = 256
	buf := aligned(run * blockSize)
	bad := 0
	for b := int64(0); b < w.blocks; b += run {
		n := min(run, w.blocks-b)
		if _, err := f.ReadAt(buf[:n*blockSize], b*blockSize); err != nil {
			w.t.Fatalf("read of blocks %d to %d: %v", b, b+n, err)
		}
		for i := range n {
			if err := w.check(buf[i*blockSize:(i+1)*blockSize], b+i); err != nil {
				if bad++; bad <= 5 {
					w.t.Error(err)
				}
			}
		}
	}
	if bad > 5 {
		w.t.Errorf("%d blocks are wrong", bad)
	}
}

func (w *writer) check(buf []byte, b int64) error {
	seq, err := readStamp(buf, b)
	if err != nil {
		return err
	}
	if seq < w.acked[b] || seq > w.tried[b] {
		return fmt.Errorf("block %d holds write %d; %d was acknowledged, and %d was the last one begun", b, seq, w.acked[b], w.tried[b])
	}
	// From now on that is what it holds.
	w.acked[b], w.tried[b] = seq, seq
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stamp fills a block: sum, number of the block, number of the write, noise that follows from both.
func stamp(buf []byte, b int64, seq uint32) {
	noise := rand.NewPCG(uint64(b), uint64(seq))
	for i := 16; i < blockSize; i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], noise.Uint64())
	}
	binary.LittleEndian.PutUint64(buf[4:], uint64(b))
	binary.LittleEndian.PutUint32(buf[12:], seq)
	binary.LittleEndian.PutUint32(buf, crc32.Checksum(buf[4:], castagnoli))
}

// readStamp returns which write of block b that is; 0 for a block of zeros.
func readStamp(buf []byte, b int64) (uint32, error) {
	if allZero(buf) {
		return 0, nil
	}
	if binary.LittleEndian.Uint32(buf) != crc32.Checksum(buf[4:], castagnoli) {
		return 0, fmt.Errorf("block %d is torn or was never written by anybody: % x…", b, buf[:24])
	}
	if got := int64(binary.LittleEndian.Uint64(buf[4:])); got != b {
		return 0, fmt.Errorf("block %d holds what was written to block %d", b, got)
	}
	return binary.LittleEndian.Uint32(buf[12:]), nil
}

func allZero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// aligned returns memory that O_DIRECT can use.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	off := blockSize - int(uintptr(unsafe.Pointer(&b[0]))%blockSize)
	return b[off : off+n : off+n]
}

// lingers waits until a loop device is gone. It is, too, when it is another volume's: numbers are the machine's, and another lab may have taken one a
// moment after it became free. What it was named when it was made tells, also when its file has no path any more.
func lingers(dev, volume string, limit time.Duration) bool {
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		f, err := os.Open(dev)
		if err != nil {
			return false
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		f.Close()
		if errors.Is(err, unix.ENXIO) || err == nil && unix.ByteSliceToString(info.File_name[:]) != "keelson:"+volume {
			return false
		}
		if time.Now().After(deadline) {
			return true
		}
	}
}

func TestStampsAreTold(t *testing.T) {
	buf := make([]byte, blockSize)
	if seq, err := readStamp(buf, 3); seq != 0 || err != nil {
		t.Errorf("zeros: %d, %v", seq, err)
	}
	stamp(buf, 3, 7)
	if seq, err := readStamp(buf, 3); seq != 7 || err != nil {
		t.Errorf("a good block: %d, %v", seq, err)
	}
	if _, err := readStamp(buf, 4); err == nil {
		t.Error("a block in the wrong place was not noticed")
	}
	buf[100] ^= 1
	if _, err := readStamp(buf, 3); err == nil {
		t.Error("a flipped bit was not noticed")
	}
}
