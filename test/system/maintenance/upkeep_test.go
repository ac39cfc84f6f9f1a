package maintenance

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const (
	mib     = 1 << 20
	process = "engine"
)

// TestGrowthUnderKills grows a volume again and again while it is written to, and kills an engine or a control process in the
// middle of each growth.
func TestGrowthUnderKills(t *testing.T) {
	c := up(t)
	c.keelson("volume", "create", "grow", "--size", "64Mi")
	t.Cleanup(func() { c.keelson("volume", "delete", "grow") })
	device := c.keelson("volume", "attach", "grow", "--node", "n1")
	t.Cleanup(func() { c.keelson("volume", "detach", "grow") })
	l := startLoad(t, device, 64*mib)
	size := int64(64 * mib)
	for i, victim := range []string{"n1", "n2", "n1", "n2", "n3", "n1"} {
		size += 10*mib + 4096*int64(i)
		c.keelson("volume", "resize", "grow", fmt.Sprint(size), "--wait", "0")
		time.Sleep(time.Duration(i*40) * time.Millisecond) // at another step each time
		if i%2 == 0 {
			c.kill(victim, "engine")
		} else {
			c.kill(victim, "control")
		}
		c.Eventually(time.Minute, fmt.Sprintf("volume and device have %d bytes", size), func() error {
			v, err := c.volume("grow")
			if err != nil || v.Size != size {
				return fmt.Errorf("volume: %d bytes, %w", v.Size, errors.Join(err, errSize))
			}
			f, err := os.Open(device)
			if err != nil {
				return err
			}
			defer f.Close()
			if n, err := f.Seek(0, 2); err != nil || n != size {
				return fmt.Errorf("device: %d bytes, %w", n, errors.Join(err, errSize))
			}
			return nil
		})
		l.blocks.Store(size / blockSize)
	}
	c.refused([]string{"size", "can't be made smaller", fmt.Sprint(size)}, "volume", "resize", "grow", "64Mi")
	c.refused([]string{"overcommit"}, "volume", "resize", "grow", "60Ti")
	c.refused([]string{"4096"}, "volume", "resize", "grow", fmt.Sprint(size+1))
	l.end()
}

var (
	errSize    = errors.New("not the size that was asked for")
	errRefused = errors.New("not refused")
)

// TestGrowthWithANodeAway grows a volume while a node that has a copy is down: what was in sync grows, and the other copy before
// it is brought up to date.
func TestGrowthWithANodeAway(t *testing.T) {
	c := up(t)
	c.keelson("volume", "create", "away", "--size", "64Mi")
	t.Cleanup(func() { c.keelson("volume", "delete", "away") })
	c.keelson("volume", "set", "away", "--replicas", "4")
	c.whole("away", "n1", "n2", "n3", "n4")
	device := c.keelson("volume", "attach", "away", "--node", "n1")
	t.Cleanup(func() { c.keelson("volume", "detach", "away") })
	l := startLoad(t, device, 64*mib)
	if err := c.Kill("n4"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Start("n4"); err != nil {
			t.Error(err)
		}
	})
	c.keelson("volume", "resize", "away", "128Mi", "--wait", "1m")
	l.blocks.Store(128 * mib / blockSize)
	time.Sleep(time.Second) // for writes to the new range that the absent copy misses
	if err := c.Start("n4"); err != nil {
		t.Fatal(err)
	}
	c.whole("away", "n1", "n2", "n3", "n4")
	// The copy that was away is the only one that is left, and has everything.
	c.keelson("volume", "set", "away", "--replicas", "1")
	c.Eventually(time.Minute, "one copy", func() error {
		v, err := c.volume("away")
		if err == nil && len(v.Columns[0].Members) != 1 {
			err = fmt.Errorf("%v", v.Columns[0].Members)
		}
		return err
	})
	if v, err := c.volume("away"); err != nil || v.Columns[0].Members[0].Node != "n4" {
		c.keelson("volume", "move", "away", "--from", v.Columns[0].Members[0].Node, "--to", "n4", "--wait", "1m")
	}
	l.end()
}

