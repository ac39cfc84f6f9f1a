package ring_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio/aiotest"
	"keelson.io/keelson/internal/aio/ring"
)

// newLoop makes a running loop that is closed when the test ends.
func newLoop(t testing.TB, cfg ring.Config) *ring.Loop {
	t.Helper()
	l, err := ring.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	t.Cleanup(func() { l.Close() })
	return l
}

// listen makes a listener on loopback for the loops.
func listen(t testing.TB, loops ...*ring.Loop) *ring.Listener {
	t.Helper()
	ln, err := ring.Listen(ring.ListenConfig{Addr: "127.0.0.1:0", Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// nowhere is an address on which nobody listens.
func nowhere(t testing.TB) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// world is two loops, each with a listener.
func world(t *testing.T, change func(i int, cfg *ring.Config)) aiotest.World {
	var w aiotest.World
	for i := range w.Loops {
		cfg := ring.Config{Node: fmt.Sprintf("node-%d", i), BufferMemory: 32 << 20}
		change(i, &cfg)
		l := newLoop(t, cfg)
		w.Loops[i], w.Dirs[i] = l, t.TempDir()
		w.Targets[i] = aiotest.Target{Node: cfg.Node, Addr: listen(t, l).Addr().String()}
	}
	w.Nowhere = aiotest.Target{Node: "node-9", Addr: nowhere(t)}
	w.Threads = true
	w.Await = func(done <-chan struct{}) bool {
		select {
		case <-done:
			return true
		case <-time.After(30 * time.Second):
			return false
		}
	}
	return w
}

func TestContract(t *testing.T) {
	t.Run("Plain", func(t *testing.T) {
		aiotest.Run(t, func(t *testing.T) aiotest.World { return world(t, func(int, *ring.Config) {}) })
	})
	t.Run("Spin", func(t *testing.T) {
		aiotest.Run(t, func(t *testing.T) aiotest.World {
			return world(t, func(_ int, cfg *ring.Config) { cfg.Spin = 60 * time.Microsecond })
		})
	})
	// Another file system, on which Zero has to make do with a punch.
	t.Run("Tmpfs", func(t *testing.T) {
		if _, err := os.Stat("/dev/shm"); errors.Is(err, os.ErrNotExist) {
			t.Skip("no tmpfs at /dev/shm")
		}
		aiotest.Run(t, func(t *testing.T) aiotest.World {
			w := world(t, func(int, *ring.Config) {})
			for i := range w.Dirs {
				var err error
				if w.Dirs[i], err = os.MkdirTemp("/dev/shm", "ring-test-"); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { os.RemoveAll(w.Dirs[i]) })
			}
			return w
		})
	})
	t.Run("SmallQueue", func(t *testing.T) {
		aiotest.Run(t, func(t *testing.T) aiotest.World {
			return world(t, func(_ int, cfg *ring.Config) { cfg.Entries = 2 })
		})
	})
}
