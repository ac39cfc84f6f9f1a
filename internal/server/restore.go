package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"keelson.io/keelson/internal/meta/etcd"
	"keelson.io/keelson/internal/spec"
)

// revisionsPerSecond is by how much revisions are raised for each second since 1970 when a state is restored: no revision is ever used
// twice, however often and from however old a snapshot that is done.
const revisionsPerSecond = 1_000_000

// restoreWithin bounds the waiting for etcd while a state is restored.
const restoreWithin = time.Minute

// recoverIfAsked makes new metadata, of this node alone, if a person asked for that. Until the new member's data is in place nothing
// that counts is changed; each step can be repeated.
func recoverIfAsked(ctx context.Context, cfg Config, st State, log *slog.Logger) (State, error) {
	path := filepath.Join(cfg.DataDir, recoverFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return st, nil
	}
	var req recoverRequest
	if err == nil {
		err = json.Unmarshal(b, &req)
	}
	if err != nil {
		return st, fmt.Errorf("what the metadata is to be recovered from: %w", err)
	}
	dir := etcdDir(cfg.DataDir)
	if dataRecovery(dir) < req.Number {
		log.Warn("recovering the metadata", "recovery", req.Number, "snapshot", req.Snapshot, "state_of", req.StateOf, "lost", req.Lost)
		if err := restore(ctx, cfg, st, req, log); err != nil {
			// It isn't tried again: a person has to choose another source, and the node's own copy is as it was.
			_ = os.Rename(path, path+failedSuffix)
			return st, fmt.Errorf("the metadata can't be recovered: %w", err)
		}
	}
	st.Promoted, st.Served, st.Recovery = true, true, dataRecovery(dir)
	if err := st.write(cfg.DataDir); err != nil {
		return st, err
	}
	return st, os.Remove(path)
}

// restore puts a new member's data in the place of the old one's.
func restore(ctx context.Context, cfg Config, st State, req recoverRequest, log *slog.Logger) error {
	dir := etcdDir(cfg.DataDir)
	work := dir + ".recovering"
	if err := errors.Join(os.RemoveAll(work), os.MkdirAll(work, 0o700)); err != nil {
		return err
	}
	from := req.Snapshot
	if from == "" {
		old := dir
		if !hasMember(old) {
			old += asideSuffix // a crash came between the two renames
		}
		from = filepath.Join(work, "state")
		if err := ownState(ctx, cfg, st, old, filepath.Join(work, "copy"), from, log); err != nil {
			return err
		}
	}
	next := filepath.Join(work, "next")
	err := snapshot.NewV3(etcdLogger(log, zapcore.WarnLevel)).Restore(snapshot.RestoreConfig{
		SnapshotPath: from, Name: st.Node, PeerURLs: []string{cfg.etcdPeerURL()}, OutputDataDir: next,
		InitialCluster: st.Node + "=" + cfg.etcdPeerURL(),
		// Another cluster to etcd: members of the past can't take part in it by mistake.
		InitialClusterToken: fmt.Sprintf("%s-%d-%d", st.ClusterID, req.Number, req.At.Unix()),
		RevisionBump:        uint64(req.At.Unix()) * revisionsPerSecond, MarkCompacted: true,
	})
	if err != nil {
		return err
	}
	number, err := mark(ctx, cfg, st, next, req, log)
	if err != nil {
		return err
	}
	if err := noteRecovery(next, number); err != nil {
		return err
	}
	if hasMember(dir) {
		if err := putAside(dir); err != nil {
			return err
		}
	} else if err := os.RemoveAll(dir); err != nil {
		return err
	}
	return errors.Join(os.Rename(next, dir), syncDir(cfg.DataDir), os.RemoveAll(work))
}

// ownState saves the state of a member that has lost the others to a file. It works on a copy of the member's data.
func ownState(ctx context.Context, cfg Config, st State, dir, scratch, to string, log *slog.Logger) error {
	if err := os.CopyFS(scratch, os.DirFS(dir)); err != nil {
		return err
	}
	return aside(ctx, cfg, st, scratch, true, log, func(ctx context.Context, s *etcd.Store) error {
		from, err := s.Client().Snapshot(ctx)
		if err != nil {
			return err
		}
		defer from.Close()
		f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, from)
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// mark has the restored state say that it is one, and returns the number of the recovery.
func mark(ctx context.Context, cfg Config, st State, dir string, req recoverRequest, log *slog.Logger) (number int, err error) {
	err = aside(ctx, cfg, st, dir, false, log, func(ctx context.Context, s *etcd.Store) error {
		c, err := s.Cluster(ctx)
		if err != nil {
			return err
		}
		if c.Value.ID != st.ClusterID {
			return fmt.Errorf("it is the metadata of cluster %s, and this node is one of cluster %s", c.Value.ID, st.ClusterID)
		}
		from := "the copy of node " + st.Node
		if req.Snapshot != "" {
			from = "a snapshot on node " + st.Node
		}
		number, err = s.Recover(ctx, spec.Recovery{
			Number: req.Number, At: req.At, StateOf: req.StateOf, Node: st.Node, From: from, Lost: req.Lost,
		})
		return err
	})
	return number, err
}

// aside runs etcd on a directory where nobody can reach it, and fn with it.
func aside(ctx context.Context, cfg Config, st State, dir string, force bool, log *slog.Logger, fn func(context.Context, *etcd.Store) error) error {
	ec, err := cfg.etcdConfig(st, log)
	if err != nil {
		return err
	}
	socket := cfg.etcdSocket("aside")
	ec.Dir, ec.ForceNewCluster, ec.InitialCluster = dir, force, st.Node+"="+cfg.etcdPeerURL()
	ec.ListenClientUrls = []url.URL{{Scheme: "unix", Host: socket}}
	ec.ListenPeerUrls = []url.URL{{Scheme: "unix", Host: cfg.etcdSocket("aside-peer")}}
	ec.PeerTLSInfo.CertFile = "" // it speaks to nobody
	ec.PeerTLSInfo.KeyFile, ec.PeerTLSInfo.TrustedCAFile = "", ""
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return err
	}
	defer closeEtcd(e)
	ctx, cancel := context.WithTimeout(ctx, restoreWithin)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return err
	case <-ctx.Done():
		return fmt.Errorf("etcd doesn't serve the state: %w", ctx.Err())
	}
	s, err := etcd.New(etcd.Config{Endpoints: []string{"unix://" + socket}, Timeout: restoreWithin})
	if err != nil {
		return err
	}
	return errors.Join(fn(ctx, s), s.Close())
}

// etcdLogger brings what etcd logs into ours.
func etcdLogger(log *slog.Logger, least zapcore.Level) *zap.Logger {
	return zap.New(slogCore{log: log, LevelEnabler: least})
}
