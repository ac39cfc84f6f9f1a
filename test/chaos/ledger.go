package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
)

// ledger knows what each block of a guest's volume may hold: a write whose number is in [acked, tried]. acked
// is the last write that was acknowledged, or seen; tried the last one begun since, and last the last one
// begun ever. It is a mapped file outside the nodes, so that a writer that is killed leaves it exact; a
// block has one writer at a time.
type ledger struct {
	mem                []byte
	h                  *ledgerHead
	acked, tried, last []uint32
}

// ledgerHead counts, for the parent to see what a writer in another process does.
type ledgerHead struct {
	epoch   atomic.Uint64 // of the writers that may acknowledge
	since   atomic.Int64  // when it began, Unix ns
	acks    atomic.Uint64 // writes acknowledged
	slowest atomic.Int64  // ns, of one write or flush
	late    atomic.Uint64 // acknowledged by a device that another node had taken
	checked atomic.Uint64 // blocks
}

const ledgerHeadSize = 4096

// handover is how long after an attachment elsewhere an answer of the old device may still be on its way
// to the writer. Longer than that, it is a split brain.
const handover = time.Second

func openLedger(path string, blocks int64) (*ledger, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size := ledgerHeadSize + 12*blocks
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	l := &ledger{mem: mem, h: (*ledgerHead)(unsafe.Pointer(&mem[0]))}
	words := unsafe.Slice((*uint32)(unsafe.Pointer(&mem[ledgerHeadSize])), 3*blocks)
	l.acked, l.tried, l.last = words[:blocks], words[blocks:2*blocks], words[2*blocks:]
	return l, nil
}

// nextEpoch shuts out all writers so far, and returns the epoch of the next ones.
func (l *ledger) nextEpoch() uint64 {
	l.h.since.Store(time.Now().UnixNano())
	return l.h.epoch.Add(1)
}

// begin returns the number of the next write of the block.
func (l *ledger) begin(b int64) uint32 {
	l.last[b]++
	l.tried[b] = l.last[b]
	return l.last[b]
}

// ack notes that write seq of the block, which began then, was acknowledged to a writer of that epoch.
func (l *ledger) ack(epoch uint64, b int64, seq uint32, began time.Time) {
	l.h.slow(time.Since(began))
	if l.h.epoch.Load() != epoch {
		if since := l.h.since.Load(); began.UnixNano() > since || time.Now().UnixNano()-since > int64(handover) {
			l.h.late.Add(1)
		}
		return
	}
	l.acked[b] = seq
	l.h.acks.Add(1)
}

func (h *ledgerHead) slow(d time.Duration) {
	for {
		old := h.slowest.Load()
		if int64(d) <= old || h.slowest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// check judges what was read of block b, and from then on expects just that.
func (l *ledger) check(volume string, buf []byte, b int64) error {
	seq, err := readStamp(volume, buf, b)
	if err != nil {
		return err
	}
	if seq < l.acked[b] || seq > l.tried[b] {
		return fmt.Errorf("block %d of %s holds write %d; %d was acknowledged, and %d was the last one begun", b, volume, seq, l.acked[b], l.tried[b])
	}
	l.acked[b], l.tried[b] = seq, seq
	l.h.checked.Add(1)
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// The stamp: sum, hash of the volume's name, number of the block, number of the write, its writer; then noise that
// follows from all.
const (
	stampVolume = 4
	stampBlock  = 8
	stampSeq    = 16
	stampWriter = 20
	stampNoise  = 24
)

// stamp fills a block.
func stamp(volume string, buf []byte, b int64, seq uint32, writer int) {
	le := binary.LittleEndian
	noise := rand.NewPCG(uint64(b), uint64(seq))
	for i := stampNoise; i < block.Size; i += 8 {
		le.PutUint64(buf[i:], noise.Uint64())
	}
	le.PutUint32(buf[stampVolume:], crc32.ChecksumIEEE([]byte(volume)))
	le.PutUint64(buf[stampBlock:], uint64(b))
	le.PutUint32(buf[stampSeq:], seq)
	le.PutUint32(buf[stampWriter:], uint32(writer))
	le.PutUint32(buf, crc32.Checksum(buf[stampVolume:block.Size], castagnoli))
}

// readStamp returns which write of block b that is; 0 for a block of zeros.
func readStamp(volume string, buf []byte, b int64) (uint32, error) {
	le := binary.LittleEndian
	switch {
	case block.IsZero(buf):
		return 0, nil
	case le.Uint32(buf) != crc32.Checksum(buf[stampVolume:], castagnoli):
		return 0, fmt.Errorf("block %d of %s is torn or was never written by anybody: % x…", b, volume, buf[:stampNoise])
	case le.Uint32(buf[stampVolume:]) != crc32.ChecksumIEEE([]byte(volume)):
		return 0, fmt.Errorf("block %d of %s holds a block of another volume", b, volume)
	case le.Uint64(buf[stampBlock:]) != uint64(b):
		return 0, fmt.Errorf("block %d of %s holds what writer %d wrote to block %d", b, volume, le.Uint32(buf[stampWriter:]), le.Uint64(buf[stampBlock:]))
	}
	return le.Uint32(buf[stampSeq:]), nil
}

// aligned returns memory that O_DIRECT can use.
func aligned(n int) []byte {
	b := make([]byte, n+block.Size)
	off := block.Size - int(uintptr(unsafe.Pointer(&b[0]))%block.Size)
	return b[off : off+n : off+n]
}
