package system

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

func TestVolumeLifecycle(t *testing.T) {
	c := shared(t)
	v := c.create("life")
	if v.Size != 1<<30 || v.Health != "Healthy" || len(v.members()) != 2 || v.Node != "" {
		t.Fatalf("a new volume: %v", v)
	}
	w := newWriter(t, 64<<20)

	dev := c.attach("n1", "life", "fuse")
	if got := c.deviceSize(dev); got != 1<<30 {
		t.Errorf("the device has %d bytes, want %d", got, 1<<30)
	}
	if got := c.shell("n1", "blockdev --getss "+dev); got != "4096" {
		t.Errorf("the device has sectors of %s bytes, want 4096", got)
	}
	if again := c.attach("n1", "life", "fuse"); again != dev {
		t.Errorf("attaching again printed %s, want the same %s", again, dev)
	}
	if v := c.volume("n2", "life"); v.Node != "n1" || v.Device != dev {
		t.Errorf("as n2 sees it: %v on device %q", v, v.Device)
	}
	w.fill(dev, 0, w.blocks)
	w.verify(dev)
	if !lingers(dev, "life", 0) {
		t.Fatalf("%s isn't known as the volume's", dev)
	}
	c.keelson("n1", "volume", "detach", "life")
	if lingers(dev, "life", 3*time.Second) {
		t.Errorf("%s is still there after detach", dev)
	}

	for _, n := range []string{"n2", "n3"} { // one of them has no copy
		dev = c.attach(n, "life", "fuse")
		w.verify(dev)
		w.fill(dev, 100, 400)
		c.keelson(n, "volume", "detach", "life")
	}
	c.keelson("n1", "volume", "delete", "life")
	if vs := c.volumes(); len(vs) != 0 {
		t.Errorf("after delete: %v", vs)
	}
	c.wantNoReplicas()
}

// replicaDirs lists the directories of replicas on a node, as `pool volume/replica`.
func (c *cluster) replicaDirs(node string) string {
	return c.shell(node, fmt.Sprintf("find %s/data -name head -path '*/*/*' 2>/dev/null || true", c.NodeDir(node)))
}

func (c *cluster) wantNoReplicas() {
	c.T.Helper()
	for _, n := range c.Nodes() {
		c.Eventually(15*time.Second, "no replica is left on "+n, func() error {
			if dirs := c.replicaDirs(n); dirs != "" {
				return fmt.Errorf("left: %s", dirs)
			}
			return nil
		})
	}
}

func TestFileSystemOnAVolume(t *testing.T) {
	c := shared(t)
	c.create("fs", "--zone-spread")
	dev := c.attach("n1", "fs", "fuse")
	mnt := c.NodeDir("n1") + "/mnt"
	c.shell("n1", fmt.Sprintf("mkdir -p %s && mkfs.ext4 -q %s && mount %s %s && cp -r /usr/bin/. %s/ 2>/dev/null; sync", mnt, dev, dev, mnt, mnt))
	sums := c.shell("n1", "cd "+mnt+" && find . -type f | sort | head -300 | xargs md5sum | md5sum")
	c.refused(4, []string{"fs", "mounted"}, "n1", "volume", "detach", "fs")
	c.refused(4, []string{"fs", "attached"}, "n1", "volume", "delete", "fs")
	c.shell("n1", "umount "+mnt)
	c.keelson("n1", "volume", "detach", "fs")
	dev = c.attach("n2", "fs", "fuse")
	other := c.NodeDir("n2") + "/mnt"
	c.shell("n2", fmt.Sprintf("mkdir -p %s && fsck.ext4 -fn %s && mount %s %s", other, dev, dev, other))
	if got := c.shell("n2", "cd "+other+" && find . -type f | sort | head -300 | xargs md5sum | md5sum"); got != sums {
		t.Error("the files differ on the other node")
	}
	c.shell("n2", "umount "+other)
	c.remove("n2", "fs")
}

