package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/spec"
)

// DiskRule says of which disks, or of which file, a node makes pools when it starts. Every key that is set narrows it.
type DiskRule struct {
	All     bool         `yaml:"all"`   // any unused whole disk
	Paths   []string     `yaml:"paths"` // globs of device names
	Media   []spec.Media `yaml:"media"`
	MinSize string       `yaml:"minSize"`
	MaxSize string       `yaml:"maxSize"`
	// NodeLabels are those that a node must have for the rule to count there.
	NodeLabels map[string]string `yaml:"nodeLabels"`
	// Labels are those of the pools.
	Labels map[string]string `yaml:"labels"`
	// File makes one pool in a file of Size, instead of disks.
	File string `yaml:"file"`
	Size string `yaml:"size"`
}

func validateDisks(rules []DiskRule) error {
	for i, r := range rules {
		if err := r.validate(); err != nil {
			return fmt.Errorf("disks[%d].%w", i, err)
		}
	}
	return nil
}

// ruleSize reads a size; people write GiB as well as Gi.
func ruleSize(key, text string) (int64, error) {
	n, err := spec.ParseSize(strings.TrimSuffix(text, "B"))
	var bad *spec.InvalidError
	if errors.As(err, &bad) {
		return 0, fmt.Errorf("%s: %q is not legal; legal: %s", key, text, bad.Legal)
	}
	return n, err
}

func (r *DiskRule) validate() error {
	disks := r.All || len(r.Paths)+len(r.Media) > 0 || r.MinSize+r.MaxSize != ""
	switch {
	case r.File == "" && r.Size != "":
		return errors.New("size: set, but file isn't; sizes of disks are bounded by minSize and maxSize")
	case r.File != "" && disks:
		return errors.New("file: a rule is for a file or for disks, not for both")
	case r.File == "" && !disks:
		return errors.New("all: the rule chooses nothing; set all: true, or some of paths, media, minSize, maxSize, or file and size")
	case r.File != "" && !filepath.IsAbs(r.File):
		return fmt.Errorf("file: %q is not an absolute path", r.File)
	}
	if r.File != "" {
		if n, err := ruleSize("size", r.Size); err != nil || n < pool.MinSize {
			return errors.Join(err, fmt.Errorf("size: %q is not legal; legal: from %d MiB, such as 10Gi", r.Size, pool.MinSize>>20))
		}
	}
	for _, p := range r.Paths {
		if _, err := filepath.Match(p, ""); err != nil || !strings.HasPrefix(p, "/dev/") {
			return fmt.Errorf("paths: %q is not legal; legal: a glob of device names below /dev, such as /dev/disk/by-id/nvme-*", p)
		}
	}
	for _, m := range r.Media {
		if err := spec.CheckMedia(m); err != nil {
			return fmt.Errorf("media: %q is not legal; legal: nvme, ssd, hdd", m)
		}
	}
	lo, hi, err := r.sizes()
	if err != nil {
		return err
	}
	if lo > hi {
		return fmt.Errorf("minSize: %s is above maxSize, %s", r.MinSize, r.MaxSize)
	}
	if err := spec.CheckLabels("nodeLabels", r.NodeLabels); err != nil {
		return fmt.Errorf("%w", err)
	}
	if err := spec.CheckLabels("labels", r.Labels); err != nil {
		return fmt.Errorf("%w", err)
	}
	return nil
}

// sizes are the bounds of a disk's size, in bytes.
func (r *DiskRule) sizes() (lo, hi int64, err error) {
	lo, hi = pool.MinSize, 1<<62
	if r.MinSize != "" {
		if lo, err = ruleSize("minSize", r.MinSize); err != nil {
			return 0, 0, err
		}
	}
	if r.MaxSize != "" {
		if hi, err = ruleSize("maxSize", r.MaxSize); err != nil {
			return 0, 0, err
		}
	}
	return lo, hi, nil
}

// takes says why a rule doesn't take a disk, "" if it does. What the disk holds isn't looked at.
func (r *DiskRule) takes(d pool.Disk) string {
	lo, hi, err := r.sizes()
	switch {
	case err != nil:
		return err.Error()
	case len(r.Paths) > 0 && !slices.ContainsFunc(r.Paths, d.Named):
		return "no path of the rule names it"
	case len(r.Paths) == 0 && d.Virtual:
		return "it is no disk of its own"
	case len(r.Media) > 0 && !slices.Contains(r.Media, d.Media):
		return fmt.Sprintf("its media is %s", d.Media)
	case d.Size < lo || d.Size > hi:
		return fmt.Sprintf("its size is %s", spec.FormatSize(d.Size))
	}
	return ""
}

