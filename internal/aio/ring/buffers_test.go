package ring

import (
	"os"
	"testing"
	"unsafe"
)

// TestBuffersAreThere looks at pages of buffers that nobody has touched: a page that the kernel had to fault in, while it copies a request of
// FUSE to a process that is being killed, would end that request with EIO.
func TestBuffersAreThere(t *testing.T) {
	a, err := newArena(8 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	for _, n := range []int{1 << 20, 1 << 20, 256 << 10, 4 << 10} {
		b := a.Get(n)
		for off := 0; off < n; off += os.Getpagesize() {
			if !present(t, uintptr(unsafe.Pointer(&b[off]))) {
				t.Fatalf("buffer of %d bytes: the page at %d isn't in memory", n, off)
			}
		}
	}
}

// present reads from the page table whether a page is in memory.
func present(t *testing.T, addr uintptr) bool {
	t.Helper()
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var e [8]byte
	if _, err := f.ReadAt(e[:], int64(addr/uintptr(os.Getpagesize())*8)); err != nil {
		t.Fatal(err)
	}
	return e[7]&0x80 != 0
}