func TestNBDFrontend(t *testing.T) {
	c := shared(t)
	c.create("net", "--size", "256Mi")
	uri := c.keelson("n1", "volume", "attach", "net", "--frontend", "nbd")
	_, sock, _ := strings.Cut(uri, "?socket=")
	if st, err := os.Stat(sock); err != nil || st.Mode()&os.ModeSocket == 0 {
		t.Fatalf("attach printed %q, which names no socket: %v", uri, err)
	}
	if got := c.shell("n1", "nbdinfo --size '"+uri+"'"); got != fmt.Sprint(256<<20) {
		t.Errorf("nbdinfo says %s bytes", got)
	}
	dir := t.TempDir()
	c.shell("n1", fmt.Sprintf("dd if=/dev/urandom of=%[1]s/in bs=1M count=64 status=none && truncate -s 256M %[1]s/in && nbdcopy %[1]s/in '%[2]s' && nbdcopy '%[2]s' %[1]s/out && cmp %[1]s/in %[1]s/out", dir, uri))
	c.shell("n1", fmt.Sprintf("fio --name=v --ioengine=nbd --uri='%s' --rw=randwrite --bs=4k --iodepth=16 --size=64m --verify=crc32c --verify_fatal=1 --output=/dev/null", uri))
	c.remove("n1", "net")
	if _, err := os.Stat(sock); err == nil {
		t.Error("the socket is still there after detach")
	}
}

func TestPlacementExplainsItself(t *testing.T) {
	c := shared(t)
	v := c.create("where", "--zone-spread", "--replicas", "3")
	seen := map[string]bool{}
	for _, m := range v.members() {
		if m.Reason == "" {
			t.Errorf("no reason is given for the replica on %s", m.Node)
		}
		seen[m.Node] = true
	}
	if len(seen) != 3 {
		t.Errorf("three copies are on %v", v.nodes())
	}
	for range 3 { // deterministic
		c.keelson("n1", "volume", "delete", "where")
		if again := c.create("where", "--zone-spread", "--replicas", "3"); fmt.Sprint(again.nodes()) != fmt.Sprint(v.nodes()) {
			t.Errorf("the same request was placed on %v, before on %v", again.nodes(), v.nodes())
		}
	}
	c.keelson("n1", "volume", "delete", "where")
	c.refused(6, []string{"n1", "n2", "n3"}, "n1", "volume", "create", "wide", "--size", "1Gi", "--replicas", "4")
	c.refused(6, []string{"n1", "label ssd", "yes"}, "n1", "volume", "create", "fast", "--size", "1Gi", "--node-selector", "ssd=yes")
}

func TestStripedVolume(t *testing.T) {
	c := shared(t)
	v := c.create("wide", "--columns", "3", "--size", "192Mi")
	if len(v.Columns) != 3 || len(v.members()) != 6 {
		t.Fatalf("three columns with two copies: %v", v)
	}
	w := newWriter(t, 192<<20)
	dev := c.attach("n1", "wide", "fuse")
	w.fill(dev, 0, w.blocks)
	w.start(dev)
	time.Sleep(time.Second) // of load
	if err := w.halt(); err != nil {
		t.Error(err)
	}
	w.verify(dev)
	c.keelson("n1", "volume", "detach", "wide")
	dev = c.attach("n2", "wide", "fuse")
	w.verify(dev)
	c.remove("n2", "wide")
}

func TestManyVolumesLeaveNothing(t *testing.T) {
	c := shared(t)
	n := 20
	if os.Getenv("KEELSON_LONG") != "" {
		n = 200
	}
	before, files := c.belongings(), c.openFiles()
	for i := range n {
		c.create(fmt.Sprintf("many%d", i), "--size", "64Mi")
	}
	for i := range n {
		node := c.Nodes()[i%3]
		frontend := []string{"fuse", "nbd"}[i%2]
		dev := c.attach(node, fmt.Sprintf("many%d", i), frontend)
		if frontend == "fuse" {
			c.shell(node, "dd if=/dev/zero of="+dev+" bs=64k count=4 oflag=direct status=none")
		}
	}
	for i := range n {
		c.remove(c.Nodes()[(i+1)%3], fmt.Sprintf("many%d", i))
	}
	c.wantNoReplicas()
	// Connections of the metadata come and go, some twenty within a quarter of a minute.
	c.Eventually(time.Minute, "everything is as before", func() error {
		if after := c.belongings(); after != before {
			return fmt.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		// One descriptor a volume would be seen.
		for daemon, now := range c.openFiles() {
			if now > files[daemon]+n/3 {
				return fmt.Errorf("%s has %d open files, before %d", daemon, now, files[daemon])
			}
		}
		return nil
	})
}
