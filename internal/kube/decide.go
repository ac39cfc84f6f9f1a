package kube

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.io/keelson/internal/spec"
)

// fate is what becomes of a pod on a lost node.
type fate int

const (
	ignored fate = iota // it is none of ours, or there is nothing to be done for it
	kept                // it would have been deleted, but for a reason
	moved               // its volumes are moved, and it is deleted
)

// decide says what becomes of a pod on a lost node, and why if it is kept.
func decide(pod *corev1.Pod, uses []use) (fate, string) {
	if len(uses) == 0 || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || static(pod) {
		return ignored, ""
	}
	owner := metav1.GetControllerOf(pod)
	if owner != nil && (owner.Kind == "DaemonSet" || owner.Kind == "Node") {
		return ignored, "" // it would start on the same node again
	}
	if by := optedOut(pod, uses); by != "" {
		return kept, fmt.Sprintf("the annotation %s: %q of %s says so", AnnotationFailover, FailoverOff, by)
	}
	// One that was deleted already by somebody is only waited for.
	if owner == nil && pod.DeletionTimestamp == nil {
		return kept, "it has no controller that would start it elsewhere: delete it with --force and create it anew if it is needed before the node is back"
	}
	return moved, ""
}

// static reports whether kubelet runs the pod from a file: what the API server has of it is an image.
func static(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]
	return ok
}

// optedOut returns which object keeps the pod from being deleted; "" if none.
func optedOut(pod *corev1.Pod, uses []use) string {
	if pod.Annotations[AnnotationFailover] == FailoverOff {
		return "the pod"
	}
	for _, u := range uses {
		if u.Claim != nil && u.Claim.Annotations[AnnotationFailover] == FailoverOff {
			return "the claim " + u.Claim.Name
		}
	}
	return ""
}

// way is how a volume gets away from a node.
type way struct {
	// free: nobody on the node can have a write acknowledged any more, as far as the metadata says.
	free bool
	// to is the node that fences it; "" if it can't be moved, and then why says why.
	to, why string
}

// wayFrom says how a volume gets away from a node that is lost.
func wayFrom(v *spec.Volume, node string, nodes map[string]spec.Node, alive map[string]bool) way {
	st := v.State
	switch {
	case v.Deleting, st.Node == "", st.Node == node && st.Frontend == spec.FrontendNone:
		return way{free: true}
	case st.Node != node && st.Fenced == st.Term:
		return way{free: true}
	case st.Node != node && st.Frontend != spec.FrontendNone && alive[st.Node]:
		// Until the members are fenced, they still answer the lost node.
		return way{why: fmt.Sprintf("volume %s is on its way to %s, which hasn't fenced %s yet", v.Name, st.Node, node)}
	case st.Node != node && alive[st.Node]:
		return way{to: st.Node}
	}
	to := ""
	for i, c := range v.State.Columns {
		var have []string
		usable := ""
		for _, m := range c.Members {
			if m.State != spec.InSync {
				continue
			}
			have = append(have, m.Node)
			n, known := nodes[m.Node]
			if known && alive[m.Node] && m.Node != node && (usable == "" || closed(nodes[usable]) && !closed(n)) {
				usable = m.Node
			}
		}
		if usable == "" {
			slices.Sort(have)
			of := "the only copies that are in sync are"
			if len(have) == 1 {
				of = "the only copy that is in sync is"
			}
			if len(v.State.Columns) > 1 {
				of = fmt.Sprintf("of column %d, %s", i, of)
			}
			return way{why: fmt.Sprintf("volume %s can't be moved: %s on %s, and lost with it until that is back", v.Name, of, strings.Join(have, ", "))}
		}
		if to == "" {
			to = usable
		}
	}
	if to == "" {
		return way{why: fmt.Sprintf("volume %s can't be moved: it has no copies", v.Name)}
	}
	return way{to: to}
}

func closed(n spec.Node) bool { return n.Closed() }

// leftBehind reports whether a pod on a node that is back uses a volume that was moved away while the node was lost: then
// its mount is dead. A pod that was made after the node was lost isn't judged: it may be about to attach its volume.
func leftBehind(pod *corev1.Pod, since time.Time, node string, volumes []spec.Volume) (volume string, yes bool) {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning || !pod.CreationTimestamp.Time.Before(since) {
		return "", false
	}
	for _, v := range volumes {
		if v.State.Node != node {
			return v.Name, true
		}
	}
	return "", false
}
