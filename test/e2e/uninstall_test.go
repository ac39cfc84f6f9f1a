package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestUninstall removes Keelson as docs/ops/uninstall.md says. It is refused while a pod uses a volume. Told to all the same, the pod waits, and goes on when
// Keelson is there again. Without users nothing is left but what the page says; and installed again, by `keelson install yaml` and by Helm, the volumes are there.
//
// It is the last of all cases.
func TestUninstall(t *testing.T) {
	s := newSpace(t, "uninstall", 10*time.Minute)
	t.Cleanup(func() { // whatever fails: what comes after needs Keelson
		ctx, cancel := cleanupContext()
		defer cancel()
		if out, err := s.Helm(ctx, "status", "keelson", "-n", namespace, "-o", "json"); err != nil || !strings.Contains(out, `"status":"deployed"`) {
			_, _ = s.Helm(ctx, "uninstall", "keelson", "-n", namespace, "--no-hooks")
			if err := s.install(ctx, repository); err != nil {
				t.Error(err)
			}
		}
	})
	s.apply(fmt.Sprintf(counter, "app"))
	s.ready(90*time.Second, "app-0")
	s.refused()
	s.uninstalledUnderUse()

	s.in("scale", "statefulset", "app", "--replicas=0")
	s.in("wait", "--for=delete", "pod/app-0", "--timeout=60s")
	volume := s.volumeOf("data-app-0")
	s.uninstall()
	s.await(90*time.Second, "that nothing is left", s.nothingLeft)
	s.byManifest(volume)
	if err := s.install(s.ctx, repository); err != nil {
		t.Fatal(err)
	}
	if _, err := s.volume(volume); err != nil {
		t.Errorf("after Keelson was installed again: %v", err)
	}
	s.in("scale", "statefulset", "app", "--replicas=1")
	s.ready(90*time.Second, "app-0")
	t.Logf("after Keelson was gone and installed again, all of %d numbers are there", s.counts("app-0"))
}

// refused checks what helm says while a pod uses a volume, and that the release can be kept.
func (s *space) refused() {
	s.t.Helper()
	if _, err := s.Helm(s.ctx, "uninstall", "keelson", "-n", namespace); err == nil {
		s.t.Fatal("Keelson was uninstalled under a pod that uses a volume")
	}
	log := s.in("logs", "-n", namespace, "job/keelson-uninstall")
	if !strings.Contains(log, "uninstall/app-0 (data-app-0)") || !strings.Contains(log, "--no-hooks") {
		s.t.Errorf("the job's log doesn't say who uses what, and what to do: %s", log)
	}
	s.t.Logf("refused: %s", log)
	out, err := s.Helm(s.ctx, "history", "keelson", "-n", namespace, "--max", "1")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	f := strings.Fields(lines[len(lines)-1])
	if err != nil || len(f) == 0 {
		s.t.Fatalf("helm history: %v: %s", err, out)
	}
	if _, err := s.Helm(s.ctx, "rollback", "keelson", f[0], "-n", namespace); err != nil {
		s.t.Fatal(err)
	}
	if err := s.installed(s.ctx); err != nil {
		s.t.Fatal(err)
	}
}

// uninstalledUnderUse uninstalls Keelson under a pod that writes, and installs it again.
func (s *space) uninstalledUnderUse() {
	s.t.Helper()
	was, err := s.pod("app-0")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.Helm(s.ctx, "uninstall", "keelson", "-n", namespace, "--no-hooks"); err != nil {
		s.t.Fatal(err)
	}
	s.podsGone()
	stopped, err := s.rounds("app-0")
	if err != nil {
		s.t.Fatal(err)
	}
	began := time.Now()
	if err := s.install(s.ctx, repository); err != nil {
		s.t.Fatal(err)
	}
	s.await(60*time.Second, "the pod's next number", func() error {
		n, err := s.rounds("app-0")
		if err == nil && n <= stopped+1 {
			err = fmt.Errorf("it is still at %d", n)
		}
		return err
	})
	p, err := s.pod("app-0")
	if err != nil || p.Metadata.UID != was.Metadata.UID || p.Status.ContainerStatuses[0].RestartCount > 0 {
		s.t.Errorf("the pod didn't outlive it: %+v, %v", p.Status, err)
	}
	s.counts("app-0")
	s.t.Logf("a pod that used a volume waited, and went on %.1f s after Keelson was installed again", time.Since(began).Seconds())
}

