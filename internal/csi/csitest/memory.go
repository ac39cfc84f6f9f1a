// Package csitest has what tests of the CSI driver share: a cluster in memory that behaves as Keelson does, and the
// contract that it and the real one keep.
//
// A Memory is safe for concurrent use and owns no goroutine.
package csitest

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"keelson.io/keelson/internal/csi"
	"keelson.io/keelson/internal/spec"
)

// Memory is a cluster in memory.
type Memory struct {
	mu      sync.Mutex
	volumes map[string]*volume
	nodes   []csi.Node
	pools   []csi.Pool
	// unreachable are nodes that can't be asked, though their lease hasn't ended.
	unreachable map[string]bool
	devices     Devices
	away        error
	requests    []csi.Request
	snapshots   []csi.Snapshot
	origins     map[string]string // of clones, by name
}

type volume struct {
	csi.Volume
	device string
}

// Devices makes the devices of volumes; a nil one makes names only.
type Devices interface {
	Open(name string, size int64) (path string, err error)
	Close(name, path string) error
}

// NewMemory returns a cluster of three nodes, n1 to n3 in the zones z1 to z3, each with a pool of 20 GiB.
func NewMemory(d Devices) *Memory {
	m := &Memory{volumes: map[string]*volume{}, unreachable: map[string]bool{}, devices: d}
	for i := 1; i <= 3; i++ {
		name := fmt.Sprintf("n%d", i)
		m.nodes = append(m.nodes, csi.Node{
			Name: name, Zone: fmt.Sprintf("z%d", i), Labels: map[string]string{"rack": fmt.Sprintf("rack-%d", i-1)}, Storage: true, Alive: true,
		})
		m.pools = append(m.pools, csi.Pool{Node: name, Media: "ssd", Room: 20 << 30})
	}
	return m
}

// At returns the cluster as the driver of a node sees it.
func (m *Memory) At(node string) csi.Keelson { return &view{m, node} }

// SetNode changes a node.
func (m *Memory) SetNode(name string, change func(n *csi.Node)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.nodes {
		if m.nodes[i].Name == name {
			change(&m.nodes[i])
		}
	}
}

// SetReachable says whether a node that has its lease can be asked.
func (m *Memory) SetReachable(name string, can bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unreachable[name] = !can
}

// SetAway has every call fail with err; nil ends that.
func (m *Memory) SetAway(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = err
}

// Change changes a volume.
func (m *Memory) Change(name string, change func(v *csi.Volume)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[name]; v != nil {
		change(&v.Volume)
	}
}

// Requests returns what was asked to be created.
func (m *Memory) Requests() []csi.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]csi.Request(nil), m.requests...)
}

type view struct {
	m    *Memory
	node string
}

func (w *view) enter() (leave func(), err error) {
	w.m.mu.Lock()
	return w.m.mu.Unlock, w.m.away
}

