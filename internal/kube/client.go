package kube

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// API is what this package asks of Kubernetes. Its errors are those of k8s.io/apimachinery/pkg/api/errors. Safe for concurrent use.
type API interface {
	// EachNode, EachCSINode and EachVolume call fn with every object, a page at a time, until fn returns an error. EachVolume
	// returns the version from which WatchVolumes goes on.
	EachNode(ctx context.Context, fn func(*corev1.Node) error) error
	EachCSINode(ctx context.Context, fn func(*storagev1.CSINode) error) error
	EachVolume(ctx context.Context, fn func(*corev1.PersistentVolume) error) (version string, err error)
	WatchVolumes(ctx context.Context, version string) (watch.Interface, error)

	// CordonedNodes returns the names of nodes that are cordoned, and the version from which WatchCordonedNodes goes on: to that watch a node is
	// added when it is cordoned, and deleted when it isn't any more.
	CordonedNodes(ctx context.Context) (names []string, version string, err error)
	WatchCordonedNodes(ctx context.Context, version string) (watch.Interface, error)

	Node(ctx context.Context, name string) (*corev1.Node, error)
	// PatchNode applies a JSON merge patch.
	PatchNode(ctx context.Context, name string, patch []byte) error
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	Class(ctx context.Context, name string) (*storagev1.StorageClass, error)

	// Pods returns the pods of a node in all namespaces, and the version from which WatchPods goes on.
	Pods(ctx context.Context, node string) (list []corev1.Pod, version string, err error)
	WatchPods(ctx context.Context, node, version string) (watch.Interface, error)
	// DeletePod deletes a pod if it is still the one with that uid. grace nil is the pod's own.
	DeletePod(ctx context.Context, namespace, name string, uid types.UID, grace *int64) error
	CreatePod(ctx context.Context, p *corev1.Pod) error

	// Budgets returns the disruption budgets of a namespace that have a label.
	Budgets(ctx context.Context, namespace, label string) ([]policyv1.PodDisruptionBudget, error)
	CreateBudget(ctx context.Context, b *policyv1.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error)
	DeleteBudget(ctx context.Context, namespace, name string) error

	CreateEvent(ctx context.Context, e *corev1.Event) error
}

// Limits of the client.
const (
	pageSize    = 200
	callTimeout = 10 * time.Second // of one call; a connection that hangs is given up with it
	clientQPS   = 100
	clientBurst = 200
)

// client is API over HTTP.
type client struct {
	core, storage, policy rest.Interface
	params                runtime.ParameterCodec
}

// Connect returns Kubernetes by a kubeconfig file, or, if that is "", by what a pod is given. It doesn't call anything yet.
func Connect(kubeconfig, agent string) (API, error) {
	var cfg *rest.Config
	var err error
	if kubeconfig == "" {
		cfg, err = rest.InClusterConfig()
	} else {
		cfg, err = clientcmd.BuildConfigFromFlags("", kubeconfig)
	}
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	return newClient(cfg, agent)
}

func newClient(cfg *rest.Config, agent string) (*client, error) {
	cfg = rest.CopyConfig(cfg)
	cfg.QPS, cfg.Burst, cfg.UserAgent = clientQPS, clientBurst, agent
	// With HTTP/2 all calls share one connection, and wait for its ping's timeout when the API server behind it is gone.
	cfg.NextProtos = []string{"http/1.1"}
	hc, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("kubernetes: %w", err)
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, storagev1.AddToScheme, policyv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
	}
	c := &client{params: runtime.NewParameterCodec(scheme)}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	for _, g := range []struct {
		to   *rest.Interface
		gv   schema.GroupVersion
		path string
	}{
		{&c.core, corev1.SchemeGroupVersion, "/api"},
		{&c.storage, storagev1.SchemeGroupVersion, "/apis"},
		{&c.policy, policyv1.SchemeGroupVersion, "/apis"},
	} {
		gc := rest.CopyConfig(cfg)
		gc.GroupVersion, gc.APIPath, gc.NegotiatedSerializer = &g.gv, g.path, codecs
		rc, err := rest.RESTClientForConfigAndClient(gc, hc)
		if err != nil {
			return nil, fmt.Errorf("kubernetes: %w", err)
		}
		*g.to = rc
	}
	return c, nil
}

