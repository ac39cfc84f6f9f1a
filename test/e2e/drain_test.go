package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/test/e2e/cluster"
)

// counter is a StatefulSet of one pod that writes numbers one after another, each flushed, and reads the last one back when it starts. It prints each.
// It flushes its own file: a sync of everything would wait for the volumes of nodes that are cut off, as all nodes share a kernel.
const counter = `apiVersion: apps/v1
kind: StatefulSet
metadata: {name: %[1]s}
spec:
  replicas: 1
  serviceName: %[1]s
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: c
        image: busybox:1.36
        command:
        - sh
        - -c
        - |
          trap 'exit 0' TERM
          i=$(tail -n 1 /data/log 2>/dev/null || echo 0)
          while :; do
            i=$((i+1))
            echo $i | dd of=/data/log bs=64 oflag=append conv=notrunc,fsync 2>/dev/null || { echo "number $i can't be written"; exit 1; }
            echo $i
            sleep 0.2
          done
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], storageClassName: keelson, resources: {requests: {storage: 200Mi}}}
`

// counts checks that the counter has all numbers without a gap, and returns the last.
func (s *space) counts(pod string) int {
	s.t.Helper()
	var n, lines int
	out := s.exec(pod, "sh", "-c", "awk '$1 != NR { print \"line\", NR, \"has\", $1; exit 1 } END { print $1, NR }' /data/log")
	if _, err := fmt.Sscan(out, &n, &lines); err != nil || n != lines {
		s.t.Fatalf("the numbers of %s: %q", pod, out)
	}
	return n
}

// drained is the end of a `kubectl drain`.
type drained struct {
	out string
	err error
}

