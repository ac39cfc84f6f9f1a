package alloc

import "testing"

var sink []byte

type fake struct {
	testing.TB
	failed bool
}

func (f *fake) Helper()               {}
func (f *fake) Fatalf(string, ...any) { f.failed = true }

func TestBounded(t *testing.T) {
	for n, want := range map[int]bool{1 << 10: false, 8 << 20: true} {
		f := &fake{TB: t}
		Bounded(f, 4<<20, func() { sink = make([]byte, n) })
		if f.failed != want {
			t.Errorf("%d bytes: failed is %v", n, f.failed)
		}
	}
}
