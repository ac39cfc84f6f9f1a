package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/spec"
)

// recoverFile asks the child etcd of this node to make new metadata, of this node alone, from what is named in it.
const recoverFile = "recover.json"

// failedSuffix is what its name gets when that couldn't be done.
const failedSuffix = ".failed"

// recoverRequest is its content.
type recoverRequest struct {
	// Snapshot is a file; "" is the node's own copy.
	Snapshot string    `json:"snapshot,omitempty"`
	StateOf  time.Time `json:"stateOf"`
	Lost     []string  `json:"lost,omitempty"`
	At       time.Time `json:"at"`
	Number   int       `json:"number"`
}

// Errors of recovering the metadata.
var (
	// ErrAlive: a node can't be lost whose server runs.
	ErrAlive = errors.New("it is alive, and what it has is waited for")
	// ErrQuorum: the metadata has its quorum.
	ErrQuorum = errors.New("the metadata has its quorum")
	// ErrNothingToRecover: this node has neither a copy of the metadata nor a snapshot of it.
	ErrNothingToRecover = errors.New("this node has nothing to recover the metadata from")
)

// RecoverOptions say how to recover the metadata.
type RecoverOptions struct {
	// Snapshot is a file that the state is taken from; SnapshotNewest is the newest one on this node's pools. "" is the node's own copy
	// of the metadata, or, if it has none, the newest snapshot.
	Snapshot string
	Lost     []string
	// AlthoughAlive goes on although there is a quorum.
	AlthoughAlive bool
}

// SnapshotNewest stands for the newest snapshot on this node's pools.
const SnapshotNewest = "newest"

// RecoverPlan is what Recover would do.
type RecoverPlan struct {
	Node    string
	From    string // in words
	StateOf time.Time
	Members []string // that are given up, as far as is known
	Lost    []string
	request recoverRequest
}

// PlanRecovery says what Recover would do, or why it may not be done. It changes nothing.
func PlanRecovery(ctx context.Context, cfg Config, o RecoverOptions) (RecoverPlan, error) {
	st, err := ReadState(cfg.DataDir)
	if err != nil {
		return RecoverPlan{}, err
	}
	p := RecoverPlan{Node: st.Node, Lost: slices.Compact(slices.Sorted(slices.Values(o.Lost)))}
	switch {
	case st.ClusterID == "":
		return p, fmt.Errorf("%s: %w", cfg.DataDir, ErrNoState)
	case st.External:
		return p, errors.New("the metadata of this cluster is an etcd that Keelson doesn't run: recover that by its own means")
	case !slices.Contains(st.Roles, spec.RoleMetadata):
		return p, fmt.Errorf("node %s doesn't have the role metadata, and so not the key of the cluster's CA; run this on a node that has", st.Node)
	case slices.Contains(p.Lost, st.Node):
		return p, &spec.InvalidError{Field: "--lost", Value: st.Node, Legal: "the name of another node: this one is to hold the metadata"}
	}
	alive, err := quorate(ctx, cfg, st)
	if err != nil {
		return p, err
	}
	if alive && !o.AlthoughAlive {
		return p, fmt.Errorf("%w: nothing needs to be recovered; `keelson status` shows its members. To go back to an older state all the same, which gives up what was done since, add --although-alive", ErrQuorum)
	}
	number := newestRecovery(ctx, cfg.DataDir, st)
	p.request = recoverRequest{Lost: p.Lost, At: time.Now().UTC().Truncate(time.Second), Number: max(number, dataRecovery(etcdDir(cfg.DataDir))) + 1}
	if err := p.source(ctx, cfg, o.Snapshot); err != nil {
		return p, err
	}
	p.request.StateOf = p.StateOf
	for _, u := range st.Endpoints {
		if u != cfg.etcdClientURL() {
			p.Members = append(p.Members, u)
		}
	}
	return p, nil
}

// source finds what the state is taken from.
func (p *RecoverPlan) source(ctx context.Context, cfg Config, snapshot string) error {
	own, changed := lastChange(etcdDir(cfg.DataDir))
	if snapshot == "" && own {
		p.From, p.StateOf = "the copy of node "+p.Node, changed
		return nil
	}
	if snapshot == "" || snapshot == SnapshotNewest {
		mountPools(ctx, cfg)
		list, err := metadataSnapshots(cfg.DataDir)
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("%w: %s has no member's data, and no pool of it a snapshot; run this on another node with the role metadata, or name a file that was saved elsewhere with --snapshot", ErrNothingToRecover, etcdDir(cfg.DataDir))
		}
		snapshot = list[0]
	}
	st, err := os.Stat(snapshot)
	if err != nil {
		return fmt.Errorf("the snapshot: %w", err)
	}
	if p.request.Snapshot, err = filepath.Abs(snapshot); err != nil {
		return err
	}
	p.From, p.StateOf = "the snapshot "+p.request.Snapshot, st.ModTime().UTC()
	return nil
}

