package system

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ledger is a client of two volumes: it writes numbered records to the one and to the other in turn, each after the other's
// acknowledgement. So whatever both held at one moment, the second has as many as the first or one less.
type ledger struct {
	t    *testing.T
	stop chan struct{}
	wg   sync.WaitGroup
	last uint64
}

// ledgerBlocks is how many records there is place for on a volume; then the oldest are overwritten.
const ledgerBlocks = 2048

func writeLedger(t *testing.T, first, second string) *ledger {
	l := &ledger{t: t, stop: make(chan struct{})}
	l.wg.Go(func() {
		if err := l.write(first, second); err != nil {
			t.Errorf("the ledger: %v", err)
		}
	})
	return l
}

func (l *ledger) write(paths ...string) error {
	var files []*os.File
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	buf := aligned(blockSize)
	for n := uint64(1); ; n++ {
		select {
		case <-l.stop:
			l.last = n - 1
			return nil
		default:
		}
		binary.LittleEndian.PutUint64(buf, n)
		for _, f := range files {
			if _, err := f.WriteAt(buf, int64(n%ledgerBlocks)*blockSize); err != nil {
				return err
			}
		}
	}
}

func (l *ledger) halt() uint64 {
	close(l.stop)
	l.wg.Wait()
	return l.last
}

// records returns how many records a device has, all those before the last that fit included.
func records(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := aligned(ledgerBlocks * blockSize)
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	at := func(n uint64) uint64 { return binary.LittleEndian.Uint64(buf[n%ledgerBlocks*blockSize:]) }
	last := uint64(0)
	for n := range uint64(ledgerBlocks) {
		last = max(last, at(n))
	}
	for n := last; n > 0 && n+ledgerBlocks > last; n-- {
		if at(n) != n {
			t.Fatalf("%s has record %d, and in the place of record %d it has %d", path, last, n, at(n))
		}
	}
	return last
}

// Snapshots of several volumes are of one moment, also if one of the volumes is attached elsewhere and one nowhere.
func TestGroupSnapshots(t *testing.T) {
	c := shared(t)
	devs := []string{}
	for i, name := range []string{"ga", "gb"} {
		c.create(name, "--size", "64Mi")
		devs = append(devs, c.attach(c.Nodes()[i], name, "fuse"))
	}
	c.create("gc", "--size", "64Mi")
	l := writeLedger(t, devs[0], devs[1])
	groups := []string{"g1", "g2", "g3", "g4"}
	for i, g := range groups {
		volumes := []string{"ga", "gb", "gc"}
		c.keelson("n1", append([]string{"snapshot", "create", "--group", g}, volumes[:2+i/3]...)...)
	}
	c.refused(4, []string{"g1", "other volumes"}, "n1", "snapshot", "create", "--group", "g1", "ga")
	c.keelson("n2", "snapshot", "create", "--group", "g1", "gb", "ga") // is there already
	total := l.halt()
	before := uint64(0)
	for _, g := range groups {
		a := records(t, c.keelson("n1", "snapshot", "attach", "ga@"+g, "--node", "n3"))
		b := records(t, c.keelson("n1", "snapshot", "attach", "gb@"+g, "--node", "n3"))
		if a < b || a > b+1 || b <= before || a > total {
			t.Errorf("group %s has %d records of the first volume and %d of the second; the one before had %d, and %d were written", g, a, b, before, total)
		}
		t.Logf("group %s: %d and %d records", g, a, b)
		before = b
		c.refused(4, []string{"attached to node n3", "snapshot detach ga@" + g}, "n1", "snapshot", "delete", "--group", g)
		c.keelson("n2", "snapshot", "detach", "ga@"+g)
		c.keelson("n3", "snapshot", "detach", "gb@"+g)
		c.refused(2, []string{"part of a group", "--group " + g}, "n1", "snapshot", "delete", "ga", g)
		c.keelson("n3", "snapshot", "delete", "--group", g)
	}
	if left := c.keelson("n1", "snapshot", "list", "-o", "json"); left != "[]" {
		t.Errorf("snapshots that are left: %s", left)
	}
}