// applies reports whether the rule counts on a node with these labels.
func (r *DiskRule) applies(labels map[string]string) bool {
	for k, v := range r.NodeLabels {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// poolMaker makes pools by rule.
type poolMaker struct {
	cfg   Config
	host  pool.Host
	store meta.Store
	log   *slog.Logger
	// adding has one pool added at a time, and open takes one into service.
	adding sync.Locker
	open   func(context.Context, spec.Pool) error
}

// makePools makes pools by the rules of the configuration.
func (s *engineService) makePools(ctx context.Context, cfg Config) {
	m := &poolMaker{cfg: cfg, host: s.host, store: s.store, log: s.log, adding: &s.adding, open: s.openPool}
	m.run(ctx)
}

// run makes pools once for each start of the engine: a disk that is emptied by hand later is
// not taken behind the back of who did that. What is a pool already, or can't be one, is left alone.
func (m *poolMaker) run(ctx context.Context) {
	if len(m.cfg.Disks) == 0 {
		return
	}
	for {
		have, err := m.store.Pools(ctx)
		if err == nil {
			var own []spec.Pool
			for _, p := range have {
				if p.Value.Node == m.cfg.Node {
					own = append(own, p.Value)
				}
			}
			m.makePoolsOnce(ctx, own)
			return
		}
		m.log.Warn("this node's pools can't be read; trying again", "err", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(poolRetry):
		}
	}
}

func (m *poolMaker) makePoolsOnce(ctx context.Context, own []spec.Pool) {
	own, err := m.resumePools(ctx, own)
	if err != nil {
		m.log.Error("making a pool was interrupted, and can't go on; look at the disk", "err", err)
	}
	for i, r := range m.cfg.Disks {
		if !r.applies(m.cfg.Labels) {
			continue
		}
		if r.File != "" {
			own = m.makeFilePool(ctx, r, own)
			continue
		}
		disks, err := pool.Disks(r.Paths)
		if err != nil {
			m.log.Error("this node's disks can't be listed", "rule", i, "err", err)
			continue
		}
		for _, d := range disks {
			if why := r.takes(d); why != "" {
				m.log.Debug("rule doesn't take disk", "rule", i, "device", d.Device, "why", why)
				continue
			}
			own = m.makeDiskPool(ctx, r, d, own)
		}
	}
}

func (m *poolMaker) makeFilePool(ctx context.Context, r DiskRule, own []spec.Pool) []spec.Pool {
	if slices.ContainsFunc(own, func(p spec.Pool) bool { return p.File == r.File }) {
		return own
	}
	size, err := ruleSize("size", r.Size)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(r.File), 0o700)
	}
	if err != nil {
		m.log.Error("pool can't be made by rule", "file", r.File, "err", err)
		return own
	}
	return m.makePool(ctx, pool.AddOptions{File: r.File, Size: size, Labels: r.Labels}, own)
}

func (m *poolMaker) makeDiskPool(ctx context.Context, r DiskRule, d pool.Disk, own []spec.Pool) []spec.Pool {
	for _, p := range own {
		if p.Device != "" && pool.SameDevice(p.Device, d.Device) {
			return own
		}
	}
	if err := d.Usable(ctx); err != nil {
		m.log.Info("disk is left alone", "device", d.Device, "why", err)
		return own
	}
	return m.makePool(ctx, pool.AddOptions{Device: d.Name, Media: d.Media, Labels: r.Labels}, own)
}

// begunFile lists the disks and files of which pools are being made. Without it, a death in between would leave a disk that
// looks taken, by nobody.
func begunFile(cfg Config) string { return filepath.Join(cfg.DataDir, "pools-begun.json") }

func (m *poolMaker) begun() ([]pool.AddOptions, error) {
	b, err := os.ReadFile(begunFile(m.cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []pool.AddOptions
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", begunFile(m.cfg), err)
	}
	return list, nil
}

// begin adds o to those that are begun, or takes it away.
func (m *poolMaker) begin(o pool.AddOptions, begin bool) error {
	list, err := m.begun()
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(x pool.AddOptions) bool { return x.Device == o.Device && x.File == o.File })
	if begin {
		list = append(list, o)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return replaceFile(begunFile(m.cfg), b, 0o600)
}

func (m *poolMaker) makePool(ctx context.Context, o pool.AddOptions, own []spec.Pool) []spec.Pool {
	err := m.begin(o, true)
	var p spec.Pool
	if err == nil {
		p, err = m.addPool(ctx, func() (spec.Pool, error) { return m.host.Add(ctx, o) })
	}
	if err != nil {
		// What was begun stays written down: the next start goes on with it.
		m.log.Error("pool can't be made by rule", "device", o.Device, "file", o.File, "err", err)
		return own
	}
	m.log.Info("pool made by rule", "pool", p.ID, "device", p.Device, "file", p.File)
	if err := m.begin(o, false); err != nil {
		m.log.Warn("that a pool was made can't be written down", "err", err)
	}
	return append(own, p)
}

// resumePools goes on with the pools that were being made when the engine died.
func (m *poolMaker) resumePools(ctx context.Context, own []spec.Pool) ([]spec.Pool, error) {
	list, err := m.begun()
	for _, o := range list {
		if slices.ContainsFunc(own, func(p spec.Pool) bool { return p.Device == o.Device && p.File == o.File }) {
			err = errors.Join(err, m.begin(o, false))
			continue
		}
		p, perr := m.addPool(ctx, func() (spec.Pool, error) { return m.host.Resume(ctx, o) })
		if perr != nil {
			err = errors.Join(err, fmt.Errorf("pool of %s: %w", o.Device+o.File, perr))
			continue
		}
		m.log.Info("pool that was begun is made", "pool", p.ID, "device", p.Device, "file", p.File)
		own = append(own, p)
		err = errors.Join(err, m.begin(o, false))
	}
	return own, err
}

// addPool makes a pool, records it and takes it into service.
func (m *poolMaker) addPool(ctx context.Context, add func() (spec.Pool, error)) (spec.Pool, error) {
	m.adding.Lock()
	defer m.adding.Unlock()
	p, err := add()
	if err != nil {
		return p, err
	}
	if _, err := m.store.PutPool(ctx, p, 0); err != nil {
		return p, errors.Join(err, m.host.Close(p.ID))
	}
	return p, m.open(ctx, p)
}
