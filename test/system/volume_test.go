package system

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

type member struct {
	Replica     string `json:"replica"`
	Node        string `json:"node"`
	Pool        string `json:"pool"`
	State       string `json:"state"`
	Reason      string `json:"reason"`
	Removing    bool   `json:"removing"`
	Alive       bool   `json:"alive"`
	ResyncDone  int64  `json:"resyncDone"`
	ResyncTotal int64  `json:"resyncTotal"`
}

type volume struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	Size      int64  `json:"size"`
	Node      string `json:"node"`
	Device    string `json:"device"`
	Frontend  string `json:"frontend"`
	Term      uint64 `json:"term"`
	Health    string `json:"health"`
	Condition string `json:"condition"`
	Columns   []struct {
		Members []member `json:"members"`
	} `json:"columns"`
}

func (v volume) members() []member {
	var out []member
	for _, c := range v.Columns {
		out = append(out, c.Members...)
	}
	return out
}

func (v volume) nodes() []string {
	var out []string
	for _, m := range v.members() {
		out = append(out, m.Node)
	}
	return out
}

func (v volume) String() string {
	s := fmt.Sprintf("%s %s %q on %q term %d:", v.Name, v.Health, v.Condition, v.Node, v.Term)
	for _, m := range v.members() {
		s += fmt.Sprintf(" %s=%s", m.Node, m.State)
	}
	return s
}

func (c *cluster) volumes() []volume {
	c.T.Helper()
	var out []volume
	if err := c.JSON(c.ctx(), "n1", &out, "volume", "list"); err != nil {
		c.T.Fatal(err)
	}
	return out
}

func (c *cluster) volume(asked, name string) volume {
	c.T.Helper()
	v, err := c.tryVolume(asked, name)
	if err != nil {
		c.T.Fatal(err)
	}
	return v
}

func (c *cluster) tryVolume(asked, name string) (volume, error) {
	var v volume
	err := c.JSON(c.ctx(), asked, &v, "volume", "show", name)
	return v, err
}

// create makes a volume; asked for nothing else it has 1 GiB and two copies.
func (c *cluster) create(name string, args ...string) volume {
	c.T.Helper()
	if !slices.Contains(args, "--size") {
		args = append(args, "--size", "1Gi")
	}
	c.keelson("n1", append([]string{"volume", "create", name}, args...)...)
	return c.volume("n1", name)
}

// attach attaches a volume and returns its device, or the URI of its socket.
func (c *cluster) attach(node, name, frontend string) string {
	c.T.Helper()
	dev := c.keelson(node, "volume", "attach", name, "--frontend", frontend)
	path := dev
	if frontend == "nbd" {
		_, path, _ = strings.Cut(dev, "?socket=")
	}
	if _, err := os.Stat(path); err != nil {
		c.T.Fatalf("attach of %s on %s printed %q: %v", name, node, dev, err)
	}
	return dev
}

// remove detaches and deletes.
func (c *cluster) remove(node, name string) {
	c.T.Helper()
	c.keelson(node, "volume", "detach", name)
	c.keelson(node, "volume", "delete", name)
}

func (c *cluster) awaitHealthy(asked, name string, limit time.Duration) volume {
	c.T.Helper()
	var v volume
	c.Eventually(limit, name+" is healthy", func() error {
		var err error
		v, err = c.tryVolume(asked, name)
		if err == nil && v.Health != "Healthy" {
			err = errors.New(v.String())
		}
		return err
	})
	return v
}

// deviceSize asks the kernel, in bytes.
func (c *cluster) deviceSize(dev string) int64 {
	c.T.Helper()
	n, err := strconv.ParseInt(c.shell("n1", "blockdev --getsize64 "+dev), 10, 64)
	if err != nil {
		c.T.Fatal(err)
	}
	return n
}
