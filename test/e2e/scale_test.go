package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestHundredClaims makes a hundred claims at once. They are bound within a minute, and deleted again without a trace.
func TestHundredClaims(t *testing.T) {
	const n, limit = 100, 60 * time.Second
	s := newSpace(t, "hundred", 6*time.Minute)
	s.apply(`kind: StorageClass
apiVersion: storage.k8s.io/v1
metadata: {name: at-once}
provisioner: csi.keelson.io
volumeBindingMode: Immediate
`)
	t.Cleanup(func() { s.deleteClass("at-once") })
	before, err := s.volumes()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := range n {
		text.WriteString(claim(fmt.Sprintf("c%d", i), "at-once", "100Mi"))
	}
	began := time.Now()
	s.apply(text.String())
	s.await(2*limit, "a hundred bound claims", func() error {
		out, err := s.Field(s.ctx, "{.items[*].status.phase}", "-n", s.name, "pvc")
		if err == nil && strings.Count(out, "Bound") < n {
			err = fmt.Errorf("%d are bound", strings.Count(out, "Bound"))
		}
		return err
	})
	took := time.Since(began)
	t.Logf("%d claims bound in %.1f s", n, took.Seconds())
	if took > limit {
		t.Errorf("it took %v, and may take %v", took, limit)
	}
	claims := s.bound(n)
	began = time.Now()
	s.in("delete", "pvc", "--all", "--wait=false")
	s.gone(3*time.Minute, claims)
	t.Logf("and deleted again in %.1f s", time.Since(began).Seconds())
	after, err := s.volumes()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("there were %d volumes, and now there are %d", len(before), len(after))
	}
	for _, node := range s.Nodes {
		out, err := node.Run(s.ctx, "ls /var/lib/keelson/pools/*/replicas 2>/dev/null | grep -v : | grep -c . || true")
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s directories of replicas are left", node.Name, strings.TrimSpace(out))
	}
}
