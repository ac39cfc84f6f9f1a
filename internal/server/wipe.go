package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/spec"
)

// poolList is the file in the data directory that names this node's pools: by it they are found when the metadata can't be asked
// any more.
const poolList = "pool-list.json"

// notePool adds a pool to the list.
func notePool(dataDir string, p spec.Pool) error {
	list, err := listedPools(dataDir)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(x spec.Pool) bool { return x.ID == p.ID })
	p.Draining, p.Leftovers = false, nil
	switch {
	case i < 0:
		list = append(list, p)
	case list[i].Capacity != p.Capacity || list[i].Reserve != p.Reserve || !maps.Equal(list[i].Labels, p.Labels):
		list[i] = p
	default:
		return nil
	}
	return writePools(dataDir, list)
}

// unlistPool takes a pool off the list.
func unlistPool(dataDir, id string) error {
	list, err := listedPools(dataDir)
	if err != nil {
		return err
	}
	return writePools(dataDir, slices.DeleteFunc(list, func(x spec.Pool) bool { return x.ID == id }))
}

func listedPools(dataDir string) (list []spec.Pool, err error) {
	b, err := os.ReadFile(filepath.Join(dataDir, poolList))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("the list of this node's pools: %w", err)
	}
	return list, nil
}

func writePools(dataDir string, list []spec.Pool) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	path := filepath.Join(dataDir, poolList)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// ErrRuns: keelson server runs on this machine.
var ErrRuns = errors.New("keelson server runs on this node; stop it first")

// Wiped is what Wipe takes away, or would.
type Wiped struct {
	DataDir, RunDir string
	Pools           []spec.Pool // of the node; only their ids, devices and files are set
}

// Inspect says what Wipe would take away.
func Inspect(cfg Config) (Wiped, error) {
	w := Wiped{DataDir: cfg.DataDir, RunDir: cfg.RunDir}
	var err error
	w.Pools, err = listedPools(cfg.DataDir)
	return w, err
}

// Wipe removes Keelson from this machine: its identity, its part of the metadata and its mounts. With pools, also what is in the
// pools: their file systems' signatures are overwritten, and their files removed; without, they stay as they are, and can be used
// by nobody but this node of this cluster. It refuses while keelson server runs, or while a volume's device is still there. Each
// step can be repeated.
func Wipe(ctx context.Context, cfg Config, pools bool, log *slog.Logger) error {
	if err := nothingRuns(cfg.DataDir); err != nil {
		return err
	}
	w, err := Inspect(cfg)
	if err != nil {
		return err
	}
	if left, err := os.ReadDir(filepath.Join(cfg.RunDir, "fuse")); err == nil && len(left) > 0 {
		return fmt.Errorf("the device of volume %s is still there; stop what uses it, and start and stop keelson server once", left[0].Name())
	}
	host := pool.Host{Dir: filepath.Join(cfg.DataDir, "pools"), Log: log}
	for _, p := range w.Pools {
		if err := host.Close(p.ID); err != nil {
			return err
		}
		if !pools {
			continue
		}
		if err := pool.Wipe(ctx, p); err != nil {
			return err
		}
		log.Info("pool wiped", "pool", p.ID, "device", p.Device, "file", p.File)
	}
	for _, dir := range []string{cfg.RunDir, cfg.DataDir} {
		list, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		// The list of pools last: after a crash it is needed again.
		slices.SortStableFunc(list, func(a, b os.DirEntry) int { return rank(a) - rank(b) })
		for _, e := range list {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	log.Info("Keelson is removed from this node", "dataDir", cfg.DataDir)
	return nil
}

// nothingRuns looks whether a process has a lock in the data directory, as all of keelson server's have.
func nothingRuns(dataDir string) error {
	locks, err := filepath.Glob(filepath.Join(dataDir, "*.lock"))
	if err != nil {
		return err
	}
	for _, name := range locks {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w (%s is locked)", ErrRuns, name)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func rank(e os.DirEntry) int {
	if e.Name() == poolList {
		return 1
	}
	return 0
}