// uninstall does it with the check, which has nothing to object to.
func (s *space) uninstall() {
	s.t.Helper()
	began := time.Now()
	s.await(60*time.Second, "uninstalling", func() error {
		_, err := s.Helm(s.ctx, "uninstall", "keelson", "-n", namespace)
		return err
	})
	s.podsGone()
	s.t.Logf("uninstalled in %.1f s", time.Since(began).Seconds())
}

// byManifest installs Keelson without Helm, has the app run with what its volume has, and deletes it, the namespace included.
func (s *space) byManifest(volume string) {
	s.t.Helper()
	began := time.Now()
	cmd := exec.CommandContext(s.ctx, s.binary, "install", "yaml", "--namespace", namespace, "--image-repository", keelsonRepository, "--image-tag", keelsonTag,
		"--engine-shards", "1", "--file-size", "12Gi")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	manifest, err := cmd.Output()
	if err != nil {
		s.t.Fatalf("%v: %s", err, stderr.String())
	}
	if _, err := s.KubectlInput(s.ctx, string(manifest), "apply", "-f", "-"); err != nil {
		s.t.Fatal(err)
	}
	if err := s.installed(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("installed by a manifest in %.1f s", time.Since(began).Seconds())
	if _, err := s.volume(volume); err != nil {
		s.t.Error(err)
	}
	s.in("scale", "statefulset", "app", "--replicas=1")
	s.ready(90*time.Second, "app-0")
	s.counts("app-0")
	s.in("scale", "statefulset", "app", "--replicas=0")
	s.in("wait", "--for=delete", "pod/app-0", "--timeout=60s")
	if _, err := s.KubectlInput(s.ctx, string(manifest), "delete", "--timeout=120s", "-f", "-"); err != nil {
		s.t.Fatal(err)
	}
	s.podsGone()
	s.await(90*time.Second, "that nothing is left of the manifest", s.nothingLeft)
}

// podsGone waits until the pods of all of Keelson's components are gone.
func (s *space) podsGone() {
	s.t.Helper()
	s.await(2*time.Minute, "the end of Keelson's pods", func() error {
		out, err := s.Field(s.ctx, "{.items[*].metadata.name}", "-n", namespace, "pods", "-l", "app.kubernetes.io/component!=uninstall")
		if err == nil && out != "" {
			err = fmt.Errorf("there are %s", out)
		}
		return err
	})
}

// nothingLeft looks for what docs/ops/uninstall.md doesn't say that it stays.
func (s *space) nothingLeft() error {
	for _, n := range s.Nodes {
		// The directories that the test itself gave the node are mounts too.
		out, err := n.Run(s.ctx, "grep -E ' (/run/keelson/|/var/lib/keelson/|/var/lib/kubelet/.*(csi|keelson))' /proc/mounts || true; pgrep -af '^[^ ]*keelson ' || true; "+
			"ls -d /var/lib/kubelet/plugins/*/csi.sock /var/lib/kubelet/plugins_registry/*-reg.sock 2>/dev/null || true")
		if err != nil {
			return err
		}
		if out != "" {
			return fmt.Errorf("on %s: %s", n.Name, out)
		}
	}
	var left []string
	for _, kind := range []string{"csidriver", "storageclass", "clusterrole", "clusterrolebinding", "priorityclass"} {
		out, err := s.Field(s.ctx, "{.items[*].metadata.name}", kind, "-l", "app.kubernetes.io/name=keelson")
		if err != nil {
			return err
		}
		left = append(left, strings.Fields(out)...)
	}
	for _, kind := range []string{"deployment", "daemonset", "service", "serviceaccount", "role", "rolebinding", "poddisruptionbudget", "networkpolicy", "job"} {
		out, err := s.Field(s.ctx, "{.items[*].metadata.name}", kind, "-n", namespace)
		if err != nil {
			return err
		}
		for _, name := range strings.Fields(out) {
			if name != "default" { // the namespace's own
				left = append(left, kind+"/"+name)
			}
		}
	}
	if len(left) > 0 {
		return errors.New("there are still " + strings.Join(left, ", "))
	}
	return nil
}
