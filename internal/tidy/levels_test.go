package tidy

import (
	"go/parser"
	"go/token"
	"path"
	"strconv"
	"strings"
	"testing"
)

const module = "keelson.io/keelson"

// levels are the rooms below internal/, lowest first. A package imports only rooms of lower
// levels, and packages of its own room. docs/design/architecture.md draws the same table.
var levels = [][]string{
	{"block", "invariant"},
	{"spec"},
	{"place", "repl", "qos"},
	{"aio", "bundle", "doctor", "kubeview", "imagecopy", "meta", "pki", "seal", "wire", "objstore"},
	{"pool", "replica", "volume", "link", "frontend", "reconcile"},
	{"engine", "api", "csi", "install", "kube", "web"},
	{"server", "lab", "tidy"},
}

// levelOf returns the room of a package below the module's root, and its level. cmd and test
// stand above all.
func levelOf(pkg string) (room string, level int, ok bool) {
	parts := strings.Split(pkg, "/")
	if parts[0] != "internal" || len(parts) < 2 {
		return parts[0], len(levels), true
	}
	for l, rooms := range levels {
		for _, r := range rooms {
			if r == parts[1] {
				return r, l, true
			}
		}
	}
	return parts[1], 0, false
}

func TestImportsPointToLowerLevels(t *testing.T) {
	for _, f := range goFiles(t) {
		pkg := path.Dir(f.path)
		room, level, ok := levelOf(pkg)
		if !ok {
			t.Errorf("%s: room %q stands on no level: add it to the table in internal/tidy and docs/design/architecture.md", f.path, room)
			continue
		}
		if f.isTest() {
			continue
		}
		for _, imp := range imports(t, f) {
			target, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			other, otherLevel, ok := levelOf(target)
			switch {
			case !ok || other == room && room != "cmd" && room != "test":
			case strings.HasPrefix(target, "cmd/"):
				t.Errorf("%s imports %s: nothing imports a command", f.path, target)
			case strings.HasPrefix(target, "test/") && !strings.HasPrefix(pkg, "test/"):
				t.Errorf("%s imports %s: what ships doesn't import tests", f.path, target)
			case otherLevel == level && level == len(levels):
			case otherLevel >= level:
				t.Errorf("%s (level %d) imports %s (level %d): imports point only to lower levels; declare the interface where it is needed",
					f.path, level, target, otherLevel)
			}
		}
	}
}

// pure packages do no I/O, start no goroutine and don't read the clock.
var pure = []string{"internal/spec", "internal/block", "internal/place", "internal/repl", "internal/qos"}

var impureImports = map[string]string{
	"os": "I/O", "net": "I/O", "net/http": "I/O", "os/exec": "I/O", "syscall": "I/O", "golang.org/x/sys/unix": "I/O",
	"sync": "goroutines", "log/slog": "I/O", "math/rand": "chance", "math/rand/v2": "chance",
}

func TestPurePackagesStayPure(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.isTest() || !in(pure, path.Dir(f.path)) {
			continue
		}
		for _, imp := range imports(t, f) {
			if why, bad := impureImports[imp]; bad {
				t.Errorf("%s imports %s (%s): the package is pure: its caller passes time, chance and data in", f.path, imp, why)
			}
		}
		for n, line := range strings.Split(f.text, "\n") {
			if strings.Contains(line, "time.Now(") || strings.HasPrefix(strings.TrimSpace(line), "go func") {
				t.Errorf("%s:%d: %s: the package is pure: no clock, no goroutine", f.path, n+1, strings.TrimSpace(line))
			}
		}
	}
}

// withoutClock are the packages that decide what is acknowledged, fenced and served. They know the loop's monotonic time alone: a
// machine's clock that is wrong, or is set, can't lose data.
var withoutClock = []string{"internal/repl", "internal/wire", "internal/link", "internal/replica", "internal/volume"}

func TestDataPathHasNoClock(t *testing.T) {
	for _, f := range goFiles(t) {
		if f.isTest() || !in(withoutClock, path.Dir(f.path)) {
			continue
		}
		for n, line := range strings.Split(f.text, "\n") {
			for _, call := range []string{"time.Now(", "time.Since(", "time.Until(", "ClockGettime("} {
				if strings.Contains(line, call) {
					t.Errorf("%s:%d: %s: the data path reads no clock but the loop's", f.path, n+1, strings.TrimSpace(line))
				}
			}
		}
	}
}

func imports(t *testing.T, f file) []string {
	t.Helper()
	ast, err := parser.ParseFile(token.NewFileSet(), f.path, f.text, parser.ImportsOnly)
	if err != nil {
		t.Errorf("%s: %v", f.path, err)
		return nil
	}
	var out []string
	for _, i := range ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err != nil {
			t.Errorf("%s: import %s: %v", f.path, i.Path.Value, err)
			continue
		}
		out = append(out, p)
	}
	return out
}

func in(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
