package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"

	pb "keelson.io/keelson/internal/api/keelsonv1"
)

// recoveryPage is where a node's API says of which recovery of the metadata it knows, and who the members are.
const recoveryPage = "/metadata-recovery"

// knownRecovery is what that page says.
type knownRecovery struct {
	Number    int      `json:"number"`
	Endpoints []string `json:"endpoints,omitempty"` // client URLs, as last known there
}

func showRecovery(dataDir string, endpoints func() []string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		st, err := ReadState(dataDir)
		if err != nil {
			http.Error(w, "this node's state can't be read", http.StatusInternalServerError)
			return
		}
		_ = json.NewEncoder(w).Encode(knownRecovery{max(st.Recovery, dataRecovery(etcdDir(dataDir))), endpoints()})
	})
}

func etcdDir(dataDir string) string { return filepath.Join(dataDir, "etcd") }

// numberFile says, beside a member's data, of which recovery of the metadata that is.
const numberFile = "recovery"

// dataRecovery is the number of the recovery that a member's data is of; 0 for a cluster that was never recovered.
func dataRecovery(dir string) int {
	b, err := os.ReadFile(filepath.Join(dir, numberFile))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

func noteRecovery(dir string, number int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return replaceFile(filepath.Join(dir, numberFile), []byte(strconv.Itoa(number)+"\n"), 0o600)
}

// noteOwnRecovery writes down of which recovery a member's data is, as the data itself says.
func noteOwnRecovery(dir string, srv *etcdserver.EtcdServer) error {
	c, err := memberCluster(srv.KV())
	if err != nil || c.Recovery.Number <= dataRecovery(dir) {
		return nil // a new cluster has no record yet
	}
	return noteRecovery(dir, c.Recovery.Number)
}

// How often the other nodes are asked whether the metadata was recovered without this member: often while it has no quorum.
const (
	pastEvery   = 15 * time.Second
	pastSeldom  = time.Minute
	pastTimeout = time.Second
)

// newestRecovery asks all peers that answer for the newest recovery that they know of.
func newestRecovery(ctx context.Context, dataDir string, st State) int {
	newest := st.Recovery
	for _, k := range askRecovery(ctx, dataDir, st) {
		newest = max(newest, k.Number)
	}
	return newest
}

// peersEndpoints asks all peers for the members of the metadata, and believes those that know of the newest recovery.
func peersEndpoints(ctx context.Context, dataDir string, st State) (urls []string) {
	said := askRecovery(ctx, dataDir, st)
	newest := st.Recovery
	for _, k := range said {
		newest = max(newest, k.Number)
	}
	for _, k := range said {
		if k.Number == newest {
			urls = append(urls, k.Endpoints...)
		}
	}
	slices.Sort(urls)
	return slices.Compact(urls)
}

// askRecovery returns what those peers say of the metadata that answer at once.
func askRecovery(ctx context.Context, dataDir string, st State) (said []knownRecovery) {
	id, err := loadIdentity(dataDir)
	if err != nil {
		return nil
	}
	conf, err := id.client("")
	if err != nil {
		return nil
	}
	h := httpClient(conf)
	defer h.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, pastTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, peer := range st.Peers {
		wg.Go(func() {
			r, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer+recoveryPage, nil)
			if err != nil {
				return
			}
			resp, err := h.Do(r)
			if err != nil {
				return
			}
			defer resp.Body.Close()
			var k knownRecovery
			if resp.StatusCode != http.StatusOK || json.NewDecoder(http.MaxBytesReader(nil, resp.Body, 4<<10)).Decode(&k) != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			said = append(said, k)
		})
	}
	wg.Wait()
	return said
}

// leavePast puts a member's data aside that is of the metadata as it was before a recovery: this node then joins the others again. It
// asks before the member starts, as two such members would be a quorum of the past.
func leavePast(ctx context.Context, cfg Config, st State, log *slog.Logger) (State, error) {
	dir := etcdDir(cfg.DataDir)
	newest := newestRecovery(ctx, cfg.DataDir, st)
	if !hasMember(dir) || dataRecovery(dir) >= newest {
		return st, nil
	}
	log.Warn("the metadata was recovered without this node; its own copy is put aside, and it joins again", "recovery", newest, "had", dataRecovery(dir))
	if err := putAside(dir); err != nil {
		return st, err
	}
	st.Promoted, st.Served, st.Recovery = false, true, newest
	return st, st.write(cfg.DataDir)
}

// asideSuffix is what the name of a directory gets whose data isn't used any more. One is kept.
const asideSuffix = ".before"

func putAside(dir string) error {
	if err := os.RemoveAll(dir + asideSuffix); err != nil {
		return err
	}
	err := os.Rename(dir, dir+asideSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// watchForRecovery returns an error when it hears that the metadata was recovered without this member: it is to start anew then.
func watchForRecovery(ctx context.Context, cfg Config, srv *etcdserver.EtcdServer, st State, log *slog.Logger) error {
	dir := etcdDir(cfg.DataDir)
	asked := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pastEvery):
		}
		if srv.Leader() != 0 && time.Since(asked) < pastSeldom {
			continue
		}
		asked = time.Now()
		if now, err := ReadState(cfg.DataDir); err == nil {
			st = now
		}
		st.Recovery = 0 // what this node itself has learnt by joining says nothing against its data
		n := newestRecovery(ctx, cfg.DataDir, st)
		if err := noteOwnRecovery(dir, srv); err != nil { // after the others were asked: what they know by then is in the data, if it is of theirs
			return err
		}
		if own := dataRecovery(dir); n > own {
			log.Warn("the metadata was recovered without this member", "recovery", n, "own", own)
			return fmt.Errorf("the metadata was recovered without this member (recovery %d)", n)
		}
	}
}

// leaveReplaced puts a member's data aside if the other members know no such member: another node holds the metadata in its place. This
// one asks to be let in again when it starts anew.
func leaveReplaced(ctx context.Context, cfg Config) error {
	st, err := ReadState(cfg.DataDir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 4*pastTimeout)
	defer cancel()
	for _, peer := range st.Peers {
		cl, err := peerClient(cfg.DataDir, peer)
		if err != nil {
			return err
		}
		r, err := cl.Cluster.Status(ctx, &pb.StatusRequest{})
		if err != nil || len(r.Metadata) == 0 {
			continue
		}
		for _, m := range r.Metadata {
			if m.Name == st.Node || strings.Contains(m.Name, cfg.etcdPeerURL()) {
				return nil
			}
		}
		st.Promoted, st.Served = false, true
		if err := st.write(cfg.DataDir); err != nil {
			return err
		}
		return errors.Join(errors.New("other nodes hold the metadata in its place"), putAside(etcdDir(cfg.DataDir)))
	}
	return nil
}
