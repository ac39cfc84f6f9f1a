package server

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"slices"
	"testing"

	"keelson.io/keelson/internal/meta/etcd"
)

// TestMembersReplacedMeanwhile: a node that was away while all members that it knew were replaced hears of the present ones from the
// other nodes, and not from one that knows of an older recovery of the metadata.
func TestMembersReplacedMeanwhile(t *testing.T) {
	cfg := metadataNode(t, 21)
	if err := Prepare(context.Background(), cfg); err != nil {
		t.Fatal(err)
	}
	st, err := cfg.ownState()
	if err != nil {
		t.Fatal(err)
	}
	id, err := loadIdentity(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	peer := func(recovery int, endpoints ...string) string {
		other := metadataNode(t, 22)
		if err := os.MkdirAll(other.DataDir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := (State{Node: "other", Recovery: recovery}).write(other.DataDir); err != nil {
			t.Fatal(err)
		}
		conf, err := id.server(true)
		if err != nil {
			t.Fatal(err)
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", conf)
		if err != nil {
			t.Fatal(err)
		}
		s := &http.Server{Handler: showRecovery(other.DataDir, func() []string { return endpoints })}
		go s.Serve(l)
		t.Cleanup(func() { s.Close() })
		return l.Addr().String()
	}
	dead := "https://127.77.0.1:1"
	st.Peers = []string{"127.77.0.1:2", peer(1, "https://past:9502"), peer(2, "https://now:9502", dead), peer(2, "https://now:9502")}
	if err := st.write(cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	store, err := etcd.New(etcd.Config{Endpoints: []string{dead}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	want := []string{cfg.etcdClientURL(), dead, "https://now:9502"}
	slices.Sort(want)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if got := memberURLs(ctx, cfg, store, []string{dead}); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
