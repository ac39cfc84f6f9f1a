package link_test

import (
	"crypto/tls"
	"log/slog"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/link"
	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/pki/pkitest"
	"keelson.io/keelson/internal/wire"
)

func startRing(t testing.TB, node string, ids map[string]func() (client, server *tls.Config)) *ring.Loop {
	cfg := ring.Config{Node: node, BufferMemory: 64 << 20, Log: slog.New(slog.DiscardHandler)}
	if ids != nil {
		cfg.TLS, cfg.PeerName = ids[node], pki.PeerName
	}
	l, err := ring.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	t.Cleanup(func() { l.Close() })
	return l
}

func on(l aio.Loop, fn func()) {
	done := make(chan struct{})
	l.Post(func() { fn(); close(done) })
	<-done
}

// pair joins two loops over TCP on loopback.
func pair(t testing.TB, encrypted bool) (a *ring.Loop, peer *link.Peer, m *replica) {
	var ids map[string]func() (client, server *tls.Config)
	if encrypted {
		ids = pkitest.Identities(t, cluster, "a", "b")
	}
	a, b := startRing(t, "a", ids), startRing(t, "b", ids)
	m = newReplica(b, 4096)
	log := slog.New(slog.DiscardHandler)
	var links [2]*link.Links
	on(b, func() {
		links[1] = link.New(link.Config{Loop: b, Self: "b", Cluster: cluster, Log: log,
			Local: func(wire.ReplicaID) (wire.Member, bool) { return direct{m}, true }})
	})
	ln, err := ring.Listen(ring.ListenConfig{Addr: "127.0.0.1:0", Loops: []*ring.Loop{b}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	up := make(chan struct{})
	on(a, func() {
		links[0] = link.New(link.Config{Loop: a, Self: "a", Cluster: cluster, Log: log,
			Local: func(wire.ReplicaID) (wire.Member, bool) { return nil, false }})
		peer = links[0].Peer("b", ln.Addr().String(), 0)
		peer.Subscribe(func(is bool) {
			if is {
				close(up)
			}
		})
	})
	t.Cleanup(func() {
		on(a, links[0].Close)
		on(b, links[1].Close)
	})
	select {
	case <-up:
	case <-time.After(10 * time.Second):
		t.Fatal("never up")
	}
	return a, peer, m
}

// direct answers in the turn of the question.
type direct struct{ m *replica }

func (d direct) Submit(r *wire.Request) { d.m.run(r) }

func testRing(t *testing.T, encrypted bool) {
	a, peer, _ := pair(t, encrypted)
	const n = 200
	left := 2 * n
	done := make(chan struct{})
	on(a, func() {
		for i := range n {
			blocks := 1 << (i % 9)
			off := int64(i) * 16 * block.Size
			if blocks > 16 {
				off = int64(2048+i%8*256) * block.Size
			}
			w := &wire.Request{Kind: wire.KindWrite, Replica: 1, Off: off, Data: a.Buffers().Get(blocks * block.Size), Sums: make([]uint64, blocks)}
			fill(w, byte(i))
			w.Done = func(w *wire.Request) {
				if w.Status != wire.StatusOK {
					t.Error(w.Status)
				}
				left--
				r := &wire.Request{Kind: wire.KindRead, Replica: 1, Off: w.Off, Data: w.Data, Sums: w.Sums}
				r.Done = func(r *wire.Request) {
					for i, s := range r.Sums {
						if block.Sum(r.Data[i*block.Size:(i+1)*block.Size]) != s {
							t.Error("data doesn't match its sums")
						}
					}
					a.Buffers().Put(r.Data)
					if left--; left == 0 {
						close(done)
					}
				}
				peer.Submit(r)
			}
			peer.Submit(w)
		}
	})
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("not all were answered")
	}
}

func TestRing(t *testing.T) {
	t.Run("plain", func(t *testing.T) { testRing(t, false) })
	t.Run("encrypted", func(t *testing.T) { testRing(t, true) })
}

func benchRing(b *testing.B, encrypted bool, depth, blocks int) {
	a, peer, _ := pair(b, encrypted)
	b.SetBytes(int64(blocks * block.Size))
	b.ReportAllocs()
	left, n := b.N, b.N
	done := make(chan struct{})
	b.ResetTimer()
	on(a, func() {
		for range min(depth, n) {
			w := &wire.Request{Kind: wire.KindWrite, Replica: 1, Data: a.Buffers().Get(blocks * block.Size), Sums: make([]uint64, blocks)}
			fill(w, 3)
			n--
			w.Done = func(w *wire.Request) {
				if left--; left == 0 {
					close(done)
				}
				if n > 0 {
					n--
					peer.Submit(w)
				}
			}
			peer.Submit(w)
		}
	})
	<-done
}

func BenchmarkRing(b *testing.B) {
	b.Run("plain/4K/32", func(b *testing.B) { benchRing(b, false, 32, 1) })
	b.Run("tls/4K/32", func(b *testing.B) { benchRing(b, true, 32, 1) })
	b.Run("plain/4K/1", func(b *testing.B) { benchRing(b, false, 1, 1) })
	b.Run("tls/4K/1", func(b *testing.B) { benchRing(b, true, 1, 1) })
	b.Run("plain/1M/8", func(b *testing.B) { benchRing(b, false, 8, 256) })
	b.Run("tls/1M/8", func(b *testing.B) { benchRing(b, true, 8, 256) })
}
