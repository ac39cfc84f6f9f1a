package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// writer is a pod that writes and reads back without a pause, and ends at the first error; its log says how far it came.
const writer = `apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  nodeSelector: {kubernetes.io/hostname: %[2]s}
  containers:
  - name: c
    image: busybox:1.36
    command:
    - sh
    - -c
    - |
      trap 'exit 0' TERM
      set -e
      i=0
      while :; do
        i=$((i+1))
        dd if=/dev/urandom of=/data/new bs=64k count=4 conv=fsync 2>/dev/null
        want=$(sha256sum </data/new)
        mv /data/new /data/kept
        sync
        [ "$want" = "$(sha256sum </data/kept)" ] || { echo "round $i: what is read isn't what was written"; exit 1; }
        echo $i >/data/rounds
        echo $i
      done
    volumeMounts: [{name: v, mountPath: /data}]
  volumes:
  - name: v
    persistentVolumeClaim: {claimName: %[1]s}
---
`

// TestRollingRestart restarts all pods of keelson server, one after another, under pods that write on every node: no write fails, and none of the pods is
// restarted. Then a pod is killed without notice.
func TestRollingRestart(t *testing.T) {
	s := newSpace(t, "restart", 10*time.Minute)
	var text strings.Builder
	var writers []string
	for _, n := range s.Nodes {
		name := "writer-" + n.Name
		writers = append(writers, name)
		text.WriteString(claim(name, "keelson", "200Mi") + fmt.Sprintf(writer, name, n.Name))
	}
	s.apply(text.String())
	s.ready(90*time.Second, writers...)
	holders := s.holders()
	s.progress(writers)

	began := time.Now()
	if _, err := s.Kubectl(s.ctx, "rollout", "restart", "daemonset/keelson-server", "-n", namespace); err != nil {
		t.Fatal(err)
	}
	longest := s.longestPause(writers, func() {
		if _, err := s.Kubectl(s.ctx, "rollout", "status", "daemonset/keelson-server", "-n", namespace, "--timeout=240s"); err != nil {
			t.Error(err)
		}
	})
	t.Logf("all pods of keelson server were replaced in %.1f s; the longest time without a written round was %.1f s", time.Since(began).Seconds(), longest.Seconds())
	s.progress(writers)
	if after := s.holders(); after != holders {
		t.Errorf("other holders run than before:\n%s\nbefore:\n%s", after, holders)
	}

	s.upgradeUnder(writers)
	pod, err := s.serverPod(s.ctx, s.Nodes[0].Name)
	if err != nil {
		t.Fatal(err)
	}
	s.in("delete", "pod", "-n", namespace, pod, "--grace-period=0", "--force")
	if _, err := s.Kubectl(s.ctx, "rollout", "status", "daemonset/keelson-server", "-n", namespace, "--timeout=120s"); err != nil {
		t.Error(err)
	}
	s.progress(writers)
	s.inSync(2 * time.Minute)
	if out := s.in("get", "events", "-o", `jsonpath={range .items[?(@.reason=="KeelsonFailover")]}{.message}{end}`); out != "" {
		t.Errorf("a restart was taken for a failure: %s", out)
	}
}

// upgradeUnder upgrades the release to another image, as a user does.
func (s *space) upgradeUnder(writers []string) {
	s.t.Helper()
	const next = "e2e-next"
	archive, err := s.keelsonImage(s.ctx, next)
	if err == nil {
		err = s.importAll(s.ctx, archive)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	began := time.Now()
	longest := s.longestPause(writers, func() {
		if err := s.install(s.ctx, repository, "image.tag="+next); err != nil {
			s.t.Error(err)
		}
	})
	images := s.in("get", "pods", "-n", namespace, "-l", "app.kubernetes.io/component=server", "-o", "jsonpath={.items[*].spec.containers[0].image}")
	if strings.Count(images, ":"+next) != len(s.Nodes) {
		s.t.Errorf("after the upgrade the images are %s", images)
	}
	s.t.Logf("upgraded to another image in %.1f s; the longest time without a written round was %.1f s", time.Since(began).Seconds(), longest.Seconds())
	s.progress(writers)
}

// rounds is how far a writer came.
func (s *space) rounds(pod string) (int, error) {
	out, err := s.Kubectl(s.ctx, "-n", s.name, "logs", pod, "--tail=1")
	if err != nil {
		return 0, err
	}
	var n int
	if _, err := fmt.Sscan(out, &n); err != nil {
		return 0, fmt.Errorf("%s says %q", pod, out)
	}
	return n, nil
}

// progress checks that all writers run, were never restarted, and go on.
func (s *space) progress(writers []string) {
	s.t.Helper()
	for _, w := range writers {
		first := -1
		s.await(60*time.Second, w+"'s next round", func() error {
			p, err := s.pod(w)
			if err != nil {
				return err
			}
			if p.Status.Phase != "Running" || p.Status.ContainerStatuses[0].RestartCount > 0 {
				return fmt.Errorf("it is %s", p.Status.Phase)
			}
			n, err := s.rounds(w)
			if err != nil {
				return err
			}
			if first < 0 {
				first = n
			}
			if n == first {
				return fmt.Errorf("it is still at round %d", n)
			}
			return nil
		})
	}
}

// longestPause runs fn, and returns for how long a writer was seen to stand still meanwhile.
func (s *space) longestPause(writers []string, fn func()) time.Duration {
	ctx, cancel := context.WithCancel(s.ctx)
	var wg sync.WaitGroup
	longest := make([]time.Duration, len(writers))
	for i, w := range writers {
		wg.Go(func() {
			last, since := -1, time.Now()
			for ctx.Err() == nil {
				if n, err := s.rounds(w); err == nil && n != last {
					last, since = n, time.Now()
				}
				longest[i] = max(longest[i], time.Since(since))
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
	fn()
	cancel()
	wg.Wait()
	var most time.Duration
	for _, l := range longest {
		most = max(most, l)
	}
	return most
}

// holders lists, for each node, the process that holds the devices' descriptors.
func (s *space) holders() string {
	s.t.Helper()
	var out strings.Builder
	for _, n := range s.Nodes {
		text, err := n.Run(s.ctx, "pgrep -f '^[^ ]*keelson holder'")
		if err != nil {
			s.t.Fatal(err)
		}
		fmt.Fprintf(&out, "%s: %s\n", n.Name, strings.Join(strings.Fields(text), " "))
	}
	return out.String()
}
