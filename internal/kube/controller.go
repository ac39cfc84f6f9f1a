package kube

import (
	"context"
	"errors"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Controller is what the leader does in Kubernetes. Make it with New.
type Controller struct {
	cfg    Config
	names  *nodeNames
	events *events

	mu sync.Mutex
	// view is what the watch has shown, keepers the nodes that a goroutine looks after, tainted those whose failover has begun and
	// isn't cleaned up; all guarded by mu.
	view    view
	keepers map[string]*keeper
	tainted map[string]bool
	// synced is closed when the whole metadata was seen.
	synced chan struct{}
	// guards is told when what has to be guarded may have changed.
	guards chan struct{}
	// cordons is told when a node's record may have changed.
	cordons chan struct{}
}

// keeper is the goroutine that looks after a node from the loss of its lease until what that left is cleaned up.
type keeper struct {
	// cancel ends the phase it is in; lost says which: the node is without a lease, or it is back.
	cancel context.CancelFunc
	lost   bool
}

// view is what the controller knows of the metadata.
type view struct {
	synced bool
	nodes  map[string]spec.Node
	held   map[string]bool
	// last has the nodes with the last copy in sync of an attached volume, by volume; volumes without are not there.
	last map[string][]string
}

func newView() view {
	return view{nodes: map[string]spec.Node{}, held: map[string]bool{}, last: map[string][]string{}}
}

// New makes a controller. Run runs it.
func New(cfg Config) *Controller {
	if cfg.Reach == nil {
		cfg.Reach = Dial
	}
	return &Controller{cfg: cfg, names: newNodeNames(cfg.API, cfg.Drivers), events: &events{api: cfg.API, log: cfg.Log}}
}

// Run works until ctx ends or the metadata can't be watched: call it while this node leads.
func (c *Controller) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	c.mu.Lock()
	c.view, c.keepers, c.tainted = newView(), map[string]*keeper{}, map[string]bool{}
	c.synced, c.guards, c.cordons = make(chan struct{}), make(chan struct{}, 1), make(chan struct{}, 1)
	c.mu.Unlock()
	wg.Go(func() { c.tellWarnings(ctx) })
	wg.Go(func() { c.keepGuards(ctx) })
	wg.Go(func() { c.passCordons(ctx) })
	wg.Go(func() { c.adopt(ctx, &wg) })
	err := c.cfg.Store.Watch(ctx, func(e meta.Event) error {
		c.apply(ctx, &wg, e)
		return ctx.Err()
	})
	if err != nil && ctx.Err() == nil {
		c.cfg.Log.Error("the failover of pods can't watch the metadata", "err", err)
	}
}

// apply takes an event over, and begins or ends what it says.
func (c *Controller) apply(ctx context.Context, wg *sync.WaitGroup, e meta.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := &c.view
	switch e.Kind {
	case meta.Resync:
		*v = newView()
	case meta.Synced:
		v.synced = true
		select {
		case <-c.synced:
		default:
			close(c.synced)
		}
	case meta.NodePut:
		v.nodes[e.Node.Name] = e.Node
	case meta.NodeDeleted:
		delete(v.nodes, e.Node.Name)
	case meta.LeaseHeld:
		v.held[e.Node.Name] = true
	case meta.LeaseGone:
		delete(v.held, e.Node.Name)
	case meta.VolumePut:
		if nodes := lastCopies(&e.Volume); len(nodes) > 0 {
			v.last[e.Volume.ID] = nodes
		} else if _, was := v.last[e.Volume.ID]; was {
			delete(v.last, e.Volume.ID)
		} else {
			return
		}
	case meta.VolumeDeleted:
		delete(v.last, e.Volume.ID)
	}
	if !v.synced {
		return
	}
	for _, told := range []chan struct{}{c.guards, c.cordons} {
		select {
		case told <- struct{}{}:
		default:
		}
	}
	if e.Kind == meta.VolumePut || e.Kind == meta.VolumeDeleted {
		return
	}
	for name, k := range c.keepers {
		if c.lostLocked(name) != k.lost {
			k.cancel()
		}
	}
	for name := range v.nodes {
		if c.lostLocked(name) {
			c.keepLocked(ctx, wg, name)
		}
	}
}

// lostLocked reports whether a node is without a lease that should have one.
func (c *Controller) lostLocked(node string) bool {
	n, known := c.view.nodes[node]
	return known && storageNode(n) && !c.view.held[node]
}

// keepLocked has a goroutine look after a node, unless one does.
func (c *Controller) keepLocked(ctx context.Context, wg *sync.WaitGroup, node string) {
	if c.keepers[node] != nil {
		return
	}
	c.keepers[node] = &keeper{cancel: func() {}, lost: c.lostLocked(node)}
	wg.Go(func() { c.keep(ctx, node) })
}

// keep looks after a node while it is without a lease, or tainted.
func (c *Controller) keep(ctx context.Context, node string) {
	for ctx.Err() == nil {
		c.mu.Lock()
		lost, n := c.lostLocked(node), c.view.nodes[node]
		if !lost && !c.tainted[node] {
			delete(c.keepers, node)
			c.mu.Unlock()
			return
		}
		pctx, cancel := context.WithCancel(ctx)
		c.keepers[node] = &keeper{cancel: cancel, lost: lost}
		c.mu.Unlock()
		if lost {
			c.attend(pctx, n)
		} else if c.welcome(pctx, node) {
			c.setTainted(node, false)
		}
		cancel()
	}
}

func (c *Controller) setTainted(node string, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if is {
		c.tainted[node] = true
	} else {
		delete(c.tainted, node)
	}
}

// adopt goes on with the failovers that another leader has begun: their nodes are tainted.
func (c *Controller) adopt(ctx context.Context, wg *sync.WaitGroup) {
	select {
	case <-ctx.Done():
		return
	case <-c.synced:
	}
	var found []string
	c.again(ctx, "Kubernetes' nodes can't be listed", func() error {
		found = nil
		return c.cfg.API.EachNode(ctx, func(n *corev1.Node) error {
			if _, tainted := lostTaint(n); !tainted {
				return nil
			}
			name, err := c.names.keelson(ctx, n.Name)
			found = append(found, name)
			return err
		})
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range found {
		c.tainted[name] = true
		c.keepLocked(ctx, wg, name)
	}
}

// errStop ends a repetition without success.
var errStop = errors.New("stop")

// again calls fn until it succeeds, or ctx ends, or it returns errStop, with growing pauses.
func (c *Controller) again(ctx context.Context, what string, fn func() error) bool {
	p := c.cfg.Patience
	for pause := p.Retry; ; pause = min(2*pause, p.RetryMax) {
		err := fn()
		if err == nil {
			return true
		}
		if ctx.Err() != nil || errors.Is(err, errStop) {
			return false
		}
		c.cfg.Log.Warn(what+"; it is tried again", "pause", pause, "err", err)
		if !sleep(ctx, pause) {
			return false
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
