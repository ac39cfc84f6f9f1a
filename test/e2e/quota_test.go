package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestQuotaAndCapacity asks for more than there may be: a quota over the class, and the pools' room. What is refused says why, and leaves nothing; nor
// do claims that are deleted while their volumes are made.
func TestQuotaAndCapacity(t *testing.T) {
	s := newSpace(t, "quota", 5*time.Minute)
	s.apply(`kind: StorageClass
apiVersion: storage.k8s.io/v1
metadata: {name: at-once}
provisioner: csi.keelson.io
`)
	t.Cleanup(func() { s.deleteClass("at-once") })
	before, err := s.volumes()
	if err != nil {
		t.Fatal(err)
	}
	s.quota()
	s.tooLarge()
	s.deletedMeanwhile()

	s.in("delete", "statefulset", "--all")
	s.in("delete", "pod", "--all", "--grace-period=1")
	s.in("delete", "pvc", "--all")
	s.await(90*time.Second, "the volumes' end", func() error {
		after, err := s.volumes()
		if err == nil && len(after) > len(before) {
			err = errVolumesLeft(after)
		}
		return err
	})
	if out, err := s.Field(s.ctx, `{range .items[?(@.spec.claimRef.namespace=="`+s.name+`")]}{.metadata.name} {end}`, "pv"); err != nil || out != "" {
		t.Errorf("PersistentVolumes are left: %s, %v", out, err)
	}
}

// quota checks what a claim, and a StatefulSet, beyond a quota say.
func (s *space) quota() {
	s.t.Helper()
	s.apply(`apiVersion: v1
kind: ResourceQuota
metadata: {name: storage}
spec:
  hard:
    keelson.storageclass.storage.k8s.io/requests.storage: 1Gi
    keelson.storageclass.storage.k8s.io/persistentvolumeclaims: "2"
`)
	s.await(20*time.Second, "the quota", func() error {
		out, err := s.Field(s.ctx, "{.status.hard}", "-n", s.name, "resourcequota", "storage")
		if err == nil && out == "" {
			err = fmt.Errorf("it isn't in force yet")
		}
		return err
	})
	s.apply(fmt.Sprintf(counter, "within"))
	s.ready(90*time.Second, "within-0")
	_, err := s.KubectlInput(s.ctx, claim("beyond", "keelson", "900Mi"), "-n", s.name, "apply", "-f", "-")
	if err == nil || !strings.Contains(err.Error(), "exceeded quota: storage") || !strings.Contains(err.Error(), "keelson.storageclass.storage.k8s.io/requests.storage=200Mi, limited") {
		s.t.Errorf("a claim beyond the quota: %v", err)
	}
	s.in("scale", "statefulset", "within", "--replicas=3")
	s.ready(90*time.Second, "within-1")
	s.event("StatefulSet", "within", "exceeded quota: storage")
}

// tooLarge asks for more than any node has room for: with a class that makes the volume at once, and with one that waits for the pod.
func (s *space) tooLarge() {
	s.t.Helper()
	s.apply(claim("large", "at-once", "900Gi"))
	s.event("PersistentVolumeClaim", "large", "overcommit limit")
	s.apply(claim("larger", "keelson-triple", "900Gi") + user("nowhere", "larger"))
	s.event("Pod", "nowhere", "enough free storage")
	s.apply(strings.Replace(claim("shared", "at-once", "100Mi"), "ReadWriteOnce", "ReadWriteMany", 1))
	s.event("PersistentVolumeClaim", "shared", "Ask for ReadWriteOnce")
}

// event waits for an event about an object that says something.
func (s *space) event(kind, name, says string) {
	s.t.Helper()
	s.await(60*time.Second, "an event at "+kind+" "+name, func() error {
		out, err := s.Field(s.ctx, `{range .items[?(@.involvedObject.name=="`+name+`")]}{.involvedObject.kind} {.reason}: {.message}{"\n"}{end}`, "-n", s.name, "events")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, kind+" ") && strings.Contains(line, says) {
				s.t.Logf("%s: %s", name, line)
				return nil
			}
		}
		return fmt.Errorf("none says %q: %s", says, out)
	})
}

// deletedMeanwhile deletes claims a moment after they are made, each after another moment.
func (s *space) deletedMeanwhile() {
	s.t.Helper()
	for i := range 12 {
		name := fmt.Sprint("short-", i)
		s.apply(claim(name, "at-once", "100Mi"))
		time.Sleep(time.Duration(i) * 40 * time.Millisecond)
		s.in("delete", "pvc", name, "--wait=false")
	}
}
