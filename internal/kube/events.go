package kube

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Reasons of the events.
const (
	reasonLost    = "KeelsonStorageLost"
	reasonBack    = "KeelsonStorageBack"
	reasonMoved   = "KeelsonFailover"
	reasonKept    = "KeelsonFailoverSkipped"
	reasonWaits   = "KeelsonFailoverWaits"
	reasonWarning = "KeelsonParameterWithoutEffect"
	reasonGuard   = "KeelsonLastCopy"
)

// events tells users at their objects what was done. That it can't is logged and never stops the work.
type events struct {
	api API
	log *slog.Logger
}

// eventsNamespace is where the events of objects without a namespace are.
const eventsNamespace = metav1.NamespaceDefault

// maxMessage is how long Kubernetes lets a message be.
const maxMessage = 1024

// tell makes an event about an object. The same words about the same object make one event: its name follows from
// them, and from seed.
func (e *events) tell(ctx context.Context, about corev1.ObjectReference, kind, reason, seed, message string) error {
	if len(message) > maxMessage {
		message = message[:maxMessage-3] + "..."
	}
	namespace := about.Namespace
	if namespace == "" {
		namespace = eventsNamespace
	}
	sum := sha256.Sum256([]byte(string(about.UID) + "\x00" + reason + "\x00" + seed + "\x00" + message))
	now := metav1.NewTime(time.Now())
	err := e.api.CreateEvent(ctx, &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: fmt.Sprintf("%.200s.%x", about.Name, sum[:8]), Namespace: namespace},
		InvolvedObject: about, Type: kind, Reason: reason, Message: message,
		Source: corev1.EventSource{Component: component}, ReportingController: component,
		FirstTimestamp: now, LastTimestamp: now, Count: 1,
	})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		e.log.Warn("an event can't be made", "kind", about.Kind, "name", about.Name, "namespace", about.Namespace, "reason", reason, "message", message, "err", err)
	}
	return err
}

func podRef(p *corev1.Pod) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: p.UID}
}

func claimRef(c *corev1.PersistentVolumeClaim) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: c.Namespace, Name: c.Name, UID: c.UID}
}

// nodeRef names a node as kubelet's events do, whose uid is its name, so that all are shown together.
func nodeRef(name string) corev1.ObjectReference {
	return corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)}
}
