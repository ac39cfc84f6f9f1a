package kube

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.io/keelson/internal/spec"
)

// scenarios run against the backend in memory, and against the real API server (server_test.go).
var scenarios = map[string]func(t *testing.T, r *rig){
	"a lost node's pods are moved":       testFailover,
	"which pods":                         testWhichPods,
	"what can't be moved keeps its pod":  testOnlyCopy,
	"a restart moves nothing":            testRestart,
	"fencing that fails is repeated":     testFenceFails,
	"a new leader goes on":               testNewLeader,
	"a pod that was left behind":         testLeftBehind,
	"the API server away":                testAway,
	"guards":                             testGuards,
	"a cordon is passed on":              testCordon,
	"warnings":                           testWarnings,
	"a node that leaves the cluster":     testRemovedNode,
	"most nodes lost at once":            testMostLost,
	"most nodes lost at once, for long":  testMostLostForLong,
	"one node after another":             testOneAfterAnother,
	"a pod that comes to the node later": testLatePod,
	"failover switched off":              testOff,
}

func TestController(t *testing.T) {
	for name, test := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, newRig(t, newMemory(t)))
		})
	}
}

func testFailover(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.lead()
	r.lose("n1", Silent)
	r.await("the pod is deleted", func() bool { return !r.has("pg-0") })
	if got := r.allFenced(); got != "v@n2" {
		t.Errorf("fenced: %q, want v@n2", got)
	}
	if !r.tainted("n1") || r.tainted("n2") {
		t.Error("the taints don't say which node is lost")
	}
	for _, x := range [][3]string{{"Pod", "pg-0", "StatefulSet x"}, {"Pod", "pg-0", "term 4"}, {"PersistentVolumeClaim", "data", "left node n1"}, {"Node", "kube-n1", "pg-0"}} {
		r.await("an event at "+x[0], func() bool { return r.event(x[0], x[1], reasonMoved, x[2]) })
	}
	if !r.event("Node", "kube-n1", reasonLost, "doesn't answer") {
		t.Error("no event says why the node is marked")
	}
	r.heal("n1")
	r.await("the taint is gone", func() bool { return !r.tainted("n1") })
	r.await("an event says so", func() bool { return r.event("Node", "kube-n1", reasonBack, "back") })
}

func testWhichPods(t *testing.T, r *rig) {
	off := map[string]string{AnnotationFailover: FailoverOff}
	bare := func(p *corev1.Pod) { p.OwnerReferences = nil }
	kept := map[string]bool{}
	for _, x := range []struct {
		name, source string
		node         string
		change       func(*corev1.Pod)
		annotations  map[string]string
		kept         bool
	}{
		{name: "ours", source: driver, node: "n1"},
		{name: "pure", source: "pure-csi", node: "n1"},
		{name: "portworx", source: driverPortworx, node: "n1"},
		{name: "intree", source: "portworxVolume", node: "n1"},
		{name: "elsewhere", source: driver, node: "n2", kept: true},
		{name: "others-driver", source: "other.io", node: "n1", kept: true},
		{name: "hostpath", source: "hostPath", node: "n1", kept: true},
		{name: "bare", source: driver, node: "n1", change: bare, kept: true},
		{name: "claim-off", source: driver, node: "n1", annotations: off, kept: true},
		{name: "pod-off", source: driver, node: "n1", change: func(p *corev1.Pod) { p.Annotations = off }, kept: true},
		{name: "daemon", source: driver, node: "n1", change: controlled("DaemonSet"), kept: true},
	} {
		r.volume("vol-"+x.name, x.node, "n1 n2")
		r.claim(x.name, "vol-"+x.name, x.source, x.annotations)
		r.pod(x.name, x.node, x.change, x.name)
		kept[x.name] = x.kept
	}
	r.pod("no-volumes", "n1", nil)
	r.pod("inline", "n1", func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{{Name: "i", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: driver}}}}
	})
	kept["no-volumes"], kept["inline"] = true, false
	r.lead()
	r.lose("n1", Silent)
	r.await("those that use Keelson are deleted", func() bool {
		for name, stays := range kept {
			if !stays && r.has(name) {
				return false
			}
		}
		return true
	})
	r.await("events say why the others stay", func() bool {
		return r.event("Pod", "bare", reasonKept, "no controller") && r.event("Pod", "claim-off", reasonKept, "claim claim-off") &&
			r.event("PersistentVolumeClaim", "pod-off", reasonKept, "the pod")
	})
	for name, stays := range kept {
		if r.has(name) != stays {
			t.Errorf("pod %s: there is %t", name, !stays)
		}
	}
	if got := r.allFenced(); strings.Contains(got, "bare") || strings.Contains(got, "off") || strings.Contains(got, "other") || strings.Contains(got, "elsewhere") {
		t.Errorf("volumes were taken from pods that stay: %s", got)
	}
	for _, e := range r.happened(t) {
		if e.InvolvedObject.Name == "no-volumes" || e.InvolvedObject.Name == "hostpath" {
			t.Errorf("an event at a pod without our volumes: %s", e.Message)
		}
	}
}

