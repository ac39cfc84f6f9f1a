package kube

import (
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"

	"keelson.io/keelson/internal/spec"
)

// Guards. A drain doesn't evict the pods of a DaemonSet, so a disruption budget on Keelson's own would hold nothing up. While a
// node has the last in-sync copy of an attached volume that should have more, a pod stands there that does nothing but be
// evicted, with a budget that forbids it: a drain waits until another copy is in sync or the volume isn't attached any
// more, and goes on by itself. A volume that was asked for with one copy is never guarded: that would hold up drains for ever.

// lastCopies returns the nodes that have the only copy in sync of a column of an attached volume that should have more.
func lastCopies(v *spec.Volume) []string {
	if v.Deleting || v.Replicas < 2 || v.State.Node == "" || v.State.Frontend == spec.FrontendNone {
		return nil
	}
	var out []string
	for _, col := range v.State.Columns {
		node, n := "", 0
		for _, m := range col.Members {
			if m.State == spec.InSync {
				node, n = m.Node, n+1
			}
		}
		if n == 1 && !slices.Contains(out, node) {
			out = append(out, node)
		}
	}
	return out
}

// guarded returns the nodes that shall be guarded now.
func (c *Controller) guarded() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]bool{}
	for _, nodes := range c.view.last {
		for _, n := range nodes {
			if c.view.held[n] {
				out[n] = true
			}
		}
	}
	return out
}

// keepGuards keeps guards on the nodes that need them, and on no others.
func (c *Controller) keepGuards(ctx context.Context) {
	if c.cfg.GuardImage == "" {
		return
	}
	var have map[string]bool // by the node's name in Kubernetes
	for {
		var look <-chan time.Time
		if len(have) > 0 {
			look = time.After(c.cfg.Patience.RetryMax)
		}
		select {
		case <-ctx.Done():
			return
		case <-c.guards:
			if have != nil && maps.Equal(have, c.wanted(ctx)) {
				continue
			}
			if !sleep(ctx, c.cfg.Patience.Settle) { // most are over by then
				return
			}
		case <-look: // whether their pods are still there
		}
		c.again(ctx, "the guards of last copies can't be set", func() (err error) {
			have, err = c.setGuards(ctx)
			return err
		})
	}
}

// wanted returns the guarded nodes by their names in Kubernetes, as far as these are known.
func (c *Controller) wanted(ctx context.Context) map[string]bool {
	out := map[string]bool{}
	for n := range c.guarded() {
		if name, err := c.names.kube(ctx, n); err == nil {
			out[name] = true
		}
	}
	return out
}

// setGuards brings the guards to what is wanted, and returns the nodes that have them.
func (c *Controller) setGuards(ctx context.Context) (map[string]bool, error) {
	want := c.wanted(ctx)
	list, err := c.cfg.API.Budgets(ctx, c.cfg.Namespace, LabelGuard)
	if err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, b := range list {
		node := b.Annotations[LabelGuard]
		if want[node] {
			have[node] = true
			if b.Status.ObservedGeneration > 0 && b.Status.ExpectedPods == 0 {
				// Until it runs, a pod is evicted whatever its budget says.
				if err := c.cfg.API.CreatePod(ctx, guardPod(&b, node, c.cfg.GuardImage)); err != nil {
					return nil, err
				}
			}
			continue
		}
		if err := c.cfg.API.DeleteBudget(ctx, c.cfg.Namespace, b.Name); err != nil && !apierrors.IsNotFound(err) {
			return nil, err
		}
		c.cfg.Log.Info("a node's copies aren't the last ones any more", "node", node)
	}
	for node := range want {
		if have[node] {
			continue
		}
		if err := c.putGuard(ctx, node); err != nil {
			return nil, err
		}
		have[node] = true
	}
	return have, nil
}

// putGuard makes the guard of a node. The pod belongs to its budget, and goes with it.
func (c *Controller) putGuard(ctx context.Context, node string) error {
	b, err := c.cfg.API.CreateBudget(ctx, guardBudget(c.cfg.Namespace, node))
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("the guard of node %s from before isn't gone yet: %w", node, err)
	}
	if err != nil {
		return err
	}
	err = c.cfg.API.CreatePod(ctx, guardPod(b, node, c.cfg.GuardImage))
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return errJoinDelete(ctx, c.cfg.API, b, err)
	}
	c.cfg.Log.Warn("a node has the last copy in sync of an attached volume: drains wait", "node", node)
	_ = c.events.tell(ctx, nodeRef(node), corev1.EventTypeWarning, reasonGuard, string(b.UID),
		"This node has the last in-sync copy of an attached volume. A drain waits until another copy is in sync.")
	return nil
}

// errJoinDelete takes a budget back whose pod couldn't be made.
func errJoinDelete(ctx context.Context, api API, b *policyv1.PodDisruptionBudget, err error) error {
	if derr := api.DeleteBudget(ctx, b.Namespace, b.Name); derr != nil && !apierrors.IsNotFound(derr) {
		return fmt.Errorf("%w (and %w)", err, derr)
	}
	return err
}

func guardBudget(namespace, node string) *policyv1.PodDisruptionBudget {
	one := intstr.FromInt32(1)
	labels := map[string]string{LabelGuard: labelValue(node)}
	return &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Name: guardName(node), Namespace: namespace, Labels: labels, Annotations: map[string]string{LabelGuard: node}},
		Spec:       policyv1.PodDisruptionBudgetSpec{MinAvailable: &one, Selector: &metav1.LabelSelector{MatchLabels: labels}},
	}
}

func guardName(node string) string { return "keelson-guard-" + node }

// labelValue is a node's name as the value of a label, which may be shorter than a name.
func labelValue(node string) string {
	if len(node) <= validation.LabelValueMaxLength {
		return node
	}
	return fmt.Sprintf("%x", sha256.Sum224([]byte(node)))
}

func guardPod(b *policyv1.PodDisruptionBudget, node, image string) *corev1.Pod {
	yes, no, now, nobody := true, false, int64(0), int64(65534)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			GenerateName: guardName(node) + "-", Namespace: b.Namespace, Labels: b.Labels,
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: policyv1.SchemeGroupVersion.String(), Kind: "PodDisruptionBudget", Name: b.Name, UID: b.UID, Controller: &yes,
			}},
		},
		Spec: corev1.PodSpec{
			NodeName: node, TerminationGracePeriodSeconds: &now, AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			Tolerations:     []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			SecurityContext: &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: &nobody},
			Containers: []corev1.Container{{
				Name: "guard", Image: image, Args: []string{"guard"}, ImagePullPolicy: corev1.PullIfNotPresent,
				Resources: corev1.ResourceRequirements{
					Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1m"), corev1.ResourceMemory: resource.MustParse("16Mi")},
					Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi")},
				},
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}
