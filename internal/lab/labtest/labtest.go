// Package labtest is what tests on a lab begin with: a lab that the tests of one package have in common, labs of one test, and a
// Cluster that ends the test when something is wrong. It is imported by tests only.
//
// KEELSON_BIN is the program under test; without it, it is built into bin/. KEELSON_LAB is what the names of labs that tests have in
// common begin with, so that two runs on one machine don't wait for each other; runs with the same names do. KEELSON_KEEP leaves the
// common lab when a test has failed.
//
// The package owns no goroutine. Labs aren't for several tests at the same time.
package labtest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
)

// limit is how long a lab may take to come up.
const limit = 3 * time.Minute

// common is the lab that the tests of this process have in common. Main sets it, before any test runs.
var common lab.Config

// Name is that of a lab, with a suffix that says whose it is.
func Name(suffix string) string {
	return cmp.Or(os.Getenv("KEELSON_LAB"), "system") + suffix
}

// Main is a TestMain. Shared is a lab of that configuration, which the first test that asks brings up and Main removes. Main ends
// the process.
func Main(m *testing.M, cfg lab.Config) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // every test says why it is skipped
	}
	common = cfg
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	name := common.Name
	lock, err := os.OpenFile("/run/keelson-"+name+"-test.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		defer lock.Close()
		err = down(name) // of a run that was killed
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "lab %s: %v\n", name, err)
		return 1
	}
	defer func() {
		if code != 0 && os.Getenv("KEELSON_KEEP") != "" {
			fmt.Fprintf(os.Stderr, "the lab is left: keelson lab --name %s status\n", name)
			return
		}
		if err := down(name); err != nil {
			fmt.Fprintf(os.Stderr, "lab %s can't be removed: %v\n", name, err)
			code = 1
		}
	}()
	return m.Run()
}

// down removes the lab of that name, if there is one.
func down(name string) error {
	if err := lab.Down(name, lab.Dir(name)); err != nil && !errors.Is(err, lab.ErrNoLab) {
		return err
	}
	return nil
}

// program is the path of the program under test.
var program = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("KEELSON_BIN"); b != "" {
		return b, nil
	}
	root, err := filepath.Abs(".")
	for ; err == nil; root = filepath.Dir(root) {
		if _, missing := os.Stat(filepath.Join(root, "go.mod")); missing == nil {
			break
		}
		if root == filepath.Dir(root) {
			err = errors.New("no go.mod in any directory above: set KEELSON_BIN")
		}
	}
	if err != nil {
		return "", err
	}
	b := filepath.Join(root, "bin", "keelson")
	build := exec.Command("go", "build", "-trimpath", "-o", b, "./cmd/keelson")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return b, nil
})

// bringUp makes a lab that runs the program under test, unless the configuration names another. With an error there may be a lab
// all the same, of which a part runs.
func bringUp(cfg lab.Config) (*lab.Lab, error) {
	if cfg.Binary == "" {
		b, err := program()
		if err != nil {
			return nil, err
		}
		cfg.Binary = b
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return lab.Up(ctx, cfg)
}

var theLab = sync.OnceValues(func() (*lab.Lab, error) { return bringUp(common) })

// Shared returns the lab that the tests have in common, as the last one left it.
func Shared(t *testing.T) *Cluster {
	t.Helper()
	NeedRoot(t)
	l, err := theLab()
	if err != nil {
		t.Fatalf("the lab doesn't come up: %v", err)
	}
	return On(t, l)
}

// Up returns a lab of the test's own, which is removed when the test ends; the end of its logs is shown if the test has failed.
func Up(t *testing.T, cfg lab.Config) *Cluster {
	t.Helper()
	NeedRoot(t)
	if err := down(cfg.Name); err != nil { // of a run that was killed
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := down(cfg.Name); err != nil {
			t.Error(err)
		}
	})
	l, err := bringUp(cfg)
	c := On(t, l)
	if l != nil {
		t.Cleanup(c.ShowLogs)
	}
	if err != nil {
		t.Fatalf("the lab doesn't come up: %v", err)
	}
	return c
}

// NeedRoot skips the test if it can't make a lab.
func NeedRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs daemons in namespaces")
	}
}
