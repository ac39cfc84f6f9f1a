package system

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
)

// voters waits until as many members of the metadata vote and answer, as a node sees it.
func (c *cluster) voters(node string, want int) {
	c.T.Helper()
	c.Eventually(90*time.Second, fmt.Sprintf("%d voting members of the metadata", want), func() error {
		var st struct {
			Metadata []struct {
				Name             string
				Healthy, Learner bool
			}
		}
		if err := c.JSON(c.ctx(), node, &st, "status"); err != nil {
			return err
		}
		n := 0
		for _, m := range st.Metadata {
			if m.Healthy && !m.Learner {
				n++
			}
		}
		if n != want || len(st.Metadata) != want {
			return fmt.Errorf("%+v", st.Metadata)
		}
		return nil
	})
}

// knowEachOther waits until every node has written down where the others are.
func (c *cluster) knowEachOther() {
	c.T.Helper()
	c.Eventually(30*time.Second, "every node knows the others", func() error {
		for _, n := range c.Nodes() {
			b, err := os.ReadFile(filepath.Join(c.NodeDir(n), "data", "state.json"))
			if err != nil {
				return err
			}
			for _, other := range c.Nodes() {
				if other != n && !strings.Contains(string(b), c.Address(other)+":9500") {
					return fmt.Errorf("%s doesn't know %s", n, other)
				}
			}
		}
		return nil
	})
}

// loseMetadata removes what a node that is down has of the metadata.
func (c *cluster) loseMetadata(nodes ...string) {
	c.T.Helper()
	for _, n := range nodes {
		if err := os.RemoveAll(filepath.Join(c.NodeDir(n), "data", "etcd")); err != nil {
			c.T.Fatal(err)
		}
	}
}

// each does something with every node.
func (c *cluster) each(nodes []string, what func(string) error) {
	c.T.Helper()
	for _, n := range nodes {
		if err := what(n); err != nil {
			c.T.Fatalf("%s: %v", n, err)
		}
	}
}

// TestMetadataRecovery loses most of the metadata for good, and then all of it, with volumes in use.
func TestMetadataRecovery(t *testing.T) {
	keys := wrapKeys{t, t.TempDir()}
	keys.add("k1")
	c := &cluster{labtest.Up(t, lab.Config{Name: labtest.Name("-rec"), Nodes: 3, Zones: 3, PoolSize: "2Gi",
		Settings: map[string]any{"encryption": map[string]any{"provider": "file", "keyDir": keys.dir}}})}
	c.voters("n1", 3)
	v := c.create("busy", "--size", "64Mi", "--zone-spread")
	holder, other := v.members()[0].Node, v.members()[1].Node
	away := slices.DeleteFunc(slices.Clone(c.Nodes()), func(n string) bool { return n == holder })
	dev := c.attach(holder, "busy", "fuse")
	w := newWriter(t, 64<<20)
	w.fill(dev, 0, w.blocks)

	c.knowEachOther()

	// While the quorum is there, it is refused, and nothing changes.
	c.refused(conflict, []string{"has its quorum"}, holder, "recover", "--yes")

	c.keelson("n1", "volume", "create", "idle", "--size", "64Mi", "--replicas", "3")
	w.start(dev)
	time.Sleep(time.Second) // of load
	c.each(away, c.Kill)
	c.loseMetadata(away...)
	if said := c.keelson(holder, "recover"); !strings.Contains(said, "Nothing was changed") || !strings.Contains(said, "the copy of node "+holder) || !strings.Contains(said, "ago") {
		t.Errorf("the plan: %s", said)
	}
	if said := c.keelson(holder, "recover", "--yes"); !strings.Contains(said, "serves again") {
		t.Fatal(said)
	}
	// The other copy may be the newer one for all that is known: nobody decides without its node.
	c.refused(unavailable, []string{"recovered"}, holder, "volume", "attach", "idle", "--node", holder)
	c.each(away, c.Start)
	c.voters(holder, 3)
	c.attach(holder, "idle", "nbd")
	if err := w.halt(); err != nil {
		t.Fatalf("writes failed: %v", err)
	}
	c.awaitHealthy(holder, "busy", 90*time.Second)
	w.verify(dev)
	c.keelson(holder, "volume", "detach", "busy")
	dev = c.attach(other, "busy", "fuse")
	w.verify(dev)

	t.Run("from a snapshot", func(t *testing.T) { c.in(t).recoverFromSnapshot(w, other, keys) })
	t.Run("with nodes that are gone for good", func(t *testing.T) { c.in(t).recoverAlone(w, other) })
}

