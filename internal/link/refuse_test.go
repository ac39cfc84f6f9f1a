package link_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/sim"
	"keelson.io/keelson/internal/wire"
)

// raw is a connection that speaks whatever the test writes.
type raw struct {
	c      aio.Conn
	got    []byte
	closed bool
}

func (r *raw) Opened(c aio.Conn) { r.c = c }
func (r *raw) Data(_ aio.Conn, p []byte) int {
	r.got = append(r.got, p...)
	return len(p)
}
func (r *raw) Closed(aio.Conn, error) { r.closed = true }

func TestBadPeersAreRefused(t *testing.T) {
	hello := wire.AppendHello(nil, wire.Hello{Cluster: cluster, Node: "x"})
	greeted := func(p ...byte) []byte { return append(bytes.Clone(hello), p...) }
	flood := bytes.Clone(hello)
	big := &wire.Request{Kind: wire.KindRead, Replica: 7, Len: 1 << 20}
	for i := range 17 {
		flood = wire.AppendRequest(flood, uint64(i), big)
	}
	flip := wire.AppendRequest(nil, 1, &wire.Request{Kind: wire.KindConfirm, Replica: 7})
	flip[40] ^= 4
	newer := bytes.Clone(flip)
	newer[4] = 2
	for _, c := range []struct {
		name, why string
		send      []byte
	}{
		{"garbage", "not a frame", bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 10)},
		{"garbage after the hello", "not a frame", greeted(bytes.Repeat([]byte{0xff}, 80)...)},
		{"a wrong checksum", "wrong checksum", greeted(flip...)},
		{"an unknown version", "unknown frame version", greeted(newer...)},
		{"another cluster", "belongs to cluster", wire.AppendHello(nil, wire.Hello{Cluster: "ffff", Node: "x"})},
		{"another's name", "its certificate says", wire.AppendHello(nil, wire.Hello{Cluster: cluster, Node: "a"})},
		{"no hello", "isn't a hello", wire.AppendPing(nil, wire.TypePing, 1)},
		{"an answer to the answering side", "unknown frame type", greeted(wire.AppendPing(nil, wire.TypePong, 1)...)},
		{"more than the window", "unanswered", flood},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t, sim.Config{Seed: 8})
			f.m.hold = true
			x := f.w.NewNode("x").Start()
			r := &raw{}
			x.Dial("b", "b:9501", 0, r)
			f.until("open", func() bool { return r.c != nil })
			r.c.Write(c.send)
			f.until("closed", func() bool { return r.closed })
			f.w.RunFor(time.Millisecond)
			log := f.b.log.String()
			if !strings.Contains(log, c.why) || !strings.Contains(log, "node=x") {
				t.Fatalf("the log doesn't say %q of node x: %s", c.why, log)
			}
			f.m.release()
			f.w.RunFor(time.Second)
			if !f.peer.Up() || f.b.loop.Outstanding() != 0 {
				t.Fatal("others were disturbed")
			}
		})
	}
}

func TestAskerRefusesBadAnswers(t *testing.T) {
	w := sim.New(sim.Config{Seed: 9})
	na, nb := w.NewNode("a"), w.NewNode("b")
	bad := nb.Start()
	opened := 0
	bad.OnAccept(func(c aio.Conn) aio.ConnHandler {
		opened++
		send := wire.AppendHello(nil, wire.Hello{Cluster: cluster, Node: "b"})
		send, _ = wire.AppendAnswer(send, 77, &wire.Request{Kind: wire.KindConfirm})
		c.Write(send)
		return &raw{}
	})
	a := start(na, cluster, nil)
	p := a.links.Peer("b", "b:9501", 0)
	p.Subscribe(func(bool) {})
	if !w.Run(func() bool { return opened == 5 }, 1_000_000) {
		t.Fatal("it doesn't try again")
	}
	if w.Now() < 100*time.Millisecond || !strings.Contains(a.log.String(), "nobody asked for") {
		t.Fatalf("%v: %s", w.Now(), a.log)
	}
}

func TestWrongNodeAtTheAddress(t *testing.T) {
	f := newFixture(t, sim.Config{Seed: 10})
	other := start(f.w.NewNode("c"), "another cluster", nil)
	p := f.a.links.Peer("c", "c:9501", 0)
	p.Subscribe(func(up bool) { t.Errorf("up %v", up) })
	f.w.RunFor(10 * time.Second)
	if s := f.a.links.Status(); s[1].Up || !strings.Contains(s[1].Err, "belongs to cluster") {
		t.Fatalf("status %+v", s)
	}
	if n := strings.Count(f.a.log.String(), "belongs to cluster"); n != 1 {
		t.Fatalf("logged %d times", n)
	}
	other.links.Close()
}
