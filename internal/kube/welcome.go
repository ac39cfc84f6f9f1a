package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/spec"
)

// welcome ends what a failover has left on a node that is back, or out of the cluster: pods whose volumes were moved, but that
// nobody came to delete, and the taint. It returns false if ctx ends first.
func (c *Controller) welcome(ctx context.Context, node string) bool {
	return c.again(ctx, "what a lost node left can't be cleaned up", func() error {
		kube, err := c.names.kube(ctx, node)
		if err != nil {
			return err
		}
		n, err := c.cfg.API.Node(ctx, kube)
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return err
		}
		since, tainted := lostTaint(n)
		if !tainted {
			return nil
		}
		if c.cfg.Failover && c.known(node) {
			if err := c.deleteLeftBehind(ctx, node, kube, since); err != nil {
				return err
			}
		}
		if _, err := c.setTaint(ctx, kube, false, time.Now()); err != nil {
			return err
		}
		c.cfg.Log.Info("a node whose storage was lost is back", "node", node)
		_ = c.events.tell(ctx, nodeRef(kube), corev1.EventTypeNormal, reasonBack, since.String(), "Keelson's storage on this node is back. Pods are scheduled here again.")
		return nil
	})
}

func (c *Controller) known(node string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.view.nodes[node]
	return ok
}

// deleteLeftBehind deletes the pods of a node that is back whose volumes were moved away, as any pod is deleted.
func (c *Controller) deleteLeftBehind(ctx context.Context, node, kube string, since time.Time) error {
	pods, _, err := c.cfg.API.Pods(ctx, kube)
	if err != nil {
		return err
	}
	find := newFinder(c.cfg.API, c.cfg.Drivers)
	for i := range pods {
		pod := &pods[i]
		uses, err := find.uses(ctx, pod)
		if err != nil {
			return err
		}
		volumes, err := c.volumes(ctx, uses)
		if err != nil {
			return err
		}
		volume, behind := leftBehind(pod, since, node, volumes)
		if !behind {
			continue
		}
		what, why := decide(pod, uses)
		if what == ignored {
			why = "it belongs to a DaemonSet, or has ended"
		}
		if what != moved {
			_ = c.events.tell(ctx, podRef(pod), corev1.EventTypeWarning, reasonKept, since.String(),
				fmt.Sprintf("Volume %s was moved away while the storage of node %s was lost, so it can't be used here until the pod is made anew. It isn't deleted: %s.", volume, node, why))
			continue
		}
		err = c.cfg.API.DeletePod(ctx, pod.Namespace, pod.Name, pod.UID, nil)
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return err
		}
		c.cfg.Log.Warn("a pod was deleted whose volume was moved away", "node", node, "pod", pod.Namespace+"/"+pod.Name, "volume", volume)
		_ = c.events.tell(ctx, podRef(pod), corev1.EventTypeWarning, reasonMoved, since.String(),
			fmt.Sprintf("Deleted, so that its controller makes it anew: volume %s was moved away while the storage of node %s was lost.", volume, node))
	}
	return nil
}

// volumes reads the volumes that uses name, as far as they are there.
func (c *Controller) volumes(ctx context.Context, uses []use) ([]spec.Volume, error) {
	var out []spec.Volume
	for _, u := range uses {
		if u.Volume == "" {
			continue
		}
		v, err := c.cfg.Store.VolumeByName(ctx, u.Volume)
		if errors.Is(err, meta.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, v.Value)
	}
	return out, nil
}