// TestMovesUnderKills moves the copies of a volume around, changes their number, drains a pool and loses another, under load, and kills
// an engine in the middle.
func TestMovesUnderKills(t *testing.T) {
	c := up(t)
	c.keelson("volume", "create", "move", "--size", "256Mi")
	t.Cleanup(func() { c.keelson("volume", "delete", "move") })
	v, err := c.volume("move")
	if err != nil {
		t.Fatal(err)
	}
	a, b := v.Columns[0].Members[0].Node, v.Columns[0].Members[1].Node
	var free []string
	for _, n := range c.Nodes() {
		if n != a && n != b {
			free = append(free, n)
		}
	}
	device := c.keelson("volume", "attach", "move", "--node", "n1")
	t.Cleanup(func() { c.keelson("volume", "detach", "move") })
	l := startLoad(t, device, 256*mib)

	c.keelson("volume", "move", "move", "--from", a, "--to", free[0], "--wait", "0")
	c.kill(free[0], process)
	c.whole("move", b, free[0])
	c.keelson("volume", "set", "move", "--replicas", "3")
	c.kill(b, process)
	c.Eventually(2*time.Minute, "three copies", func() error {
		v, err := c.volume("move")
		if err == nil && (len(v.Columns[0].Members) != 3 || v.Health != "Healthy") {
			err = fmt.Errorf("%s: %v", v.Health, v.Columns[0].Members)
		}
		return err
	})
	c.keelson("volume", "set", "move", "--replicas", "2")
	c.Eventually(2*time.Minute, "two copies", func() error {
		v, err := c.volume("move")
		if err == nil && (len(v.Columns[0].Members) != 2 || v.Health != "Healthy") {
			err = fmt.Errorf("%s: %v", v.Health, v.Columns[0].Members)
		}
		return err
	})
	v, err = c.volume("move")
	if err != nil {
		t.Fatal(err)
	}
	m := v.Columns[0].Members

	// A pool is drained, removed, and made anew.
	c.refused([]string{"move", "pool drain"}, "pool", "remove", m[0].Pool)
	c.keelson("pool", "drain", m[0].Pool, "--wait", "0")
	c.kill("n1", "control")
	c.keelson("pool", "drain", m[0].Pool, "--wait", "2m")
	c.keelson("pool", "remove", m[0].Pool)
	if left := c.pools(m[0].Node); len(left) > 0 {
		t.Errorf("pools that are left on %s: %v", m[0].Node, left)
	}
	c.keelson("pool", "add", "--node", m[0].Node, "--file", filepath.Join(c.NodeDir(m[0].Node), "pool2.img"), "--size", "2Gi")

	// Another one is lost: what was in it is built again.
	c.keelson("pool", "remove", m[1].Pool, "--lost")
	c.keelson("pool", "add", "--node", m[1].Node, "--file", filepath.Join(c.NodeDir(m[1].Node), "pool2.img"), "--size", "1Gi")
	id := c.pools(m[1].Node)[0]
	c.keelson("pool", "expand", id, "--size", "2Gi")
	c.refused([]string{"can't be made smaller"}, "pool", "expand", id, "--size", "1Gi")
	c.Eventually(2*time.Minute, "two copies again", func() error {
		v, err := c.volume("move")
		if err == nil && (len(v.Columns[0].Members) != 2 || v.Health != "Healthy") {
			err = fmt.Errorf("%s: %v", v.Health, v.Columns[0].Members)
		}
		return err
	})
	l.end()
}

