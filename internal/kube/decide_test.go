package kube

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.io/keelson/internal/spec"
)

func TestVerdict(t *testing.T) {
	p := DefaultPatience()
	type look struct {
		at time.Duration // when it was asked
		r  Reach
	}
	for name, x := range map[string]struct {
		looks []look
		now   time.Duration
		lost  bool
	}{
		"nothing was asked yet":                    {now: time.Hour},
		"silent for too short":                     {looks: []look{{0, Silent}}, now: time.Second},
		"silent":                                   {looks: []look{{0, Silent}, {time.Second, Silent}}, now: 2 * time.Second, lost: true},
		"an answer in between begins it anew":      {looks: []look{{0, Silent}, {time.Second, Refuses}, {1500 * time.Millisecond, Silent}}, now: 3 * time.Second},
		"a restart: refused, for long":             {looks: []look{{0, Refuses}, {118 * time.Second, Refuses}}, now: 119 * time.Second},
		"refused for too long":                     {looks: []look{{0, Refuses}, {120 * time.Second, Refuses}}, now: 120 * time.Second, lost: true},
		"answered for too long":                    {looks: []look{{120 * time.Second, Answers}}, now: 121 * time.Second, lost: true},
		"a machine that starts: silent, then not":  {looks: []look{{0, Silent}, {time.Second, Answers}}, now: 30 * time.Second},
		"refused first, then switched off":         {looks: []look{{0, Refuses}, {10 * time.Second, Silent}}, now: 12 * time.Second, lost: true},
		"silent again after answers, for a moment": {looks: []look{{0, Answers}, {130 * time.Second, Silent}}, now: 131 * time.Second},
	} {
		start := time.Now()
		o := outage{since: start}
		for _, l := range x.looks {
			o.saw(l.r, start.Add(l.at))
		}
		why, lost := o.lost(start.Add(x.now), p)
		if lost != x.lost || lost != (why != "") {
			t.Errorf("%s: lost is %t (%q), want %t", name, lost, why, x.lost)
		}
	}
}

func TestTooMany(t *testing.T) {
	for _, x := range []struct {
		without, all int
		want         bool
	}{{0, 3, false}, {1, 1, false}, {1, 2, false}, {2, 2, true}, {1, 3, false}, {2, 3, true}, {2, 4, false}, {3, 4, true}, {5, 10, false}, {6, 10, true}} {
		if got := tooMany(x.without, x.all); got != x.want {
			t.Errorf("%d of %d: %t, want %t", x.without, x.all, got, x.want)
		}
	}
}

func controlled(kind string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: kind, Name: "x", UID: "1", Controller: &yes}}
	}
}

func TestDecide(t *testing.T) {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data"}}
	off := claim.DeepCopy()
	off.Annotations = map[string]string{AnnotationFailover: FailoverOff}
	ours := []use{{Claim: claim, Volume: "v"}}
	stateful := controlled("StatefulSet")
	for name, x := range map[string]struct {
		change []func(*corev1.Pod)
		uses   []use
		want   fate
		says   string
	}{
		"a pod without our volumes":         {change: []func(*corev1.Pod){stateful}, want: ignored},
		"a StatefulSet's":                   {change: []func(*corev1.Pod){stateful}, uses: ours, want: moved},
		"a ReplicaSet's":                    {change: []func(*corev1.Pod){controlled("ReplicaSet")}, uses: ours, want: moved},
		"a Job's":                           {change: []func(*corev1.Pod){controlled("Job")}, uses: ours, want: moved},
		"a DaemonSet's":                     {change: []func(*corev1.Pod){controlled("DaemonSet")}, uses: ours, want: ignored},
		"with an inline volume":             {change: []func(*corev1.Pod){stateful}, uses: []use{{}}, want: moved},
		"bare":                              {uses: ours, want: kept, says: "no controller"},
		"bare, deleted already":             {change: []func(*corev1.Pod){func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} }}, uses: ours, want: moved},
		"has ended":                         {change: []func(*corev1.Pod){stateful, func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }}, uses: ours, want: ignored},
		"has failed":                        {change: []func(*corev1.Pod){stateful, func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }}, uses: ours, want: ignored},
		"opted out at the pod":              {change: []func(*corev1.Pod){stateful, annotated(AnnotationFailover, FailoverOff)}, uses: ours, want: kept, says: "the pod"},
		"opted out at a claim":              {change: []func(*corev1.Pod){stateful}, uses: []use{{Claim: claim}, {Claim: off}}, want: kept, says: "claim data"},
		"the annotation with another value": {change: []func(*corev1.Pod){stateful, annotated(AnnotationFailover, "on")}, uses: ours, want: moved},
		"static":                            {change: []func(*corev1.Pod){stateful, annotated(corev1.MirrorPodAnnotationKey, "x")}, uses: ours, want: ignored},
		"not started yet":                   {change: []func(*corev1.Pod){stateful, func(p *corev1.Pod) { p.Status.Phase = corev1.PodPending }}, uses: ours, want: moved},
	} {
		pod := &corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodRunning}}
		for _, c := range x.change {
			c(pod)
		}
		got, why := decide(pod, x.uses)
		if got != x.want || !strings.Contains(why, x.says) || (why != "") != (got == kept) {
			t.Errorf("%s: %d, %q; want %d, %q", name, got, why, x.want, x.says)
		}
	}
}

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{key: value} }
}

