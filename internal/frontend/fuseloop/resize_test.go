package fuseloop_test

import (
	"context"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend/frontendtest"
)

// direct returns memory that O_DIRECT can use.
func direct(n int) []byte {
	b := make([]byte, n+block.Size)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (block.Size - 1)
	return b[skip : skip+n : skip+n]
}

// A device grows under writes, and what is new of it can be read at once. (The kernel drops what it is told of a file's size while a
// write ends, and then reads beyond the old size fail: so each size is read at its very end, under many writes.)
func TestResizeUnderWrites(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewNull(loop, 16<<20)
	s := open(t, loop, dev, "vol")
	f, err := os.OpenFile(s.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	for i := range uint64(8) {
		wg.Go(func() {
			rng, buf := rand.New(rand.NewPCG(1, i)), direct(block.Size)
			for ctx.Err() == nil {
				if _, err := f.WriteAt(buf, rng.Int64N(4096)*block.Size); err != nil {
					t.Errorf("write: %v", err)
					return
				}
			}
		})
	}
	buf := direct(block.Size)
	for size := int64(20 << 20); size <= 100<<20; size += 4<<20 + block.Size {
		frontendtest.OnLoop(loop, func() { dev.Bytes = size })
		for range 2 { // the second time there is nothing to do
			if err := s.Resize(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := f.Seek(0, 2); err != nil || n != size {
			t.Fatalf("the device has %d bytes, want %d: %v", n, size, err)
		}
		if _, err := f.ReadAt(buf, size-block.Size); err != nil {
			t.Fatalf("reading the end of %d bytes: %v", size, err)
		}
	}
	// Nobody else sets the size of the file.
	for _, size := range []int64{0, 1 << 20, 1 << 30} {
		if err := os.Truncate(s.File(), size); err == nil {
			t.Errorf("the file was set to %d bytes", size)
		}
	}
}