// mountPools mounts the pools on this node's list, which an engine without metadata doesn't. What fails isn't there to be read.
func mountPools(ctx context.Context, cfg Config) {
	st, err := ReadState(cfg.DataDir)
	if err != nil {
		return
	}
	log := cfg.Logger("recover")
	host := pool.Host{Dir: filepath.Join(cfg.DataDir, "pools"), Cluster: st.ClusterID, Node: st.Node, Log: log}
	list, err := listedPools(cfg.DataDir)
	for _, p := range list {
		if p.Node = st.Node; err == nil {
			_, err = host.Open(ctx, p)
		}
		if err != nil {
			log.Warn("a pool can't be looked into for snapshots of the metadata", "pool", p.ID, "err", err)
		}
	}
}

// lastChange reports whether there is a member's data, and when it was last changed.
func lastChange(dir string) (ok bool, at time.Time) {
	files, err := filepath.Glob(filepath.Join(dir, "member", "*", "*"))
	if err != nil || !hasMember(dir) {
		return false, at
	}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil && st.ModTime().After(at) && strings.HasSuffix(f, ".wal") {
			at = st.ModTime().UTC()
		}
	}
	return true, at
}

// quorate reports whether the metadata answers a question that takes a quorum.
func quorate(ctx context.Context, cfg Config, st State) (bool, error) {
	store, err := openStore(cfg, st, cfg.Logger("recover"))
	if err != nil {
		return false, err
	}
	defer store.Close()
	for range 3 { // an election may be under way
		actx, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err = store.Cluster(actx)
		cancel()
		if err == nil || errors.Is(err, meta.ErrNotFound) {
			return true, nil
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		time.Sleep(300 * time.Millisecond)
	}
	return false, nil
}

// Recover has this node's child etcd make new metadata, of this node alone, and waits until that serves. Other processes of the node
// go on. If keelson server doesn't run, it happens when that starts next; served is false then.
func Recover(ctx context.Context, cfg Config, p RecoverPlan) (served bool, err error) {
	b, err := json.MarshalIndent(p.request, "", "  ")
	if err != nil {
		return false, err
	}
	path := filepath.Join(cfg.DataDir, recoverFile)
	if err := os.Remove(path + failedSuffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if err := replaceFile(path, append(b, '\n'), 0o600); err != nil {
		return false, err
	}
	if !restartChild(cfg.DataDir, "etcd") && !restartChild(cfg.DataDir, "server") {
		return false, nil
	}
	for {
		if _, err := os.Stat(path + failedSuffix); err == nil {
			return false, errors.New("the metadata couldn't be recovered from that, and is as it was; the log of keelson server on this node says why")
		}
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			st, err := ReadState(cfg.DataDir)
			if err == nil {
				if ok, err := quorate(ctx, cfg, st); ok || err != nil {
					return ok, err
				}
			}
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("the metadata doesn't serve yet; see the log of keelson server on this node: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// restartChild ends the process that holds the lock of that name, and reports whether there was one. The supervisor itself is left
// alone: it starts its children again by itself.
func restartChild(dataDir, name string) bool {
	f, err := os.Open(filepath.Join(dataDir, name+".lock"))
	if err != nil {
		return false
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return false
	}
	if name == "server" {
		return true
	}
	b := make([]byte, 16)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return err == nil && pid > 1 && syscall.Kill(pid, syscall.SIGTERM) == nil
}

// DeclareLost adds nodes to those that aren't waited for since the last recovery of the metadata: all of them, or none. The error is a
// meta.ErrNotFound if the cluster hasn't such a node, an ErrAlive if it runs.
func DeclareLost(ctx context.Context, cfg Config, nodes []string) error {
	st, err := ReadState(cfg.DataDir)
	if err != nil {
		return err
	}
	store, err := openStore(cfg, st, cfg.Logger("recover"))
	if err != nil {
		return err
	}
	defer store.Close()
	alive, err := store.Alive(ctx)
	if err != nil {
		return err
	}
	for _, n := range nodes {
		if _, err := store.Node(ctx, n); errors.Is(err, meta.ErrNotFound) {
			return fmt.Errorf("the cluster has no node %s, see `keelson node list`: %w", n, err)
		} else if err != nil {
			return err
		}
		if alive[n] {
			return fmt.Errorf("node %s: %w; stop `keelson server` there first if its data is gone all the same", n, ErrAlive)
		}
	}
	return store.Declare(ctx, nodes...)
}
