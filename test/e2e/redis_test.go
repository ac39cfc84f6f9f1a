package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestRedisKeepsDataByOrdinal is the exercise of testdata/001: three replicas, scaled down and up again; what becomes of PV and PVC?
func TestRedisKeepsDataByOrdinal(t *testing.T) {
	s := newSpace(t, "redis", 6*time.Minute)
	s.useClass("002-storage-class.yaml", "portworx-replicated")
	s.applyFile("001-redis-service.yaml")
	s.applyFile("001-redis-statefulset.yaml")
	all := []string{"redis-persistence-0", "redis-persistence-1", "redis-persistence-2"}
	s.ready(90*time.Second, all...)
	for i, p := range all {
		s.exec(p, "redis-cli", "set", "ordinal", fmt.Sprint("this is ", i))
		s.exec(p, "redis-cli", "set", "only-"+fmt.Sprint(i), "yes")
	}
	before := s.bound(3)

	s.in("scale", "statefulset", "redis-persistence", "--replicas=1")
	s.await(90*time.Second, "scaling down", func() error {
		var l podList
		if err := s.Get(s.ctx, &l, "-n", s.name, "pods"); err != nil {
			return err
		}
		if len(l.Items) != 1 {
			return fmt.Errorf("%d pods are there", len(l.Items))
		}
		return nil
	})
	if after := s.bound(3); after != before {
		t.Errorf("claims and their volumes changed by scaling down:\n%s\nbefore:\n%s", after, before)
	}

	s.in("scale", "statefulset", "redis-persistence", "--replicas=3")
	s.ready(90*time.Second, all...)
	for i, p := range all {
		if got := strings.TrimSpace(s.exec(p, "redis-cli", "get", "ordinal")); got != fmt.Sprint("this is ", i) {
			t.Errorf("%s has %q", p, got)
		}
		if got := strings.TrimSpace(s.exec(p, "redis-cli", "--raw", "keys", "only-*")); got != fmt.Sprint("only-", i) {
			t.Errorf("%s has the keys %q", p, got)
		}
	}
	if after := s.bound(3); after != before {
		t.Errorf("claims and their volumes changed by scaling up:\n%s\nbefore:\n%s", after, before)
	}

	// Deleting the set keeps the claims; deleting the claims deletes the volumes.
	s.in("delete", "statefulset", "redis-persistence")
	s.bound(3)
	s.in("delete", "pvc", "--all")
	s.gone(90*time.Second, before)
}

// bound checks that so many claims are there, all bound, and returns them with their volumes, "claim volume" a line.
func (s *space) bound(n int) string {
	s.t.Helper()
	out := s.in("get", "pvc", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.volumeName} {.status.phase}{"\n"}{end}`)
	if strings.Count(out, " Bound\n") != n || strings.Count(out, "\n") != n {
		s.t.Fatalf("%d bound claims were expected:\n%s", n, out)
	}
	return out
}

// gone waits until no volume of the claims is left, in Kubernetes and in Keelson.
func (s *space) gone(limit time.Duration, claims string) {
	s.t.Helper()
	var names []string
	for line := range strings.Lines(claims) {
		names = append(names, strings.Fields(line)[1])
	}
	s.await(limit, "the volumes' end", func() error {
		pvs, err := s.Field(s.ctx, "{.items[*].metadata.name}", "pv")
		if err != nil {
			return err
		}
		all, err := s.volumes()
		if err != nil {
			return err
		}
		for _, n := range names {
			if strings.Contains(pvs, n) {
				return fmt.Errorf("PersistentVolume %s is there", n)
			}
			for _, v := range all {
				if v.Name == n {
					return fmt.Errorf("volume %s is there", n)
				}
			}
		}
		return nil
	})
}
