package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// kinds are all faults there are. Each do begins one on a node; undo ends it.
var kinds = map[string]kindOf{
	"kill engine":         {weight: 12, roles: []string{holder, holder, copyNode}, max: time.Second, sees: "NBD clients of that node lose their connection", do: killDaemons("engine")},
	"kill control":        {weight: 4, roles: []string{holder, copyNode, bystander}, max: time.Second, do: killDaemons("control")},
	"kill etcd":           {weight: 5, roles: []string{holder, copyNode, bystander}, max: time.Second, do: killDaemons("etcd")},
	"kill all three":      {weight: 5, roles: []string{holder, copyNode}, max: time.Second, sees: "NBD clients of that node lose their connection", do: killDaemons("engine", "etcd", "control")},
	"kill supervisor":     {weight: 3, roles: []string{holder, copyNode}, max: time.Second, sees: "devices of that node may fail", do: killDaemons("server")},
	"stop engine":         {weight: 8, roles: []string{holder, copyNode}, min: 200 * time.Millisecond, max: 9 * time.Second, do: stopDaemon("engine")},
	"stop etcd":           {weight: 5, roles: []string{holder, copyNode, bystander}, min: 500 * time.Millisecond, max: 9 * time.Second, do: stopDaemon("etcd")},
	"stop control":        {weight: 3, roles: []string{holder, copyNode}, min: 500 * time.Millisecond, max: 7 * time.Second, do: stopDaemon("control")},
	"stop supervisor":     {weight: 3, roles: []string{holder, copyNode}, min: 500 * time.Millisecond, max: 7 * time.Second, do: stopDaemon("server")},
	"cut":                 {weight: 14, roles: []string{holder, copyNode, bystander}, min: 300 * time.Millisecond, max: 11 * time.Second, do: cut},
	"fill pool":           {weight: 5, roles: []string{holder, copyNode}, min: time.Second, max: 6 * time.Second, do: fillPool},
	"restart node":        {weight: 6, roles: []string{holder, copyNode, bystander}, min: 100 * time.Millisecond, max: 8 * time.Second, sees: "devices of that node fail, its processes end", do: restartNode},
	"cut and fail over":   {weight: 7, roles: []string{holder}, min: 9 * time.Second, max: 14 * time.Second, sees: "the volume's device on the old node fails", do: failOver(false)},
	"crash and fail over": {weight: 4, roles: []string{holder}, min: 9 * time.Second, max: 14 * time.Second, sees: "devices of that node fail, its processes end", do: failOver(true)},
	"move":                {weight: 4, roles: []string{copyNode, bystander}, max: time.Second, sees: "its load is stopped and started", do: moveAway},
	"restart all nodes":   {weight: 1, roles: []string{holder}, min: 100 * time.Millisecond, max: 2 * time.Second, sees: "all devices fail, all processes end", do: restartAll},
}

// kindNames is in order, so that a seed means the same plan always.
var kindNames = func() (out []string) {
	for name := range kinds {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}()

// killDaemons kills processes of a node with SIGKILL. Their supervisor starts them again.
func killDaemons(names ...string) func(*run, fault, string) (func(), error) {
	return func(r *run, f fault, node string) (func(), error) {
		pids := r.pids(node)
		if len(pids) == 0 {
			return nil, errSkip
		}
		for _, name := range names {
			if name == "engine" || name == "server" { // whose devices are held, but not the connections of NBD clients
				r.allow(node, f.kind, kindNBD)
			}
		}
		killed := 0
		for _, name := range names {
			if pid, ok := pids[name]; ok && unix.Kill(pid, unix.SIGKILL) == nil {
				killed++
			}
		}
		if killed == 0 {
			return nil, errSkip
		}
		return func() {}, nil
	}
}

// stopDaemon stops a process with SIGSTOP, as a machine that hangs would.
func stopDaemon(name string) func(*run, fault, string) (func(), error) {
	return func(r *run, f fault, node string) (func(), error) {
		pid, ok := r.pids(node)[name]
		if !ok || unix.Kill(pid, unix.SIGSTOP) != nil {
			return nil, errSkip
		}
		return func() {
			if now := r.pids(node)[name]; now == pid {
				_ = unix.Kill(pid, unix.SIGCONT)
			}
		}, nil
	}
}

// cut drops packets of a node, as f.way says.
func cut(r *run, f fault, node string) (func(), error) {
	rules := [][]string{}
	in, out := []string{"INPUT", "!", "-i", "lo", "-j", "DROP"}, []string{"OUTPUT", "!", "-o", "lo", "-j", "DROP"}
	switch f.way {
	case "both ways":
		rules = append(rules, in, out)
	case "out":
		rules = append(rules, out)
	case "in":
		rules = append(rules, in)
	default:
		var others []string
		for _, n := range r.lab.Nodes() {
			if n != node {
				others = append(others, n)
			}
		}
		peer := r.lab.Address(others[f.guest%len(others)])
		rules = append(rules, []string{"INPUT", "-s", peer, "-j", "DROP"}, []string{"OUTPUT", "-d", peer, "-j", "DROP"})
	}
	return r.addRules(node, rules)
}

// fillPool leaves no space in a pool of the node.
func fillPool(r *run, f fault, node string) (func(), error) {
	root := r.root(node)
	pools, _ := filepath.Glob(filepath.Join(root, r.lab.NodeDir(node), "data/pools/*"))
	if root == "" || len(pools) == 0 {
		return nil, errSkip
	}
	path := filepath.Join(pools[0], "filler")
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(file.Fd()), &fs); err != nil || fs.Type != unix.XFS_SUPER_MAGIC {
		_ = os.Remove(path) // the pool isn't mounted now: this is the machine's own disk
		return nil, errSkip
	}
	size := int64(0)
	for step := int64(1 << 30); step >= 64<<10; {
		if unix.Fallocate(int(file.Fd()), 0, size, step) != nil {
			step /= 4
			continue
		}
		size += step
	}
	return func() {
		if root := r.root(node); root != "" {
			_ = os.Remove(filepath.Join(root, r.lab.NodeDir(node), "data/pools", filepath.Base(pools[0]), "filler"))
		}
	}, nil
}

