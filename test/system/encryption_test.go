package system

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wrapKeys is the directory of the wrapping keys of all nodes of the lab.
type wrapKeys struct {
	t   *testing.T
	dir string
}

// wrapKeys makes the directory with one key, k1, for the time of the test.
func (c *cluster) wrapKeys() wrapKeys {
	c.T.Helper()
	k := wrapKeys{c.T, keyDir()}
	if err := os.MkdirAll(k.dir, 0o700); err != nil {
		c.T.Fatal(err)
	}
	k.add("k1")
	return k
}

func (k wrapKeys) add(id string) {
	k.t.Helper()
	b := make([]byte, 32)
	_, _ = rand.Read(b)
	if err := os.WriteFile(filepath.Join(k.dir, id), []byte(hex.EncodeToString(b)+"\n"), 0o400); err != nil {
		k.t.Fatal(err)
	}
	k.t.Cleanup(func() { _ = os.Remove(filepath.Join(k.dir, id)) })
}

// hide takes a key away until what it returns is called.
func (k wrapKeys) hide(id string) (show func()) {
	k.t.Helper()
	path := filepath.Join(k.dir, id)
	if err := os.Rename(path, k.dir+"-"+id); err != nil {
		k.t.Fatal(err)
	}
	shown := false
	show = func() {
		if !shown {
			shown = true
			if err := os.Rename(k.dir+"-"+id, path); err != nil {
				k.t.Error(err)
			}
		}
	}
	k.t.Cleanup(show)
	return show
}

// secret is what the pools are searched for.
const secret = "this sentence is on a volume and must not be found on any pool."

