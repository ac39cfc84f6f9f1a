package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// pairWriter is a pod that writes each number to its first volume, and then to its second.
const pairWriter = `apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command:
    - sh
    - -c
    - |
      trap 'exit 0' TERM
      i=0
      while :; do
        i=$((i+1))
        for d in /a /b; do
          echo $i | dd of=$d/log bs=64 oflag=append conv=notrunc,fsync 2>/dev/null || { echo "number $i can't be written to $d"; exit 1; }
        done
      done
    volumeMounts: [{name: a, mountPath: /a}, {name: b, mountPath: /b}]
  volumes:
  - {name: a, persistentVolumeClaim: {claimName: a}}
  - {name: b, persistentVolumeClaim: {claimName: b}}
`

// TestGroupSnapshots takes a snapshot of all claims with a label under writes, with Kubernetes' own snapshot controller and sidecar, and makes claims of what it
// has of each: they are of one moment.
func TestGroupSnapshots(t *testing.T) {
	s := newSpace(t, "groups", 6*time.Minute)
	if err := s.installSnapshots("snapshots.groups=true"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		s.apply(claim(name, "keelson", "200Mi"))
		s.in("label", "pvc", name, "of=pair")
	}
	s.apply(pairWriter)
	s.ready(90*time.Second, "writer")
	time.Sleep(time.Second) // of writing
	s.apply(`apiVersion: groupsnapshot.storage.k8s.io/v1
kind: VolumeGroupSnapshot
metadata: {name: pair}
spec:
  volumeGroupSnapshotClassName: keelson
  source: {selector: {matchLabels: {of: pair}}}
`)
	s.await(60*time.Second, "the group's snapshot", func() error {
		out, err := s.Field(s.ctx, "{.status.readyToUse} {.status.error.message}", "-n", s.name, "volumegroupsnapshot", "pair")
		if err == nil && !strings.HasPrefix(out, "true") {
			err = fmt.Errorf("it isn't ready: %s", out)
		}
		return err
	})
	of := map[string]string{} // the snapshots by their claims
	s.await(60*time.Second, "a snapshot of each claim", func() error {
		out, err := s.Field(s.ctx, `{range .items[?(@.status.readyToUse==true)]}{.spec.source.persistentVolumeClaimName} {.metadata.name}{"\n"}{end}`, "-n", s.name, "volumesnapshots")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 2 {
				of[f[0]] = f[1]
			}
		}
		if err == nil && (of["a"] == "" || of["b"] == "") {
			err = fmt.Errorf("those that are ready: %q", out)
		}
		return err
	})
	for _, name := range []string{"a", "b"} {
		s.apply(claimFrom("copy-"+name, "200Mi", "snapshot.storage.k8s.io", "VolumeSnapshot", of[name]) + user("reads-"+name, "copy-"+name))
	}
	s.ready(90*time.Second, "reads-a", "reads-b")
	a, b := s.counts("reads-a"), s.counts("reads-b")
	if b < 1 || a != b && a != b+1 {
		t.Errorf("the snapshots are of different moments: the first volume is at %d, and the second, which is written after it, at %d", a, b)
	}
	t.Logf("taken at %d and %d", a, b)
	s.in("delete", "pod", "writer", "reads-a", "reads-b")
	s.in("delete", "volumegroupsnapshot", "pair", "--timeout=60s")
	s.noSnapshots(true)
}
