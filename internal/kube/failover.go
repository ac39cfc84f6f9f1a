package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// Limits of a failover.
const (
	atOnce    = 8                      // pods that are moved at once
	fenceWait = 20 * time.Second       // for one volume; it is asked for again then
	burst     = 300 * time.Millisecond // lets a burst of changes of pods end
	lookPause = 500 * time.Millisecond // between two questions to a machine
)

// failover is what is known of one lost node.
type failover struct {
	c    *Controller
	node spec.Node
	kube string // its name in Kubernetes
	why  string
	seed string // makes the events of this outage differ from those of the last
	// told has what was said last about each pod that is kept.
	told map[types.UID]string
}

// attend finds out whether a node without a lease is lost, and then moves what it had, until ctx ends: the lease is back.
func (c *Controller) attend(ctx context.Context, n spec.Node) {
	since := time.Now()
	why, ok := c.verdict(ctx, n, since)
	if !ok {
		return
	}
	c.cfg.Log.Warn("a node is lost: "+why, "node", n.Name)
	f := &failover{c: c, node: n, why: why, seed: since.String(), told: map[types.UID]string{}}
	ok = c.again(ctx, "a lost node's name in Kubernetes can't be found out", func() (err error) {
		f.kube, err = c.names.kube(ctx, n.Name)
		return err
	})
	if !ok {
		return
	}
	// Noted before it is done: whatever becomes of it, it is cleaned up when the node is back.
	c.setTainted(n.Name, true)
	f.run(ctx)
}

// verdict asks the machine until it is known to be lost. It returns false if ctx ends first.
func (c *Controller) verdict(ctx context.Context, n spec.Node, since time.Time) (string, bool) {
	o := outage{since: since}
	held := false
	for {
		asked := time.Now()
		r := c.cfg.Reach(ctx, n)
		if ctx.Err() != nil {
			return "", false
		}
		o.saw(r, asked)
		if why, lost := o.lost(time.Now(), c.cfg.Patience); lost {
			without, all := c.count()
			if !tooMany(without, all) || time.Since(since) >= c.cfg.Patience.Hold {
				return why, true
			}
			if !held {
				c.cfg.Log.Error("so many nodes lost their leases at once that the network may be at fault: no pod is moved for now", "node", n.Name, "without", without, "nodes", all, "for", c.cfg.Patience.Hold)
			}
			held = true
		}
		if !sleep(ctx, min(lookPause, c.cfg.Patience.Silent/2)) {
			return "", false
		}
	}
}

// count returns how many storage nodes are without a lease, of how many. Those that are known to be lost aren't counted.
func (c *Controller) count() (without, all int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, n := range c.view.nodes {
		if !storageNode(n) || c.tainted[name] {
			continue
		}
		all++
		if c.lostLocked(name) {
			without++
		}
	}
	return without, all
}

// run repeats passes over the node's pods: at once when one changes, and after a pause while something is left to be done.
func (f *failover) run(ctx context.Context) {
	p := f.c.cfg.Patience
	pause := p.Retry
	for ctx.Err() == nil {
		version, left, err := f.pass(ctx)
		if err != nil && ctx.Err() == nil {
			f.c.cfg.Log.Warn("the pods of a lost node can't be moved yet; it is tried again", "node", f.node.Name, "pause", pause, "err", err)
		}
		if err == nil && !left {
			pause = p.Retry
			f.wait(ctx, version)
			continue
		}
		if !sleep(ctx, pause) {
			return
		}
		pause = min(2*pause, p.RetryMax)
	}
}

// wait returns when a pod of the node has changed, or that can't be watched any longer.
func (f *failover) wait(ctx context.Context, version string) {
	w, err := f.c.cfg.API.WatchPods(ctx, f.kube, version)
	if err != nil {
		sleep(ctx, f.c.cfg.Patience.Retry)
		return
	}
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.ResultChan():
			switch {
			case !ok || e.Type == watch.Error:
				sleep(ctx, f.c.cfg.Patience.Retry)
				return
			case e.Type == watch.Added || e.Type == watch.Modified:
				sleep(ctx, burst)
				return
			}
		}
	}
}

