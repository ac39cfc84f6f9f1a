package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// backend is a Kubernetes for tests: API, and what only a test does.
type backend interface {
	API
	// make creates an object, with its status.
	make(t *testing.T, o runtime.Object)
	// happened returns the events so far.
	happened(t *testing.T) []corev1.Event
	// allPods returns the pods of all nodes, by namespace/name.
	allPods(t *testing.T) map[string]corev1.Pod
	// away makes every call fail until it is called again.
	away(bool)
}

// memory is a backend in memory.
type memory struct {
	mu      sync.Mutex
	down    bool
	version int
	objects map[string]runtime.Object // by kind/namespace/name
	events  []corev1.Event
	pods    *watch.Broadcaster
	volumes *watch.Broadcaster
	cordons *watch.Broadcaster
}

func newMemory(t *testing.T) *memory {
	fresh := func() *watch.Broadcaster {
		b := watch.NewBroadcaster(100, watch.WaitIfChannelFull)
		t.Cleanup(b.Shutdown)
		return b
	}
	return &memory{objects: map[string]runtime.Object{}, pods: fresh(), volumes: fresh(), cordons: fresh()}
}

var errAway = errors.New("connection refused")

func (m *memory) away(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

func keyOf(o metav1.Object) string { return fmt.Sprintf("%T/%s/%s", o, o.GetNamespace(), o.GetName()) }

func missing(what, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Resource: what}, name)
}

func (m *memory) add(o runtime.Object) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errAway
	}
	x := o.(metav1.Object)
	m.version++
	if x.GetName() == "" {
		x.SetName(x.GetGenerateName() + strconv.Itoa(m.version))
	}
	if _, there := m.objects[keyOf(x)]; there {
		return apierrors.NewAlreadyExists(schema.GroupResource{}, x.GetName())
	}
	x.SetResourceVersion(strconv.Itoa(m.version))
	x.SetUID(types.UID(fmt.Sprintf("uid-%d", m.version)))
	if at := x.GetCreationTimestamp(); at.IsZero() {
		x.SetCreationTimestamp(metav1.Now())
	}
	m.objects[keyOf(x)] = o
	switch o.(type) {
	case *corev1.Pod:
		_ = m.pods.Action(watch.Added, o.DeepCopyObject())
	case *corev1.PersistentVolume:
		_ = m.volumes.Action(watch.Added, o.DeepCopyObject())
	}
	return nil
}

func (m *memory) make(t *testing.T, o runtime.Object) {
	t.Helper()
	if err := m.add(o); err != nil {
		t.Fatal(err)
	}
}

func (m *memory) happened(*testing.T) []corev1.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]corev1.Event(nil), m.events...)
}

func (m *memory) allPods(*testing.T) map[string]corev1.Pod {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]corev1.Pod{}
	for _, p := range all[corev1.Pod](m) {
		out[p.Namespace+"/"+p.Name] = *p
	}
	return out
}

func all[T any, P interface {
	*T
	runtime.Object
}](m *memory) (out []P) {
	for _, o := range m.objects {
		if p, ok := o.(P); ok {
			out = append(out, p.DeepCopyObject().(P))
		}
	}
	return out
}

func eachOf[T any, P interface {
	*T
	runtime.Object
}](m *memory, fn func(P) error) error {
	m.mu.Lock()
	list, down := all[T, P](m), m.down
	m.mu.Unlock()
	if down {
		return errAway
	}
	for _, o := range list {
		if err := fn(o); err != nil {
			return err
		}
	}
	return nil
}

func one[T any, P interface {
	*T
	runtime.Object
	metav1.Object
}](m *memory, namespace, name string) (P, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, errAway
	}
	x := P(new(T))
	x.SetNamespace(namespace)
	x.SetName(name)
	o, ok := m.objects[keyOf(x)]
	if !ok {
		return nil, missing(fmt.Sprintf("%T", x), name)
	}
	return o.DeepCopyObject().(P), nil
}

func (m *memory) EachNode(_ context.Context, fn func(*corev1.Node) error) error {
	return eachOf(m, fn)
}

func (m *memory) CordonedNodes(context.Context) (names []string, version string, err error) {
	version = m.now()
	err = eachOf(m, func(n *corev1.Node) error {
		if n.Spec.Unschedulable {
			names = append(names, n.Name)
		}
		return nil
	})
	return names, version, err
}

func (m *memory) WatchCordonedNodes(ctx context.Context, version string) (watch.Interface, error) {
	w, err := watchOf[corev1.Node](ctx, m, m.cordons, version)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		return e, e.Type == watch.Deleted || e.Object.(*corev1.Node).Spec.Unschedulable
	}), nil
}

func (m *memory) EachCSINode(_ context.Context, fn func(*storagev1.CSINode) error) error {
	return eachOf(m, fn)
}

func (m *memory) EachVolume(_ context.Context, fn func(*corev1.PersistentVolume) error) (string, error) {
	version := m.now()
	return version, eachOf(m, fn)
}

func (m *memory) now() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strconv.Itoa(m.version)
}

