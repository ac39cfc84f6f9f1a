package main

import (
	"strings"
	"testing"
	"time"
)

// user is a pod that has a claim at /data, and sleeps.
func user(pod, claim string) string {
	return `apiVersion: v1
kind: Pod
metadata:
  name: ` + pod + `
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1; done"]
    volumeMounts: [{name: v, mountPath: /data}]
  volumes:
  - name: v
    persistentVolumeClaim: {claimName: ` + claim + `}
`
}

// TestStaticVolume is the "soft import" of testdata/000: a volume that is there already is used by its name, is never renamed, and stays when its
// PersistentVolume is deleted; then it is bound anew.
func TestStaticVolume(t *testing.T) {
	s := newSpace(t, "app1", 6*time.Minute)
	// The exercise's volume is much larger than what these nodes have.
	s.overcommit("1000")
	t.Cleanup(func() { s.overcommit("10") })
	if err := s.keelson(s.ctx, nil, "volume", "create", "externalfiles", "--size", "1Ti"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.deleteVolume("externalfiles") })
	s.importVolume()
	s.apply(user("first", "pvc-import1"))
	s.ready(90*time.Second, "first")
	s.exec("first", "sh", "-c", "echo kept >/data/file; sync -f /data")
	s.release("first")
	v, err := s.volume("externalfiles")
	if err != nil {
		t.Fatalf("after its PersistentVolume was deleted: %v", err)
	}
	if v.Node != "" {
		t.Errorf("nobody uses the volume, and it is attached on %s", v.Node)
	}

	s.importVolume()
	s.apply(user("second", "pvc-import1"))
	s.ready(90*time.Second, "second")
	if got := strings.TrimSpace(s.exec("second", "cat", "/data/file")); got != "kept" {
		t.Errorf("after the volume was bound anew the file has %q", got)
	}
	s.release("second")
}

// importVolume applies the exercise's PersistentVolume and claim, and waits until they are bound.
func (s *space) importVolume() {
	s.t.Helper()
	if _, err := s.Kubectl(s.ctx, "apply", "-f", "testdata/000-pv-import.yaml"); err != nil {
		s.t.Fatal(err)
	}
	s.applyFile("000-pvc-import.yaml")
	if err := s.Wait(s.ctx, 30*time.Second, "jsonpath={.status.phase}=Bound", "-n", s.name, "pvc/pvc-import1"); err != nil {
		s.t.Fatal(err)
	}
}

// release deletes the pod, the claim and the PersistentVolume.
func (s *space) release(pod string) {
	s.t.Helper()
	s.in("delete", "pod", pod)
	s.in("delete", "pvc", "pvc-import1")
	if _, err := s.Kubectl(s.ctx, "delete", "pv", "pv-import", "--timeout=30s"); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) overcommit(times string) {
	s.t.Helper()
	ctx, cancel := cleanupContext()
	defer cancel()
	if err := s.keelson(ctx, nil, "settings", "set", "overcommit", times); err != nil {
		s.t.Fatal(err)
	}
}

func (s *space) deleteVolume(name string) {
	ctx, cancel := cleanupContext()
	defer cancel()
	if err := s.keelson(ctx, nil, "volume", "delete", name); err != nil {
		s.t.Error(err)
	}
}