// What makes no sense is refused, and nothing is changed on any of the volumes.
func TestBadGroups(t *testing.T) {
	c := shared(t)
	c.create("ba", "--size", "64Mi")
	c.create("bb", "--size", "64Mi")
	c.attach("n1", "bb", "fuse")
	c.keelson("n1", "snapshot", "create", "bb", "taken")
	defer c.keelson("n1", "settings", "set", "snapshots-max", "64")
	create := func(a ...string) []string { return append([]string{"snapshot", "create", "--group"}, a...) }
	many := create("g")
	for i := range 65 {
		many = append(many, fmt.Sprintf("v%d", i))
	}
	for _, x := range []struct {
		code int
		args []string
		says []string
	}{
		{2, create("A_b", "ba"), []string{"A_b", "DNS label"}},
		{2, create("", "ba"), []string{"DNS label"}},
		{2, create("g"), []string{"arg"}},
		{2, create("g", "ba", "ba"), []string{`"ba"`, "once"}},
		{2, many, []string{`"65"`, "1 to 64"}},
		{3, create("g", "ba", "nothing"), []string{"nothing", "volume list"}},
		{2, create("taken", "ba", "bb"), []string{"taken", "bb", "yet"}},
		{2, []string{"snapshot", "attach", "bb/taken"}, []string{"VOLUME@SNAPSHOT"}},
		{2, []string{"snapshot", "attach", "bb@"}, []string{"VOLUME@SNAPSHOT"}},
		{2, []string{"snapshot", "attach", "bb@taken", "--frontend", "floppy"}, []string{"floppy", "fuse or nbd"}},
		{3, []string{"snapshot", "attach", "bb@taken", "--node", "nowhere"}, []string{"nowhere"}},
		{3, []string{"snapshot", "attach", "bb@nothing"}, []string{"nothing", "snapshot list bb"}},
		{3, []string{"snapshot", "attach", "nothing@taken"}, []string{"nothing"}},
		{4, []string{"snapshot", "detach", "bb@taken"}, []string{"not attached"}},
		{2, []string{"snapshot", "detach", "bb"}, []string{"VOLUME@SNAPSHOT"}},
		{3, []string{"snapshot", "delete", "--group", "nothing"}, []string{"no group"}},
	} {
		c.refused(x.code, x.says, "n1", x.args...)
	}
	c.keelson("n1", "settings", "set", "snapshots-max", "1")
	c.refused(2, []string{"bb", "at most 1", "snapshots-max"}, "n1", create("g", "ba", "bb")...)
	if out := c.keelson("n1", "snapshot", "list", "ba", "-o", "json"); out != "[]" {
		t.Errorf("volume ba has snapshots: %s", out)
	}
	c.keelson("n1", "snapshot", "delete", "bb", "taken")
	c.remove("n1", "bb")
}

// A snapshot that is attached is what it was, whatever becomes of its volume, of one of the copies, and of the engine.
func TestAttachedSnapshot(t *testing.T) {
	c := shared(t)
	v := c.create("roat", "--size", "64Mi", "--zone-spread")
	holder, other := v.members()[0].Node, v.members()[1].Node
	third := c.Nodes()[slices.IndexFunc(c.Nodes(), func(n string) bool { return n != holder && n != other })]
	dev := c.attach(holder, "roat", "fuse")
	w := newWriter(t, 64<<20)
	w.fill(dev, 0, w.blocks)
	want := c.content(holder, dev)
	c.keelson(holder, "snapshot", "create", "roat", "s")
	at := c.keelson(holder, "snapshot", "attach", "roat@s", "--node", third)
	w.start(dev)
	if got := c.content(third, at); got != want {
		t.Errorf("the snapshot isn't what the volume was")
	}
	if ro := c.shell(third, "blockdev --getro "+at); ro != "1" {
		t.Errorf("blockdev --getro says %s", ro)
	}
	if out, err := c.tryShell(third, "dd if=/dev/zero of="+at+" bs=4096 count=1 oflag=direct"); err == nil {
		t.Errorf("it was written to: %s", out)
	}
	c.refused(4, []string{"attached to node " + third, "snapshot detach roat@s"}, holder, "snapshot", "delete", "roat", "s")
	c.refused(4, []string{"attached to node " + third}, other, "snapshot", "attach", "roat@s")
	c.keelson(holder, "snapshot", "create", "roat", "gone")
	uri := c.keelson(other, "snapshot", "attach", "roat@gone", "--frontend", "nbd")
	if info := c.shell(other, "nbdinfo '"+uri+"'"); !strings.Contains(info, "is_read_only: true") {
		t.Errorf("nbdinfo says %s", info)
	}
	if err := c.KillProcess(third, "engine"); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(other); err != nil {
		t.Fatal(err)
	}
	if got := c.content(third, at); got != want {
		t.Errorf("with a new engine and without one copy, the snapshot isn't what it was")
	}
	c.Eventually(30*time.Second, "the snapshot is taken from a node that is gone", func() error {
		_, err := c.Keelson(c.ctx(), holder, "snapshot", "detach", "roat@gone")
		return err
	})
	if err := c.Start(other); err != nil {
		t.Fatal(err)
	}
	if err := w.halt(); err != nil {
		t.Error(err)
	}
	c.shell(third, "exec 3<"+at+"; ! keelson snapshot detach roat@s 2>&1")
	c.keelson(holder, "snapshot", "detach", "roat@s")
	c.awaitHealthy(holder, "roat", 60*time.Second)
	c.keelson(holder, "snapshot", "delete", "roat", "s")
	c.keelson(holder, "snapshot", "delete", "roat", "gone")
	w.verify(dev)
	c.remove(holder, "roat")
	c.wantNoReplicas()
}
