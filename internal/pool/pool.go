// Package pool is the host's side of a pool: it makes the XFS file system on a device or
// a file, mounts it, says how full it is, and unmounts it.
//
// Invariants: nothing is written to a device that is in use, and nothing to one that
// carries any signature unless that was asked for; a pool is mounted only where its id file
// names this pool, this node and this cluster; a file is behind at most one loop device.
//
// The package owns no goroutine. Its functions block on the disk and on tools of the host
// (mkfs.xfs, wipefs), and are to be called by one goroutine at a time for one pool.
package pool

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
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// MinSize is the smallest pool, in bytes: XFS wants 300 MB.
const MinSize = 320 << 20

// What can be wrong with a request for a pool, or a pool. Test with errors.Is.
var (
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid pool")
	// ErrInUse: the device or file is mounted, or otherwise taken.
	ErrInUse = errors.New("in use")
	// ErrSigned: the device or file holds something.
	ErrSigned = errors.New("not empty")
	// ErrForeign: what is there is not the pool that was expected.
	ErrForeign = errors.New("not this pool")
)

// Host is where pools are mounted.
type Host struct {
	Dir     string // a pool's mount point is Dir/<id>
	Cluster string // id
	Node    string
	Log     *slog.Logger
}

// AddOptions says what to make a pool of: one of Device and File.
type AddOptions struct {
	Device string
	File   string // made, sparse, with Size
	Size   int64
	Media  spec.Media // "" to find out
	Labels map[string]string
	Wipe   bool // overwrite what is there
}

// idFile is at a pool's root.
const idFile = "keelson-pool.json"

type identity struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Cluster string    `json:"cluster"`
	Node    string    `json:"node"`
	Created time.Time `json:"created"`
}

// MountPoint returns where a pool is mounted.
func (h Host) MountPoint(id string) string { return filepath.Join(h.Dir, id) }

// Add makes a pool, mounts it and returns its description. When it fails, nothing that it made is left.
func (h Host) Add(ctx context.Context, o AddOptions) (_ spec.Pool, err error) {
	if err := o.validate(); err != nil {
		return spec.Pool{}, err
	}
	o.Size &^= 4095 // a file of 10G, which is no whole number of blocks, is what people ask for
	p := spec.Pool{
		ID: spec.NewID(), Node: h.Node, Device: o.Device, File: o.File, Media: o.Media,
		Labels: maps.Clone(o.Labels), Created: time.Now().UTC().Truncate(time.Second),
	}
	if o.File != "" {
		made, err := prepareFile(ctx, o)
		if err != nil {
			return spec.Pool{}, err
		}
		if made {
			defer func() {
				if err != nil {
					os.Remove(o.File)
				}
			}()
		}
	} else if err := prepareDevice(ctx, o); err != nil {
		return spec.Pool{}, err
	}
	if p.Media == "" {
		p.Media = detectMedia(o.Device + o.File)
	}
	dev, release, err := h.device(p)
	if err != nil {
		return spec.Pool{}, err
	}
	defer release()
	if err := mkfs(ctx, dev); err != nil {
		return spec.Pool{}, err
	}
	if err := mount(dev, h.MountPoint(p.ID)); err != nil {
		return spec.Pool{}, err
	}
	if err := h.describe(&p); err != nil {
		return spec.Pool{}, errors.Join(err, h.Close(p.ID))
	}
	return p, nil
}

// describe writes the id file of a new pool and measures it.
func (h Host) describe(p *spec.Pool) error {
	dir := h.MountPoint(p.ID)
	b, err := json.Marshal(identity{Version: 1, ID: p.ID, Cluster: h.Cluster, Node: h.Node, Created: p.Created})
	if err != nil {
		return err
	}
	if err := writeSynced(filepath.Join(dir, idFile), b); err != nil {
		return err
	}
	u, err := Measure(dir)
	if err != nil {
		return err
	}
	p.Capacity = u.Capacity
	p.Reserve = reserve(u.Capacity)
	return nil
}

