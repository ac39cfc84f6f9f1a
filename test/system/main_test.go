package system

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	labtest.Main(m, lab.Config{
		Name: labtest.Name(""), Nodes: 3, Zones: 3, PoolSize: "20Gi",
		Settings: map[string]any{"encryption": map[string]any{"provider": "file", "keyDir": keyDir()}},
	})
}

// keyDir is where all nodes look for wrapping keys.
func keyDir() string { return filepath.Join(lab.Dir(labtest.Name("")), "keys") }

// cluster is a lab as a test sees it.
type cluster struct {
	*labtest.Cluster
}

// shared returns the shared lab, whole: all nodes up, none cut off, and as few volumes as before the test
// when it ends.
func shared(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{labtest.Shared(t)}
	c.mend()
	t.Cleanup(func() {
		c.ShowLogs()
		c.mend()
		c.sweep()
	})
	return c
}

// in is the same lab as a part of the test sees it.
func (c *cluster) in(t *testing.T) *cluster { return &cluster{labtest.On(t, c.Lab)} }

// mend undoes what a test did to the nodes, and waits until the cluster knows.
func (c *cluster) mend() {
	c.T.Helper()
	for _, n := range c.Nodes() {
		if err := errors.Join(c.Heal(n), c.Start(n)); err != nil {
			c.T.Fatalf("%s: %v", n, err)
		}
	}
	c.Eventually(60*time.Second, "all nodes are alive", func() error {
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
			c.T.Logf("sweep: %v", err)
		}
		if _, err := c.Keelson(c.ctx(), "n1", "volume", "delete", v.Name); err != nil {
			c.T.Errorf("volume %s can't be deleted when the test ends: %v", v.Name, err)
		}
	}
}

func (c *cluster) ctx() context.Context { return c.Ctx(time.Minute) }

// keelson runs a command that must succeed.
func (c *cluster) keelson(node string, args ...string) string {
	c.T.Helper()
	out, err := c.Keelson(c.ctx(), node, args...)
	if err != nil {
		c.T.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// refused runs a command that must fail with that exit code, in a message that has all the words.
func (c *cluster) refused(code int, words []string, node string, args ...string) {
	c.T.Helper()
	_, err := c.Keelson(c.ctx(), node, args...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		c.T.Errorf("keelson %s: %v; it should have been refused", strings.Join(args, " "), err)
		return
	}
	_, msg, _ := strings.Cut(err.Error(), "exit status ")
	if exit.ExitCode() != code {
		c.T.Errorf("keelson %s: exit code %d, want %d: %s", strings.Join(args, " "), exit.ExitCode(), code, msg)
	}
	for _, w := range words {
		if !strings.Contains(strings.ToLower(msg), strings.ToLower(w)) {
			c.T.Errorf("keelson %s: the message doesn't say %q: %s", strings.Join(args, " "), w, msg)
		}
	}
}

// shell runs a line of shell on a node; it must succeed.
func (c *cluster) shell(node, line string) string {
	c.T.Helper()
	out, err := c.tryShell(node, line)
	if err != nil {
		c.T.Fatalf("on %s: %s: %v: %s", node, line, err, out)
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
