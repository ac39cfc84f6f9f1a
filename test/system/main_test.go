package system

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
)

// labName is the shared lab's: KEELSON_LAB, so that two runs on one machine don't wait for each other.
var labName = cmp.Or(os.Getenv("KEELSON_LAB"), "system")

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run()) // every test says why it is skipped
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	lock, err := os.OpenFile("/run/keelson-"+labName+"-test.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err == nil {
		defer lock.Close()
		err = down() // of a run that was killed
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "system:", err)
		return 1
	}
	defer func() {
		if code != 0 && os.Getenv("KEELSON_KEEP") != "" {
			fmt.Fprintf(os.Stderr, "system: the lab is left: keelson lab --name %s status\n", labName)
			return
		}
		if err := down(); err != nil {
			fmt.Fprintln(os.Stderr, "system: the lab can't be removed:", err)
			code = 1
		}
	}()
	return m.Run()
}

func down() error {
	if err := lab.Down(labName, lab.Dir(labName)); err != nil && !errors.Is(err, lab.ErrNoLab) {
		return err
	}
	return nil
}

// program is the path of the program under test.
var program = sync.OnceValues(func() (string, error) {
	if b := os.Getenv("KEELSON_BIN"); b != "" {
		return b, nil
	}
	b := "../../bin/keelson"
	out, err := exec.Command("go", "build", "-trimpath", "-o", b, "../../cmd/keelson").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return filepath.Abs(b)
})

var theLab = sync.OnceValues(func() (*lab.Lab, error) {
	b, err := program()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return lab.Up(ctx, lab.Config{Name: labName, Binary: b, Nodes: 3, Zones: 3, PoolSize: "20Gi"})
})

// cluster is the shared lab as a test sees it.
type cluster struct {
	*lab.Lab
	t *testing.T
}

// shared returns the shared lab, whole: all nodes up, none cut off, and as few volumes as before the test
// when it ends.
func shared(t *testing.T) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs daemons in namespaces")
	}
	l, err := theLab()
	if err != nil {
		t.Fatalf("the lab doesn't come up: %v", err)
	}
	c := &cluster{l, t}
	c.mend()
	t.Cleanup(func() {
		if t.Failed() {
			c.showLogs()
		}
		c.mend()
		c.sweep()
	})
	return c
}

// mend undoes what a test did to the nodes, and waits until the cluster knows.
func (c *cluster) mend() {
	c.t.Helper()
	for _, n := range c.Nodes() {
		if err := errors.Join(c.Heal(n), c.Start(n)); err != nil {
			c.t.Fatalf("%s: %v", n, err)
		}
	}
	c.eventually(60*time.Second, "all nodes are alive", func() error {
		for _, asked := range c.Nodes() {
			var nodes []struct {
				Name  string `json:"name"`
				Alive bool   `json:"alive"`
			}
			if err := c.JSON(c.ctx(), asked, &nodes, "node", "list"); err != nil {
				return err
			}
			for _, n := range nodes {
				if !n.Alive {
					return fmt.Errorf("%s says that %s is not alive", asked, n.Name)
				}
			}
		}
		return nil
	})
}

// sweep deletes the volumes that a failed test left.
func (c *cluster) sweep() {
	for _, v := range c.volumes() {
		if _, err := c.Keelson(c.ctx(), "n1", "volume", "detach", v.Name); err != nil {
			c.t.Logf("sweep: %v", err)
		}
		if _, err := c.Keelson(c.ctx(), "n1", "volume", "delete", v.Name); err != nil {
			c.t.Errorf("volume %s can't be deleted when the test ends: %v", v.Name, err)
		}
	}
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	c.t.Cleanup(cancel)
	return ctx
}

// showLogs prints the end of every node's log.
func (c *cluster) showLogs() {
	for _, n := range c.Nodes() {
		b, err := os.ReadFile(filepath.Join(c.NodeDir(n), "server.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		c.t.Logf("log of %s:\n%s", n, strings.Join(lines[max(0, len(lines)-25):], "\n"))
	}
}

// keelson runs a command that must succeed.
func (c *cluster) keelson(node string, args ...string) string {
	c.t.Helper()
	out, err := c.Keelson(c.ctx(), node, args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// refused runs a command that must fail with that exit code, in a message that has all the words.
func (c *cluster) refused(code int, words []string, node string, args ...string) {
	c.t.Helper()
	_, err := c.Keelson(c.ctx(), node, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		c.t.Errorf("keelson %s: %v; it should have been refused", strings.Join(args, " "), err)
		return
	}
	_, msg, _ := strings.Cut(err.Error(), "exit status ")
	if exit.ExitCode() != code {
		c.t.Errorf("keelson %s: exit code %d, want %d: %s", strings.Join(args, " "), exit.ExitCode(), code, msg)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(msg), strings.ToLower(w)) {
			c.t.Errorf("keelson %s: the message doesn't say %q: %s", strings.Join(args, " "), w, msg)
		}
	}
}

// shell runs a line of shell on a node; it must succeed.
func (c *cluster) shell(node, line string) string {
	c.t.Helper()
	out, err := c.tryShell(node, line)
	if err != nil {
		c.t.Fatalf("on %s: %s: %v: %s", node, line, err, out)
	}
	return strings.TrimSpace(out)
}

func (c *cluster) tryShell(node, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd, err := c.Command(ctx, node, "sh", "-c", line)
	if err != nil {
		return "", err
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// eventually waits until ask finds nothing wrong.
func (c *cluster) eventually(limit time.Duration, what string, ask func() error) {
	c.t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(100 * time.Millisecond) {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("not within %v: %s: %v", limit, what, err)
		}
	}
}
