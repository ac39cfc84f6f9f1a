package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/meta/etcd"
)

// Snapshots of the metadata on pools: <pool>/metadata/<revision>.snapshot, as etcd writes them. The file's time is the one up to
// which nothing newer was known.
const (
	snapshotDir    = "metadata"
	snapshotSuffix = ".snapshot"
	// snapshotsKept is how many a pool has, snapshotEvery how far apart they are.
	snapshotsKept = 3
	snapshotEvery = time.Hour
	snapshotRetry = time.Minute
	// snapshotWithin bounds how long one may take.
	snapshotWithin = 5 * time.Minute
)

// keepMetadata keeps snapshots of the metadata on the pools that are in service, until ctx ends.
func (s *engineService) keepMetadata(ctx context.Context, client *clientv3.Client) {
	for {
		pause := snapshotEvery
		if next, err := s.saveMetadata(ctx, client); err != nil {
			if ctx.Err() == nil {
				s.log.Warn("the metadata can't be saved to this node's pools; trying again", "err", err)
			}
			pause = snapshotRetry
		} else {
			pause = max(time.Second, time.Until(next))
		}
		select {
		case <-ctx.Done():
			return
		case <-s.poolOpened:
		case <-time.After(pause):
		}
	}
}

// saveMetadata saves the metadata on each pool whose newest snapshot is too old, and returns when the next one is due.
func (s *engineService) saveMetadata(ctx context.Context, client *clientv3.Client) (next time.Time, err error) {
	next = time.Now().Add(snapshotEvery)
	var due []string
	for _, id := range s.openedPools() {
		dir := filepath.Join(s.host.MountPoint(id), snapshotDir)
		if at := newestIn(dir).Add(snapshotEvery); at.After(time.Now()) {
			next = earliest(next, at)
			continue
		}
		due = append(due, dir)
	}
	if len(due) == 0 {
		return next, nil
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotWithin)
	defer cancel()
	at := time.Now()
	r, err := client.Get(ctx, etcd.ClusterKey, clientv3.WithCountOnly())
	if err != nil {
		return next, err
	}
	for _, dir := range due {
		if e := saveTo(ctx, client, dir, r.Header.Revision, at); e != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", dir, e))
		}
	}
	return next, err
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// saveTo writes a snapshot that is whole or not there. If nothing has changed since the newest one, that one becomes of now.
func saveTo(ctx context.Context, client *clientv3.Client, dir string, rev int64, at time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir, strconv.FormatInt(rev, 10)+snapshotSuffix)
	if _, err := os.Stat(path); err == nil {
		return os.Chtimes(path, at, at)
	}
	from, err := client.Snapshot(ctx)
	if err != nil {
		return err
	}
	defer from.Close()
	tmp := filepath.Join(dir, ".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	_, err = io.Copy(f, from)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := errors.Join(os.Chtimes(tmp, at, at), os.Rename(tmp, path), syncDir(dir)); err != nil {
		return err
	}
	list := snapshotsIn(dir)
	for _, old := range list[min(len(list), snapshotsKept):] {
		_ = os.Remove(old)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// snapshotsIn lists the snapshots in a directory, the newest first.
func snapshotsIn(dir string) []string {
	files, _ := filepath.Glob(filepath.Join(dir, "*"+snapshotSuffix))
	return newestFirst(files)
}

func newestFirst(files []string) []string {
	at := map[string]time.Time{}
	for _, f := range files {
		if st, err := os.Stat(f); err == nil {
			at[f] = st.ModTime()
		}
	}
	slices.SortFunc(files, func(a, b string) int { return cmp.Or(at[b].Compare(at[a]), strings.Compare(a, b)) })
	return files
}

func newestIn(dir string) (at time.Time) {
	for _, f := range snapshotsIn(dir) {
		if st, err := os.Stat(f); err == nil {
			return st.ModTime()
		}
	}
	return at
}

// metadataSnapshots lists the snapshots on the pools of this node that are mounted, the newest first.
func metadataSnapshots(dataDir string) ([]string, error) {
	pools, err := listedPools(dataDir)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, p := range pools {
		all = append(all, snapshotsIn(filepath.Join(dataDir, "pools", p.ID, snapshotDir))...)
	}
	return newestFirst(all), nil
}

// openedPools are the ids of the pools in service.
func (s *engineService) openedPools() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.mu.open {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