func testOnlyCopy(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n2!")
	r.volume("w", "n1", "n1 n3")
	r.claim("data", "v", driver, nil)
	r.claim("log", "w", driver, nil)
	r.pod("pg-0", "n1", nil, "log", "data")
	r.lead()
	r.lose("n1", Silent)
	r.await("an event says what it waits for", func() bool {
		return r.event("Pod", "pg-0", reasonWaits, "only copy that is in sync is on n1") && r.event("PersistentVolumeClaim", "data", reasonWaits, "")
	})
	if !r.has("pg-0") {
		t.Fatal("the pod was deleted, though it can't start elsewhere")
	}
	if got := r.allFenced(); got != "" {
		t.Errorf("%s: taken from a pod that stays", got)
	}
	// The other copy turns out to be good.
	r.changeVolume("v", func(v *spec.Volume) { v.State.Columns[0].Members[1].State = spec.InSync })
	r.await("the pod is deleted", func() bool { return !r.has("pg-0") })
}

func testRestart(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.lead()
	r.lose("n1", Refuses)
	time.Sleep(20 * r.cfg.Patience.Silent) // nothing is waited for: nothing happens
	r.heal("n1")
	if !r.has("pg-0") || r.tainted("n1") || r.allFenced() != "" {
		t.Errorf("a node that was only restarted was taken for lost: fenced %q", r.allFenced())
	}
}

func testFenceFails(t *testing.T, r *rig) {
	r.refuse = errors.New("no member answers")
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.lead()
	r.lose("n1", Silent)
	r.await("the node is marked", func() bool { return r.tainted("n1") })
	time.Sleep(5 * r.cfg.Patience.Retry)
	if !r.has("pg-0") {
		t.Fatal("the pod was deleted before its volume was fenced")
	}
	r.mu.Lock()
	r.refuse = nil
	r.mu.Unlock()
	r.await("the pod is deleted", func() bool { return !r.has("pg-0") })
}

func testNewLeader(t *testing.T, r *rig) {
	r.refuse = errors.New("no member answers")
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	stop := r.lead()
	r.lose("n1", Silent)
	r.await("the node is marked", func() bool { return r.tainted("n1") })
	stop()
	r.refuse = nil
	stop = r.lead()
	r.await("the next leader deletes the pod", func() bool { return !r.has("pg-0") })
	stop()
	r.heal("n1")
	r.lead()
	r.await("a third one takes the taint away", func() bool { return !r.tainted("n1") })
}

func testLeftBehind(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.volume("w", "n1", "n1 n2")
	r.claim("log", "w", driver, nil)
	r.pod("pg-1", "n1", nil, "log")
	time.Sleep(1100 * time.Millisecond) // the API server's times are whole seconds
	n, err := r.Node(t.Context(), "kube-n1")
	r.ok(err)
	stop := r.lead()
	_, err = (&Controller{cfg: r.cfg}).setTaint(t.Context(), n.Name, true, time.Now())
	r.ok(err)
	stop()
	// A leader died when it had fenced v.
	r.changeVolume("v", func(v *spec.Volume) {
		v.State = spec.State{Term: 4, Fenced: 4, Node: "n2", Frontend: spec.FrontendNone, Columns: v.State.Columns}
	})
	r.lead()
	r.await("the taint is gone", func() bool { return !r.tainted("n1") })
	pods := r.allPods(t)
	if p, ok := pods["default/pg-0"]; ok && p.DeletionTimestamp == nil {
		t.Error("the pod whose volume is elsewhere was left")
	}
	if p, ok := pods["default/pg-1"]; !ok || p.DeletionTimestamp != nil {
		t.Error("a pod whose volume is here was deleted")
	}
}

func testAway(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.away(true)
	r.lead()
	r.lose("n1", Silent)
	time.Sleep(10 * r.cfg.Patience.Retry)
	r.away(false)
	r.await("the pod is deleted", func() bool { return !r.has("pg-0") })
	r.away(true)
	r.heal("n1")
	time.Sleep(10 * r.cfg.Patience.Retry)
	r.away(false)
	r.await("the taint is gone", func() bool { return !r.tainted("n1") })
}

func testGuards(t *testing.T, r *rig) {
	r.volume("v", "n2", "n1 n2")
	stop := r.lead()
	budgets := func() string {
		list, err := r.Budgets(t.Context(), "default", LabelGuard)
		r.ok(err)
		var out []string
		for _, b := range list {
			out = append(out, b.Annotations[LabelGuard])
		}
		return strings.Join(out, " ")
	}
	r.changeVolume("v", func(v *spec.Volume) { v.State.Columns = []spec.Column{column("n1 n2!")} })
	r.await("n1 is guarded", func() bool { return budgets() == "kube-n1" })
	r.await("with a pod there", func() bool {
		for _, p := range r.allPods(t) {
			if p.Spec.NodeName == "kube-n1" && p.Labels[LabelGuard] == "kube-n1" && metav1.GetControllerOf(&p) != nil {
				return true
			}
		}
		return false
	})
	r.await("an event says so", func() bool { return r.event("Node", "kube-n1", reasonGuard, "last in-sync copy") })
	r.changeVolume("v", func(v *spec.Volume) { v.State.Columns = []spec.Column{column("n1! n2")} })
	r.await("n2 is guarded instead", func() bool { return budgets() == "kube-n2" })
	stop()
	r.changeVolume("v", func(v *spec.Volume) { v.State.Node, v.State.Frontend = "", "" })
	r.lead()
	r.await("the next leader ends it", func() bool { return budgets() == "" })
}

