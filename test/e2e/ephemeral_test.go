package main

import (
	"strings"
	"testing"
	"time"
)

// TestEphemeralVolumes are volumes that live as long as their pod: one by a claim in the pod, one written into it. At its limit a volume says that it is
// full; nothing is evicted.
func TestEphemeralVolumes(t *testing.T) {
	s := newSpace(t, "scratch", 5*time.Minute)
	before, err := s.volumes()
	if err != nil {
		t.Fatal(err)
	}
	s.apply(`apiVersion: v1
kind: Pod
metadata: {name: scratch}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: busybox:1.36
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1; done"]
    volumeMounts: [{name: generic, mountPath: /generic}, {name: inline, mountPath: /inline}]
  volumes:
  - name: generic
    ephemeral:
      volumeClaimTemplate:
        spec: {accessModes: [ReadWriteOnce], storageClassName: keelson, resources: {requests: {storage: 100Mi}}}
  - name: inline
    csi: {driver: csi.keelson.io, fsType: ext4, volumeAttributes: {size: 100Mi}}
`)
	s.ready(90*time.Second, "scratch")
	for _, dir := range []string{"/generic", "/inline"} {
		out := s.exec("scratch", "sh", "-c", "dd if=/dev/zero of="+dir+"/fill bs=1M count=200 2>&1 || true; sync -f "+dir+"; rm "+dir+"/fill; echo back >"+dir+"/file && cat "+dir+"/file")
		if !strings.Contains(out, "No space left on device") || !strings.HasSuffix(out, "back\n") {
			t.Errorf("%s, filled: %s", dir, out)
		}
	}
	if p, err := s.pod("scratch"); err != nil || p.Status.Phase != "Running" || p.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Errorf("the pod was not left alone: %+v, %v", p.Status, err)
	}
	s.in("delete", "pod", "scratch")
	s.await(60*time.Second, "the volumes' end", func() error {
		after, err := s.volumes()
		if err == nil && len(after) > len(before) {
			err = errVolumesLeft(after)
		}
		return err
	})
}