func problem(kind error, format string, args ...any) error {
	return &csi.Problem{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// Create implements csi.Keelson.
func (w *view) Create(_ context.Context, r csi.Request) (csi.Volume, error) {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return csi.Volume{}, err
	}
	w.m.requests = append(w.m.requests, r)
	v := spec.Volume{Name: r.Name, Size: r.Size, Replicas: r.Replicas, Columns: r.Columns, Media: spec.Media(r.Media), NodeSelector: r.NodeSelector, Topology: r.Topology,
		Ephemeral: r.Ephemeral, Limits: r.Limits, Placement: r.Placement, Trim: spec.TrimState{Every: r.TrimEvery}}
	if v.Replicas == 0 {
		v.Replicas = spec.DefaultReplicas
	}
	if v.Columns == 0 {
		v.Columns = 1
	}
	if err := v.Validate(); err != nil {
		return csi.Volume{}, problem(csi.ErrInvalid, "%v", err)
	}
	if w.m.volumes[r.Name] != nil {
		return csi.Volume{}, problem(csi.ErrExists, "there is a volume %s already", r.Name)
	}
	fit := 0
	for _, n := range w.m.nodes {
		if w.m.takes(n, v) {
			fit++
		}
	}
	if fit < v.Replicas {
		return csi.Volume{}, problem(csi.ErrNoRoom, "volume %s needs %d replicas but only %d can be placed", r.Name, v.Replicas, fit)
	}
	out := csi.Volume{Name: r.Name, Size: r.Size, Replicas: v.Replicas, Columns: v.Columns, ZoneSpread: r.ZoneSpread, Media: r.Media,
		NodeSelector: maps.Clone(r.NodeSelector), Topology: r.Topology, Ephemeral: r.Ephemeral, Healthy: true, Encrypted: r.Encrypt,
		Limits: r.Limits, Placement: r.Placement, Trim: v.Trim}
	w.m.volumes[r.Name] = &volume{Volume: out}
	return out, nil
}

// takes reports whether a node can have a copy.
func (m *Memory) takes(n csi.Node, v spec.Volume) bool {
	x := spec.Node{Name: n.Name, Zone: n.Zone, Labels: n.Labels}
	ok := n.Alive && n.Storage && !n.Cordoned && x.Meets(v.NodeSelector) && len(v.Topology) == 0
	for _, t := range v.Topology {
		ok = ok || n.Alive && n.Storage && !n.Cordoned && x.Meets(v.NodeSelector) && x.Meets(t)
	}
	for _, p := range m.pools {
		if p.Node == n.Name && p.Room >= v.Size && (v.Media == "" || string(v.Media) == p.Media) {
			return ok
		}
	}
	return false
}

// Delete implements csi.Keelson.
func (w *view) Delete(_ context.Context, name string) error {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[name]
	switch {
	case err != nil:
		return err
	case v == nil:
		return problem(csi.ErrNotFound, "there is no volume %q", name)
	case v.Node != "":
		return problem(csi.ErrRefused, "volume %s is attached to node %s", name, v.Node)
	}
	delete(w.m.volumes, name)
	return nil
}

// Volume implements csi.Keelson.
func (w *view) Volume(_ context.Context, name string) (csi.Volume, error) {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[name]
	switch {
	case err != nil:
		return csi.Volume{}, err
	case v == nil:
		return csi.Volume{}, problem(csi.ErrNotFound, "there is no volume %q", name)
	}
	return v.Volume, nil
}

// Volumes implements csi.Keelson.
func (w *view) Volumes(context.Context) ([]csi.Volume, error) {
	leave, err := w.enter()
	defer leave()
	var out []csi.Volume
	for _, v := range w.m.volumes {
		out = append(out, v.Volume)
	}
	return out, err
}

// Nodes implements csi.Keelson.
func (w *view) Nodes(context.Context) ([]csi.Node, error) {
	leave, err := w.enter()
	defer leave()
	return append([]csi.Node(nil), w.m.nodes...), err
}

// Pools implements csi.Keelson.
func (w *view) Pools(context.Context) ([]csi.Pool, error) {
	leave, err := w.enter()
	defer leave()
	return append([]csi.Pool(nil), w.m.pools...), err
}

// Attach implements csi.Keelson.
func (w *view) Attach(_ context.Context, name string) (string, error) {
	leave, err := w.enter()
	defer leave()
	if err != nil {
		return "", err
	}
	v := w.m.volumes[name]
	if v == nil {
		return "", problem(csi.ErrNotFound, "there is no volume %q", name)
	}
	for _, n := range w.m.nodes {
		if v.Node != n.Name || v.Node == w.node || !n.Alive {
			continue
		}
		if w.m.unreachable[n.Name] {
			return "", problem(csi.ErrAgain, "volume %s is attached to node %s, which can't be reached", name, v.Node)
		}
		return "", problem(csi.ErrRefused, "volume %s is attached to node %s, which is alive", name, v.Node)
	}
	if v.Node == w.node {
		return v.device, nil
	}
	if w.m.devices != nil && v.device != "" {
		if err := w.m.devices.Close(name, v.device); err != nil { // the dead node's
			return "", err
		}
	}
	v.device = "/dev/" + name
	if w.m.devices != nil {
		if v.device, err = w.m.devices.Open(name, v.Size); err != nil {
			return "", err
		}
	}
	v.Node = w.node
	return v.device, nil
}

// Detach implements csi.Keelson.
func (w *view) Detach(_ context.Context, name string) error {
	leave, err := w.enter()
	defer leave()
	v := w.m.volumes[name]
	if err != nil || v == nil || v.Node != w.node {
		return err
	}
	if w.m.devices != nil {
		if err := w.m.devices.Close(name, v.device); err != nil {
			return problem(csi.ErrRefused, "volume %s: %v", name, err)
		}
	}
	v.Node, v.device = "", ""
	return nil
}

// Loops makes loop devices over sparse files, DIR/NAME/volume, which keep what was written.
type Loops struct{ Dir string }

// Open implements Devices.
func (l Loops) Open(name string, size int64) (string, error) {
	file := filepath.Join(l.Dir, name, "volume")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return "", err
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return "", err
	}
	out, err := exec.Command("losetup", "--find", "--show", "--sector-size", "4096", file).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("losetup: %w: %s", err, out)
	}
	return strings.TrimSpace(string(out)), nil
}

// Close implements Devices. A device that is in use stays.
func (l Loops) Close(_, path string) error {
	// An exclusive open fails while it is mounted; losetup would let it go at the last unmount.
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_EXCL, 0)
	if err != nil {
		return fmt.Errorf("%s is in use: %w", path, err)
	}
	f.Close()
	if out, err := exec.Command("losetup", "--detach", path).CombinedOutput(); err != nil {
		return fmt.Errorf("losetup: %w: %s", err, out)
	}
	return nil
}
