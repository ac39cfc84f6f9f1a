package takeover

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// build makes a keelson of another version, whose engine is as told.
func build(t *testing.T, version, engine string) string {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "keelson")
	args := []string{"build", "-o", binary, "-ldflags", "-X main.version=" + version}
	if engine != "" {
		root, err := filepath.Abs("../../..")
		if err != nil {
			t.Fatal(err)
		}
		source, overlay := filepath.Join(dir, "engine.go"), filepath.Join(dir, "overlay.json")
		for path, text := range map[string]string{
			source:  engine,
			overlay: fmt.Sprintf(`{"Replace": {%q: %q}}`, filepath.Join(root, "cmd", "keelson", "engine.go"), source),
		} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		args = append(args, "-overlay", overlay)
	}
	if out, err := exec.Command("go", append(args, "../../../cmd/keelson")...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return binary
}

// brokenEngine is one that ends instead of serving.
const brokenEngine = `package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/server/fdstore"
)

func newEngineCommand(g *globalOptions) *cobra.Command {
	return newChildCommand(g, "engine", "Fail", func(context.Context, server.Config, *fdstore.Line) error {
		return errors.New("this engine is broken")
	})
}
`

func TestUpgrade(t *testing.T) {
	l := up(t, "takeover-upgrade")
	load := start(t, mounted(t, l, "1Gi"))
	load.after()
	upgrade := func(binary string) (string, error) {
		return l.Keelson(t.Context(), "n1", "server", "upgrade", "--binary", binary)
	}

	before := l.Status()[0].PIDs
	out, err := upgrade(build(t, "v9.9.9", ""))
	if err != nil || !strings.Contains(out, "v9.9.9") {
		t.Fatalf("%q, %v", out, err)
	}
	after := l.Status()[0].PIDs
	for _, name := range []string{"engine", "control", "etcd"} {
		if before[name] == after[name] {
			t.Errorf("%s wasn't replaced", name)
		}
	}
	if before["server"] != after["server"] {
		t.Errorf("the supervisor's process id was %d, now %d", before["server"], after["server"])
	}
	t.Log("upgraded, pause", load.after().Round(time.Millisecond))

	out, err = upgrade(build(t, "v9.9.10", brokenEngine))
	if err == nil || !strings.Contains(err.Error(), "runs the binary that it ran before (version v9.9.9)") || !strings.Contains(err.Error(), "engine") {
		t.Fatalf("a broken engine: %q, %v", out, err)
	}
	t.Log("rolled back, pause", load.after().Round(time.Millisecond))
	if v := keelson(t, l, "version"); !strings.Contains(v, "v9.9.9") {
		t.Errorf("the binary at the path is %s", v)
	}

	before = l.Status()[0].PIDs
	if out, err = upgrade("/bin/false"); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("no binary of keelson: %q, %v", out, err)
	}
	if after := l.Status()[0].PIDs; after["engine"] != before["engine"] {
		t.Error("the engine was replaced all the same")
	}
	load.after()
	load.end()
}