// recoverFromSnapshot loses all of the metadata, and what engines remember of it, with a volume attached, one that is younger than the
// snapshot, encrypted ones whose key was wrapped anew since, one of them a clone, and one that was deleted since.
func (c *cluster) recoverFromSnapshot(w *writer, holder string, keys wrapKeys) {
	w.t = c.T
	c.keelson(holder, "volume", "create", "gone", "--size", "64Mi")
	// What is saved is the state in which "gone" is there and "young" isn't.
	saved := c.savedAgain(holder)
	c.keelson(holder, "volume", "delete", "gone")
	young := c.create("young", "--size", "64Mi", "--zone-spread")
	at := young.members()[0].Node
	w2 := newWriter(c.T, 64<<20)
	w2.fill(c.attach(at, "young", "fuse"), 0, w2.blocks)
	c.keelson(at, "volume", "detach", "young")
	secret := c.youngSecrets(at, keys)
	// A term that the snapshot doesn't know, with changes in it.
	c.keelson(holder, "volume", "detach", "busy")
	next := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n string) bool { return n != holder })]
	dev := c.attach(next, "busy", "fuse")
	w.fill(dev, 0, 500)

	c.each(c.Nodes(), c.Kill)
	c.loseMetadata(c.Nodes()...)
	c.each(c.Nodes(), func(n string) error {
		// Start waits until the node is ready, which it can't be.
		if err := c.Start(n); err != nil {
			c.T.Logf("%s: %v", n, err)
		}
		return nil
	})
	said := c.keelson(holder, "recover", "--yes")
	if !strings.Contains(said, "the snapshot "+saved) || !strings.Contains(said, "serves again") {
		c.T.Fatalf("recovered with: %s", said)
	}
	c.voters(holder, 3)
	c.Eventually(60*time.Second, "the volumes are proven", func() error {
		for _, name := range []string{"busy", "young"} {
			if _, err := c.Keelson(c.ctx(), holder, "volume", "attach", name, "--node", holder, "--wait", "5s"); err != nil {
				return err
			}
		}
		return nil
	})
	for name, w := range map[string]*writer{"busy": w, "young": w2} {
		c.keelson(holder, "volume", "detach", name)
		w.t = c.T
		w.verify(c.attach(holder, name, "fuse"))
	}
	for _, name := range []string{"secret", "secret-copy"} {
		if got := c.content(holder, c.attach(holder, name, "fuse")); got != secret {
			c.T.Errorf("%s isn't what it was", name)
		}
	}
}

// recoverAlone loses all other nodes, one of which is said to be gone only later, and takes the state from a file that is named.
func (c *cluster) recoverAlone(w *writer, holder string) {
	w.t = c.T
	c.keelson(holder, "volume", "create", "rest", "--size", "64Mi", "--replicas", "3")
	dev := c.volume(holder, "busy").Device
	gone := slices.DeleteFunc(slices.Clone(c.Nodes()), func(n string) bool { return n == holder })
	saved := c.savedAgain(holder)
	w.start(dev)
	c.each(gone, c.Kill)
	if said := c.keelson(holder, "recover", "--yes", "--snapshot", saved, "--lost", gone[0]); !strings.Contains(said, "the snapshot "+saved) {
		c.T.Errorf("recovered with: %s", said)
	}
	if said := c.keelson(holder, "status"); !strings.Contains(said, gone[1]) {
		c.T.Errorf("who is waited for: %s", said)
	}
	c.refused(unavailable, []string{"recovered", "keelson status"}, holder, "volume", "attach", "rest", "--node", holder)
	c.refused(notFound, []string{"n9"}, holder, "recover", "lost", "n9")
	c.refused(conflict, []string{holder, "alive"}, holder, "recover", "lost", gone[1], holder)
	c.keelson(holder, "recover", "lost", gone[1])
	c.Eventually(60*time.Second, "what only this node has counts", func() error {
		_, err := c.Keelson(c.ctx(), holder, "volume", "attach", "rest", "--node", holder, "--wait", "5s")
		return err
	})
	if err := w.halt(); err != nil {
		c.T.Fatalf("writes failed: %v", err)
	}
	w.verify(dev)
}

