package maintenance

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// load writes to a block device and reads back what it wrote, until it is ended. Each block says where it belongs and which write of
// it it is.
type load struct {
	t       *testing.T
	f       *os.File
	blocks  atomic.Int64 // of the device that are used
	stop    chan struct{}
	done    sync.WaitGroup
	writes  int
	version map[int64]uint64
}

// startLoad begins to write to the first size bytes of a device.
func startLoad(t *testing.T, device string, size int64) *load {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, f: f, stop: make(chan struct{}), version: map[int64]uint64{}}
	l.blocks.Store(size / blockSize)
	l.done.Go(l.run)
	t.Cleanup(l.end)
	return l
}

func (l *load) run() {
	rng := rand.New(rand.NewPCG(1, 2))
	buf := aligned(blockSize)
	for {
		select {
		case <-l.stop:
			return
		default:
		}
		blk := rng.Int64N(l.blocks.Load())
		fillBlock(buf, blk, l.version[blk]+1)
		if _, err := l.f.WriteAt(buf, blk*blockSize); err != nil {
			l.t.Errorf("writing block %d: %v", blk, err)
			return
		}
		l.version[blk]++
		l.writes++
		if err := l.check(buf, rng.Int64N(l.blocks.Load())); err != nil {
			l.t.Error(err)
			return
		}
	}
}

// check reads a block and compares it with what was written last: zeros if nothing was.
func (l *load) check(buf []byte, blk int64) error {
	if _, err := l.f.ReadAt(buf, blk*blockSize); err != nil {
		return fmt.Errorf("reading block %d: %w", blk, err)
	}
	want := make([]byte, blockSize)
	if v := l.version[blk]; v > 0 {
		fillBlock(want, blk, v)
	}
	if !bytes.Equal(buf, want) {
		return fmt.Errorf("block %d isn't what was written last (write %d): it begins %x", blk, l.version[blk], buf[:16])
	}
	return nil
}

// end ends the writes and verifies all that was written.
func (l *load) end() {
	select {
	case <-l.stop:
		return
	default:
	}
	close(l.stop)
	l.done.Wait()
	buf := aligned(blockSize)
	for blk := range l.version {
		if err := l.check(buf, blk); err != nil {
			l.t.Error(err)
			break
		}
	}
	l.t.Logf("%d writes, to %d blocks, verified", l.writes, len(l.version))
	if err := l.f.Close(); err != nil {
		l.t.Error(err)
	}
}

func fillBlock(b []byte, blk int64, version uint64) {
	for i := 0; i < len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], uint64(blk)<<20|uint64(i))
		binary.LittleEndian.PutUint64(b[i+8:], version)
	}
}

// aligned returns memory that O_DIRECT can use.
func aligned(n int) []byte {
	b := make([]byte, n+blockSize)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (blockSize - 1)
	return b[skip : skip+n : skip+n]
}
