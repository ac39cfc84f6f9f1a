package kubeview

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// cluster speaks the API of a Kubernetes cluster, as far as lists go.
type cluster struct {
	objects
	deny map[string]int // status by the last word of a path
	page int            // at most so many objects a page
	hang chan struct{}
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c.hang != nil {
		<-c.hang
	}
	kind := r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	if code := c.deny[kind]; code != 0 {
		w.WriteHeader(code)
		fmt.Fprintf(w, `{"kind":"Status","message":"user may not list %s"}`, kind)
		return
	}
	var items []any
	switch kind {
	case "persistentvolumeclaims":
		items = anys(c.claims)
	case "pods":
		items = anys(c.pods)
	case "persistentvolumes":
		items = anys(c.volumes)
	case "nodes":
		items = anys(c.nodes)
	case "csinodes":
		items = anys(c.csiNodes)
	case "storageclasses":
		items = anys(c.classes)
	case "events":
		items = anys(c.events)
	default:
		w.WriteHeader(http.StatusNotFound)
		return
	}
	begin, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	next := ""
	if end := begin + c.page; c.page > 0 && end < len(items) {
		items, next = items[:end], strconv.Itoa(end)
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"metadata": map[string]any{"continue": next}, "items": items[begin:]})
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i := range list {
		out[i] = list[i]
	}
	return out
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}
}

func (c *cluster) node(name string, ready bool, drivers ...string) *corev1.Node {
	n := corev1.Node{ObjectMeta: meta("", name)}
	st := corev1.ConditionTrue
	if !ready {
		st = corev1.ConditionUnknown
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: st}}
	c.nodes = append(c.nodes, n)
	x := storagev1.CSINode{ObjectMeta: meta("", name)}
	for _, d := range drivers {
		d, id, ok := strings.Cut(d, "=")
		if !ok {
			id = name
		}
		x.Spec.Drivers = append(x.Spec.Drivers, storagev1.CSINodeDriver{Name: d, NodeID: id})
	}
	c.csiNodes = append(c.csiNodes, x)
	return &c.nodes[len(c.nodes)-1]
}

// claim makes a claim with a volume of a driver.
func (c *cluster) claim(namespace, name, driver string) *corev1.PersistentVolumeClaim {
	class := "keelson"
	pv := corev1.PersistentVolume{ObjectMeta: meta("", "pvc-"+name)}
	pv.Spec.CSI = &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "handle-" + name}
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: namespace, Name: name}
	pv.Spec.Capacity = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("4Gi")}
	pv.Status.Phase = corev1.VolumeBound
	c.volumes = append(c.volumes, pv)
	p := corev1.PersistentVolumeClaim{ObjectMeta: meta(namespace, name)}
	p.Spec = corev1.PersistentVolumeClaimSpec{VolumeName: pv.Name, StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}}
	p.Status.Phase, p.Status.Capacity = corev1.ClaimBound, pv.Spec.Capacity
	c.claims = append(c.claims, p)
	return &c.claims[len(c.claims)-1]
}

func (c *cluster) pod(namespace, name, node string, claims ...string) *corev1.Pod {
	p := corev1.Pod{ObjectMeta: meta(namespace, name)}
	p.Spec.NodeName, p.Status.Phase = node, corev1.PodRunning
	for _, cl := range claims {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: cl}}})
	}
	c.pods = append(c.pods, p)
	return &c.pods[len(c.pods)-1]
}

func (c *cluster) warn(kind, namespace, name, reason, message string, ago time.Duration) {
	c.events = append(c.events, corev1.Event{
		ObjectMeta: meta(namespace, name+reason), Type: corev1.EventTypeWarning, Reason: reason, Message: message,
		InvolvedObject: corev1.ObjectReference{Kind: kind, Namespace: namespace, Name: name}, LastTimestamp: metav1.NewTime(now.Add(-ago)),
	})
}