// secretFile is 8 MiB of it.
func secretFile(t *testing.T) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(f, bytes.Repeat([]byte(secret+"\n"), 8<<20/(len(secret)+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f, 8<<20); err != nil {
		t.Fatal(err)
	}
	return f
}

// write puts the file at the start of a volume through a frontend.
func (c *cluster) write(node, name, frontend, file string) {
	c.T.Helper()
	dev := c.attach(node, name, frontend)
	if frontend == "nbd" {
		c.shell(node, fmt.Sprintf("nbdcopy --flush '%s' '%s'", file, dev))
	} else {
		c.shell(node, fmt.Sprintf("dd if=%s of=%s bs=1M oflag=direct conv=fsync status=none", file, dev))
	}
	c.keelson(node, "volume", "detach", name)
}

// holds fails the test unless a volume begins with what the file has.
func (c *cluster) holds(node, name, frontend, file string) {
	c.T.Helper()
	dev := c.attach(node, name, frontend)
	defer c.keelson(node, "volume", "detach", name)
	read := fmt.Sprintf("head -c 8388608 %s", dev)
	if frontend == "nbd" {
		read = fmt.Sprintf("nbdcopy '%s' - | head -c 8388608", dev)
	}
	if out, err := c.tryShell(node, read+" | cmp - "+file); err != nil {
		c.T.Errorf("%s on %s by %s doesn't hold what was written: %s", name, node, frontend, out)
	}
}

// findSecret returns the files of all pools that have it in the clear.
func (c *cluster) findSecret() (found []string) {
	c.T.Helper()
	for _, n := range c.Nodes() {
		out, err := c.tryShell(n, fmt.Sprintf("sync -f %[2]s/*; grep -raFl '%[1]s' %[2]s", secret, filepath.Join(c.NodeDir(n), "data", "pools")))
		if err != nil && strings.TrimSpace(out) != "" {
			c.T.Fatalf("%s: the pool can't be searched: %s", n, out)
		}
		found = append(found, strings.Fields(out)...)
	}
	return found
}

func TestNothingOfAnEncryptedVolumeIsReadableOnThePools(t *testing.T) {
	c := shared(t)
	keys := c.wrapKeys()
	file := secretFile(t)

	v := c.create("plain", "--size", "64Mi")
	c.write(v.nodes()[0], "plain", "fuse", file)
	if n := len(c.findSecret()); n != 2 {
		t.Fatalf("what isn't encrypted is found in %d files, not in those of both copies: the search is worth nothing", n)
	}
	c.keelson("n1", "volume", "delete", "plain")

	for i, frontend := range []string{"fuse", "nbd"} {
		name := "sealed-" + frontend
		v := c.create(name, "--size", "64Mi", "--encrypt")
		here, there := v.nodes()[0], v.nodes()[1]
		c.write(here, name, frontend, file)
		if found := c.findSecret(); len(found) > 0 {
			t.Fatalf("what was written by %s is found in %v", frontend, found)
		}
		c.holds(there, name, []string{"nbd", "fuse"}[i], file)
	}
	show := c.keelson("n1", "volume", "show", "sealed-fuse")
	if !strings.Contains(show, "aes-256-xts, its key wrapped by file/k1") {
		t.Errorf("volume show doesn't say how it is encrypted:\n%s", show)
	}

	// Copies, of which one is of an older state.
	node := v.nodes()[0]
	c.keelson(node, "snapshot", "create", "sealed-nbd", "s")
	dev := c.attach(node, "sealed-nbd", "fuse")
	c.shell(node, fmt.Sprintf("blkdiscard -l 4M %s && head -c 4M %s | cmp -n 4194304 - /dev/zero", dev, dev))
	c.keelson(node, "volume", "detach", "sealed-nbd")
	c.keelson(node, "volume", "create", "copy", "--from-snapshot", "sealed-nbd/s")
	c.holds(node, "copy", "fuse", file)

	c.rotate(keys, file)
	if found := c.findSecret(); len(found) > 0 {
		t.Errorf("in the end it is found in %v", found)
	}
	for _, name := range []string{"copy", "sealed-fuse"} {
		c.keelson("n1", "volume", "delete", name)
	}
	c.keelson("n1", "snapshot", "delete", "sealed-nbd", "s")
	c.keelson("n1", "volume", "delete", "sealed-nbd")
}

// rotate changes the wrapping key of three volumes while one of them is attached.
func (c *cluster) rotate(keys wrapKeys, file string) {
	c.T.Helper()
	c.attach("n1", "copy", "fuse")
	keys.add("k2")
	if out := c.keelson("n2", "key", "rotate"); !strings.Contains(out, "3 of 3") || !strings.Contains(out, "file/k2; 3 were rewrapped") {
		c.T.Errorf("key rotate says: %s", out)
	}
	if out := c.keelson("n2", "key", "rotate"); !strings.Contains(out, "; 0 were rewrapped") {
		c.T.Errorf("the second key rotate says: %s", out)
	}
	if out := c.keelson("n1", "key", "list"); strings.Contains(out, "k1") || !strings.Contains(out, "file/k2") {
		c.T.Errorf("key list says:\n%s", out)
	}
	keys.hide("k1")
	c.keelson("n1", "volume", "detach", "copy")
	c.holds("n1", "copy", "fuse", file)
	c.holds("n2", "sealed-fuse", "nbd", file)

	show := keys.hide("k2")
	c.refused(4, []string{"sealed-fuse", "file/k2", "isn't on this node"}, "n3", "volume", "attach", "sealed-fuse", "--wait", "0s")
	c.refused(4, []string{"nothing", "can't be encrypted"}, "n3", "volume", "create", "nothing", "--size", "64Mi", "--encrypt")
	if out := c.keelson("n3", "volume", "show", "sealed-fuse"); !strings.Contains(out, "file/k2: the wrapping key isn't on this node") {
		c.T.Errorf("the volume doesn't say why it can't be attached:\n%s", out)
	}
	if out := c.keelson("n3", "events"); !strings.Contains(out, "key-unavailable") {
		c.T.Errorf("no event says that a key is missing:\n%s", out)
	}
	c.doctorOfKeys("n3", "danger", "its key is wrapped by file/k2: the wrapping key isn't on this node")
	show()
	c.doctorOfKeys("n3", "ok", "file/k2 wraps")
	c.holds("n3", "sealed-fuse", "fuse", file)
	if out := c.keelson("n3", "volume", "show", "sealed-fuse"); strings.Contains(out, "can't be attached") {
		c.T.Errorf("the volume still says that it can't be attached:\n%s", out)
	}
}

// doctorOfKeys has the doctor look at a node's wrapping keys.
func (c *cluster) doctorOfKeys(node, state, words string) {
	c.T.Helper()
	out, err := c.Keelson(c.ctx(), node, "doctor", "-o", "json") // it fails if anything is dangerous
	var list []struct{ Check, State, Found string }
	if jerr := json.Unmarshal([]byte(out), &list); jerr != nil {
		c.T.Fatal(err, jerr)
	}
	for _, f := range list {
		if f.Check == "wrapping-keys" && f.State == state && strings.Contains(f.Found, words) {
			return
		}
	}
	c.T.Errorf("nothing of wrapping keys is %s: %s, in %s", state, words, out)
}

// The next engine goes on with a volume also when whoever has the wrapping key is away; another node needs it.
func TestEncryptedVolumeOutlivesItsEngine(t *testing.T) {
	c := shared(t)
	keys := c.wrapKeys()
	v := c.create("secret", "--size", "128Mi", "--encrypt", "--zone-spread")
	holder, other := v.nodes()[0], v.nodes()[1]
	dev := c.attach(holder, "secret", "fuse")
	w := newWriter(t, 128<<20)
	w.fill(dev, 0, w.blocks)
	w.start(dev)
	show := keys.hide("k1")
	for range 2 {
		time.Sleep(300 * time.Millisecond) // of load
		if err := c.KillProcess(holder, "engine"); err != nil {
			t.Fatal(err)
		}
		c.Eventually(30*time.Second, "the next engine serves", func() error {
			v, err := c.tryVolume(holder, "secret")
			if err == nil && v.Device == "" {
				err = fmt.Errorf("%s", v)
			}
			return err
		})
	}
	time.Sleep(300 * time.Millisecond)
	if err := w.halt(); err != nil {
		t.Fatalf("a write failed: %v", err)
	}
	w.verify(dev)
	c.awaitHealthy(holder, "secret", 30*time.Second)
	c.keelson(holder, "volume", "detach", "secret")
	c.refused(4, []string{"file/k1"}, other, "volume", "attach", "secret", "--wait", "0s")
	show()
	w.verify(c.attach(other, "secret", "fuse"))
	c.remove(other, "secret")
}