func (m *memory) WatchVolumes(ctx context.Context, version string) (watch.Interface, error) {
	return watchOf[corev1.PersistentVolume](ctx, m, m.volumes, version)
}

// watchOf watches from a version on: what was added since comes first.
func watchOf[T any, P interface {
	*T
	runtime.Object
	metav1.Object
}](ctx context.Context, m *memory, b *watch.Broadcaster, version string) (watch.Interface, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return nil, errAway
	}
	since, err := strconv.Atoi(version)
	if err != nil {
		return nil, err
	}
	var missed []watch.Event
	for _, o := range all[T, P](m) {
		if v, _ := strconv.Atoi(o.GetResourceVersion()); v > since {
			missed = append(missed, watch.Event{Type: watch.Added, Object: o})
		}
	}
	w, err := b.WatchWithPrefix(missed)
	if err == nil {
		context.AfterFunc(ctx, w.Stop)
	}
	return w, err
}

func (m *memory) Node(_ context.Context, name string) (*corev1.Node, error) {
	return one[corev1.Node](m, "", name)
}

func (m *memory) Claim(_ context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return one[corev1.PersistentVolumeClaim](m, namespace, name)
}

func (m *memory) Volume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	return one[corev1.PersistentVolume](m, "", name)
}

func (m *memory) Class(_ context.Context, name string) (*storagev1.StorageClass, error) {
	return one[storagev1.StorageClass](m, "", name)
}

func (m *memory) PatchNode(_ context.Context, name string, patch []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errAway
	}
	n, ok := m.objects["*v1.Node//"+name].(*corev1.Node)
	if !ok {
		return missing("nodes", name)
	}
	var p struct {
		Metadata struct{ ResourceVersion string }
		Spec     struct {
			Taints        []corev1.Taint
			Unschedulable *bool
		}
	}
	if err := json.Unmarshal(patch, &p); err != nil {
		return err
	}
	if p.Metadata.ResourceVersion != "" && p.Metadata.ResourceVersion != n.ResourceVersion {
		return apierrors.NewConflict(schema.GroupResource{}, name, errors.New("changed"))
	}
	m.version++
	n.ResourceVersion = strconv.Itoa(m.version)
	if p.Spec.Unschedulable == nil {
		n.Spec.Taints = p.Spec.Taints
		return nil
	}
	n.Spec.Unschedulable = *p.Spec.Unschedulable
	if n.Spec.Unschedulable {
		return m.cordons.Action(watch.Added, n.DeepCopy())
	}
	return m.cordons.Action(watch.Deleted, n.DeepCopy())
}

func (m *memory) Pods(_ context.Context, node string) (out []corev1.Pod, version string, err error) {
	version = m.now()
	err = eachOf(m, func(p *corev1.Pod) error {
		if p.Spec.NodeName == node {
			out = append(out, *p)
		}
		return nil
	})
	return out, version, err
}

func (m *memory) WatchPods(ctx context.Context, node, version string) (watch.Interface, error) {
	w, err := watchOf[corev1.Pod](ctx, m, m.pods, version)
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) { return e, e.Object.(*corev1.Pod).Spec.NodeName == node }), nil
}

func (m *memory) DeletePod(_ context.Context, namespace, name string, uid types.UID, grace *int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errAway
	}
	key := "*v1.Pod/" + namespace + "/" + name
	p, ok := m.objects[key].(*corev1.Pod)
	switch {
	case !ok:
		return missing("pods", name)
	case p.UID != uid:
		return apierrors.NewConflict(schema.GroupResource{}, name, errors.New("uid"))
	case grace == nil:
		now := metav1.Now()
		p.DeletionTimestamp = &now
	default:
		delete(m.objects, key)
	}
	return nil
}

func (m *memory) CreatePod(_ context.Context, p *corev1.Pod) error { return m.add(p.DeepCopy()) }

func (m *memory) Budgets(_ context.Context, namespace, label string) (out []policyv1.PodDisruptionBudget, err error) {
	err = eachOf(m, func(b *policyv1.PodDisruptionBudget) error {
		if b.Namespace == namespace && b.Labels[label] != "" {
			out = append(out, *b)
		}
		return nil
	})
	return out, err
}

func (m *memory) CreateBudget(_ context.Context, b *policyv1.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error) {
	b = b.DeepCopy()
	return b, m.add(b)
}

func (m *memory) DeleteBudget(_ context.Context, namespace, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errAway
	}
	delete(m.objects, "*v1.PodDisruptionBudget/"+namespace+"/"+name)
	for k, o := range m.objects { // what the garbage collector does
		if p, ok := o.(*corev1.Pod); ok && len(p.OwnerReferences) > 0 && p.OwnerReferences[0].Name == name {
			delete(m.objects, k)
		}
	}
	return nil
}

func (m *memory) CreateEvent(_ context.Context, e *corev1.Event) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down {
		return errAway
	}
	for i := range m.events {
		if m.events[i].Name == e.Name && m.events[i].Namespace == e.Namespace {
			return apierrors.NewAlreadyExists(schema.GroupResource{Resource: "events"}, e.Name)
		}
	}
	m.events = append(m.events, *e)
	return nil
}
