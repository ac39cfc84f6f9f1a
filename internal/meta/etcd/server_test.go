package etcd

import (
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
)

var endpoint string

// TestMain runs one etcd for all tests of the package; each test begins with an empty keyspace.
func TestMain(m *testing.M) { os.Exit(runWithEtcd(m)) }

func runWithEtcd(m *testing.M) int {
	dir, err := os.MkdirTemp("", "keelson-etcd-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.UnsafeNoFsync = true
	cfg.LogLevel = "fatal"
	free := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{free}, []url.URL{free}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{free}, []url.URL{free}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	endpoint = "http://" + e.Clients[0].Addr().String()
	return m.Run()
}

// open returns a store at the address, that of the server if it is "".
func open(t *testing.T, at string) *Store {
	t.Helper()
	if at == "" {
		at = endpoint
	}
	s, err := New(Config{Endpoints: []string{at}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// empty returns a store without any key.
func empty(t *testing.T) *Store {
	t.Helper()
	s := open(t, "")
	if _, err := s.c.Delete(t.Context(), root, clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	return s
}

// wire is a way to the server that can be cut.
type wire struct {
	l     net.Listener
	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]bool
	wg    sync.WaitGroup
}

func newWire(t *testing.T) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{l: l, conns: map[net.Conn]bool{}}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		l.Close()
		w.setCut(true)
		w.wg.Wait()
	})
	return w
}

func (w *wire) endpoint() string { return "http://" + w.l.Addr().String() }

// setCut closes all connections, and lets no new one through, or ends that.
func (w *wire) setCut(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
	for c := range w.conns {
		if cut {
			c.Close()
		}
	}
}

func (w *wire) keep(c net.Conn) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut {
		c.Close()
		return false
	}
	w.conns[c] = true
	return true
}

func (w *wire) accept() {
	u, _ := url.Parse(endpoint)
	for {
		a, err := w.l.Accept()
		if err != nil {
			return
		}
		if !w.keep(a) {
			continue
		}
		b, err := net.DialTimeout("tcp", u.Host, 5*time.Second)
		if err != nil {
			a.Close()
			continue
		}
		if !w.keep(b) {
			continue
		}
		for _, p := range [][2]net.Conn{{a, b}, {b, a}} {
			w.wg.Go(func() {
				_, _ = io.Copy(p[0], p[1])
				p[0].Close()
				p[1].Close()
			})
		}
	}
}
