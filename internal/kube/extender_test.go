package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	extender "k8s.io/kube-scheduler/extender/v1"

	"keelson.io/keelson/hack/kube/kubetest"
)

func (r *rig) extender() *Extender {
	return &Extender{API: r.backend, Store: r.store, Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)), Drivers: r.cfg.Drivers}
}

// ask posts to the extender and returns the status and the body.
func ask(t *testing.T, x *Extender, verb, body string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	x.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodPost, ExtenderPath+"/"+verb, strings.NewReader(body)))
	return w.Code, w.Body.String()
}

func TestExtender(t *testing.T) {
	r := newRig(t, newMemory(t))
	r.make(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "stranger"}})
	r.volume("v", "", "n2 n3")
	r.claim("data", "v", driver, nil)
	r.claim("other", "x", "other.io", nil)
	r.pod("ours", "n1", nil, "data")
	r.pod("theirs", "n1", nil, "other")
	r.store.Cut("n3")
	names := []string{"kube-n1", "kube-n2", "kube-n3", "stranger"}
	args := func(pod string) string {
		p := r.allPods(t)["default/"+pod]
		b, err := json.Marshal(extender.ExtenderArgs{Pod: &p, NodeNames: &names})
		r.ok(err)
		return string(b)
	}
	r.await("n3 has no lease", func() bool { alive, err := r.store.Alive(t.Context()); return err == nil && !alive["n3"] })

	var f extender.ExtenderFilterResult
	code, body := ask(t, r.extender(), "filter", args("ours"))
	r.ok(json.Unmarshal([]byte(body), &f))
	if code != 200 || strings.Join(*f.NodeNames, " ") != "kube-n1 kube-n2" || !strings.Contains(f.FailedAndUnresolvableNodes["kube-n3"], "lost") ||
		!strings.Contains(f.FailedAndUnresolvableNodes["stranger"], "isn't registered") {
		t.Errorf("filter: %d, %s", code, body)
	}
	var p extender.HostPriorityList
	code, body = ask(t, r.extender(), "prioritize", args("ours"))
	r.ok(json.Unmarshal([]byte(body), &p))
	if got := fmt.Sprint(p); code != 200 || got != "[{kube-n1 0} {kube-n2 10} {kube-n3 10} {stranger 0}]" {
		t.Errorf("prioritize: %d, %s", code, got)
	}
	f = extender.ExtenderFilterResult{}
	_, body = ask(t, r.extender(), "filter", args("theirs"))
	r.ok(json.Unmarshal([]byte(body), &f))
	if len(*f.NodeNames) != len(names) {
		t.Errorf("a pod without our volumes was kept from nodes: %s", body)
	}

	for what, x := range map[string]struct {
		body string
		want int
	}{
		"no JSON":  {"{", 400},
		"no pod":   {`{"NodeNames":["a"]}`, 400},
		"no nodes": {`{"Pod":{}}`, 400},
		"nothing":  {"", 400},
	} {
		if code, body := ask(t, r.extender(), "filter", x.body); code != x.want {
			t.Errorf("%s: %d, %s; want %d", what, code, body, x.want)
		}
	}
	r.away(true)
	if code, _ := ask(t, r.extender(), "prioritize", args2(names)); code != 503 {
		t.Errorf("without the API server: %d", code)
	}
}

func args2(names []string) string {
	var b bytes.Buffer
	_ = json.NewEncoder(&b).Encode(extender.ExtenderArgs{NodeNames: &names, Pod: &corev1.Pod{Spec: corev1.PodSpec{Volumes: []corev1.Volume{{
		Name: "v", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}},
	}}}}})
	return b.String()
}

// testScheduler runs the real kube-scheduler with the configuration that docs/design/kubernetes.md prints: a pod goes where its data is.
func testScheduler(t *testing.T, s *apiServer) {
	scheduler := kubetest.Program(t, "kube-scheduler")
	b := s.backend(t)
	r := newRig(t, b)
	x := httptest.NewServer(r.extender().Handler())
	defer x.Close()

	kubeconfig := s.Kubeconfig(t)
	config := documented(t, "KubeSchedulerConfiguration")
	config = strings.Replace(config, "http://127.0.0.1:9504", x.URL, 1)
	config = strings.Replace(config, "leaderElect: true", "leaderElect: false", 1)
	config += "clientConnection: {kubeconfig: " + kubeconfig + "}\n"
	file := filepath.Join(t.TempDir(), "config.yaml")
	r.ok(os.WriteFile(file, []byte(config), 0o600))
	kubetest.Run(t, scheduler, "--config="+file, "--secure-port=0")

	room := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("4"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("100")}
	for _, n := range []string{"n1", "n2", "n3"} {
		r.setNodeStatus("kube-"+n, corev1.NodeStatus{Capacity: room, Allocatable: room, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}})
	}
	for i, profile := range []string{"keelson", "stork", "keelson", "stork"} {
		node, name := []string{"n1", "n2", "n3", "n2"}[i], fmt.Sprintf("pod-%d", i)
		r.volume("vol-"+name, "", node)
		r.claim(name, "vol-"+name, driver, nil)
		r.pod(name, node, func(p *corev1.Pod) {
			p.Spec.NodeName, p.Spec.SchedulerName, p.Status = "", profile, corev1.PodStatus{}
			p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
		}, name)
		r.await("the pod is scheduled", func() bool { return r.allPods(t)["default/"+name].Spec.NodeName != "" })
		if got := r.allPods(t)["default/"+name].Spec.NodeName; got != "kube-"+node {
			t.Errorf("profile %s: a pod with its data on %s went to %s", profile, node, got)
		}
	}
	r.store.Cut("n2")
	r.store.Cut("n3")
	r.volume("vol-last", "", "n2 n3")
	r.claim("last", "vol-last", driver, nil)
	r.pod("last", "n1", func(p *corev1.Pod) {
		p.Spec.NodeName, p.Spec.SchedulerName, p.Status = "", "stork", corev1.PodStatus{}
		p.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	}, "last")
	r.await("it goes to the only node whose storage lives", func() bool { return r.allPods(t)["default/last"].Spec.NodeName == "kube-n1" })
}

func (r *rig) setNodeStatus(name string, st corev1.NodeStatus) {
	r.t.Helper()
	n, err := r.Node(r.t.Context(), name)
	r.ok(err)
	n.Status = st
	c := r.backend.(*realBackend).s.admin.core
	r.ok(c.Put().Resource("nodes").Name(name).SubResource("status").Body(n).Do(r.t.Context()).Error())
}

// documented returns the example of a kind in the design document.
func documented(t *testing.T, kind string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/design/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range strings.Split(string(b), "```yaml\n")[1:] {
		text, _, _ := strings.Cut(part, "```")
		if strings.Contains(text, "kind: "+kind+"\n") {
			return text
		}
	}
	t.Fatalf("docs/design/kubernetes.md has no example of a %s", kind)
	return ""
}
