package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/test/e2e/cluster"
)

// away is for how long there is no API server: longer than Kubernetes takes to give up a node, and than the lease of a node's storage.
const away = 2 * time.Minute

// TestAPIServerAway takes Kubernetes' API server away for minutes, under pods that write and claims that are being made. What writes goes on, also when
// Keelson is started anew meanwhile; nothing is deleted because of it. A node that is cut off meanwhile is failed over when the API server is back.
func TestAPIServerAway(t *testing.T) {
	s := newSpace(t, "away", 10*time.Minute)
	s.apply(`kind: StorageClass
apiVersion: storage.k8s.io/v1
metadata: {name: at-once}
provisioner: csi.keelson.io
`)
	t.Cleanup(func() { s.deleteClass("at-once") })
	for _, name := range []string{"lost", "stays"} {
		s.apply(strings.Replace(fmt.Sprintf(counter, name), "      terminationGrace", `      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - {topologyKey: kubernetes.io/hostname, labelSelector: {matchExpressions: [{key: app, operator: In, values: [lost, stays]}]}}
      terminationGrace`, 1))
	}
	s.ready(90*time.Second, "lost-0", "stays-0")
	lost, a := s.placed("lost-0")
	stays, b := s.placed("stays-0")
	var text strings.Builder
	const claims = 20
	for i := range claims {
		text.WriteString(claim(fmt.Sprintf("c%d", i), "at-once", "100Mi"))
	}
	s.apply(text.String()) // their volumes are made, or not, when the API server goes
	if err := s.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := cleanupContext()
		defer cancel()
		if err := s.StartAPIServer(ctx); err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	s.writes(b, stays, 20*time.Second)
	if _, err := b.Run(s.ctx, "kill -9 $(pgrep -f '^[^ ]*keelson server')"); err != nil {
		t.Fatal(err)
	}
	s.writes(b, stays, 60*time.Second)
	t.Logf("without the API server, a pod went on writing after Keelson was killed under it, %.1f s after the API server went", time.Since(began).Seconds())
	s.inSyncSeenOn(b) // else there is nothing to fail over to
	s.cut(a)
	time.Sleep(away - time.Since(began))
	s.writes(b, stays, 20*time.Second)

	back := time.Now()
	if err := s.StartAPIServer(s.ctx); err != nil {
		t.Fatal(err)
	}
	s.await(2*time.Minute, "the pod of the node that was cut off", func() error {
		p, err := s.pod("lost-0")
		if err == nil && (p.Metadata.UID == lost.Metadata.UID || !p.ready()) {
			err = fmt.Errorf("it is %s on %s", p.Status.Phase, p.Spec.NodeName)
		}
		return err
	})
	t.Logf("its pod was ready elsewhere %.1f s after the API server was back", time.Since(back).Seconds())
	s.counts("lost-0")
	if p, err := s.pod("stays-0"); err != nil || p.Metadata.UID != stays.Metadata.UID || p.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Errorf("a pod that had nothing to do with it: %+v, %v", p.Status, err)
	}
	s.counts("stays-0")
	s.await(2*time.Minute, "the claims", func() error {
		out, err := s.Field(s.ctx, "{.items[*].status.phase}", "-n", s.name, "pvc")
		if err == nil && strings.Count(out, "Bound") != claims+2 {
			err = fmt.Errorf("they are %s", out)
		}
		return err
	})
	s.nothingTwice()
	s.heal(a)
	s.inSync(3 * time.Minute)
	s.await(time.Minute, "the end of the taint", func() error {
		out, err := s.Field(s.ctx, "{.items[*].spec.taints[*].key}", "nodes")
		if err == nil && strings.Contains(out, "keelson.io/") {
			err = errors.New(out)
		}
		return err
	})
	s.in("delete", "pvc", "--all", "--wait=false")
}

// placed returns a pod and its node.
func (s *space) placed(name string) (pod, *cluster.Node) {
	s.t.Helper()
	p, err := s.pod(name)
	n := s.Node(p.Spec.NodeName)
	if err != nil || n == nil {
		s.t.Fatalf("pod %s: %v, %v", name, n, err)
	}
	return p, n
}

// writes waits for a pod's next numbers, by what its node has of its output: the API server isn't asked.
func (s *space) writes(n *cluster.Node, p pod, limit time.Duration) {
	s.t.Helper()
	last := func() (k int, err error) {
		out, err := n.Run(s.ctx, "tail -q -n 1 /var/log/pods/"+s.name+"_"+p.Metadata.Name+"_"+p.Metadata.UID+"/c/*.log | tail -n 1")
		if f := strings.Fields(out); err == nil && len(f) > 0 {
			_, err = fmt.Sscan(f[len(f)-1], &k)
		}
		return k, err
	}
	first := -1
	ctx, cancel := context.WithTimeout(s.ctx, limit)
	defer cancel()
	if err := s.Await(ctx, limit, p.Metadata.Name+"'s next numbers", func() error {
		k, err := last()
		if err == nil && first < 0 {
			first = k
		}
		if err == nil && k < first+3 {
			err = fmt.Errorf("it is at %d", k)
		}
		return err
	}); err != nil {
		s.t.Fatal(err)
	}
}

// inSyncSeenOn waits until all replicas are in sync, by what Keelson says on a node: the API server isn't asked.
func (s *space) inSyncSeenOn(n *cluster.Node) {
	s.t.Helper()
	s.await(2*time.Minute, "replicas in sync", func() error {
		out, err := n.Run(s.ctx, "/var/lib/keelson/bin/keelson volume list -o json 2>&1")
		if err != nil {
			return err
		}
		var all []volume
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		for _, v := range all {
			if v.bad() != "" {
				return fmt.Errorf("volume %s: %s", v.Name, v.bad())
			}
		}
		return nil
	})
}

// nothingTwice checks that each PersistentVolume has its volume, and that there is no other.
func (s *space) nothingTwice() {
	s.t.Helper()
	out, err := s.Field(s.ctx, "{.items[*].spec.csi.volumeHandle}", "pv")
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := s.volumes()
	if err != nil {
		s.t.Fatal(err)
	}
	for _, v := range all {
		if !strings.Contains(out, v.Name) {
			s.t.Errorf("volume %s has no PersistentVolume", v.Name)
		}
	}
	if n := len(strings.Fields(out)); n != len(all) {
		s.t.Errorf("there are %d PersistentVolumes and %d volumes", n, len(all))
	}
}
