package sim

import (
	"testing"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/aiotest"
)

// TestContract runs the suite that every implementation of aio.Loop passes.
func TestContract(t *testing.T) {
	aiotest.Run(t, func(t *testing.T) aiotest.World {
		w := New(Config{Seed: 7})
		a, b := w.NewNode("a"), w.NewNode("b")
		w.NewNode("c").PowerLoss()
		la, lb := a.Start(), b.Start()
		for _, l := range []*Loop{la, lb} {
			if err := l.FS().MkdirAll("/pool"); err != nil {
				t.Fatal(err)
			}
		}
		return aiotest.World{
			Loops:   [2]aio.Loop{la, lb},
			Dirs:    [2]string{"/pool", "/pool"},
			Targets: [2]aiotest.Target{{Node: "a"}, {Node: "b"}},
			Nowhere: aiotest.Target{Node: "c"},
			Await: func(done <-chan struct{}) bool {
				return w.Run(func() bool {
					select {
					case <-done:
						return true
					default:
						return false
					}
				}, 5_000_000)
			},
		}
	})
}
