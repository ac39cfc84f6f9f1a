package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"

	"keelson.io/keelson/hack/kube/kubetest"
	"keelson.io/keelson/internal/spec"
)

// TestOnAPIServer runs the scenarios, and what needs other programs of Kubernetes, against a real API server with its etcd, as a user that
// may do no more than docs/design/kubernetes.md says.
func TestOnAPIServer(t *testing.T) {
	s := startServer(t)
	for name, test := range scenarios {
		t.Run(name, func(t *testing.T) {
			b := s.backend(t)
			test(t, newRig(t, b))
		})
	}
	t.Run("a quota says so when the claim is made", func(t *testing.T) { testQuota(t, s.backend(t)) })
	t.Run("a drain waits for a guard", func(t *testing.T) { testDrain(t, s) })
	t.Run("a scheduler asks", func(t *testing.T) { testScheduler(t, s) })
}

// apiServer is a running one.
type apiServer struct {
	*kubetest.Server
	admin *client
	// user is a proxy before it for the client that is tested; down cuts it off.
	user string
	down *atomic.Bool
}

const userToken = "user-token"

func startServer(t *testing.T) *apiServer {
	server := kubetest.Start(t, kubetest.Options{Tokens: map[string]string{userToken: "keelson"}})
	admin, err := newClient(config(server.URL, kubetest.AdminToken), "test")
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{Server: server, admin: admin, down: &atomic.Bool{}}
	s.grant(t)
	s.user = s.proxy(t, server.URL)
	return s
}

func config(host, token string) *rest.Config {
	return &rest.Config{Host: host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// proxy forwards to the API server, or, when it is cut off, drops every connection.
func (s *apiServer) proxy(t *testing.T, host string) string {
	to, err := url.Parse(host)
	if err != nil {
		t.Fatal(err)
	}
	base, err := rest.TransportFor(config(host, ""))
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{FlushInterval: -1, Transport: base, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	hs := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.down.Load() {
			panic(http.ErrAbortHandler)
		}
		p.ServeHTTP(w, r)
	})}
	go func() { _ = hs.Serve(l) }()
	t.Cleanup(func() { _ = hs.Close() })
	return "http://" + l.Addr().String()
}

// rights are what docs/design/kubernetes.md says that the controller needs.
const rights = `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"keelson"},"rules":[
{"apiGroups":[""],"resources":["nodes"],"verbs":["get","list","patch","watch"]},
{"apiGroups":[""],"resources":["pods"],"verbs":["list","watch","delete"]},
{"apiGroups":[""],"resources":["persistentvolumeclaims"],"verbs":["get"]},
{"apiGroups":["storage.k8s.io"],"resources":["storageclasses"],"verbs":["get"]},
{"apiGroups":[""],"resources":["persistentvolumes"],"verbs":["get","list","watch"]},
{"apiGroups":["storage.k8s.io"],"resources":["csinodes"],"verbs":["list"]},
{"apiGroups":[""],"resources":["events"],"verbs":["create"]}]}`

const rightsInNamespace = `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"keelson","namespace":"default"},"rules":[
{"apiGroups":[""],"resources":["pods"],"verbs":["create"]},
{"apiGroups":["policy"],"resources":["poddisruptionbudgets"],"verbs":["list","create","delete"]}]}`