// drain begins what a person does before the node's upkeep.
func (s *space) drain(node string, limit time.Duration) <-chan drained {
	done := make(chan drained, 1)
	go func() {
		out, err := s.Kubectl(s.ctx, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout="+limit.String())
		done <- drained{out, err}
	}()
	return done
}

func (s *space) uncordon(node string) {
	ctx, cancel := cleanupContext()
	defer cancel()
	if _, err := s.Kubectl(ctx, "uncordon", node); err != nil {
		s.t.Error(err)
	}
}

// TestDrainAndCordon takes nodes out of service as administrators do. Cordoned, a node gets no replicas. Drained, its pods move, with their data. A drain
// that would take the last copy in sync waits, says why, and goes on by itself when there is another one.
func TestDrainAndCordon(t *testing.T) {
	s := newSpace(t, "drain", 8*time.Minute)
	s.cordons()

	s.apply(fmt.Sprintf(counter, "app"))
	s.ready(90*time.Second, "app-0")
	p, err := s.pod("app-0")
	if err != nil {
		t.Fatal(err)
	}
	first := p.Spec.NodeName
	before := s.counts("app-0")
	began := time.Now()
	t.Cleanup(func() { s.uncordon(first) })
	if d := <-s.drain(first, 90*time.Second); d.err != nil {
		t.Fatal(d.err)
	}
	s.await(60*time.Second, "the pod elsewhere", s.runsElsewhere("app-0", first))
	t.Logf("%s was drained, and the pod ready elsewhere, in %.1f s", first, time.Since(began).Seconds())
	if after := s.counts("app-0"); after < before {
		t.Errorf("%d numbers were written before the drain, and %d are there", before, after)
	}
	if text := s.in("get", "events", "-A", "-o", `jsonpath={range .items[?(@.reason=="KeelsonStorageLost")]}{.message}{end}`); strings.Contains(text, first) {
		t.Errorf("a drain was taken for a failure: %s", text)
	}
	s.uncordon(first)
	s.lastCopy()
}

// runsElsewhere checks that a pod is ready, and not on that node.
func (s *space) runsElsewhere(name, node string) func() error {
	return func() error {
		p, err := s.pod(name)
		if err == nil && (p.Spec.NodeName == node || !p.ready() || p.Metadata.DeletionTimestamp != "") {
			err = fmt.Errorf("it is %s on %q", p.Status.Phase, p.Spec.NodeName)
		}
		return err
	}
}

// cordons checks what `kubectl cordon` means to Keelson, and that it leaves alone what a person said.
func (s *space) cordons() {
	s.t.Helper()
	node := s.Nodes[2].Name
	s.t.Cleanup(func() {
		s.uncordon(node)
		ctx, cancel := cleanupContext()
		defer cancel()
		_ = s.keelson(ctx, nil, "node", "uncordon", node)
	})
	s.in("cordon", node)
	s.cordoned(node, false, true)
	var text strings.Builder
	var claims []string
	for i := range 3 {
		claims = append(claims, fmt.Sprint("cordoned-", i))
		text.WriteString(claim(claims[i], "keelson", "100Mi") + user("user-"+fmt.Sprint(i), claims[i]) + "---\n")
	}
	s.apply(text.String())
	s.ready(90*time.Second, "user-0", "user-1", "user-2")
	for _, c := range claims {
		s.copiesIn(c, s.Nodes[0].Name, s.Nodes[1].Name)
	}
	if err := s.keelson(s.ctx, nil, "node", "cordon", node); err != nil {
		s.t.Fatal(err)
	}
	s.in("uncordon", node)
	s.cordoned(node, true, false) // what a person said stays
	if err := s.keelson(s.ctx, nil, "node", "uncordon", node); err != nil {
		s.t.Fatal(err)
	}
	s.cordoned(node, false, false)
	s.in("delete", "pod", "user-0", "user-1", "user-2", "--grace-period=1")
	s.in("delete", "pvc", "--all")
}

// cordoned waits until Keelson shows a node's two marks so.
func (s *space) cordoned(node string, byPerson, byKubernetes bool) {
	s.t.Helper()
	s.await(20*time.Second, "the cordons of "+node, func() error {
		var n struct{ Cordoned, Unschedulable bool }
		if err := s.keelson(s.ctx, &n, "node", "show", node); err != nil {
			return err
		}
		if n.Cordoned != byPerson || n.Unschedulable != byKubernetes {
			return fmt.Errorf("it is cordoned: %v; in Kubernetes: %v", n.Cordoned, n.Unschedulable)
		}
		return nil
	})
}

// lastCopy drains the node that has the only copy in sync, because the node with the other one is cut off.
func (s *space) lastCopy() {
	s.t.Helper()
	p, err := s.pod("app-0")
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := s.volume(s.volumeOf("data-app-0"))
	if err != nil {
		s.t.Fatal(err)
	}
	// The pod may run where there is no copy: then the one that stays is guarded, wherever the pod is.
	var other, last *cluster.Node
	for _, m := range v.Columns[0].Members {
		if n := s.Node(m.Node); m.Node == p.Spec.NodeName || other != nil && last == nil {
			last = n
		} else {
			other = n
		}
	}
	if other == nil || last == nil {
		s.t.Fatalf("volume %+v hasn't two copies", v)
	}
	s.cut(other)
	s.await(60*time.Second, "the copy that is behind", func() error {
		v, err := s.volume(v.Name)
		if err == nil && v.bad() == "" {
			err = errors.New("all are in sync")
		}
		return err
	})
	s.await(60*time.Second, "the event about the last copy", func() error {
		return s.told(last.Name, "KeelsonLastCopy")
	})
	s.await(60*time.Second, "the guard", func() error {
		out, err := s.Kubectl(s.ctx, "get", "pods", "-n", namespace, "-l", "keelson.io/guards-last-copy-on="+last.Name, "-o", "jsonpath={.items[*].status.phase}")
		if err == nil && out != "Running" {
			err = fmt.Errorf("guards: %q", out)
		}
		return err
	})
	s.t.Cleanup(func() { s.uncordon(last.Name) })
	ended := s.drain(last.Name, 4*time.Minute)
	select {
	case d := <-ended:
		s.t.Fatalf("the drain took the last copy: %s%v", d.out, d.err)
	case <-time.After(12 * time.Second):
	}
	s.t.Logf("%s isn't drained: %s", last.Name, s.evictionRefused(last.Name))

	began := time.Now()
	s.heal(other)
	if d := <-ended; d.err != nil {
		s.t.Fatal(d.err)
	}
	s.t.Logf("%s was drained %.1f s after %s was back", last.Name, time.Since(began).Seconds(), other.Name)
	s.await(60*time.Second, "the pod elsewhere", s.runsElsewhere("app-0", last.Name))
	s.counts("app-0")
	s.uncordon(last.Name)
	s.inSync(2 * time.Minute)
}

// told checks that there is an event with that reason about a node.
func (s *space) told(node, reason string) error {
	out, err := s.Kubectl(s.ctx, "get", "events", "-n", "default", "-o", `jsonpath={range .items[?(@.reason=="`+reason+`")]}{.involvedObject.name}: {.message}{"\n"}{end}`)
	if err == nil && !strings.Contains(out, node+": ") {
		err = fmt.Errorf("events %s: %q", reason, out)
	}
	return err
}

// evictionRefused asks as a drain does, and returns why it isn't done.
func (s *space) evictionRefused(node string) string {
	ctx, cancel := context.WithTimeout(s.ctx, 20*time.Second)
	defer cancel()
	_, err := s.Kubectl(ctx, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=3s")
	if err == nil || !strings.Contains(err.Error(), "disruption budget") {
		s.t.Errorf("a drain says: %v", err)
		return ""
	}
	for line := range strings.Lines(err.Error()) {
		if strings.Contains(line, "disruption budget") {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
