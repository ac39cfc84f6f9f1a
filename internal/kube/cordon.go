package kube

import (
	"context"
	"errors"
	"maps"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/watch"

	"keelson.io/keelson/internal/meta"
)

// passCordons has no replicas put on nodes that are cordoned in Kubernetes. What is kept of it is a mark of its own in the node's record, beside the
// one that a person makes: taking one away leaves the other.
func (c *Controller) passCordons(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-c.synced:
	}
	for ctx.Err() == nil {
		marked, version := map[string]bool{}, ""
		ok := c.again(ctx, "Kubernetes' cordoned nodes can't be listed", func() error {
			names, at, err := c.cfg.API.CordonedNodes(ctx)
			clear(marked)
			for _, n := range names {
				marked[n] = true
			}
			version = at
			return err
		})
		if !ok {
			return
		}
		c.followCordons(ctx, marked, version)
		sleep(ctx, c.cfg.Patience.Retry)
	}
}

// followCordons keeps the records as Kubernetes' nodes are, until these have to be listed again.
func (c *Controller) followCordons(ctx context.Context, marked map[string]bool, version string) {
	w, err := c.cfg.API.WatchCordonedNodes(ctx, version)
	if err != nil {
		c.cfg.Log.Debug("cordoned nodes can't be watched", "err", err)
		sleep(ctx, c.cfg.Patience.RetryMax)
		return
	}
	defer w.Stop()
	for {
		var retry <-chan time.Time
		if !c.setCordons(ctx, marked) {
			retry = time.After(namesFor)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.cordons:
		case <-retry:
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return
			}
			n, ok := e.Object.(*corev1.Node)
			switch {
			case !ok:
			case e.Type == watch.Added, e.Type == watch.Modified:
				marked[n.Name] = true
			case e.Type == watch.Deleted:
				delete(marked, n.Name)
			}
		}
	}
}

// setCordons brings the nodes' records to what Kubernetes says; marked are the names there. It reports whether all of them are known.
func (c *Controller) setCordons(ctx context.Context, marked map[string]bool) (all bool) {
	c.mu.Lock()
	nodes := maps.Clone(c.view.nodes)
	c.mu.Unlock()
	want := map[string]bool{}
	all = true
	for name := range marked {
		ours, err := c.names.keelson(ctx, name)
		if _, known := nodes[ours]; err != nil || !known {
			all = false // it isn't Keelson's, or not yet, or under a name that isn't known yet
			continue
		}
		want[ours] = true
	}
	for name, n := range nodes {
		if n.Unschedulable == want[name] {
			continue
		}
		if !want[name] && !all {
			// A name that isn't known may be this one's, unless that is another.
			if _, known, err := c.names.look(ctx, name, func() map[string]string { return c.names.toKube }); err != nil || !known {
				continue
			}
		}
		c.again(ctx, "a cordon in Kubernetes can't be passed on", func() error { return c.setCordon(ctx, name, want[name]) })
	}
	return all
}

func (c *Controller) setCordon(ctx context.Context, node string, is bool) error {
	n, err := c.cfg.Store.Node(ctx, node)
	if errors.Is(err, meta.ErrNotFound) {
		return nil
	}
	if err != nil || n.Value.Unschedulable == is {
		return err
	}
	n.Value.Unschedulable = is
	if _, err := c.cfg.Store.PutNode(ctx, n.Value, n.Rev); err != nil {
		return err
	}
	c.cfg.Log.Info("a node's cordon in Kubernetes is passed on", "node", node, "cordoned", is)
	return nil
}
