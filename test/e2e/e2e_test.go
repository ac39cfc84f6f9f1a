package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/test/e2e/cluster"
)

var keepFlag = flag.Bool("e2e.keep", false, "leave the cluster running after a failure, until `go run ./test/e2e -down`")

// shared is the cluster of all tests. They run one after another, each in a namespace of its own.
var shared *setup

func TestMain(m *testing.M) {
	cluster.Init()
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) (code int) {
	binary := os.Getenv("KEELSON_BIN")
	if binary == "" {
		fmt.Println("e2e: nothing is tested: KEELSON_BIN names no program. `make e2e` sets it; it builds Kubernetes first, and needs root.")
		return 0
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	began := time.Now()
	say := func(format string, args ...any) {
		fmt.Printf("%6.1f s  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	o := options{dir: cluster.DefaultDir(), binary: binary, say: say}
	for _, name := range []string{"TestSnapshots", "TestGroupSnapshots"} {
		if chosen, err := regexp.MatchString(flag.Lookup("test.run").Value.String(), name); err != nil || chosen {
			o.more = []string{"csi-snapshotter", "snapshot-controller"}
		}
	}
	s, err := up(ctx, o)
	if err == nil {
		shared = s
		interrupted := context.AfterFunc(ctx, func() {
			fmt.Fprintln(os.Stderr, "e2e: interrupted; taking the cluster away:", s.Down())
			os.Exit(1)
		})
		defer func() {
			interrupted()
			if *keepFlag && code != 0 {
				say("left as it is: export KUBECONFIG=%s", s.Kubeconfig())
				return
			}
			if err := s.Down(); err != nil {
				fmt.Fprintln(os.Stderr, "e2e: taking the cluster away:", err)
				code = 1
			}
		}()
		err = s.install(ctx, repository)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		if s != nil {
			s.saveLogs(ctx)
		}
		return 1
	}
	if code = m.Run(); code != 0 {
		s.saveLogs(ctx)
	}
	return code
}

// space is a test's own namespace.
type space struct {
	*setup
	t    *testing.T
	ctx  context.Context
	name string
}

// newSpace makes a namespace, and removes it with all that is in it when the test has ended.
func newSpace(t *testing.T, name string, limit time.Duration) *space {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	s := &space{setup: shared, t: t, ctx: ctx, name: name}
	if _, err := s.Kubectl(ctx, "create", "namespace", name); err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if t.Failed() {
			s.describe()
		}
		end, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if _, err := s.Kubectl(end, "delete", "namespace", name, "--timeout=90s"); err != nil {
			t.Error(err)
			s.remains()
		}
	})
	return s
}

// remains says what keeps the namespace from going.
func (s *space) remains() {
	ctx, cancel := cleanupContext()
	defer cancel()
	for _, args := range [][]string{
		{"get", "namespace", s.name, "-o", "jsonpath={range .status.conditions[?(@.status==\"True\")]}{.type}: {.message}{\"\\n\"}{end}"},
		{"get", "pods,pvc", "-n", s.name, "-o", "wide"},
		{"get", "events", "-n", s.name, "--sort-by=.lastTimestamp", "--field-selector=type=Warning"},
	} {
		out, err := s.Kubectl(ctx, args...)
		s.t.Logf("kubectl %v: %v\n%s", args, err, out)
	}
}

// describe says what a person would look at after a failure.
func (s *space) describe() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "nodes,pods,pvc,pv", "-A", "-o", "wide"},
		{"get", "events", "-n", s.name, "--sort-by=.lastTimestamp"},
	} {
		out, err := s.Kubectl(ctx, args...)
		s.t.Logf("kubectl %v: %v\n%s", args, err, out)
	}
	var list podList
	if s.Get(ctx, &list, "-n", s.name, "pods") == nil {
		for _, p := range list.Items[:min(3, len(list.Items))] {
			out, _ := s.Kubectl(ctx, "logs", "-n", s.name, p.Metadata.Name, "--tail=15")
			s.t.Logf("log of pod %s:\n%s", p.Metadata.Name, out)
		}
	}
}

// in runs kubectl in the namespace.
func (s *space) in(args ...string) string {
	s.t.Helper()
	out, err := s.Kubectl(s.ctx, append([]string{"-n", s.name}, args...)...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// exec runs a command in a pod.
func (s *space) exec(pod string, argv ...string) string {
	s.t.Helper()
	return s.in(append([]string{"exec", pod, "--"}, argv...)...)
}

// applyFile applies one of testdata's manifests, as it is.
func (s *space) applyFile(name string) {
	s.t.Helper()
	s.in("apply", "-f", filepath.Join("testdata", name))
}

// apply applies a manifest.
func (s *space) apply(manifest string) {
	s.t.Helper()
	if _, err := s.KubectlInput(s.ctx, manifest, "-n", s.name, "apply", "-f", "-"); err != nil {
		s.t.Fatal(err)
	}
}

// await waits until check succeeds.
func (s *space) await(limit time.Duration, what string, check func() error) {
	s.t.Helper()
	if err := s.Await(s.ctx, limit, what, check); err != nil {
		s.t.Fatal(err)
	}
}

// ready waits until pods are ready.
func (s *space) ready(limit time.Duration, pods ...string) {
	s.t.Helper()
	for _, p := range pods {
		s.await(limit, "pod "+p, func() error {
			got, err := s.pod(p)
			if err == nil && !got.ready() {
				err = fmt.Errorf("it is %s, and not ready", got.Status.Phase)
			}
			return err
		})
	}
}

func (s *space) pod(name string) (pod, error) {
	var p pod
	err := s.Get(s.ctx, &p, "-n", s.name, "pod", name)
	return p, err
}

// saveLogs copies the logs to dist/e2e-logs.
func (s *setup) saveLogs(ctx context.Context) {
	to := filepath.Join(repository, "dist", "e2e-logs")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return
	}
	keep := func(name, text string) { _ = os.WriteFile(filepath.Join(to, name), []byte(text), 0o644) }
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	var list podList
	if s.Get(ctx, &list, "pods", "-n", namespace) == nil {
		for _, p := range list.Items {
			out, _ := s.Kubectl(ctx, "logs", "-n", namespace, p.Metadata.Name, "--all-containers", "--tail=20000")
			keep(p.Metadata.Name+".log", out)
		}
	}
	out, _ := s.Kubectl(ctx, "describe", "pods", "-n", namespace)
	keep("pods.txt", out)
	for _, n := range s.Nodes {
		for _, f := range []string{"kubelet.log", "containerd.log"} {
			if b, err := os.ReadFile(filepath.Join(n.Dir(), f)); err == nil {
				keep(n.Name+"-"+f, string(b))
			}
		}
	}
	fmt.Println("logs are in dist/e2e-logs")
}

// cleanupContext is for what has to be done when a test's own time is over.
func cleanupContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), time.Minute)
}
