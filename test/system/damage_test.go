package system

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// offline crashes a node, runs fn with its pool mounted on the host, and starts the node again.
func (c *cluster) offline(node string, fn func(pool string)) {
	c.T.Helper()
	if err := c.Kill(node); err != nil {
		c.T.Fatal(err)
	}
	mnt := c.T.TempDir()
	c.host("mount", "-o", "loop,nouuid", filepath.Join(c.NodeDir(node), "pool.img"), mnt)
	fn(mnt)
	c.host("umount", mnt)
	if err := c.Start(node); err != nil {
		c.T.Fatal(err)
	}
	c.mend()
}

// host runs a command on the machine itself.
func (c *cluster) host(argv ...string) {
	c.T.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		c.T.Fatalf("%v: %v: %s", argv, err, out)
	}
}

// A byte that rots in any file of a copy must not reach whoever reads, and must not make the
// volume unusable.
func TestFlippedBytesInACopy(t *testing.T) {
	c := shared(t)
	v := c.create("rot", "--size", "64Mi", "--zone-spread")
	victim := v.members()[0].Node
	w := newWriter(t, 64<<20)
	dev := c.attach(victim, "rot", "fuse")
	w.fill(dev, 0, w.blocks)
	c.keelson(victim, "volume", "detach", "rot")

	files := map[string]int64{ // offset of the byte
		"head": 12345678, "sums": 64, "gens": 8, "journal": 20, "meta": 16,
	}
	for name, offset := range files {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			w.t = t
			c.offline(victim, func(pool string) {
				flipped := 0
				err := filepath.WalkDir(pool, func(p string, d os.DirEntry, err error) error {
					if err == nil && d.Name() == name && d.Type().IsRegular() {
						flipped += flip(t, p, offset)
					}
					return err
				})
				if err != nil || flipped != 1 {
					t.Errorf("%d files named %s found in the replica, %v", flipped, name, err)
				}
			})
			var dev string
			c.Eventually(30*time.Second, "it can be attached where the damage is", func() error {
				var err error
				dev, err = c.Keelson(c.ctx(), victim, "volume", "attach", "rot")
				return err
			})
			w.verify(strings.TrimSpace(dev))
			if name == "head" && c.counter(victim, "blocks_repaired") == 0 {
				t.Error("no block was repaired")
			}
			c.awaitHealthy("n1", "rot", 60*time.Second)
			w.verify(strings.TrimSpace(dev)) // now repaired
			c.keelson(victim, "volume", "detach", "rot")
		})
	}
	c.keelson("n1", "volume", "delete", "rot")
}

// flip inverts one byte, and returns 1. A file that is too short gets its last byte flipped.
func flip(t *testing.T, path string, offset int64) int {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() == 0 {
		t.Skipf("%s is empty: there is no byte to flip", filepath.Base(path))
	}
	offset = min(offset, st.Size()-1)
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
	return 1
}

// A volume whose pool is full waits, and goes on when there is space again.
func TestFullPool(t *testing.T) {
	c := shared(t)
	v := c.create("full", "--size", "256Mi")
	victim := v.members()[0].Node
	pool := c.shell(victim, "awk '$3 == \"xfs\" && index($2, \""+c.NodeDir(victim)+"/\") == 1 {print $2}' /proc/mounts")
	dev := c.attach(victim, "full", "fuse")
	w := newWriter(t, 256<<20)
	w.fill(dev, 0, 1024)
	ballast := pool + "/ballast"
	c.shell(victim, fmt.Sprintf("fallocate -l $(($(df --output=avail -B1 %s | tail -1) - (16 << 20))) %s", pool, ballast))
	t.Cleanup(func() { _, _ = c.tryShell(victim, "rm -f "+ballast) })

	done := make(chan struct{})
	go func() {
		defer close(done)
		w.start(dev)
		time.Sleep(8 * time.Second) // of trying to write more than there is space for
	}()
	<-done
	v, err := c.tryVolume(victim, "full")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("while the pool is full: %v", v)
	if !strings.Contains(v.Condition, "space") && !strings.Contains(v.Condition, "full") {
		t.Errorf("nothing is said of the full pool: %v", v)
	}
	c.shell(victim, "rm "+ballast)
	halted := make(chan error, 1)
	go func() { halted <- w.halt() }()
	select {
	case err := <-halted:
		if err != nil {
			t.Errorf("whoever uses the volume saw: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("writes still wait 30 s after there is space again")
	}
	w.verify(dev)
	c.awaitHealthy(victim, "full", 30*time.Second)
	c.remove(victim, "full")
}