// column makes members from words such as "n1 n2? n3!": in sync, Syncing, Stale.
func column(words string) spec.Column {
	var c spec.Column
	for _, w := range strings.Fields(words) {
		m := spec.Member{Node: strings.TrimRight(w, "?!"), State: spec.InSync}
		switch {
		case strings.HasSuffix(w, "?"):
			m.State = spec.Syncing
		case strings.HasSuffix(w, "!"):
			m.State = spec.Stale
		}
		c.Members = append(c.Members, m)
	}
	return c
}

func volumeWith(node, frontend string, term, fenced uint64, columns ...string) spec.Volume {
	v := spec.Volume{ID: "0000000000000001", Name: "v", Size: 1 << 30, Replicas: 2, Columns: len(columns)}
	v.State = spec.State{Term: term, Fenced: fenced, Node: node, Frontend: frontend}
	for _, c := range columns {
		v.State.Columns = append(v.State.Columns, column(c))
	}
	return v
}

func clusterOf(names ...string) (map[string]spec.Node, map[string]bool) {
	nodes, alive := map[string]spec.Node{}, map[string]bool{}
	for _, w := range names {
		name := strings.TrimRight(w, "-c")
		nodes[name] = spec.Node{Name: name, Roles: []spec.Role{spec.RoleStorage}, Zone: "z" + name[1:], Cordoned: strings.HasSuffix(w, "c")}
		if !strings.HasSuffix(w, "-") {
			alive[name] = true
		}
	}
	return nodes, alive
}

func TestWayFrom(t *testing.T) {
	fuse, none := spec.FrontendFUSE, spec.FrontendNone
	for name, x := range map[string]struct {
		v     spec.Volume
		nodes string
		want  way
	}{
		"held by the lost node":                  {v: volumeWith("n1", fuse, 3, 3, "n1 n2"), want: way{to: "n2"}},
		"detached":                               {v: volumeWith("", "", 3, 3, "n1 n2"), want: way{free: true}},
		"held by another":                        {v: volumeWith("n2", fuse, 3, 3, "n1! n2"), want: way{free: true}},
		"another fences it, for a pod":           {v: volumeWith("n2", fuse, 4, 3, "n1 n2"), want: way{why: "hasn't fenced"}},
		"another fences it, for us":              {v: volumeWith("n2", none, 4, 3, "n1 n2"), want: way{to: "n2"}},
		"another fenced it":                      {v: volumeWith("n2", none, 4, 4, "n1! n2"), want: way{free: true}},
		"the one that fenced it died in between": {v: volumeWith("n2", none, 4, 3, "n1 n2 n3"), nodes: "n1- n2- n3", want: way{to: "n3"}},
		"the lost node had it without a device":  {v: volumeWith("n1", none, 3, 3, "n1 n2"), want: way{free: true}},
		"its only copy is lost with it":          {v: volumeWith("n1", fuse, 3, 3, "n1"), want: way{why: "only copy that is in sync is on n1"}},
		"the other copies are behind":            {v: volumeWith("n1", fuse, 3, 3, "n1 n2? n3!"), want: way{why: "only copy that is in sync is on n1"}},
		"the other copy is lost too":             {v: volumeWith("n1", fuse, 3, 3, "n1 n2"), nodes: "n1- n2- n3", want: way{why: "copies that are in sync are on n1, n2"}},
		"no copy on the lost node":               {v: volumeWith("n1", fuse, 3, 3, "n2 n3"), want: way{to: "n2"}},
		"one that isn't cordoned is preferred":   {v: volumeWith("n1", fuse, 3, 3, "n2 n3"), nodes: "n1- n2c n3", want: way{to: "n3"}},
		"one column of two can't":                {v: volumeWith("n1", fuse, 3, 3, "n1 n2", "n1 n3!"), want: way{why: "column 1"}},
		"two columns":                            {v: volumeWith("n1", fuse, 3, 3, "n1 n3", "n1 n2"), want: way{to: "n3"}},
		"no copies":                              {v: volumeWith("n1", fuse, 3, 3), want: way{why: "no copies"}},
	} {
		if x.nodes == "" {
			x.nodes = "n1- n2 n3"
		}
		nodes, alive := clusterOf(strings.Fields(x.nodes)...)
		got := wayFrom(&x.v, "n1", nodes, alive)
		if got.free != x.want.free || got.to != x.want.to || !strings.Contains(got.why, x.want.why) || (got.why != "") != (x.want.why != "") {
			t.Errorf("%s: %+v, want %+v", name, got, x.want)
		}
	}
}