// InClusterNamespace returns the namespace of the pod that this process runs in, "" outside of one.
func InClusterNamespace() string {
	b, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (c *client) list(ctx context.Context, r rest.Interface, resource string, o metav1.ListOptions, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.Get().Resource(resource).VersionedParams(&o, c.params).Do(ctx).Into(into)
}

// pages calls page with the options of each page until there are no more. It returns the version of the first.
func pages(page func(o metav1.ListOptions) (metav1.ListMeta, error)) (version string, err error) {
	o := metav1.ListOptions{Limit: pageSize}
	for {
		m, err := page(o)
		if err != nil {
			return "", err
		}
		if version == "" {
			version = m.ResourceVersion
		}
		if o.Continue = m.Continue; o.Continue == "" {
			return version, nil
		}
	}
}

// each lists a resource in pages.
func each[L runtime.Object, T any](ctx context.Context, c *client, r rest.Interface, resource string, fresh func() L,
	items func(L) ([]T, metav1.ListMeta), fn func(*T) error,
) (string, error) {
	return pages(func(o metav1.ListOptions) (metav1.ListMeta, error) {
		l := fresh()
		if err := c.list(ctx, r, resource, o, l); err != nil {
			return metav1.ListMeta{}, err
		}
		list, m := items(l)
		for i := range list {
			if err := fn(&list[i]); err != nil {
				return m, err
			}
		}
		return m, nil
	})
}

func (c *client) EachNode(ctx context.Context, fn func(*corev1.Node) error) error {
	_, err := each(ctx, c, c.core, "nodes", func() *corev1.NodeList { return &corev1.NodeList{} },
		func(l *corev1.NodeList) ([]corev1.Node, metav1.ListMeta) { return l.Items, l.ListMeta }, fn)
	return err
}

// cordoned is the selector of nodes that were cordoned.
const cordoned = "spec.unschedulable=true"

func (c *client) CordonedNodes(ctx context.Context) ([]string, string, error) {
	var out []string
	version, err := pages(func(o metav1.ListOptions) (metav1.ListMeta, error) {
		o.FieldSelector = cordoned
		var l corev1.NodeList
		err := c.list(ctx, c.core, "nodes", o, &l)
		for i := range l.Items {
			out = append(out, l.Items[i].Name)
		}
		return l.ListMeta, err
	})
	return out, version, err
}

func (c *client) WatchCordonedNodes(ctx context.Context, version string) (watch.Interface, error) {
	return c.watch(ctx, "nodes", metav1.ListOptions{ResourceVersion: version, FieldSelector: cordoned})
}

func (c *client) EachCSINode(ctx context.Context, fn func(*storagev1.CSINode) error) error {
	_, err := each(ctx, c, c.storage, "csinodes", func() *storagev1.CSINodeList { return &storagev1.CSINodeList{} },
		func(l *storagev1.CSINodeList) ([]storagev1.CSINode, metav1.ListMeta) { return l.Items, l.ListMeta }, fn)
	return err
}

func (c *client) EachVolume(ctx context.Context, fn func(*corev1.PersistentVolume) error) (string, error) {
	return each(ctx, c, c.core, "persistentvolumes", func() *corev1.PersistentVolumeList { return &corev1.PersistentVolumeList{} },
		func(l *corev1.PersistentVolumeList) ([]corev1.PersistentVolume, metav1.ListMeta) {
			return l.Items, l.ListMeta
		}, fn)
}

func (c *client) watch(ctx context.Context, resource string, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch, o.AllowWatchBookmarks = true, true
	return c.core.Get().Resource(resource).VersionedParams(&o, c.params).Watch(ctx)
}

func (c *client) WatchVolumes(ctx context.Context, version string) (watch.Interface, error) {
	return c.watch(ctx, "persistentvolumes", metav1.ListOptions{ResourceVersion: version})
}

func onNode(node string) string { return fields.OneTermEqualSelector("spec.nodeName", node).String() }

func (c *client) Pods(ctx context.Context, node string) ([]corev1.Pod, string, error) {
	var out []corev1.Pod
	version, err := pages(func(o metav1.ListOptions) (metav1.ListMeta, error) {
		o.FieldSelector = onNode(node)
		var l corev1.PodList
		err := c.list(ctx, c.core, "pods", o, &l)
		out = append(out, l.Items...)
		return l.ListMeta, err
	})
	return out, version, err
}

func (c *client) WatchPods(ctx context.Context, node, version string) (watch.Interface, error) {
	return c.watch(ctx, "pods", metav1.ListOptions{ResourceVersion: version, FieldSelector: onNode(node)})
}

// get reads one object.
func get[T any, P interface {
	*T
	runtime.Object
}](ctx context.Context, r rest.Interface, resource, namespace, name string) (P, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	out := P(new(T))
	err := r.Get().NamespaceIfScoped(namespace, namespace != "").Resource(resource).Name(name).Do(ctx).Into(out)
	return out, err
}

func (c *client) Node(ctx context.Context, name string) (*corev1.Node, error) {
	return get[corev1.Node](ctx, c.core, "nodes", "", name)
}

func (c *client) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return get[corev1.PersistentVolumeClaim](ctx, c.core, "persistentvolumeclaims", namespace, name)
}

