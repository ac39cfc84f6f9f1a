package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// inRack is a pod like user, that may run on nodes of one rack only; "" is any.
func inRack(pod, claim, rack string) string {
	text := user(pod, claim)
	if rack == "" {
		return text
	}
	return strings.Replace(text, "spec:\n", "spec:\n  nodeSelector: {rack: "+rack+"}\n", 1)
}

// TestAllowedTopologies is the class of testdata/000 that names racks: copies lie there only, the pod runs there only, and one that can't says why.
// The same with a class that waits for the first pod.
func TestAllowedTopologies(t *testing.T) {
	s := newSpace(t, "racks", 6*time.Minute)
	n1, n2 := s.Nodes[0].Name, s.Nodes[1].Name
	s.in("apply", "-f", "testdata/000-example-class.yaml")
	t.Cleanup(func() { s.deleteClass("example") })
	s.apply(claim("data", "example", "1Gi") + user("app", "data"))
	s.ready(90*time.Second, "app")
	s.copiesIn("data", n1, n2)
	if p, err := s.pod("app"); err != nil || p.Spec.NodeName == s.Nodes[2].Name {
		t.Errorf("the pod runs in rack-2: %+v, %v", p, err)
	}

	s.apply(`kind: StorageClass
apiVersion: storage.k8s.io/v1
metadata: {name: one-rack}
provisioner: csi.keelson.io
parameters: {replicas: "1"}
volumeBindingMode: WaitForFirstConsumer
allowedTopologies:
- matchLabelExpressions: [{key: topology.keelson.io/node, values: [` + n1 + ", " + n2 + `]}]
`)
	t.Cleanup(func() { s.deleteClass("one-rack") })
	s.apply(claim("waits", "one-rack", "1Gi") + claim("never", "one-rack", "1Gi"))
	time.Sleep(2 * time.Second)
	if phase := s.in("get", "pvc", "waits", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("a claim without a pod is %s", phase)
	}
	s.apply(inRack("second", "waits", "rack-1") + "---\n" + inRack("nowhere", "never", "rack-2"))
	s.ready(90*time.Second, "second")
	s.copiesIn("waits", n2)
	s.await(60*time.Second, "the reason of a pod that can't be placed", func() error {
		out := s.in("get", "events", "-o", `jsonpath={range .items[?(@.involvedObject.name=="nowhere")]}{.reason}: {.message}{"\n"}{end}`)
		if !strings.Contains(out, "FailedScheduling") {
			return fmt.Errorf("events: %q", out)
		}
		t.Logf("a pod that can't be placed: %s", out)
		return nil
	})
}

// copiesIn checks that a claim's volume has copies, and on those nodes only.
func (s *space) copiesIn(claim string, nodes ...string) {
	s.t.Helper()
	name := s.volumeOf(claim)
	v, err := s.volume(name)
	if err != nil {
		s.t.Fatal(err)
	}
	n := 0
	for _, c := range v.Columns {
		for _, m := range c.Members {
			n++
			if !slices.Contains(nodes, m.Node) {
				s.t.Errorf("volume %s has a copy on %s, not one of %v", name, m.Node, nodes)
			}
		}
	}
	if n == 0 {
		s.t.Error(errors.New("there are no copies at all"))
	}
}