// Open mounts a pool, if it isn't, and returns the mount point.
func (h Host) Open(_ context.Context, p spec.Pool) (string, error) {
	dir := h.MountPoint(p.ID)
	mounted, err := isMountPoint(dir)
	if err != nil {
		return "", err
	}
	if !mounted {
		dev, release, err := h.device(p)
		if err != nil {
			return "", fmt.Errorf("pool %s: %w", p.ID, err)
		}
		defer release()
		if err := mount(dev, dir); err != nil {
			return "", fmt.Errorf("pool %s: %w", p.ID, err)
		}
	}
	if err := h.check(p.ID, dir); err != nil {
		if !mounted {
			err = errors.Join(err, h.Close(p.ID))
		}
		return "", err
	}
	return dir, nil
}

// check verifies that what is mounted is the pool.
func (h Host) check(id, dir string) error {
	path := filepath.Join(dir, idFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pool %s: what is mounted at %s has no %s: %w; was the device replaced?", id, dir, idFile, ErrForeign)
	}
	if err != nil {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	var got identity
	if err := json.Unmarshal(b, &got); err != nil {
		return fmt.Errorf("pool %s: %s is damaged: %w: %w", id, path, ErrForeign, err)
	}
	switch {
	case got.Version > 1:
		return fmt.Errorf("pool %s: %s has version %d, and this keelson knows only 1: %w; run the newer keelson that wrote it", id, path, got.Version, ErrForeign)
	case got.Cluster != h.Cluster:
		return fmt.Errorf("pool %s: the file system belongs to cluster %s, and this is %s: %w", id, got.Cluster, h.Cluster, ErrForeign)
	case got.ID != id:
		return fmt.Errorf("pool %s: the file system is that of pool %s: %w; device names may have changed, use one of /dev/disk/by-id", id, got.ID, ErrForeign)
	case got.Node != h.Node:
		return fmt.Errorf("pool %s: it belongs to node %s, and this is %s: %w", id, got.Node, h.Node, ErrForeign)
	}
	return nil
}

// Close unmounts a pool; its loop device goes with it.
func (h Host) Close(id string) error {
	dir := h.MountPoint(id)
	mounted, err := isMountPoint(dir)
	if err != nil {
		return err
	}
	if mounted {
		if err := unix.Unmount(dir, 0); err != nil {
			return fmt.Errorf("pool %s: unmount %s: %w", id, dir, err)
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pool %s: %w", id, err)
	}
	return nil
}

// device returns the block device of a pool, and what to call once it is mounted or given up.
func (h Host) device(p spec.Pool) (string, func(), error) {
	if p.Device != "" {
		return p.Device, func() {}, nil
	}
	l, err := openLoop(p.File)
	if err != nil {
		return "", nil, err
	}
	return l.path, l.release, nil
}

// Usage is how full a pool is, in bytes.
type Usage struct{ Capacity, Used int64 }

// Measure reads how full the pool mounted at dir is.
func Measure(dir string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Usage{}, fmt.Errorf("statfs %s: %w", dir, err)
	}
	bs := st.Bsize
	return Usage{Capacity: int64(st.Blocks) * bs, Used: int64(st.Blocks-st.Bfree) * bs}, nil
}

func (o AddOptions) validate() error {
	switch {
	case (o.Device == "") == (o.File == ""):
		return fmt.Errorf("%w: give one of device and file", ErrInvalid)
	case !filepath.IsAbs(o.Device + o.File):
		return fmt.Errorf("%w: %s is not an absolute path", ErrInvalid, o.Device+o.File)
	case o.Device != "" && o.Size != 0:
		return fmt.Errorf("%w: a size is only for a file; a device is taken whole", ErrInvalid)
	case o.File != "" && o.Size <= 0:
		return fmt.Errorf("%w: a file needs a size above zero, not %d", ErrInvalid, o.Size)
	case o.File != "" && o.Size < MinSize:
		return fmt.Errorf("%w: size %d is below the smallest pool, %d MiB", ErrInvalid, o.Size, MinSize>>20)
	}
	switch o.Media {
	case "", spec.MediaNVMe, spec.MediaSSD, spec.MediaHDD:
		return nil
	}
	return fmt.Errorf("%w: media %q is none of nvme, ssd, hdd", ErrInvalid, o.Media)
}

func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
