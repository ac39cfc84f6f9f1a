package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// claim asks a class for a volume.
func claim(name, class, size string) string {
	return `apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: ` + name + `
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ` + class + `
  resources: {requests: {storage: ` + size + `}}
---
`
}

// TestQualityOfServiceClass is the class of testdata/000 with limits: its file system and options are seen inside the pod, its limits in Keelson, and the claim grows
// while it is mounted.
func TestQualityOfServiceClass(t *testing.T) {
	s := newSpace(t, "gold", 6*time.Minute)
	s.in("apply", "-f", "testdata/000-pure-block-gold.yaml")
	t.Cleanup(func() { s.deleteClass("pure-block-gold") })
	s.apply(claim("data", "pure-block-gold", "1Gi") + user("app", "data"))
	s.ready(90*time.Second, "app")
	mount := strings.TrimSpace(s.exec("app", "grep", " /data ", "/proc/mounts"))
	f := strings.Fields(mount)
	if len(f) < 4 || f[2] != "xfs" || !strings.Contains(","+f[3]+",", ",discard,") {
		t.Errorf("not xfs, mounted with discard: %s", mount)
	}
	s.limits(s.volumeOf("data"))

	before := s.dataSize("app")
	s.exec("app", "sh", "-c", "echo before >/data/file")
	s.in("patch", "pvc", "data", "--type=merge", "-p", `{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}`)
	s.await(2*time.Minute, "the claim's growth", func() error {
		// kubelet looks at a pod's volumes when the pod changes, and otherwise about every minute.
		s.in("annotate", "--overwrite", "pod", "app", "looked-at="+time.Now().Format("150405"))
		got, err := s.Field(s.ctx, "{.status.capacity.storage}", "-n", s.name, "pvc", "data")
		if err == nil && got != "2Gi" {
			err = fmt.Errorf("it has %s", got)
		}
		return err
	})
	after := s.dataSize("app")
	if after < before*19/10 {
		t.Errorf("the file system had %d KiB and has %d after growing from 1Gi to 2Gi", before, after)
	}
	if got := strings.TrimSpace(s.exec("app", "cat", "/data/file")); got != "before" {
		t.Errorf("the file has %q", got)
	}
	if p, err := s.pod("app"); err != nil || p.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("the pod was restarted: %+v, %v", p, err)
	}
}

// limits checks the class's limits at the volume.
func (s *space) limits(name string) {
	s.t.Helper()
	v, err := s.volume(name)
	if err != nil {
		s.t.Fatal(err)
	}
	if v.Limits.IOPS != 30000 || v.Limits.Bandwidth != 10<<30 {
		s.t.Errorf("volume %s has the limits %+v, and the class says 30000 and 10G", name, v.Limits)
	}
}

// dataSize is the size of the file system in KiB, as the pod sees it.
func (s *space) dataSize(pod string) int64 {
	s.t.Helper()
	var n int64
	out := s.exec(pod, "df", "-k", "/data")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	f := strings.Fields(lines[len(lines)-1])
	if len(f) < 2 {
		s.t.Fatalf("df: %s", out)
	}
	if _, err := fmt.Sscan(f[1], &n); err != nil {
		s.t.Fatalf("df: %s", out)
	}
	return n
}

func (s *space) deleteClass(name string) {
	ctx, cancel := cleanupContext()
	defer cancel()
	if _, err := s.Kubectl(ctx, "delete", "storageclass", name, "--ignore-not-found"); err != nil {
		s.t.Error(err)
	}
}