func (c *client) Volume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return get[corev1.PersistentVolume](ctx, c.core, "persistentvolumes", "", name)
}

func (c *client) Class(ctx context.Context, name string) (*storagev1.StorageClass, error) {
	return get[storagev1.StorageClass](ctx, c.storage, "storageclasses", "", name)
}

func (c *client) PatchNode(ctx context.Context, name string, patch []byte) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return c.core.Patch(types.MergePatchType).Resource("nodes").Name(name).Body(patch).Do(ctx).Error()
}

func (c *client) remove(ctx context.Context, r rest.Interface, resource, namespace, name string, o *metav1.DeleteOptions) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.Delete().Namespace(namespace).Resource(resource).Name(name).Body(o).Do(ctx).Error()
}

func (c *client) DeletePod(ctx context.Context, namespace, name string, uid types.UID, grace *int64) error {
	return c.remove(ctx, c.core, "pods", namespace, name, &metav1.DeleteOptions{GracePeriodSeconds: grace, Preconditions: &metav1.Preconditions{UID: &uid}})
}

func (c *client) DeleteBudget(ctx context.Context, namespace, name string) error {
	background := metav1.DeletePropagationBackground
	return c.remove(ctx, c.policy, "poddisruptionbudgets", namespace, name, &metav1.DeleteOptions{PropagationPolicy: &background})
}

func (c *client) create(ctx context.Context, r rest.Interface, resource, namespace string, o, into runtime.Object) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.Post().Namespace(namespace).Resource(resource).Body(o).Do(ctx).Into(into)
}

func (c *client) CreatePod(ctx context.Context, p *corev1.Pod) error {
	return c.create(ctx, c.core, "pods", p.Namespace, p, &corev1.Pod{})
}

func (c *client) CreateEvent(ctx context.Context, e *corev1.Event) error {
	return c.create(ctx, c.core, "events", e.Namespace, e, &corev1.Event{})
}

func (c *client) CreateBudget(ctx context.Context, b *policyv1.PodDisruptionBudget) (*policyv1.PodDisruptionBudget, error) {
	out := &policyv1.PodDisruptionBudget{}
	return out, c.create(ctx, c.policy, "poddisruptionbudgets", b.Namespace, b, out)
}

func (c *client) Budgets(ctx context.Context, namespace, label string) ([]policyv1.PodDisruptionBudget, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var l policyv1.PodDisruptionBudgetList
	o := metav1.ListOptions{LabelSelector: label}
	err := c.policy.Get().Namespace(namespace).Resource("poddisruptionbudgets").VersionedParams(&o, c.params).Do(ctx).Into(&l)
	return l.Items, err
}
