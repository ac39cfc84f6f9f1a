package sim

import (
	"errors"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
)

// side records what one side of a connection is told.
type side struct {
	c      aio.Conn
	got    []byte
	closed int
	err    error
}

func (s *side) Opened(c aio.Conn)                 { s.c = c }
func (s *side) Data(_ aio.Conn, p []byte) int     { s.got = append(s.got, p...); return len(p) }
func (s *side) Closed(_ aio.Conn, err error)      { s.closed++; s.err = err }
func (s *side) accept(c aio.Conn) aio.ConnHandler { s.c = c; return s }

func pair(t *testing.T, seed uint64) (w *World, a, b *Node, x, y *side) {
	t.Helper()
	w = New(Config{Seed: seed})
	a, b = w.NewNode("a"), w.NewNode("b")
	x, y = &side{}, &side{}
	b.Start().OnAccept(y.accept)
	a.Start().Dial("b", "", 0, x)
	if !w.Run(func() bool { return x.c != nil && y.c != nil }, 1000) {
		t.Fatal("no connection")
	}
	if x.c.Peer() != "b" || y.c.Peer() != "a" {
		t.Fatalf("peers %s and %s", x.c.Peer(), y.c.Peer())
	}
	return w, a, b, x, y
}

// numbers are bytes that show where in the stream they belong.
func numbers(from, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte((from + i) * 7 >> 2)
	}
	return p
}

func prefix(t *testing.T, got []byte) {
	t.Helper()
	for i, x := range numbers(0, len(got)) {
		if got[i] != x {
			t.Fatalf("byte %d of %d is wrong", i, len(got))
		}
	}
}

func TestStreamIsOrdered(t *testing.T) {
	for seed := range uint64(50) {
		w, _, _, x, y := pair(t, seed)
		sent := 0
		for range 200 {
			n := 1 + w.Rand().IntN(5000)
			x.c.Write(numbers(sent, n))
			sent += n
			w.RunFor(time.Duration(w.Rand().IntN(100)) * time.Microsecond)
		}
		w.RunFor(time.Second)
		prefix(t, y.got)
		if len(y.got) != sent || y.closed > 0 {
			t.Fatalf("seed %d: %d of %d bytes arrived", seed, len(y.got), sent)
		}
	}
}

func TestBrokenConnections(t *testing.T) {
	for name, fault := range map[string]func(w *World, a, b *Node, x, y *side){
		"break":      func(w *World, a, b *Node, _, _ *side) { w.BreakConns(a, b) },
		"close":      func(_ *World, _, _ *Node, x, _ *side) { x.c.Close() },
		"crash":      func(_ *World, a, _ *Node, _, _ *side) { a.Crash() },
		"power loss": func(_ *World, a, _ *Node, _, y *side) { a.PowerLoss(); y.c.Write(numbers(0, 10)) },
		"cut":        func(w *World, a, b *Node, x, _ *side) { w.Cut(a, b); x.c.Write(numbers(90000, 10)) },
		"reboot":     func(_ *World, a, _ *Node, _, y *side) { a.PowerLoss(); a.Start(); y.c.Write(numbers(0, 10)) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(30) {
				w, a, b, x, y := pair(t, seed)
				for i := range 9 {
					x.c.Write(numbers(i*10000, 10000))
					w.RunFor(50 * time.Microsecond)
				}
				alive := a.Loop()
				fault(w, a, b, x, y)
				w.RunFor(time.Minute)
				prefix(t, y.got)
				if y.closed != 1 || !errors.Is(y.err, aio.ErrConnLost) {
					t.Fatalf("seed %d: the peer was told %d times: %v", seed, y.closed, y.err)
				}
				if want := map[bool]int{true: 1}[!alive.Dead()]; x.closed != want {
					t.Fatalf("seed %d: the dialling side was told %d times", seed, x.closed)
				}
				if len(w.conns) != 0 {
					t.Fatalf("seed %d: %d connections left", seed, len(w.conns))
				}
			}
		})
	}
}

func TestPartitionHeals(t *testing.T) {
	kept := 0
	for seed := range uint64(50) {
		w, a, b, x, y := pair(t, seed)
		w.Cut(a, b)
		x.c.Write(numbers(0, 1000))
		y.c.Write(numbers(0, 1000))
		w.RunFor(time.Second)
		if len(y.got) != 0 || len(x.got) != 1000 {
			t.Fatalf("seed %d: a one-way cut let %d bytes through, and %d back", seed, len(y.got), len(x.got))
		}
		w.Heal(a, b)
		w.RunFor(time.Second)
		if y.closed == 0 {
			kept++
			if len(y.got) != 1000 {
				t.Fatalf("seed %d: %d bytes after healing", seed, len(y.got))
			}
		}
	}
	if kept < 10 || kept == 50 {
		t.Fatalf("%d of 50 connections survived", kept)
	}
}

func TestDialFails(t *testing.T) {
	for name, prepare := range map[string]func(w *World, a, b *Node){
		"no process": func(_ *World, _, b *Node) { b.Crash() },
		"no power":   func(_ *World, _, b *Node) { b.PowerLoss() },
		"one-way":    func(w *World, a, b *Node) { w.Cut(b, a) },
		"refused":    func(_ *World, _, b *Node) { b.Loop().OnAccept(func(aio.Conn) aio.ConnHandler { return nil }) },
	} {
		t.Run(name, func(t *testing.T) {
			w := New(Config{})
			a, b := w.NewNode("a"), w.NewNode("b")
			b.Start().OnAccept((&side{}).accept)
			prepare(w, a, b)
			x := &side{}
			a.Start().Dial("b", "", 0, x)
			w.RunFor(time.Minute)
			if x.c != nil || x.closed != 1 || !errors.Is(x.err, aio.ErrConnLost) {
				t.Fatalf("opened %v, closed %d times: %v", x.c != nil, x.closed, x.err)
			}
		})
	}
}
