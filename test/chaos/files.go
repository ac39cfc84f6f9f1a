package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
)

// Exit codes of the writer on a file system.
const (
	exitWrong = 3 // it read what must not be there
	exitIO    = 4 // the device failed
)

const (
	fileWorkers = 3
	fileBlocks  = 2048 // of each worker's file
)

// writeFiles is the life of the process on a node that writes to a mounted file system: it checks all
// files, says "ready", and overwrites random blocks of them until its standard input ends. A block counts as
// acknowledged when an fsync was, so that all that the file system promises must be there after any fault.
func writeFiles(args []string) int {
	volume, ledgerPath, mnt := args[0], args[1], args[2]
	epoch, err1 := strconv.ParseUint(args[3], 10, 64)
	pace, err2 := time.ParseDuration(args[4])
	l, err3 := openLedger(ledgerPath, fileWorkers*fileBlocks)
	if err := errors.Join(err1, err2, err3); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var workers []*fileWorker
	for i := range fileWorkers {
		w := &fileWorker{volume: volume, ledger: l, epoch: epoch, base: int64(i) * fileBlocks, number: i, pace: pace}
		if err := w.open(filepath.Join(mnt, fmt.Sprintf("f%d", i))); err != nil {
			return fileExit(err)
		}
		workers = append(workers, w)
	}
	fmt.Println("ready")
	var quit atomic.Bool
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		quit.Store(true)
	}()
	var wg sync.WaitGroup
	errs := make([]error, len(workers))
	for i, w := range workers {
		wg.Go(func() {
			errs[i] = w.work(&quit)
			if errs[i] != nil {
				quit.Store(true)
			}
		})
	}
	wg.Wait()
	return fileExit(errors.Join(errs...))
}

func fileExit(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errWrong):
		fmt.Fprintln(os.Stderr, err)
		return exitWrong
	}
	fmt.Fprintln(os.Stderr, err)
	return exitIO
}

type fileWorker struct {
	volume string
	ledger *ledger
	epoch  uint64
	base   int64 // first block in the ledger
	number int
	pace   time.Duration
	f      *os.File // buffered
	direct *os.File
}

// open opens the worker's file, making it if none of its blocks was ever acknowledged, and checks it.
func (w *fileWorker) open(path string) error {
	var err error
	w.f, err = os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		for b := range int64(fileBlocks) {
			if w.ledger.acked[w.base+b] > 0 {
				return fmt.Errorf("%w: %s of %s is gone, and write %d of its block %d was acknowledged", errWrong, filepath.Base(path), w.volume, w.ledger.acked[w.base+b], b)
			}
		}
		w.f, err = makeFile(path)
	}
	if err != nil {
		return err
	}
	if w.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		return err
	}
	return w.verify()
}

func makeFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Truncate(fileBlocks*block.Size), f.Sync()); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return f, dir.Sync()
}

func (w *fileWorker) verify() error {
	buf := make([]byte, block.Size)
	var bad []error
	for b := range int64(fileBlocks) {
		if n, err := w.f.ReadAt(buf, b*block.Size); errors.Is(err, io.EOF) {
			clear(buf[n:]) // a file whose size wasn't durable yet
		} else if err != nil {
			return err
		}
		if err := w.ledger.check(w.volume, buf, w.base+b); err != nil && len(bad) < 5 {
			bad = append(bad, err)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: file %d: %w", errWrong, w.number, errors.Join(bad...))
	}
	return nil
}

func (w *fileWorker) work(quit *atomic.Bool) error {
	const most = 8
	buf := aligned(block.Size)
	for !quit.Load() {
		f := w.f
		if rand.IntN(4) == 0 {
			f = w.direct
		}
		began := time.Now()
		seqs := map[int64]uint32{}
		for range 1 + rand.IntN(most) {
			b := rand.Int64N(fileBlocks)
			seqs[w.base+b] = w.ledger.begin(w.base + b)
			stamp(w.volume, buf, w.base+b, seqs[w.base+b], w.number)
			if _, err := f.WriteAt(buf, b*block.Size); err != nil {
				return err
			}
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
		for b, seq := range seqs {
			w.ledger.ack(w.epoch, b, seq, began)
		}
		time.Sleep(w.pace)
	}
	return nil
}
