package kubetest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"keelson.io/keelson/hack/kube/binaries"
)

// ending is a test that notes how it ends.
type ending struct {
	testing.TB
	how string
}

func (e *ending) Helper() {}

func (e *ending) Skipf(format string, args ...any) {
	e.how = "skip: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (e *ending) Fatalf(format string, args ...any) {
	e.how = "fail: " + fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func ask(t *testing.T, name string) (path, how string) {
	t.Helper()
	e, done := &ending{TB: t}, make(chan struct{})
	go func() {
		defer close(done)
		path = Program(e, name)
	}()
	<-done
	return path, e.how
}

// TestProgram: another version doesn't stand in for the one that is tested with.
func TestProgram(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	cache, err := binaries.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(cache, "bin")
	add := func(name string) string {
		t.Helper()
		path := filepath.Join(bin, name)
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	add("kubectl-v0.1.0")
	add("kubectl-v9.9.9")
	if path, how := ask(t, "kubectl"); path != "" || !strings.HasPrefix(how, "skip: kubectl ") || !strings.Contains(how, "`go run ./hack/kube` builds it") {
		t.Errorf("with other versions: %q, %q", path, how)
	}
	want := add("kubectl-" + binaries.KubernetesVersion)
	if path, how := ask(t, "kubectl"); path != want || how != "" {
		t.Errorf("%q, %q; want %q", path, how, want)
	}
	if path, how := ask(t, "kubecutl"); path != "" || !strings.HasPrefix(how, "fail: ") {
		t.Errorf("a name that nothing builds: %q, %q", path, how)
	}
}
