package system

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// lies reports whether a volume's copies lie on the nodes, and nothing is on its way.
func (v volume) lies(nodes ...string) bool {
	var have []string
	for _, m := range v.members() {
		have = append(have, m.Node)
	}
	slices.Sort(have)
	slices.Sort(nodes)
	return slices.Equal(have, nodes) && v.Health == "Healthy"
}

// A clone on other nodes can be used at once, while its copies move there, and the engine of the node that has it is killed; its origin isn't
// touched, and is deleted before the copies have moved.
func TestCloneElsewhere(t *testing.T) {
	c := shared(t)
	w, dev, holder, other, third := c.spread("far")
	before := c.content(holder, dev)
	c.keelson(holder, "settings", "set", "rebuild-bandwidth", "10Mi")
	defer c.keelson(holder, "settings", "set", "rebuild-bandwidth", "200Mi")
	c.refused(6, []string{"far-copy", "node " + holder, "topology"}, "n1", "volume", "create", "far-copy", "--from-volume", "far", "--nodes", third)
	c.refused(3, []string{"no volume"}, "n1", "volume", "show", "far-copy")

	out := c.keelson("n1", "volume", "create", "far-copy", "--from-volume", "far", "--nodes", other+","+third)
	if !strings.Contains(out, "1 of 2 copies are still to move") {
		t.Errorf("the command says %q", out)
	}
	copied := c.attach(third, "far-copy", "fuse")
	if got := c.content(third, copied); got != before {
		t.Error("the clone isn't what its origin held")
	}
	w.start(copied)
	if text := c.keelson("n1", "volume", "show", "far-copy"); !strings.Contains(text, "copies are still to move") {
		t.Errorf("the copies have moved already, at 10 MiB/s:\n%s", text)
	}
	if got := c.content(holder, dev); got != before {
		t.Error("what is written to the clone is in its origin")
	}
	c.remove(holder, "far")
	if err := c.KillProcess(third, "engine"); err != nil {
		t.Fatal(err)
	}
	c.keelson(holder, "settings", "set", "rebuild-bandwidth", "200Mi")
	c.Eventually(60*time.Second, "the clone's copies are on "+other+" and "+third, func() error {
		v, err := c.tryVolume("n1", "far-copy")
		if err == nil && !v.lies(other, third) {
			err = fmt.Errorf("%s", v)
		}
		return err
	})
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.verify(copied)
	c.Eventually(10*time.Second, "the wish is gone", func() error {
		if text := c.keelson("n1", "volume", "show", "far-copy"); strings.Contains(text, "still to move") {
			return fmt.Errorf("%s", text)
		}
		return nil
	})
	c.remove(third, "far-copy")
	c.wantNoReplicas()
}
