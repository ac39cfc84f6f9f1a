// Package cluster runs a real Kubernetes on this machine: a control plane in the host's namespaces, and nodes, each with a
// network, mount, UTS, IPC and PID namespace, a containerd and a kubelet of its own. Nothing is installed on the host, and
// Down takes everything away again, also after a crash: what was made is recorded in the cluster's directory.
//
// Every node sees the usual paths (/var/lib/kubelet, /run, /etc/keelson, …) with contents of its own. All nodes share the kernel: loop
// devices, and what kubelet sets by sysctl, which Down sets back.
//
// Goroutines: one for each process that was started, which collects it.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/hack/kube/binaries"
)

// Config is what a cluster is made of.
type Config struct {
	Dir      string // everything that it writes is here; on a disk
	Nodes    int
	Programs binaries.Set
	Tools    string // directory with the programs of containerd, runc, the CNI plugins (usr/bin, usr/sbin, usr/lib/cni)
	Store    string // what Store made: images that nodes have from the start
	Pause    string // name of the image of sandboxes
	Say      func(format string, args ...any)
}

// Cluster is one that runs.
type Cluster struct {
	cfg   Config
	rec   *record
	lock  *os.File
	Nodes []*Node
	// running are the processes that were started, by name.
	running map[string]process
}

// Up starts a cluster and returns when its nodes are ready. What an earlier one left in the directory is taken away first.
func Up(ctx context.Context, cfg Config) (c *Cluster, err error) {
	lock, err := lockMachine()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, down(cfg.Dir))
			lock.Close()
		}
	}()
	if err := down(cfg.Dir); err != nil {
		return nil, fmt.Errorf("what an earlier cluster left: %w", err)
	}
	if err := os.MkdirAll(cfg.Dir, 0o755); err != nil {
		return nil, err
	}
	c = &Cluster{cfg: cfg, lock: lock, rec: newRecord(cfg.Dir), running: map[string]process{}}
	if err := c.rec.begin(); err != nil {
		return nil, err
	}
	for i := range cfg.Nodes {
		c.Nodes = append(c.Nodes, newNode(c, 10*number+i+1))
	}
	began := time.Now()
	if err := c.network(); err != nil {
		return nil, err
	}
	if err := c.controlPlane(ctx); err != nil {
		return nil, err
	}
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
	}
	if err := c.awaitNodes(ctx); err != nil {
		return nil, err
	}
	cfg.Say("control plane and %d nodes ready in %.1f s", len(c.Nodes), time.Since(began).Seconds())
	return c, nil
}

// lockMachine makes sure that this is the only cluster of its number.
func lockMachine() (*os.File, error) {
	if errNumber != nil {
		return nil, errNumber
	}
	path := "/run/" + label + ".lock"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another test cluster runs on this machine (%s is taken; %s=1 makes one beside it): %w", path, numberVar, err)
	}
	return f, nil
}

// Down ends everything and removes it, the directory too.
func (c *Cluster) Down() error {
	defer c.lock.Close()
	return down(c.cfg.Dir)
}

// Down removes what a cluster left whose process is gone.
func Down(dir string) error {
	lock, err := lockMachine()
	if err != nil {
		return err
	}
	defer lock.Close()
	return down(dir)
}

// Node returns the node of that name.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Dir is the cluster's directory.
func (c *Cluster) Dir() string { return c.cfg.Dir }

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elem...)...)
}

// Log is where the output of a process is.
func (c *Cluster) Log(name string) string { return c.path("log", name+".log") }
