package kubeview

import (
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

const (
	healthy = "ok"
	// recent is how old a warning may be that still says how something is.
	recent = time.Hour
	// taintStorageLost is what Keelson puts on a node whose storage is lost.
	taintStorageLost = "keelson.io/storage-lost"
)

// eventKey names what an event is about.
type eventKey struct{ kind, namespace, name string }

// ofStorage are the reasons of warnings that are about volumes.
var ofStorage = regexp.MustCompile(`Mount|Attach|Volume|Provision|Resize|Keelson|MapFailed`)

// newest returns the newest warning about storage of each object.
func newest(list []corev1.Event) map[eventKey]*corev1.Event {
	out := map[eventKey]*corev1.Event{}
	for i := range list {
		e := &list[i]
		if e.Type != corev1.EventTypeWarning || !ofStorage.MatchString(e.Reason) && e.Reason != "FailedScheduling" {
			continue
		}
		k := eventKey{e.InvolvedObject.Kind, e.InvolvedObject.Namespace, e.InvolvedObject.Name}
		if have := out[k]; have == nil || when(have).Before(when(e)) {
			out[k] = e
		}
	}
	return out
}

func when(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	}
	return e.CreationTimestamp.Time
}

// warning words the newest warning about an object, "" if there is none of late.
func (x *index) warning(kind, namespace, name string, now time.Time) string {
	e := x.events[eventKey{kind, namespace, name}]
	if e == nil || now.Sub(when(e)) > recent {
		return ""
	}
	return e.Reason + ": " + strings.Join(strings.Fields(e.Message), " ")
}

// because appends a reason to a state.
func because(state, why string) string {
	if why == "" {
		return state
	}
	return state + ": " + why
}

// health says how a claim and its pod are, as far as Kubernetes knows: the worst of it. Either may be nil.
func (x *index) health(c *corev1.PersistentVolumeClaim, p *corev1.Pod, driver string, now time.Time) string {
	if c != nil {
		warning := x.warning("PersistentVolumeClaim", c.Namespace, c.Name, now)
		switch {
		case c.Status.Phase == corev1.ClaimLost:
			return "claim lost: its volume is gone"
		case c.Status.Phase == corev1.ClaimPending && p == nil && warning == "" && x.waits(c):
			return "waits for its first pod"
		case c.Status.Phase == corev1.ClaimPending:
			return because("claim pending", warning)
		case c.DeletionTimestamp != nil:
			return "claim being deleted"
		}
	}
	if p != nil {
		if h := x.podHealth(p, driver, now); h != healthy {
			return h
		}
	}
	if c != nil {
		for _, cond := range c.Status.Conditions {
			if cond.Status == corev1.ConditionTrue {
				return because(string(cond.Type), cond.Message)
			}
		}
		if w := x.warning("PersistentVolumeClaim", c.Namespace, c.Name, now); w != "" {
			return w
		}
	}
	return healthy
}

func (x *index) podHealth(p *corev1.Pod, driver string, now time.Time) string {
	warning := x.warning("Pod", p.Namespace, p.Name, now)
	if p.Spec.NodeName == "" {
		return because("pod isn't scheduled", warning)
	}
	if n := x.nodes[p.Spec.NodeName]; n != nil {
		for _, t := range n.Spec.Taints {
			if t.Key == taintStorageLost {
				return "storage lost on the node"
			}
		}
		for _, c := range n.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status != corev1.ConditionTrue {
				return "node not ready"
			}
		}
		if d, known := x.drivers[n.Name]; known && !d[driver] {
			return "no driver on the node"
		}
	} else if len(x.nodes) > 0 {
		return "node gone"
	}
	switch {
	case p.DeletionTimestamp != nil:
		return because("pod terminating", warning)
	case p.Status.Phase == corev1.PodPending:
		return because("pod pending", warning)
	case strings.HasPrefix(warning, "VolumeConditionAbnormal"), strings.HasPrefix(warning, "Keelson"):
		return warning
	}
	return healthy
}

func unclaimedHealth(pv *corev1.PersistentVolume) string {
	switch pv.Status.Phase {
	case corev1.VolumeAvailable:
		return healthy
	case corev1.VolumeReleased:
		return because("released: its claim is gone", pv.Status.Message)
	case corev1.VolumeFailed:
		return because("failed", pv.Status.Message)
	case corev1.VolumeBound:
		return "bound to a claim that is gone"
	}
	return strings.ToLower(string(pv.Status.Phase))
}

// waits reports whether a claim gets its volume only when a pod uses it.
func (x *index) waits(c *corev1.PersistentVolumeClaim) bool {
	if c.Spec.StorageClassName == nil {
		return false
	}
	class := x.classes[*c.Spec.StorageClassName]
	return class != nil && class.VolumeBindingMode != nil && *class.VolumeBindingMode == storagev1.VolumeBindingWaitForFirstConsumer
}