// pass marks the node and moves its pods. left is set if something is still to be done.
func (f *failover) pass(ctx context.Context) (version string, left bool, err error) {
	api := f.c.cfg.API
	changed, err := f.c.setTaint(ctx, f.kube, true, time.Now())
	if err != nil {
		return "", true, fmt.Errorf("taint %s: %w", TaintStorageLost, err)
	}
	if changed {
		f.tellNode(ctx, corev1.EventTypeWarning, reasonLost, fmt.Sprintf("Keelson's storage on this node is lost: %s. No pod is scheduled here until it is back.", f.why))
	}
	if !f.c.cfg.Failover {
		return "", false, nil
	}
	pods, version, err := api.Pods(ctx, f.kube)
	if err != nil {
		return "", true, fmt.Errorf("pods: %w", err)
	}
	nodes, alive, err := f.c.cluster(ctx)
	if err != nil {
		return "", true, err
	}
	find := newFinder(api, f.c.cfg.Drivers)
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	for i := range pods {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			l, err := f.pod(ctx, find, &pods[i], nodes, alive)
			mu.Lock()
			defer mu.Unlock()
			left = left || l
			if err != nil {
				errs = append(errs, fmt.Errorf("pod %s/%s: %w", pods[i].Namespace, pods[i].Name, err))
			}
		})
	}
	wg.Wait()
	return version, left, errors.Join(errs...)
}

// cluster reads the nodes, and which of them hold a lease.
func (c *Controller) cluster(ctx context.Context) (map[string]spec.Node, map[string]bool, error) {
	list, err := c.cfg.Store.Nodes(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("nodes: %w", err)
	}
	alive, err := c.cfg.Store.Alive(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("leases: %w", err)
	}
	nodes := make(map[string]spec.Node, len(list))
	for _, n := range list {
		nodes[n.Value.Name] = n.Value
	}
	return nodes, alive, nil
}

// pod does what is to be done for one pod. left is set if that must be tried again.
func (f *failover) pod(ctx context.Context, find *finder, pod *corev1.Pod, nodes map[string]spec.Node, alive map[string]bool) (left bool, err error) {
	uses, err := find.uses(ctx, pod)
	if err != nil {
		return true, err
	}
	switch what, why := decide(pod, uses); what {
	case ignored:
		return false, nil
	case kept:
		f.keepPod(ctx, pod, uses, reasonKept, fmt.Sprintf("The storage of node %s is lost (%s), and this pod is not deleted: %s.", f.node.Name, f.why, why))
		return false, nil
	}
	terms, why, err := f.freeAll(ctx, uses, nodes, alive)
	if err != nil {
		return true, err
	}
	if why != "" {
		f.keepPod(ctx, pod, uses, reasonWaits, fmt.Sprintf("The storage of node %s is lost (%s), and this pod is not deleted yet: %s.", f.node.Name, f.why, why))
		return true, nil
	}
	now := int64(0)
	err = f.c.cfg.API.DeletePod(ctx, pod.Namespace, pod.Name, pod.UID, &now)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return false, nil // it is gone, or another one has its name
	}
	if err != nil {
		return true, err
	}
	f.tellMoved(ctx, pod, uses, terms)
	return false, nil
}

// freeAll frees all volumes of a pod, or, if one of them can't be moved, none. why says what that waits for.
func (f *failover) freeAll(ctx context.Context, uses []use, nodes map[string]spec.Node, alive map[string]bool) (terms []string, why string, err error) {
	volumes, err := f.c.volumes(ctx, uses)
	if err != nil {
		return nil, "", err
	}
	for i := range volumes {
		if w := wayFrom(&volumes[i], f.node.Name, nodes, alive); !w.free && w.to == "" {
			return nil, w.why, nil
		}
	}
	for i := range volumes {
		term, why, err := f.free(ctx, volumes[i].Name, nodes, alive)
		if err != nil || why != "" {
			return nil, why, err
		}
		terms = append(terms, term)
	}
	return terms, "", nil
}

