// Package kubetest has what tests with real programs of Kubernetes share: where the programs are that package binaries builds, how one
// runs until its test ends, and an API server with an etcd of its own. For tests only.
//
// What is started for a test ends with it, and with the test's process if that is killed. Goroutines: none, but those of os/exec that
// collect a program's output, which end with the program.
package kubetest

import (
	"bytes"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"keelson.io/keelson/hack/kube/binaries"
)

// Program returns the path of a program of Kubernetes, of the version that package binaries names. The test is skipped where it hasn't
// been built, and fails for a name that nothing builds.
func Program(t testing.TB, name string) string {
	t.Helper()
	cache, err := binaries.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	have, missing := binaries.Find(cache)
	switch {
	case have[name] != "":
	case slices.Contains(missing, name):
		t.Skipf("%s isn't in %s in the version that is tested with: `go run ./hack/kube` builds it", name, cache)
	default:
		t.Fatalf("%v: %s", binaries.ErrUnknown, name)
	}
	return have[name]
}

// Run runs a program until the test ends. The end of its output is shown if the test fails.
func Run(t testing.TB, path string, args ...string) {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			text := out.String()
			t.Logf("%s:\n%s", filepath.Base(path), text[max(0, len(text)-4000):])
		}
	})
}

// FreePort returns a TCP port of 127.0.0.1 on which nobody listens now.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