// youngSecrets makes an encrypted volume and a clone of it, wraps their keys anew, takes the old wrapping key away when the copies say how the keys are wrapped
// now, and returns what both hold.
func (c *cluster) youngSecrets(at string, keys wrapKeys) (content string) {
	c.T.Helper()
	c.create("secret", "--size", "16Mi", "--encrypt", "--zone-spread")
	newWriter(c.T, 16<<20).fill(c.attach(at, "secret", "fuse"), 0, 16<<20/blockSize)
	content = c.content(at, c.volume(at, "secret").Device)
	c.keelson(at, "volume", "detach", "secret")
	c.keelson(at, "volume", "create", "secret-copy", "--from-volume", "secret")
	keys.add("k2")
	c.keelson(at, "key", "rotate")
	for _, name := range []string{"secret", "secret-copy"} {
		for node, head := range c.heads(c.volume(at, name)) {
			c.Eventually(10*time.Second, "the copy of "+name+" on "+node+" describes the new key", func() error {
				_, err := c.tryShell(node, "grep -aq '\"id\":\"k2\"' "+filepath.Dir(head)+"/meta")
				return err
			})
		}
	}
	keys.hide("k1")
	return content
}

// TestMetadataMemberIsReplaced loses the node of a member for longer than rebuild-after: the node without the role takes its place by
// itself, and the old one rests when it is back. Then its certificate, when it was removed, opens nothing.
func TestMetadataMemberIsReplaced(t *testing.T) {
	c := &cluster{labtest.Up(t, lab.Config{Name: labtest.Name("-mem"), Nodes: 4, Zones: 4, PoolSize: "2Gi"})}
	c.voters("n1", 3)
	c.knowEachOther()
	c.keelson("n1", "settings", "set", "rebuild-after", "2s")
	c.create("kept", "--size", "64Mi")
	w := newWriter(t, 64<<20)
	dev := c.attach("n4", "kept", "fuse")
	w.start(dev)
	if err := c.Kill("n2"); err != nil {
		t.Fatal(err)
	}
	c.hasMembers("n1", "n1", "n3", "n4")
	if err := w.halt(); err != nil {
		t.Fatalf("writes on the node that was called failed: %v", err)
	}
	w.verify(dev)
	if said := c.keelson("n1", "events"); !strings.Contains(said, "metadata-member-called") || !strings.Contains(said, "metadata-member-replaced") {
		t.Errorf("events: %s", said)
	}
	c.knowsMembers("n2", "n1", "n2") // as when it was lost before n3 had joined
	if err := c.Start("n2"); err != nil {
		t.Fatal(err)
	}

	// The quorum bears the loss of another old member: the new one counts. And whoever was away finds members that it hasn't known.
	if err := c.Kill("n1"); err != nil {
		t.Fatal(err)
	}
	c.hasMembers("n4", "n2", "n3", "n4")
	c.keelson("n4", "volume", "detach", "kept")
}

// knowsMembers has a node that is down remember those nodes as the members of the metadata, and no others.
func (c *cluster) knowsMembers(node string, members ...string) {
	c.T.Helper()
	path := filepath.Join(c.NodeDir(node), "data", "state.json")
	b, err := os.ReadFile(path)
	if err != nil {
		c.T.Fatal(err)
	}
	var st map[string]any
	if err := json.Unmarshal(b, &st); err != nil {
		c.T.Fatal(err)
	}
	var urls []string
	for _, m := range members {
		urls = append(urls, "https://"+c.Address(m)+":9502")
	}
	st["endpoints"] = urls
	if b, err = json.Marshal(st); err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		c.T.Fatal(err)
	}
}

// hasMembers waits until those nodes are the voting members of the metadata.
func (c *cluster) hasMembers(node string, want ...string) {
	c.T.Helper()
	c.Eventually(3*time.Minute, fmt.Sprintf("the members are %v", want), func() error {
		var st struct {
			Metadata []struct {
				Name             string
				Healthy, Learner bool
			}
		}
		if err := c.JSON(c.ctx(), node, &st, "status"); err != nil {
			return err
		}
		var got []string
		for _, m := range st.Metadata {
			if m.Learner || !m.Healthy {
				return fmt.Errorf("%+v", st.Metadata)
			}
			got = append(got, m.Name)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// savedAgain has the node save the metadata to its pool as it is now, and returns the file.
func (c *cluster) savedAgain(node string) (file string) {
	c.T.Helper()
	before := strings.Fields(c.shell(node, "ls -d "+c.NodeDir(node)+"/data/pools/*/metadata/*.snapshot"))
	if len(before) == 0 {
		c.T.Fatal("the metadata wasn't saved to the pool when that came into service")
	}
	c.shell(node, "rm "+strings.Join(before, " "))
	if err := c.KillProcess(node, "engine"); err != nil { // the next one finds that none is there
		c.T.Fatal(err)
	}
	c.Eventually(30*time.Second, "the metadata is saved", func() error {
		out, err := c.tryShell(node, "ls -d "+c.NodeDir(node)+"/data/pools/*/metadata/*.snapshot")
		if file = strings.TrimSpace(out); err != nil || strings.Contains(file, "*") {
			return errors.New("no snapshot yet")
		}
		return nil
	})
	return file
}