func testWarnings(t *testing.T, r *rig) {
	pv := func(name, source, words string) *corev1.PersistentVolume {
		return &corev1.PersistentVolume{
			ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Now()},
			Spec: corev1.PersistentVolumeSpec{
				AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Capacity: size1Gi(), StorageClassName: "fast",
				ClaimRef: &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "default", Name: "claim-of-" + name, UID: "u-2"},
				PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
					Driver: source, VolumeHandle: name, VolumeAttributes: map[string]string{AttributeWarnings: words},
				}},
			},
		}
	}
	r.make(t, pv("before", driver, "replcas=2: not known"))
	stop := r.lead()
	r.await("of one that was there", func() bool {
		return r.event("PersistentVolumeClaim", "claim-of-before", reasonWarning, "replcas=2: not known")
	})
	r.make(t, pv("clean", driver, ""))
	r.make(t, pv("others", "other.io", "x"))
	r.make(t, pv("later", driver, "shared=true: no effect"))
	r.await("of one that was made later", func() bool {
		return r.event("PersistentVolumeClaim", "claim-of-later", reasonWarning, "class fast")
	})
	stop()
	r.lead()
	r.make(t, pv("last", driver, "x"))
	r.await("by the next leader", func() bool { return r.event("PersistentVolumeClaim", "claim-of-last", reasonWarning, "") })
	n := 0
	for _, e := range r.happened(t) {
		if e.Reason == reasonWarning {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d events, want one for each of three claims", n)
	}
}

func testRemovedNode(t *testing.T, r *rig) {
	r.lead()
	r.lose("n1", Silent)
	r.await("the node is marked", func() bool { return r.tainted("n1") })
	n, err := r.store.Node(t.Context(), "n1")
	r.ok(err)
	r.ok(r.store.DeleteNode(t.Context(), "n1", n.Rev))
	r.await("the taint is gone", func() bool { return !r.tainted("n1") })
}

func testMostLost(t *testing.T, r *rig) {
	r.volume("v", "n1", "n1 n3")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.lose("n1", Silent)
	r.lose("n2", Silent)
	r.lead()
	time.Sleep(20 * r.cfg.Patience.Silent)
	if !r.has("pg-0") || r.tainted("n1") {
		t.Error("two of three nodes were taken for lost")
	}
	r.heal("n2")
	r.await("the pod is deleted", func() bool { return !r.has("pg-0") })
}

func testOneAfterAnother(t *testing.T, r *rig) {
	r.volume("v", "n2", "n2 n3")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n2", nil, "data")
	r.lead()
	r.lose("n1", Silent)
	r.await("the first is marked", func() bool { return r.tainted("n1") })
	r.lose("n2", Silent)
	r.await("the pod on the second is deleted", func() bool { return !r.has("pg-0") })
}

func testMostLostForLong(t *testing.T, r *rig) {
	r.cfg.Patience.Hold = 300 * time.Millisecond
	r.lose("n1", Silent)
	r.lose("n2", Silent)
	r.lead()
	r.await("they are taken for lost in the end", func() bool { return r.tainted("n1") && r.tainted("n2") })
}

func testLatePod(t *testing.T, r *rig) {
	r.lead()
	r.lose("n1", Silent)
	r.await("the node is marked", func() bool { return r.tainted("n1") })
	r.volume("v", "", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.await("a pod that was bound meanwhile is deleted", func() bool { return !r.has("pg-0") })
}

func testOff(t *testing.T, r *rig) {
	r.cfg.Failover = false
	r.volume("v", "n1", "n1 n2")
	r.claim("data", "v", driver, nil)
	r.pod("pg-0", "n1", nil, "data")
	r.lead()
	r.lose("n1", Silent)
	r.await("the node is marked", func() bool { return r.tainted("n1") })
	r.heal("n1")
	r.await("the taint is gone", func() bool { return !r.tainted("n1") })
	if !r.has("pg-0") || r.allFenced() != "" {
		t.Error("a pod was moved, though failover is off")
	}
}

func TestGuardOfLongName(t *testing.T) {
	node := strings.Repeat("a", 60) + ".example.com"
	b := guardBudget("ns", node)
	if v := b.Labels[LabelGuard]; len(v) > 63 || b.Annotations[LabelGuard] != node {
		t.Errorf("label %q, annotation %q", v, b.Annotations[LabelGuard])
	}
	if b.Spec.Selector.MatchLabels[LabelGuard] != guardPod(b, node, "i").Labels[LabelGuard] {
		t.Error("the budget doesn't select its pod")
	}
}
