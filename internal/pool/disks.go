package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// Disk is a block device that may become a pool.
type Disk struct {
	Device string // the kernel's name: /dev/sda
	Name   string // one that stays, if it has one: /dev/disk/by-id/…
	Links  []string
	Size   int64
	Media  spec.Media
	// Virtual is a device that is made of something else: loop, device mapper, RAM.
	Virtual bool
}

// byID is where udev gives disks names that stay.
const byID = "/dev/disk/by-id"

// Disks lists the machine's block devices, and with globs those that they name as well; neither partitions, nor what
// has no medium.
func Disks(globs []string) ([]Disk, error) {
	names, err := filepath.Glob("/sys/block/*")
	if err != nil {
		return nil, err
	}
	links := linksOf(globs)
	var out []Disk
	for _, sys := range names {
		name := filepath.Base(sys)
		real, err := filepath.EvalSymlinks(sys)
		if err != nil {
			continue // it is gone
		}
		d := Disk{Device: "/dev/" + strings.ReplaceAll(name, "!", "/"), Virtual: strings.Contains(real, "/devices/virtual/")}
		if strings.HasPrefix(name, "nvme") {
			d.Virtual = false // paths of one namespace are below a virtual subsystem
		}
		d.Links = links[d.Device]
		d.Name = stable(d)
		if d.Size, err = deviceSize(d.Device); err != nil || d.Size == 0 {
			continue
		}
		d.Media = detectMedia(d.Device)
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Disk) int { return strings.Compare(a.Device, b.Device) })
	return out, nil
}

// linksOf maps devices to the names that lead to them.
func linksOf(globs []string) map[string][]string {
	links := map[string][]string{}
	for _, g := range append(slices.Clone(globs), byID+"/*") {
		found, err := filepath.Glob(g)
		if err != nil {
			continue // the configuration was checked
		}
		for _, l := range found {
			if dev, err := filepath.EvalSymlinks(l); err == nil && dev != l && !slices.Contains(links[dev], l) {
				links[dev] = append(links[dev], l)
			}
		}
	}
	return links
}

// stable returns the best name of a disk: one that follows it to another port.
func stable(d Disk) string {
	for _, prefix := range []string{"nvme-eui.", "wwn-", "nvme-", "ata-", "scsi-", "virtio-", ""} {
		for _, l := range d.Links {
			if filepath.Dir(l) == byID && strings.HasPrefix(filepath.Base(l), prefix) {
				return l
			}
		}
	}
	return d.Device
}

// Named reports whether a glob names the disk.
func (d Disk) Named(glob string) bool {
	return slices.ContainsFunc(append(slices.Clone(d.Links), d.Device), func(n string) bool {
		ok, err := filepath.Match(glob, n)
		return err == nil && ok
	})
}

// Usable says why a pool can't be made of the disk without losing anything, or without taking it from someone. It needs neither to be mounted,
// nor part of something, nor partitioned, and nothing may be recognised on it. The error is of the class ErrInvalid, ErrInUse or ErrSigned.
func (d Disk) Usable(ctx context.Context) error {
	sys := filepath.Join("/sys/class/block", strings.ReplaceAll(strings.TrimPrefix(d.Device, "/dev/"), "/", "!"))
	for file, why := range map[string]string{"ro": "read-only", "removable": "removable"} {
		if b, err := os.ReadFile(filepath.Join(sys, file)); err == nil && strings.TrimSpace(string(b)) == "1" && !d.Virtual {
			return fmt.Errorf("%w: device %s is %s", ErrInvalid, d.Device, why)
		}
	}
	if b, err := os.ReadFile(filepath.Join(sys, "queue/zoned")); err == nil && strings.TrimSpace(string(b)) != "none" {
		return fmt.Errorf("%w: device %s is zoned", ErrInvalid, d.Device)
	}
	parts, err := filepath.Glob(filepath.Join(sys, "*", "partition"))
	if err != nil {
		return err
	}
	if len(parts) > 0 {
		return fmt.Errorf("device %s has partitions: %w", d.Device, ErrSigned)
	}
	return prepareDevice(ctx, AddOptions{Device: d.Device})
}

