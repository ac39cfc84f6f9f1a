package maintenance

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
)

func TestMain(m *testing.M) {
	labtest.Main(m, lab.Config{Name: labtest.Name("-m"), Nodes: 4, Zones: 1, PoolSize: "2Gi"})
}

// cluster is the lab as a test sees it.
type cluster struct {
	*labtest.Cluster
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
	c := &cluster{labtest.Shared(t)}
	t.Cleanup(c.ShowLogs)
	return c
}

func (c *cluster) ctx() context.Context { return c.Ctx(2 * time.Minute) }

// keelson runs a command that must succeed. The API may be away for a moment, as processes are killed: then it is repeated.
func (c *cluster) keelson(args ...string) string {
	c.T.Helper()
	var out string
	c.Eventually(time.Minute, "keelson "+strings.Join(args, " "), func() (err error) {
		out, err = c.Keelson(c.ctx(), "n1", args...)
		return err
	})
	return strings.TrimSpace(out)
}

// refused runs a command that must fail, in a message that has all the words.
func (c *cluster) refused(words []string, args ...string) {
	c.T.Helper()
	_, err := c.Keelson(c.ctx(), "n1", args...)
	if err == nil {
		c.T.Errorf("keelson %s should have been refused", strings.Join(args, " "))
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			c.T.Errorf("keelson %s: the message doesn't say %q: %v", strings.Join(args, " "), w, err)
		}
	}
}

func (c *cluster) volume(name string) (v volume, err error) {
	err = c.JSON(c.ctx(), "n1", &v, "volume", "show", name)
	return v, err
}

// whole waits until a volume has copies on exactly these nodes, all in sync.
func (c *cluster) whole(name string, nodes ...string) {
	c.T.Helper()
	c.Eventually(2*time.Minute, fmt.Sprintf("volume %s has its copies on %v", name, nodes), func() error {
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
	c.T.Helper()
	var list []poolState
	c.Eventually(time.Minute, "the pools can be listed", func() error { return c.JSON(c.ctx(), "n1", &list, "pool", "list") })
	for _, p := range list {
		if p.Node == node {
			ids = append(ids, p.ID)
		}
	}
	return ids
}

// kill kills a process of a node, which its supervisor starts again.
func (c *cluster) kill(node, process string) {
	c.T.Helper()
	if err := c.KillProcess(node, process); err != nil {
		c.T.Logf("kill %s of %s: %v", process, node, err) // it is being started
	}
}