func (s *apiServer) grant(t *testing.T) {
	const group = "/apis/rbac.authorization.k8s.io/v1"
	subject := `"subjects":[{"kind":"User","name":"keelson","apiGroup":"rbac.authorization.k8s.io"}]`
	for _, x := range [][2]string{
		{group + "/clusterroles", rights},
		{group + "/namespaces/default/roles", rightsInNamespace},
		{group + "/clusterrolebindings", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"keelson"},` +
			`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"keelson"},` + subject + `}`},
		{group + "/namespaces/default/rolebindings", `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"keelson","namespace":"default"},` +
			`"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"keelson"},` + subject + `}`},
	} {
		end := time.Now().Add(time.Minute)
		for {
			err := s.admin.core.Post().AbsPath(x[0]).Body([]byte(x[1])).SetHeader("Content-Type", "application/json").Do(t.Context()).Error()
			if err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s: %v", x[0], err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// realBackend is a backend on an API server. What a test makes is deleted when it ends.
type realBackend struct {
	API
	s *apiServer
}

func (s *apiServer) backend(t *testing.T) *realBackend {
	t.Helper()
	c, err := newClient(config(s.user, userToken), "keelson")
	if err != nil {
		t.Fatal(err)
	}
	b := &realBackend{API: c, s: s}
	s.down.Store(false)
	t.Cleanup(func() { b.clear(t) })
	return b
}

func (b *realBackend) away(down bool) { b.s.down.Store(down) }

func (b *realBackend) clear(t *testing.T) {
	now := int64(0)
	c := b.s.admin
	for _, x := range []struct {
		r        rest.Interface
		resource string
		scoped   bool
	}{{c.core, "pods", true}, {c.core, "events", true}, {c.core, "persistentvolumeclaims", true}, {c.core, "persistentvolumes", false},
		{c.core, "nodes", false}, {c.storage, "csinodes", false}, {c.policy, "poddisruptionbudgets", true}, {c.core, "resourcequotas", true}} {
		err := x.r.Delete().NamespaceIfScoped("default", x.scoped).Resource(x.resource).Body(&metav1.DeleteOptions{GracePeriodSeconds: &now}).Do(context.Background()).Error()
		if err != nil {
			t.Errorf("clearing %s: %v", x.resource, err)
		}
	}
	// Protection by finalizers, which no controller takes off here.
	for _, x := range []struct{ resource, namespace string }{{"persistentvolumeclaims", "default"}, {"persistentvolumes", ""}} {
		var list metav1.PartialObjectMetadataList
		raw, err := c.core.Get().NamespaceIfScoped(x.namespace, x.namespace != "").Resource(x.resource).Do(context.Background()).Raw()
		if err == nil {
			err = json.Unmarshal(raw, &list)
		}
		if err != nil {
			t.Errorf("clearing %s: %v", x.resource, err)
		}
		for _, o := range list.Items {
			_ = c.core.Patch("application/merge-patch+json").NamespaceIfScoped(x.namespace, x.namespace != "").Resource(x.resource).Name(o.Name).
				Body([]byte(`{"metadata":{"finalizers":null}}`)).Do(context.Background()).Error()
		}
	}
}

func (b *realBackend) make(t *testing.T, o runtime.Object) {
	t.Helper()
	if err := b.try(t.Context(), o); err != nil {
		t.Fatalf("%T: %v", o, err)
	}
}

func (b *realBackend) try(ctx context.Context, o runtime.Object) error {
	c := b.s.admin
	r, resource, scoped := rest.Interface(c.core), "", true
	var withStatus bool
	switch o.(type) {
	case *corev1.Pod:
		resource, withStatus = "pods", true
	case *corev1.Node:
		resource, scoped = "nodes", false
	case *corev1.PersistentVolume:
		resource, scoped = "persistentvolumes", false
	case *corev1.PersistentVolumeClaim:
		resource = "persistentvolumeclaims"
	case *corev1.ResourceQuota:
		resource, withStatus = "resourcequotas", true
	case *storagev1.CSINode:
		r, resource, scoped = c.storage, "csinodes", false
	case *policyv1.PodDisruptionBudget:
		r, resource = c.policy, "poddisruptionbudgets"
	default:
		return fmt.Errorf("%T isn't known to the test", o)
	}
	made := o.DeepCopyObject()
	if err := r.Post().NamespaceIfScoped("default", scoped).Resource(resource).Body(o).Do(ctx).Into(made); err != nil {
		return err
	}
	if !withStatus {
		return nil
	}
	switch m := made.(type) {
	case *corev1.Pod:
		m.Status = o.(*corev1.Pod).Status
	case *corev1.ResourceQuota:
		m.Status = o.(*corev1.ResourceQuota).Status
	}
	name := made.(metav1.Object).GetName()
	return r.Put().NamespaceIfScoped("default", scoped).Resource(resource).Name(name).SubResource("status").Body(made).Do(ctx).Error()
}

func (b *realBackend) happened(t *testing.T) []corev1.Event {
	t.Helper()
	var l corev1.EventList
	if err := b.s.admin.list(context.Background(), b.s.admin.core, "events", metav1.ListOptions{}, &l); err != nil {
		t.Fatal(err)
	}
	return l.Items
}

func (b *realBackend) allPods(t *testing.T) map[string]corev1.Pod {
	t.Helper()
	var l corev1.PodList
	if err := b.s.admin.list(context.Background(), b.s.admin.core, "pods", metav1.ListOptions{}, &l); err != nil {
		t.Fatal(err)
	}
	out := map[string]corev1.Pod{}
	for _, p := range l.Items {
		out[p.Namespace+"/"+p.Name] = p
	}
	return out
}

// testQuota: what docs/design/kubernetes.md says of a quota over a class.
func testQuota(t *testing.T, b *realBackend) {
	const key = "keelson.storageclass.storage.k8s.io/requests.storage"
	limit := corev1.ResourceList{key: size1Gi()[corev1.ResourceStorage]}
	b.make(t, &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "q", Namespace: "default"},
		Spec:       corev1.ResourceQuotaSpec{Hard: limit},
		Status:     corev1.ResourceQuotaStatus{Hard: limit, Used: corev1.ResourceList{key: {}}},
	})
	class := "keelson"
	claim := func(name string) *corev1.PersistentVolumeClaim {
		return &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: size1Gi()},
			},
		}
	}
	end := time.Now().Add(until)
	for { // the quota is known to admission a moment after it was made
		err := errors.Join(b.try(t.Context(), claim("first")), b.try(t.Context(), claim("second")))
		if err != nil && apierrors.IsForbidden(err) || err != nil && strings.Contains(err.Error(), "exceeded quota: q") {
			if !strings.Contains(err.Error(), "exceeded quota: q") {
				t.Fatalf("the second claim: %v", err)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the second claim was let through: %v", err)
		}
		b.clearClaims(t)
		time.Sleep(100 * time.Millisecond)
	}
}

