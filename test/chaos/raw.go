package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
)

// fileDisk is a block device, or a file, opened with O_DIRECT.
type fileDisk struct{ f *os.File }

func openDevice(path string) (*fileDisk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	return &fileDisk{f}, nil
}

func (d *fileDisk) ReadAt(p []byte, off int64) error {
	_, err := d.f.ReadAt(p, off)
	return err
}

func (d *fileDisk) WriteAt(p []byte, off int64) error {
	_, err := d.f.WriteAt(p, off)
	return err
}

func (d *fileDisk) Flush() error { return d.f.Sync() }
func (d *fileDisk) Close() error { return d.f.Close() }

const rawWorkers = 4

// rawLoad overwrites random blocks of a disk. Every write that is answered counts as acknowledged, flushed
// or not: no fault that is made here loses what a machine had in memory.
type rawLoad struct {
	volume string
	ledger *ledger
	epoch  uint64
	disk   disk
	pace   time.Duration
	ended  chan struct{} // closed when all workers are gone
	failed atomic.Pointer[error]
	quit   atomic.Bool
	// abandoned: another node has the volume.
	abandoned atomic.Bool
}

// startRaw checks the whole disk and begins to write.
func startRaw(volume string, l *ledger, d disk, pace time.Duration) (*rawLoad, error) {
	if err := verifyDisk(volume, l, d); err != nil {
		return nil, err
	}
	r := &rawLoad{volume: volume, ledger: l, epoch: l.nextEpoch(), disk: d, pace: pace, ended: make(chan struct{})}
	var wg sync.WaitGroup
	for i := range rawWorkers {
		wg.Go(func() {
			if err := r.work(i); err != nil {
				r.failed.CompareAndSwap(nil, &err)
				r.quit.Store(true)
			}
		})
	}
	go func() {
		wg.Wait()
		r.probe()
		d.Close()
		close(r.ended)
	}()
	return r, nil
}

// errWrong marks what must never be read.
var errWrong = errors.New("WRONG DATA")

// verifyDisk reads everything.
func verifyDisk(volume string, l *ledger, d disk) error {
	const run = 64
	buf := aligned(run * block.Size)
	blocks := int64(len(l.acked))
	var bad []error
	for b := int64(0); b < blocks; b += run {
		n := min(run, blocks-b)
		if err := d.ReadAt(buf[:n*block.Size], b*block.Size); err != nil {
			return fmt.Errorf("read of blocks %d to %d: %w", b, b+n, err)
		}
		for i := range n {
			if err := l.check(volume, buf[i*block.Size:(i+1)*block.Size], b+i); err != nil && len(bad) < 5 {
				bad = append(bad, err)
			}
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: %w", errWrong, errors.Join(bad...))
	}
	return nil
}

func (r *rawLoad) work(worker int) error {
	const most = 16
	buf, back := aligned(most*block.Size), aligned(block.Size)
	blocks := int64(len(r.ledger.acked))
	part := blocks / rawWorkers
	lo := int64(worker) * part
	for !r.quit.Load() {
		n := int64(1)
		if rand.IntN(8) == 0 {
			n = 1 + rand.Int64N(most)
		}
		b := lo + rand.Int64N(part-n+1)
		if rand.IntN(8) == 0 {
			if err := r.readBack(back, b); err != nil {
				return err
			}
		}
		began := time.Now()
		var seqs [most]uint32
		for i := range n {
			seqs[i] = r.ledger.begin(b + i)
			stamp(r.volume, buf[i*block.Size:(i+1)*block.Size], b+i, seqs[i], worker)
		}
		if err := r.disk.WriteAt(buf[:n*block.Size], b*block.Size); err != nil {
			return fmt.Errorf("write of block %d: %w", b, err)
		}
		for i := range n {
			r.ledger.ack(r.epoch, b+i, seqs[i], began)
		}
		if rand.IntN(64) == 0 {
			if err := r.disk.Flush(); err != nil {
				return fmt.Errorf("flush: %w", err)
			}
		}
		time.Sleep(r.pace)
	}
	return nil
}

// readBack reads a block of the worker's own, in which nothing is in flight: what it holds must be the last
// write. A device that another node took in between may fail, but not answer with anything.
func (r *rawLoad) readBack(buf []byte, b int64) error {
	began := time.Now()
	if err := r.disk.ReadAt(buf, b*block.Size); err != nil {
		return fmt.Errorf("read of block %d: %w", b, err)
	}
	r.ledger.h.slow(time.Since(began))
	if r.ledger.h.epoch.Load() != r.epoch {
		return nil
	}
	if err := r.ledger.check(r.volume, buf, b); err != nil {
		return fmt.Errorf("%w: read under load: %w", errWrong, err)
	}
	return nil
}

func (r *rawLoad) done() <-chan struct{} { return r.ended }

// err returns why the load ended by itself; nil if it was stopped.
func (r *rawLoad) err() error {
	if p := r.failed.Load(); p != nil {
		return *p
	}
	return nil
}

// stop lets the workers finish what is in flight.
func (r *rawLoad) stop() { r.quit.Store(true) }

// probe asks a device that another node has taken: it must not answer a read any more.
func (r *rawLoad) probe() {
	if r.abandoned.Load() && r.disk.ReadAt(aligned(block.Size), 0) == nil {
		r.ledger.h.late.Add(1)
	}
}

// abandon is stop for a device whose volume another node has: it may not answer for long.
func (r *rawLoad) abandon() {
	r.abandoned.Store(true)
	r.quit.Store(true)
	if _, ok := r.disk.(*nbdDisk); ok {
		r.disk.Close()
	}
}

// stopAndWait stops a load, and says if it didn't end in time.
func stopAndWait(ctx context.Context, l load, limit time.Duration) error {
	l.stop()
	select {
	case <-l.done():
		return l.err()
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(limit):
		return fmt.Errorf("I/O hangs: not answered %v after everything was healed", limit)
	}
}