// TestNodeLeaves drains a node and restarts it, and then lets it leave for good: what it had moves away, it can't come back, and
// nothing is left of Keelson on it when it was wiped.
func TestNodeLeaves(t *testing.T) {
	c := up(t)
	const leaving = "n4"
	c.keelson("volume", "create", "stay", "--size", "64Mi")
	t.Cleanup(func() { c.keelson("volume", "delete", "stay") })
	v, err := c.volume("stay")
	if err != nil {
		t.Fatal(err)
	}
	if m := v.Columns[0].Members; m[0].Node != leaving && m[1].Node != leaving {
		c.keelson("volume", "move", "stay", "--from", m[1].Node, "--to", leaving, "--wait", "1m")
	}
	device := c.keelson("volume", "attach", "stay", "--node", "n1")
	t.Cleanup(func() { c.keelson("volume", "detach", "stay") })
	l := startLoad(t, device, 64*mib)

	c.keelson("node", "drain", leaving, "--wait", "1m")
	if err := errors.Join(c.Kill(leaving), c.Start(leaving)); err != nil {
		t.Fatal(err)
	}
	c.Eventually(time.Minute, "the node is back, and still being drained", func() error {
		out, err := c.Keelson(c.ctx(), "n1", "node", "list")
		if err == nil && !strings.Contains(out, "alive,draining") {
			err = errors.New(out)
		}
		return err
	})
	c.keelson("node", "uncordon", leaving)
	c.refused([]string{leaving, "alive"}, "node", "remove", leaving)
	c.keelson("node", "decommission", leaving, "--wait", "0")
	c.kill(leaving, process)
	c.keelson("node", "decommission", leaving, "--wait", "2m")
	if err := c.Kill(leaving); err != nil {
		t.Fatal(err)
	}
	c.Eventually(30*time.Second, "the node is removed", func() error {
		_, err := c.Keelson(c.ctx(), "n1", "node", "remove", leaving)
		return err
	})
	// Started again it isn't let in.
	if err := c.Start(leaving); err != nil {
		t.Fatal(err)
	}
	c.Eventually(time.Minute, "the removed node says why it doesn't run", func() error {
		b, err := os.ReadFile(filepath.Join(c.NodeDir(leaving), "server.log"))
		if err == nil && !strings.Contains(string(b), "was removed from the cluster") {
			err = errors.New("its log doesn't say it")
		}
		return err
	})
	if out := c.keelson("node", "list"); strings.Contains(out, leaving) {
		t.Errorf("the removed node is back: %s", out)
	}
	c.Eventually(10*time.Second, "the certificate of the removed node is refused everywhere", func() error {
		for _, n := range []string{"n1", "n2", "n3"} {
			_, err := c.Keelson(c.ctx(), leaving, "volume", "list", "--server", c.Address(n)+":9500")
			if err == nil || !strings.Contains(err.Error(), "removed") {
				return fmt.Errorf("a call to %s: %w", n, errors.Join(err, errRefused))
			}
		}
		return nil
	})
	l.end()
	wipe := func(node string, more ...string) (string, error) {
		args := append([]string{"--config", filepath.Join(c.NodeDir(node), "keelson.yaml"), "node", "wipe"}, more...)
		out, err := exec.CommandContext(c.ctx(), c.Binary(), args...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return string(out), err
	}
	if _, err := wipe("n3", "--yes"); err == nil || !strings.Contains(err.Error(), "stop it first") {
		t.Errorf("wiped while keelson server runs: %v", err)
	}
	if err := c.Kill(leaving); err != nil {
		t.Fatal(err)
	}
	if out, err := wipe(leaving); err != nil || !strings.Contains(out, "Nothing was changed") {
		t.Errorf("%s, %v", out, err)
	}
	if _, err := wipe(leaving, "--destroy-pools"); err == nil {
		t.Error("pools were to be destroyed without --yes")
	}
	if _, err := wipe(leaving, "--yes", "--destroy-pools"); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(c.NodeDir(leaving), "data"))
	if err != nil || len(left) > 0 {
		t.Errorf("left in the data directory: %v, %v", left, err)
	}
	images, err := filepath.Glob(filepath.Join(c.NodeDir(leaving), "pool*.img"))
	if err != nil || len(images) > 0 {
		t.Errorf("left of the pools: %v, %v", images, err)
	}
}
