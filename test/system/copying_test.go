package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// imported is what a volume says of the import into it.
type imported struct {
	Import *struct {
		Source   string `json:"source"`
		Size     int64  `json:"size"`
		Position int64  `json:"position"`
	} `json:"import"`
}

// An import that is killed is gone on with where it was, and until it is complete nobody gets the volume. What comes out again is what
// went in, also by way of qcow2.
func TestImportAndExport(t *testing.T) {
	c := shared(t)
	dir := t.TempDir()
	raw := filepath.Join(dir, "a.raw")
	c.host("sh", "-c", "truncate -s 400M "+raw+" && dd if=/dev/urandom of="+raw+" bs=1M count=120 seek=3 conv=notrunc status=none && printf end >> "+raw)

	cmd, err := c.Command(c.ctx(), "n1", "keelson", "volume", "import", "copied", "--from", raw, "--bandwidth-limit", "8Mi")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := make(chan error, 1)
	go func() { reaped <- cmd.Wait() }()
	position := func() int64 {
		var v imported
		if err := c.JSON(c.ctx(), "n1", &v, "volume", "show", "copied"); err != nil || v.Import == nil {
			return 0
		}
		return v.Import.Position
	}
	c.Eventually(60*time.Second, "a position is recorded", func() error {
		if position() == 0 {
			return errors.New("none")
		}
		return nil
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-reaped; err == nil {
		t.Fatal("the import was complete before it was killed")
	}
	kept := position()
	c.refused(conflict, []string{"isn't complete", "keelson volume import"}, "n1", "volume", "attach", "copied")
	c.refused(conflict, []string{"another source"}, "n1", "volume", "import", "copied", "--from", c.other(dir))
	c.keelson("n1", "volume", "set", "copied", "--bandwidth-limit", "0")
	said := c.shell("n1", "keelson volume import copied --from "+raw+" --verify 2>&1")
	if !strings.Contains(said, "copied already") || kept == 0 {
		t.Errorf("it didn't go on at %d: %s", kept, said)
	}
	c.refused(conflict, []string{"has data already", "--overwrite"}, "n1", "volume", "import", "copied", "--from", raw)

	back, qcow := filepath.Join(dir, "b.raw"), filepath.Join(dir, "b.qcow2")
	c.keelson("n1", "volume", "export", "copied", "--to", back)
	c.host("cmp", "-n", strconv.Itoa(400<<20+3), raw, back)
	if used := allocated(t, back); used > 130<<20 {
		t.Errorf("the export occupies %d bytes", used)
	}
	c.refused(1, []string{"is there already", "--overwrite"}, "n1", "volume", "export", "copied", "--to", back)
	c.keelson("n1", "volume", "delete", "copied")
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Log("no qemu-img: qcow2 isn't tried")
		return
	}
	c.host("qemu-img", "convert", "-O", "qcow2", back, qcow)
	c.keelson("n2", "volume", "import", "again", "--from", qcow, "--verify")
	c.keelson("n2", "volume", "export", "again", "--to", qcow, "--format", "qcow2", "--overwrite", "--verify")
	c.host("qemu-img", "compare", back, qcow)
	c.keelson("n1", "volume", "delete", "again")
}

// other makes another image.
func (c *cluster) other(dir string) string {
	path := filepath.Join(dir, "other")
	if err := os.WriteFile(path, make([]byte, 8<<20), 0o600); err != nil {
		c.T.Fatal(err)
	}
	return path
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	out, err := exec.CommandContext(context.Background(), "stat", "-c", "%b", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n * 512
}

// What a file system doesn't use any more, and what is discarded otherwise, is free again in the pools of all copies.
func TestTrimGivesSpaceBack(t *testing.T) {
	c := shared(t)
	for _, fs := range []string{"ext4", "xfs"} {
		v := c.create("trim-"+fs, "--size", "512Mi", "--zone-spread")
		node := v.members()[0].Node
		dev := c.attach(node, v.Name, "fuse")
		mnt := t.TempDir()
		c.shell(node, "mkfs."+fs+" "+map[string]string{"ext4": "-qF", "xfs": "-q"}[fs]+" "+dev)
		c.spaceBack(v, 200<<20, func() {
			c.shell(node, fmt.Sprintf("mount %s %s && dd if=/dev/urandom of=%s/f bs=1M count=200 conv=fsync status=none && umount %s", dev, mnt, mnt, mnt))
		}, func() {
			// xfs frees in the background what is removed, at the latest when it is unmounted.
			c.shell(node, fmt.Sprintf("mount %s %s && rm %s/f && umount %s && mount %s %s && fstrim %s && umount %s", dev, mnt, mnt, mnt, dev, mnt, mnt, mnt))
		})
		if f := c.scrub(node, v.Name, true).Last.Findings; f.Repaired+f.Unreadable+f.Differing != 0 {
			t.Errorf("%s: after the trim: %+v", fs, f)
		}
		c.remove(node, v.Name)
	}
	if _, err := exec.LookPath("qemu-io"); err != nil {
		t.Log("no qemu-io: the NBD frontend isn't tried")
		return
	}
	v := c.create("trim-nbd", "--size", "512Mi", "--zone-spread")
	node := v.members()[0].Node
	uri := c.attach(node, v.Name, "nbd")
	qemu := func(commands ...string) {
		line := "qemu-io -d unmap -f raw '" + uri + "'"
		for _, x := range commands {
			line += " -c '" + x + "'"
		}
		c.shell(node, line)
	}
	c.spaceBack(v, 200<<20, func() { qemu("write -P 7 0 100M", "write -P 7 300M 100M", "flush") }, func() { qemu("discard 0 100M", "discard 300M 100M", "flush", "read -P 0 300M 1M") })
	c.remove(node, v.Name)
}

// spaceBack checks that use takes at least so many bytes in the pool of each copy, and that free gives them back.
func (c *cluster) spaceBack(v volume, bytes int64, use, free func()) {
	c.T.Helper()
	occupied := func() map[string]int64 {
		out := map[string]int64{}
		for node, head := range c.heads(v) {
			n, err := strconv.ParseInt(c.shell(node, "stat -c %b "+head), 10, 64)
			if err != nil {
				c.T.Fatal(err)
			}
			out[node] = n * 512
		}
		return out
	}
	before := occupied()
	use()
	full := occupied()
	free()
	after := occupied()
	if len(full) != 2 {
		c.T.Fatalf("%s has copies on %v", v.Name, full)
	}
	for node := range full {
		if full[node]-before[node] < bytes || full[node]-after[node] < bytes*9/10 {
			c.T.Errorf("%s on %s occupied %d bytes, then %d, after the trim %d", v.Name, node, before[node], full[node], after[node])
		}
	}
}

// A copy follows the volume to the node where it is used, with what it has.
func TestLocality(t *testing.T) {
	c := shared(t)
	w, dev, holder, _, third := c.spread("follow")
	w.verify(dev)
	c.keelson(holder, "volume", "detach", "follow")
	c.keelson(holder, "volume", "set", "follow", "--locality", "require")
	dev = c.attach(third, "follow", "fuse")
	w.start(dev)
	c.Eventually(90*time.Second, "a copy is where the volume is", func() error {
		v, err := c.tryVolume(third, "follow")
		if err != nil {
			return err
		}
		here := false
		for _, m := range v.members() {
			here = here || m.Node == third && m.State == "InSync"
		}
		if !here || len(v.members()) != 2 {
			return errors.New(v.String())
		}
		return nil
	})
	if err := w.halt(); err != nil {
		t.Fatal(err)
	}
	w.verify(dev)
	c.keelson(third, "volume", "detach", "follow")
	c.keelson(third, "volume", "set", "follow", "--locality", "off")
}

// TestPolicyInput: every bad value is named, with what is legal, and changes nothing.
func TestPolicyInput(t *testing.T) {
	c := shared(t)
	c.create("policy", "--size", "64Mi", "--iops-limit", "1000", "--group", "g", "--group-rule", "apart")
	before := c.keelson("n1", "volume", "show", "policy")
	for _, x := range [][]string{
		{"iops-limit", "99", "100 to 100000000"}, {"iops-limit", "-1", "100 to 100000000"}, {"iops-limit", "1k", "100 to 100000000"}, {"iops-limit", "100000001", "100 to"},
		{"bandwidth-limit", "1", "1Mi to 512Gi"}, {"bandwidth-limit", "1Ti", "1Mi to 512Gi"}, {"bandwidth-limit", "fast", "1Mi to 512Gi"},
		{"read-iops-limit", "1", "100 to"}, {"write-iops-limit", "1", "100 to"}, {"read-bandwidth-limit", "1k", "1Mi to"}, {"write-bandwidth-limit", "1k", "1Mi to"},
		{"io-priority", "highest", "high, medium or low"}, {"group", "a b", "letters"}, {"group-rule", "near", "prefer-apart"}, {"locality", "on", "off, prefer or require"},
		{"auto-fstrim", "1m", "1h"}, {"auto-fstrim", "daily", "1h"},
	} {
		c.refused(usage, []string{x[0], x[1], x[2]}, "n1", "volume", "set", "policy", "--"+x[0]+"="+x[1])
	}
	c.refused(usage, []string{"nothing to change"}, "n1", "volume", "set", "policy")
	c.refused(notFound, []string{"nowhere"}, "n1", "volume", "set", "nowhere", "--iops-limit", "100")
	c.keelson("n1", "volume", "create", "policy2", "--size", "64Mi")
	c.refused(usage, []string{"group-rule", "given together with a group"}, "n1", "volume", "set", "policy2", "--group-rule", "apart")
	c.refused(usage, []string{"node"}, "n1", "volume", "create", "policy3", "--size", "64Mi", "--nodes", "N 1")
	c.refused(impossible, []string{"topology"}, "n1", "volume", "create", "policy3", "--size", "64Mi", "--nodes", "n1")
	if after := c.keelson("n1", "volume", "show", "policy"); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
}
