package kube

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.io/keelson/internal/meta"
	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/spec"
)

const driver = "csi.keelson.io"

// rig is a controller between metadata in memory and a backend. Nodes n1 … n3 of Keelson are kube-n1 … in Kubernetes.
type rig struct {
	t *testing.T
	backend
	store *mem.Store
	cfg   Config

	mu     sync.Mutex
	reach  map[string]Reach
	fenced []string // "volume@node", in order
	refuse error    // what fencing answers
}

// until is how long something that must happen is waited for.
const until = 30 * time.Second

func newRig(t *testing.T, b backend) *rig {
	r := &rig{t: t, backend: b, store: mem.New(), reach: map[string]Reach{}}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for _, n := range []string{"n1", "n2", "n3"} {
		r.reach[n] = Answers
		_, err := r.store.PutNode(ctx, spec.Node{Name: n, Roles: []spec.Role{spec.RoleStorage}, EngineAddr: n}, 0)
		r.ok(err)
		wg.Go(func() { _ = r.store.HoldLease(ctx, n, func() {}, func() {}) })
		r.make(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "kube-" + n}, Spec: corev1.NodeSpec{
			Taints: []corev1.Taint{{Key: "somebody.else/s", Effect: corev1.TaintEffectNoSchedule}},
		}})
		r.make(t, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "kube-" + n}, Spec: storagev1.CSINodeSpec{
			Drivers: []storagev1.CSINodeDriver{{Name: driver, NodeID: n}, {Name: "other.io", NodeID: "x" + n}},
		}})
	}
	r.await("all hold their leases", func() bool { alive, err := r.store.Alive(ctx); return err == nil && len(alive) == 3 })
	r.cfg = Config{
		API: b, Store: r.store, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Drivers: []string{driver, "pure-csi", driverPortworx},
		Fence: r.fence, Reach: r.answer, Failover: true, Namespace: "default", GuardImage: "keelson:test",
		Patience: Patience{Silent: 20 * time.Millisecond, Reachable: time.Hour, Hold: time.Hour, Retry: 20 * time.Millisecond, RetryMax: 100 * time.Millisecond, Settle: time.Millisecond},
	}
	return r
}

func (r *rig) ok(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// lead runs a controller until the returned function is called.
func (r *rig) lead() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		New(r.cfg).Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) answer(_ context.Context, n spec.Node) Reach {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reach[n.Name]
}

// lose ends a node's lease, and its machine answers so.
func (r *rig) lose(node string, answers Reach) {
	r.mu.Lock()
	r.reach[node] = answers
	r.mu.Unlock()
	r.store.Cut(node)
}

func (r *rig) heal(node string) {
	r.mu.Lock()
	r.reach[node] = Answers
	r.mu.Unlock()
	r.store.Heal(node)
}

// fence is what an engine does: the transaction of an attachment without a frontend, and fencing.
func (r *rig) fence(ctx context.Context, id, node string) error {
	r.mu.Lock()
	refuse := r.refuse
	r.mu.Unlock()
	if refuse != nil {
		return refuse
	}
	v, err := r.store.Volume(ctx, id)
	if err != nil {
		return err
	}
	x, cond := v.Value, meta.Cond{}
	if x.State.Frontend != spec.FrontendNone && x.State.Node != node {
		cond.NodeGone = x.State.Node
	}
	x.State.Term++
	x.State.Fenced, x.State.Node, x.State.Frontend = x.State.Term, node, spec.FrontendNone
	if _, err := r.store.PutVolume(ctx, x, v.Rev, cond); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fenced = append(r.fenced, x.Name+"@"+node)
	return nil
}

func (r *rig) allFenced() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.fenced, " ")
}

// volume makes a volume in Keelson, attached to a node, with columns as column reads them.
func (r *rig) volume(name, node string, columns ...string) {
	r.t.Helper()
	v := volumeWith(node, spec.FrontendFUSE, 3, 3, columns...)
	if node == "" {
		v.State.Frontend = ""
	}
	v.ID, v.Name = spec.NewID(), name
	_, err := r.store.CreateVolume(r.t.Context(), v)
	r.ok(err)
}

func (r *rig) changeVolume(name string, fn func(*spec.Volume)) {
	r.t.Helper()
	v, err := r.store.VolumeByName(r.t.Context(), name)
	r.ok(err)
	fn(&v.Value)
	_, err = r.store.PutVolume(r.t.Context(), v.Value, v.Rev, meta.Cond{})
	r.ok(err)
}

// claim makes a persistent volume and a claim that are bound; source "" is the driver's.
func (r *rig) claim(name, volume, source string, annotations map[string]string) {
	r.t.Helper()
	one := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	size := size1Gi()
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name},
		Spec: corev1.PersistentVolumeSpec{
			AccessModes: one, Capacity: size, ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "default", Name: name, UID: "u-1"},
		},
	}
	switch source {
	case "hostPath":
		pv.Spec.HostPath = &corev1.HostPathVolumeSource{Path: "/x"}
	case "portworxVolume":
		pv.Spec.PortworxVolume = &corev1.PortworxVolumeSource{VolumeID: volume}
	default:
		pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: source, VolumeHandle: volume}
	}
	r.make(r.t, pv)
	annotations = maps.Clone(annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations["pv.kubernetes.io/bind-completed"] = "yes"
	r.make(r.t, &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: annotations},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: one, VolumeName: pv.Name, Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	})
}

// pod makes a running pod of a StatefulSet on a node with claims.
func (r *rig) pod(name, node string, change func(*corev1.Pod), claims ...string) {
	r.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))},
		Spec:       corev1.PodSpec{NodeName: "kube-" + node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	controlled("StatefulSet")(p)
	for i, c := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: fmt.Sprintf("v%d", i), VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c},
		}})
	}
	if change != nil {
		change(p)
	}
	r.make(r.t, p)
}

func (r *rig) has(pod string) bool {
	r.t.Helper()
	_, ok := r.allPods(r.t)["default/"+pod]
	return ok
}

// await waits until something is so.
func (r *rig) await(what string, is func() bool) {
	r.t.Helper()
	end := time.Now().Add(until)
	for !is() {
		if time.Now().After(end) {
			for _, e := range r.happened(r.t) {
				r.t.Log(e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message)
			}
			r.t.Fatalf("not within %s: %s", until, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// event reports whether an event was made that names an object, has a reason, and says something.
func (r *rig) event(kind, name, reason, says string) bool {
	r.t.Helper()
	for _, e := range r.happened(r.t) {
		if e.InvolvedObject.Kind == kind && e.InvolvedObject.Name == name && e.Reason == reason && strings.Contains(e.Message, says) {
			return true
		}
	}
	return false
}

func (r *rig) tainted(node string) bool {
	r.t.Helper()
	n, err := r.Node(r.t.Context(), "kube-"+node)
	r.ok(err)
	_, is := lostTaint(n)
	other := 0
	for _, t := range n.Spec.Taints {
		if t.Key == "somebody.else/s" {
			other++
		}
	}
	if other != 1 {
		r.t.Fatalf("taints of node %s: %v", node, n.Spec.Taints)
	}
	return is
}

func size1Gi() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
}