// free makes sure that the node can't have a write to a volume acknowledged any more. why says what that waits for.
func (f *failover) free(ctx context.Context, name string, nodes map[string]spec.Node, alive map[string]bool) (term, why string, err error) {
	fenced := false
	for {
		v, err := f.c.cfg.Store.VolumeByName(ctx, name)
		if errors.Is(err, meta.ErrNotFound) {
			return fmt.Sprintf("there is no volume %s", name), "", nil
		}
		if err != nil {
			return "", "", fmt.Errorf("volume %s: %w", name, err)
		}
		w := wayFrom(&v.Value, f.node.Name, nodes, alive)
		switch {
		case w.free && fenced:
			return fmt.Sprintf("volume %s was fenced in term %d from %s", name, v.Value.State.Term, v.Value.State.Node), "", nil
		case w.free:
			return fmt.Sprintf("volume %s isn't held by that node (term %d)", name, v.Value.State.Term), "", nil
		case w.to == "":
			return "", w.why, nil
		case fenced:
			return "", fmt.Sprintf("volume %s is held by node %s again", name, v.Value.State.Node), nil
		}
		fctx, cancel := context.WithTimeout(ctx, fenceWait)
		err = f.c.cfg.Fence(fctx, v.Value.ID, w.to)
		cancel()
		if err != nil {
			return "", "", fmt.Errorf("volume %s can't be fenced from node %s: %w", name, w.to, err)
		}
		fenced = true
	}
}

// keepPod says why a pod stays, once for each reason.
func (f *failover) keepPod(ctx context.Context, pod *corev1.Pod, uses []use, reason, message string) {
	if f.toldBefore(pod.UID, reason+message) {
		return
	}
	f.c.cfg.Log.Warn("a pod on a lost node isn't moved", "node", f.node.Name, "pod", pod.Namespace+"/"+pod.Name, "reason", message)
	_ = f.c.events.tell(ctx, podRef(pod), corev1.EventTypeWarning, reason, f.seed, message)
	for _, u := range uses {
		if u.Claim != nil {
			_ = f.c.events.tell(ctx, claimRef(u.Claim), corev1.EventTypeWarning, reason, f.seed, fmt.Sprintf("Pod %s: %s", pod.Name, message))
		}
	}
}

func (f *failover) toldBefore(pod types.UID, what string) bool {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	before := f.told[pod] == what
	f.told[pod] = what
	return before
}

// tellMoved says at pod, claims and node what was done.
func (f *failover) tellMoved(ctx context.Context, pod *corev1.Pod, uses []use, terms []string) {
	owner := "its controller"
	if o := metav1.GetControllerOf(pod); o != nil {
		owner = o.Kind + " " + o.Name
	}
	what := strings.Join(terms, ", ")
	if what != "" {
		what = " (" + what + ")"
	}
	f.c.cfg.Log.Warn("a pod on a lost node was deleted", "node", f.node.Name, "pod", pod.Namespace+"/"+pod.Name, "volumes", what)
	_ = f.c.events.tell(ctx, podRef(pod), corev1.EventTypeWarning, reasonMoved, f.seed,
		fmt.Sprintf("Deleted by force, so that %s starts it on another node: the storage of node %s is lost, %s%s.", owner, f.node.Name, f.why, what))
	for i, u := range uses {
		if u.Claim == nil {
			continue
		}
		_ = f.c.events.tell(ctx, claimRef(u.Claim), corev1.EventTypeWarning, reasonMoved, f.seed,
			fmt.Sprintf("Volume %s left node %s, whose storage is lost: %s. Pod %s was deleted, so that %s starts it elsewhere.", uses[i].Volume, f.node.Name, f.why, pod.Name, owner))
	}
	f.tellNode(ctx, corev1.EventTypeWarning, reasonMoved, fmt.Sprintf("Pod %s/%s was deleted by force, so that %s starts it on another node%s.", pod.Namespace, pod.Name, owner, what))
}

func (f *failover) tellNode(ctx context.Context, kind, reason, message string) {
	_ = f.c.events.tell(ctx, nodeRef(f.kube), kind, reason, f.seed, message)
}