// restartNode is a crash of the node, and its start some time later.
func restartNode(r *run, f fault, node string) (func(), error) {
	r.allow(node, f.kind, "")
	if err := r.crash(node); err != nil {
		return nil, err
	}
	return func() { r.boot(node) }, nil
}

func restartAll(r *run, f fault, _ string) (func(), error) {
	for _, n := range r.lab.Nodes() {
		r.allow(n, f.kind, "")
	}
	var errs []error
	for _, n := range r.lab.Nodes() {
		errs = append(errs, r.crash(n))
	}
	return func() {
		for _, n := range r.lab.Nodes() {
			r.boot(n)
		}
	}, errors.Join(errs...)
}

// failOver cuts the holder off, or crashes it, and has the volume go on elsewhere.
func failOver(crash bool) func(*run, fault, string) (func(), error) {
	return func(r *run, f fault, node string) (func(), error) {
		g := r.guests[f.guest]
		target := r.other(g, node)
		g.allow(f.kind)
		undo, err := func() (func(), error) {
			if crash {
				return restartNode(r, f, node)
			}
			f.way = "both ways"
			return cut(r, f, node)
		}()
		if err != nil {
			return nil, err
		}
		m := move{target: target, done: make(chan struct{})}
		r.background.Go(func() { r.send(g, m) })
		return func() {
			// The volume should be on the new node before the old one is back.
			select {
			case <-m.done:
			case <-time.After(20 * time.Second):
			}
			undo()
		}, nil
	}
}

// moveAway detaches a volume and attaches it to the node.
func moveAway(r *run, f fault, node string) (func(), error) {
	g := r.guests[f.guest]
	if now, _, running := g.where(); now == node || !running {
		return nil, errSkip
	}
	g.allow(f.kind)
	m := move{target: node, clean: true, done: make(chan struct{})}
	r.background.Go(func() { r.send(g, m) })
	return func() {}, nil
}

var errSkip = errors.New("nothing to do it to at the moment")

// node returns who plays the role at the moment.
func (r *run) nodeOf(f fault) (string, error) {
	g := r.guests[f.guest]
	at, _, _ := g.where()
	if f.role == holder {
		return at, nil
	}
	var copies, others []string
	for _, n := range r.lab.Nodes() {
		switch {
		case n == at:
		case slices.Contains(g.copies, n):
			copies = append(copies, n)
		default:
			others = append(others, n)
		}
	}
	list := copies
	if f.role == bystander && len(others) > 0 || len(copies) == 0 {
		list = others
	}
	if len(list) == 0 {
		return "", fmt.Errorf("%s has no %s: %w", g.name, f.role, errSkip)
	}
	return list[int(f.hold)%len(list)], nil
}

// other returns a node to fail over to: one with a copy if there is.
func (r *run) other(g *guest, not string) string {
	for _, n := range append(slices.Clone(g.copies), r.lab.Nodes()...) {
		if n != not && !r.isDown(n) {
			return n
		}
	}
	return r.lab.Nodes()[0]
}