func TestLeftBehind(t *testing.T) {
	lost := time.Now()
	pod := func(made time.Time, phase corev1.PodPhase) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}, Status: corev1.PodStatus{Phase: phase}}
	}
	before, after := lost.Add(-time.Minute), lost.Add(time.Minute)
	here, away := volumeWith("n1", spec.FrontendFUSE, 3, 3, "n1 n2"), volumeWith("n2", spec.FrontendNone, 4, 4, "n1! n2")
	for name, x := range map[string]struct {
		pod     *corev1.Pod
		volumes []spec.Volume
		want    bool
	}{
		"moved away":                {pod(before, corev1.PodRunning), []spec.Volume{here, away}, true},
		"not moved":                 {pod(before, corev1.PodRunning), []spec.Volume{here}, false},
		"a pod that is about to":    {pod(after, corev1.PodRunning), []spec.Volume{away}, false},
		"a pod that hasn't started": {pod(before, corev1.PodPending), []spec.Volume{away}, false},
		"no volumes":                {pod(before, corev1.PodRunning), nil, false},
	} {
		if _, got := leftBehind(x.pod, lost, "n1", x.volumes); got != x.want {
			t.Errorf("%s: %t, want %t", name, got, x.want)
		}
	}
}

func TestLastCopies(t *testing.T) {
	single := volumeWith("n1", spec.FrontendFUSE, 1, 1, "n1")
	single.Replicas = 1
	for name, x := range map[string]struct {
		v    spec.Volume
		want string
	}{
		"two copies":                {volumeWith("n1", spec.FrontendFUSE, 1, 1, "n1 n2"), ""},
		"one is behind":             {volumeWith("n3", spec.FrontendFUSE, 1, 1, "n1 n2?"), "n1"},
		"detached":                  {volumeWith("", "", 1, 1, "n1 n2!"), ""},
		"attached for us only":      {volumeWith("n1", spec.FrontendNone, 1, 1, "n1 n2!"), ""},
		"asked for with one copy":   {single, ""},
		"two columns, on two nodes": {volumeWith("n1", spec.FrontendFUSE, 1, 1, "n1 n2!", "n2 n3!"), "n1 n2"},
		"two columns, on one node":  {volumeWith("n1", spec.FrontendFUSE, 1, 1, "n1 n2!", "n1 n3!"), "n1"},
		"none in sync":              {volumeWith("n1", spec.FrontendFUSE, 1, 1, "n1! n2!"), ""},
	} {
		if got := strings.Join(lastCopies(&x.v), " "); got != x.want {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}

func TestScores(t *testing.T) {
	nodes, alive := clusterOf("n1", "n2", "n3-", "n4")
	s := site{nodes: nodes, alive: alive}
	zone := s.nodes["n4"]
	zone.Zone = "z1"
	s.nodes["n4"] = zone
	fuse := spec.FrontendFUSE
	for name, x := range map[string]struct {
		v    spec.Volume
		want [4]int64 // n1 … n4
	}{
		"detached":                   {volumeWith("", "", 1, 1, "n1 n2"), [4]int64{10, 10, 0, 3}},
		"held by one without a copy": {volumeWith("n4", fuse, 1, 1, "n1 n2"), [4]int64{7, 7, 0, 10}},
		"held by one that is lost":   {volumeWith("n3", fuse, 1, 1, "n1 n3"), [4]int64{10, 0, 10, 3}},
		"served for a rebuild":       {volumeWith("n1", spec.FrontendNone, 1, 1, "n1 n2?"), [4]int64{10, 5, 0, 3}},
		"two columns":                {volumeWith("", "", 1, 1, "n1 n2", "n2 n3"), [4]int64{5, 10, 5, 1}},
		"no copies":                  {volumeWith("", "", 1, 1), [4]int64{}},
	} {
		for i, n := range []string{"n1", "n2", "n3", "n4"} {
			if got := s.score(&x.v, n); got != x.want[i] {
				t.Errorf("%s, on %s: %d, want %d", name, n, got, x.want[i])
			}
		}
	}
	small, large := volumeWith("", "", 1, 1, "n1"), volumeWith("", "", 1, 1, "n2")
	large.Size = 3 * small.Size
	if a, b := s.scores([]spec.Volume{small, large}, "n1"), s.scores([]spec.Volume{small, large}, "n2"); a != 3 || b != 8 {
		t.Errorf("volumes of sizes 1 and 3: %d and %d, want 3 and 8", a, b)
	}
	for n, says := range map[string]string{"n1": "", "n3": "lost", "n9": "doesn't run"} {
		if why := s.refuse(n); !strings.Contains(why, says) || (why == "") != (says == "") {
			t.Errorf("refuse %s: %q, want %q", n, why, says)
		}
	}
}

func TestCheckExtenderAddress(t *testing.T) {
	for address, ok := range map[string]bool{
		"127.0.0.1:9504": true, "[::1]:9504": true, "0.0.0.0:9504": false, ":9504": false, "10.0.0.1:9504": false, "localhost:9504": false,
		"127.0.0.1": false, "127.0.0.1:0": false, "127.0.0.1:70000": false, "": false,
	} {
		if err := CheckExtenderAddress(address); (err == nil) != ok {
			t.Errorf("%q: %v", address, err)
		}
	}
}
