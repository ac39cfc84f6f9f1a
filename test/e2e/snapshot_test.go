package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// withSnapshots are the values that a user adds for snapshots in a cluster that has neither their kinds nor their controller.
var withSnapshots = []string{"snapshots.enabled=true", "snapshots.installCRDs=true", "snapshots.controller.enabled=true"}

// TestSnapshots takes snapshots of claims with Kubernetes' own snapshot controller and sidecar, and makes claims of them: beside the first one, and in its
// place, which is how a claim is restored.
func TestSnapshots(t *testing.T) {
	s := newSpace(t, "snapshots", 6*time.Minute)
	if err := s.installSnapshots(); err != nil {
		t.Fatal(err)
	}
	s.apply(fmt.Sprintf(counter, "app"))
	s.ready(90*time.Second, "app-0")
	atLeast := s.counts("app-0")
	began := time.Now()
	s.apply(snapshot("first", "data-app-0"))
	s.snapshotReady("first")
	t.Logf("a snapshot was ready after %.1f s", time.Since(began).Seconds())
	atMost := s.counts("app-0")
	time.Sleep(time.Second) // of writing
	s.apply(snapshot("unknown", "no-such-claim"))
	s.event("VolumeSnapshot", "unknown", "cannot get claim")

	// Beside the first one, larger than it, and one of a claim itself.
	s.apply(claimFrom("copy", "300Mi", "snapshot.storage.k8s.io", "VolumeSnapshot", "first") + user("reads", "copy"))
	s.apply(claimFrom("clone", "200Mi", "", "PersistentVolumeClaim", "data-app-0") + user("clones", "clone"))
	s.ready(90*time.Second, "reads", "clones")
	n := s.counts("reads")
	if n < atLeast || n > atMost {
		t.Errorf("the snapshot was taken between %d and %d, and has %d", atLeast, atMost, n)
	}
	// Whether its ext4 has grown too depends on the machine: Linux asks for CAP_SYS_RESOURCE.
	if v, err := s.volume(s.volumeOf("copy")); err != nil || v.Size != 300<<20 {
		t.Errorf("a claim of 300Mi made of a snapshot of 200Mi: %+v, %v", v, err)
	}
	if c := s.counts("clones"); c < n {
		t.Errorf("the clone has %d numbers, and the snapshot before it had %d", c, n)
	}

	// Restored: the claim is made anew, of the snapshot, under the StatefulSet's name.
	s.in("scale", "statefulset", "app", "--replicas=0")
	s.in("wait", "--for=delete", "pod/app-0", "--timeout=60s")
	old := s.volumeOf("data-app-0")
	s.in("delete", "pvc", "data-app-0")
	s.await(60*time.Second, "why the old volume stays", func() error {
		out, err := s.Field(s.ctx, `{range .items[?(@.involvedObject.name=="`+old+`")]}{.reason}: {.message}{"\n"}{end}`, "-n", "default", "events")
		if err == nil && !strings.Contains(out, "has 1 snapshots") {
			err = fmt.Errorf("events: %s", out)
		}
		return err
	})
	s.apply(claimFrom("data-app-0", "200Mi", "snapshot.storage.k8s.io", "VolumeSnapshot", "first"))
	s.in("scale", "statefulset", "app", "--replicas=1")
	s.ready(90*time.Second, "app-0")
	s.await(30*time.Second, "the next number", func() error {
		if after := s.counts("app-0"); after <= n {
			return fmt.Errorf("it is at %d, and the snapshot had %d", after, n)
		}
		return nil
	})
	s.snapshotsEnd()
	s.gone(150*time.Second, "data-app-0 "+old+"\n") // the provisioner tries it again after longer and longer pauses
}

// installSnapshots installs Keelson as a user does who wants snapshots.
func (s *space) installSnapshots(more ...string) error {
	if err := s.install(s.ctx, repository, append(more, withSnapshots...)...); err != nil {
		return err
	}
	for _, d := range []string{"keelson-controller", "keelson-snapshot-controller"} {
		if _, err := s.Kubectl(s.ctx, "rollout", "status", "deployment/"+d, "-n", namespace, "--timeout=120s"); err != nil {
			return err
		}
	}
	return nil
}

// snapshotsEnd deletes the snapshots: their volumes stay, and nothing else of them.
func (s *space) snapshotsEnd() {
	s.t.Helper()
	s.in("delete", "volumesnapshot", "--all", "--timeout=60s")
	s.noSnapshots(false)
	s.counts("reads")
}

// noSnapshots waits until nothing is left of snapshots. groups says whether the chart was installed with those of groups.
func (s *space) noSnapshots(groups bool) {
	s.t.Helper()
	s.await(60*time.Second, "the snapshots' end", func() error {
		out, err := s.Field(s.ctx, "{.items[*].metadata.name}", "volumesnapshotcontents")
		if err == nil && out != "" {
			err = fmt.Errorf("there are still the contents %s", out)
		}
		if err != nil {
			return err
		}
		var left []struct{ Volume, Name string }
		if err := s.keelson(s.ctx, &left, "snapshot", "list"); err != nil || len(left) > 0 {
			return fmt.Errorf("in Keelson are still %+v, %v", left, err)
		}
		return nil
	})
	s.nothingForbidden(groups)
}

// nothingForbidden looks whether the chart gives Keelson's pods all rights that they ask for.
func (s *space) nothingForbidden(groups bool) {
	s.t.Helper()
	for _, c := range []string{"controller", "snapshot-controller", "server"} {
		out := s.in("logs", "-n", namespace, "-l", "app.kubernetes.io/component="+c, "--all-containers", "--tail=-1", "--prefix", "--max-log-requests=50")
		for line := range strings.Lines(out) {
			// Whether there are snapshots of groups, the sidecars only ask, and go on without.
			if strings.Contains(line, "is forbidden: User") && (groups || !strings.Contains(line, "groupsnapshot.storage.k8s.io")) {
				s.t.Errorf("not allowed, and asked for: %s", line)
				break
			}
		}
	}
}

func snapshot(name, claim string) string {
	return `apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: ` + name + `}
spec:
  volumeSnapshotClassName: keelson
  source: {persistentVolumeClaimName: ` + claim + `}
`
}

// claimFrom is a claim whose volume begins with what something else has.
func claimFrom(name, size, group, kind, source string) string {
	from := "  dataSource: {kind: " + kind + ", name: " + source + ", apiGroup: \"" + group + "\"}\n"
	return strings.Replace(claim(name, "keelson", size), "---\n", from+"---\n", 1)
}

func (s *space) snapshotReady(name string) {
	s.t.Helper()
	s.await(60*time.Second, "snapshot "+name, func() error {
		out, err := s.Field(s.ctx, "{.status.readyToUse} {.status.error.message}", "-n", s.name, "volumesnapshot", name)
		if err == nil && !strings.HasPrefix(out, "true") {
			err = fmt.Errorf("it isn't ready: %s", out)
		}
		return err
	})
}
