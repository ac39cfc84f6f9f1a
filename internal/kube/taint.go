package kube

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// lostTaint returns since when a node is marked as one whose storage is lost.
func lostTaint(n *corev1.Node) (since time.Time, marked bool) {
	for _, t := range n.Spec.Taints {
		if t.Key != TaintStorageLost {
			continue
		}
		if t.TimeAdded != nil {
			since = t.TimeAdded.Time
		}
		return since, true
	}
	return since, false
}

// setTaint marks a node of Kubernetes, or takes the mark away. One that isn't there is left alone. It reports whether it
// changed anything.
func (c *Controller) setTaint(ctx context.Context, node string, marked bool, now time.Time) (changed bool, err error) {
	for {
		n, err := c.cfg.API.Node(ctx, node)
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		if _, is := lostTaint(n); is == marked {
			return false, nil
		}
		taints := slices.DeleteFunc(slices.Clone(n.Spec.Taints), func(t corev1.Taint) bool { return t.Key == TaintStorageLost })
		if marked {
			at := metav1.NewTime(now)
			taints = append(taints, corev1.Taint{Key: TaintStorageLost, Effect: corev1.TaintEffectNoSchedule, TimeAdded: &at})
		}
		// The version makes it fail if somebody changed the list meanwhile.
		patch, err := json.Marshal(map[string]any{
			"metadata": map[string]any{"resourceVersion": n.ResourceVersion},
			"spec":     map[string]any{"taints": taints},
		})
		if err != nil {
			return false, err
		}
		err = c.cfg.API.PatchNode(ctx, node, patch)
		if apierrors.IsConflict(err) && ctx.Err() == nil {
			continue
		}
		return err == nil, err
	}
}
