package maintenance

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

// labName is the lab's: KEELSON_LAB with a suffix, so that two runs on one machine don't wait for each other.
var labName = cmp.Or(os.Getenv("KEELSON_LAB"), "system") + "-m"

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
		fmt.Fprintln(os.Stderr, "maintenance:", err)
		return 1
	}
	defer func() {
		if err := down(); err != nil {
			fmt.Fprintln(os.Stderr, "maintenance: the lab can't be removed:", err)
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
	b := "../../../bin/keelson"
	out, err := exec.Command("go", "build", "-trimpath", "-o", b, "../../../cmd/keelson").CombinedOutput()
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
	return lab.Up(ctx, lab.Config{Name: labName, Binary: b, Nodes: 4, Zones: 1, PoolSize: "2Gi"})
})

// cluster is the lab as a test sees it.
type cluster struct {
	*lab.Lab
	t *testing.T
}

// member is a copy of a volume.
type member struct {
	Node     string `json:"node"`
	Pool     string `json:"pool"`
	State    string `json:"state"`
	Removing bool   `json:"removing"`
}

// volume is what the commands say of one.
type volume struct {
	Name    string `json:"name"`
	Size    int64  `json:"size"`
	Health  string `json:"health"`
	Columns []struct {
		Members []member `json:"members"`
	} `json:"columns"`
}

// poolState is what the commands say of a pool.
type poolState struct {
	ID       string `json:"id"`
	Node     string `json:"node"`
	Capacity int64  `json:"capacity"`
	Replicas int    `json:"replicas"`
}

func up(t *testing.T) *cluster {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: runs daemons in namespaces")
	}
	l, err := theLab()
	if err != nil {
		t.Fatalf("the lab doesn't come up: %v", err)
	}
	c := &cluster{l, t}
	t.Cleanup(func() {
		if t.Failed() {
			c.showLogs()
		}
	})
	return c
}

func (c *cluster) showLogs() {
	for _, n := range c.Nodes() {
		b, err := os.ReadFile(filepath.Join(c.NodeDir(n), "server.log"))
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(b)), "\n")
		c.t.Logf("log of %s:\n%s", n, strings.Join(lines[max(0, len(lines)-30):], "\n"))
	}
}

func (c *cluster) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	c.t.Cleanup(cancel)
	return ctx
}

// keelson runs a command that must succeed. The API may be away for a moment, as processes are killed: then it is repeated.
func (c *cluster) keelson(args ...string) string {
	c.t.Helper()
	var out string
	c.eventually(time.Minute, "keelson "+strings.Join(args, " "), func() (err error) {
		out, err = c.Keelson(c.ctx(), "n1", args...)
		return err
	})
	return strings.TrimSpace(out)
}

// refused runs a command that must fail, in a message that has all the words.
func (c *cluster) refused(words []string, args ...string) {
	c.t.Helper()
	_, err := c.Keelson(c.ctx(), "n1", args...)
	if err == nil {
		c.t.Errorf("keelson %s should have been refused", strings.Join(args, " "))
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			c.t.Errorf("keelson %s: the message doesn't say %q: %v", strings.Join(args, " "), w, err)
		}
	}
}

func (c *cluster) volume(name string) (v volume, err error) {
	err = c.JSON(c.ctx(), "n1", &v, "volume", "show", name)
	return v, err
}

// whole waits until a volume has copies on exactly these nodes, all in sync.
func (c *cluster) whole(name string, nodes ...string) {
	c.t.Helper()
	c.eventually(2*time.Minute, fmt.Sprintf("volume %s has its copies on %v", name, nodes), func() error {
		v, err := c.volume(name)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, m := range v.Columns[0].Members {
			if m.Removing || m.State != "InSync" {
				return fmt.Errorf("%+v", m)
			}
			have[m.Node] = true
		}
		for _, n := range nodes {
			if !have[n] {
				return fmt.Errorf("%v", v.Columns[0].Members)
			}
		}
		if len(have) != len(nodes) {
			return fmt.Errorf("%v", v.Columns[0].Members)
		}
		return nil
	})
}

func (c *cluster) pools(node string) (ids []string) {
	c.t.Helper()
	var list []poolState
	c.eventually(time.Minute, "the pools can be listed", func() error { return c.JSON(c.ctx(), "n1", &list, "pool", "list") })
	for _, p := range list {
		if p.Node == node {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// kill kills a process of a node, which its supervisor starts again.
func (c *cluster) kill(node, process string) {
	c.t.Helper()
	if err := c.KillProcess(node, process); err != nil {
		c.t.Logf("kill %s of %s: %v", process, node, err) // it is being started
	}
}

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