// kubeconfig writes one with a context for each server.
func kubeconfig(t *testing.T, servers map[string]string) string {
	t.Helper()
	var clusters, contexts []map[string]any
	for name, url := range servers {
		clusters = append(clusters, map[string]any{"name": name, "cluster": map[string]any{"server": url}})
		contexts = append(contexts, map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": name}})
	}
	b, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Config", "clusters": clusters, "contexts": contexts})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func serve(t *testing.T, c *cluster) string {
	t.Helper()
	s := httptest.NewServer(c)
	t.Cleanup(s.Close)
	return s.URL
}

func collect(t *testing.T, o Options) View {
	t.Helper()
	if o.Now.IsZero() {
		o.Now = now
	}
	v, err := Collect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAllClustersAtOnce(t *testing.T) {
	a := &cluster{page: 1}
	a.node("w1", true, driver)
	a.claim("shop", "data-0", driver)
	a.claim("shop", "data-1", driver)
	a.claim("shop", "other", "ebs.csi.aws.com")
	a.pod("shop", "db-0", "w1", "data-0")
	a.pod("shop", "db-0-copy", "w1", "data-0")
	a.pod("shop", "web", "w1", "other", "gone")
	b := &cluster{}
	b.node("n9", true, driver)
	b.claim("blog", "posts", driver)
	hangs := &cluster{hang: make(chan struct{})}
	denied := &cluster{deny: map[string]int{"pods": http.StatusUnauthorized, "persistentvolumeclaims": http.StatusUnauthorized}}
	config := kubeconfig(t, map[string]string{
		"a": serve(t, a), "b": serve(t, b), "closed": "http://127.0.0.1:1", "hangs": serve(t, hangs), "denied": serve(t, denied),
	})
	t.Cleanup(func() { close(hangs.hang) })
	v := collect(t, Options{Kubeconfig: config, Timeout: time.Second})
	var got []string
	for _, r := range v.Rows {
		got = append(got, strings.Join([]string{r.Context, r.Namespace, r.Claim, r.Volume, r.Handle, r.Size, r.Pod, r.Node, r.Health}, " "))
	}
	want := []string{
		"a shop data-0 pvc-data-0 handle-data-0 4Gi db-0 w1 ok", "a shop data-0 pvc-data-0 handle-data-0 4Gi db-0-copy w1 ok",
		"a shop data-1 pvc-data-1 handle-data-1 4Gi   ok", "b blog posts pvc-posts handle-posts 4Gi   ok",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("rows:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	away := map[string]string{}
	for _, c := range v.Unreachable() {
		away[c.Context] = c.Error
	}
	for name, words := range map[string]string{"closed": "refused", "hangs": "no answer within 1s", "denied": "log in"} {
		if !strings.Contains(away[name], words) {
			t.Errorf("%s: %q doesn't say %q", name, away[name], words)
		}
	}
	if len(away) != 3 {
		t.Errorf("unreachable: %v", away)
	}
}

func TestWhatMayNotBeReadIsNamed(t *testing.T) {
	c := &cluster{deny: map[string]int{"persistentvolumes": 403, "nodes": 403, "csinodes": 403, "events": 403, "storageclasses": 403}}
	p := c.claim("shop", "data", driver)
	p.Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": driver}
	c.claim("shop", "other", "ebs.csi.aws.com").Annotations = map[string]string{"volume.kubernetes.io/storage-provisioner": "ebs.csi.aws.com"}
	c.pod("shop", "db", "w1", "data")
	v := collect(t, Options{Kubeconfig: kubeconfig(t, map[string]string{"a": serve(t, c)}), Namespace: "shop"})
	if len(v.Rows) != 1 || v.Rows[0].Claim != "data" || v.Rows[0].Node != "w1" || len(v.Clusters[0].Partial) != 5 || v.Clusters[0].Error != "" {
		t.Errorf("%+v", v)
	}
}

func TestOptionsReachTheCluster(t *testing.T) {
	c := &cluster{}
	c.claim("shop", "data", driver)
	c.claim("old", "gone", driver)
	c.claims = c.claims[:1]
	c.volumes[1].Status.Phase = corev1.VolumeReleased
	var mu sync.Mutex
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.String())
		mu.Unlock()
		c.ServeHTTP(w, r)
	}))
	defer s.Close()
	expect := func(words string) {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if !slices.ContainsFunc(asked, func(u string) bool { return strings.Contains(u, words) }) {
			t.Errorf("nothing with %q was asked: %v", words, asked)
		}
	}
	config := kubeconfig(t, map[string]string{"a": s.URL})
	if v := collect(t, Options{Kubeconfig: config}); len(v.Rows) != 2 || v.Rows[0].Status != "Released" || v.Rows[0].Claim != "gone" {
		t.Errorf("all: %+v", v.Rows)
	}
	if v := collect(t, Options{Kubeconfig: config, Namespace: "shop"}); len(v.Rows) != 1 {
		t.Errorf("of a namespace: %+v", v.Rows)
	}
	expect("/namespaces/shop/pods")
	expect("/namespaces/shop/persistentvolumeclaims")
	if v := collect(t, Options{Kubeconfig: config, Selector: "app=db"}); len(v.Rows) != 1 {
		t.Errorf("by labels: %+v", v.Rows)
	}
	expect("persistentvolumeclaims?labelSelector=app%3Ddb")
}

func TestBadOptions(t *testing.T) {
	config := kubeconfig(t, map[string]string{"a": "http://127.0.0.1:1"})
	empty := filepath.Join(t.TempDir(), "empty")
	bad := filepath.Join(t.TempDir(), "bad")
	for path, text := range map[string]string{empty: "apiVersion: v1\nkind: Config\n", bad: "contexts: 5"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, o := range map[string]Options{
		"context": {Kubeconfig: config, Contexts: []string{"b"}}, "file": {Kubeconfig: config + "x"}, "empty": {Kubeconfig: empty}, "bad": {Kubeconfig: bad},
	} {
		if _, err := Collect(t.Context(), o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestSameLoginIsAskedOnce(t *testing.T) {
	c := &cluster{}
	c.claim("shop", "data", driver)
	path := filepath.Join(t.TempDir(), "config")
	text := fmt.Sprintf(`{"clusters":[{"name":"c","cluster":{"server":%q}}],"users":[{"name":"u","user":{}}],"contexts":[
		{"name":"one","context":{"cluster":"c","user":"u"}},{"name":"two","context":{"cluster":"c","user":"u","namespace":"x"}},{"name":"three","context":{"cluster":"c","user":"v"}}]}`, serve(t, c))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	v := collect(t, Options{Kubeconfig: path})
	if len(v.Clusters) != 3 || v.Clusters[2].Context != "two" || v.Clusters[2].SameAs != "one" {
		t.Errorf("%+v", v.Clusters)
	}
}