// SameDevice reports whether two names lead to one device.
func SameDevice(a, b string) bool {
	var x, y unix.Stat_t
	return unix.Stat(a, &x) == nil && unix.Stat(b, &y) == nil && x.Rdev == y.Rdev && x.Mode&unix.S_IFMT == unix.S_IFBLK && y.Mode&unix.S_IFMT == unix.S_IFBLK
}

// Resume goes on with an Add that died, and of which the caller wrote down, before it began, what it was to do: the pool as it is if it was
// made, and otherwise a new one. What isn't left by an Add is ErrSigned or ErrForeign, and stays.
func (h Host) Resume(ctx context.Context, o AddOptions) (spec.Pool, error) {
	if err := o.validate(); err != nil {
		return spec.Pool{}, err
	}
	if _, err := os.Stat(o.File); o.File != "" && errors.Is(err, fs.ErrNotExist) {
		return h.Add(ctx, o)
	}
	dev, release, err := h.device(spec.Pool{Device: o.Device, File: o.File})
	if err != nil {
		return spec.Pool{}, err
	}
	release = sync.OnceFunc(release)
	defer release()
	dir, err := mountedAt(dev)
	if err != nil {
		return spec.Pool{}, err
	}
	if dir == "" {
		if dir = filepath.Join(h.Dir, "begun"); mountToLook(dev, dir) != nil {
			// Nothing that Add had finished. If nothing is recognised on it, it is as it was before.
			release()
			return h.Add(ctx, o)
		}
		_, err := h.left(dir, &spec.Pool{})
		if err = errors.Join(err, unmount(dir)); err == nil {
			// Not before: that writes.
			err = mount(dev, dir)
		}
		if err != nil {
			return spec.Pool{}, err
		}
	} else if filepath.Dir(dir) != h.Dir {
		return spec.Pool{}, fmt.Errorf("%s is mounted at %s: %w", dev, dir, ErrInUse)
	}
	p := spec.Pool{Node: h.Node, Device: o.Device, File: o.File, Media: o.Media, Labels: o.Labels}
	if p.Media == "" {
		p.Media = detectMedia(o.Device + o.File)
	}
	switch made, err := h.left(dir, &p); {
	case err != nil:
		return spec.Pool{}, errors.Join(err, unmount(dir))
	case made && dir != h.MountPoint(p.ID):
		if err := errors.Join(unmount(dir), mount(dev, h.MountPoint(p.ID))); err != nil {
			return spec.Pool{}, err
		}
		fallthrough
	case made:
		u, err := Measure(h.MountPoint(p.ID))
		p.Capacity, p.Reserve = u.Capacity, reserve(u.Capacity)
		return p, err
	}
	if err := unmount(dir); err != nil {
		return spec.Pool{}, err
	}
	release()
	o.Wipe = true // an empty file system, and it is Add's
	return h.Add(ctx, o)
}

// left reads what an Add left in a file system, and completes p if it is the pool. Without a pool it must be empty.
func (h Host) left(dir string, p *spec.Pool) (made bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, idFile))
	var id identity
	switch {
	case err == nil && json.Unmarshal(b, &id) == nil:
		p.ID, p.Created = id.ID, id.Created
		return true, h.check(id.ID, dir)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() != idFile { // half of one
			return false, fmt.Errorf("%s has %s: %w", dir, e.Name(), ErrSigned)
		}
	}
	return false, nil
}

// mountToLook mounts a file system that may be anybody's, without writing to it.
func mountToLook(dev, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := unix.Mount(dev, dir, "xfs", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, "norecovery")
	if err != nil {
		os.Remove(dir)
	}
	return err
}

func unmount(dir string) error {
	if err := unix.Unmount(dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.Remove(dir)
}