func (b *realBackend) clearClaims(t *testing.T) {
	t.Helper()
	for _, name := range []string{"first", "second"} {
		c := b.s.admin.core
		_ = c.Patch("application/merge-patch+json").Namespace("default").Resource("persistentvolumeclaims").Name(name).
			Body([]byte(`{"metadata":{"finalizers":null}}`)).Do(t.Context()).Error()
		_ = c.Delete().Namespace("default").Resource("persistentvolumeclaims").Name(name).Do(t.Context()).Error()
	}
}

// testDrain: kubectl drain waits at a node that has a last copy, and goes on by itself when it isn't the last any more.
func testDrain(t *testing.T, s *apiServer) {
	kubectl, manager := kubetest.Program(t, "kubectl"), kubetest.Program(t, "kube-controller-manager")
	kubeconfig := s.Kubeconfig(t)
	kubetest.Run(t, manager, "--kubeconfig="+kubeconfig, "--leader-elect=false", "--controllers=disruption-controller,garbage-collector-controller", "--secure-port=0")
	r := newRig(t, s.backend(t))
	r.volume("v", "n2", "n1 n2!")
	r.lead()
	guard := func() (name string) {
		for _, p := range r.allPods(t) {
			if p.Labels[LabelGuard] == "kube-n1" {
				name = p.Name
			}
		}
		return name
	}
	r.await("there is a guard", func() bool { return guard() != "" })
	drain := func() (string, error) {
		out, err := exec.Command(kubectl, "--kubeconfig="+kubeconfig, "drain", "kube-n1", "--ignore-daemonsets", "--timeout=2s").CombinedOutput()
		return string(out), err
	}
	early := guard()
	if out, err := drain(); err != nil { // it doesn't run yet, and Kubernetes evicts such pods whatever their budget says
		t.Fatalf("%v: %s", err, out)
	}
	r.await("there is another guard for the one that was evicted", func() bool { g := guard(); return g != "" && g != early })
	ready := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`
	r.ok(s.admin.core.Patch("application/merge-patch+json").Namespace("default").Resource("pods").Name(guard()).SubResource("status").Body([]byte(ready)).Do(t.Context()).Error())
	if out, err := drain(); err == nil || !strings.Contains(out, "disruption budget") {
		t.Fatalf("the drain didn't wait for the guard: %v: %s", err, out)
	}
	r.changeVolume("v", func(v *spec.Volume) { v.State.Columns[0].Members[1].State = spec.InSync })
	r.await("the guard is gone", func() bool { return guard() == "" })
	if out, err := drain(); err != nil {
		t.Errorf("the drain still waits: %v: %s", err, out)
	}
}
