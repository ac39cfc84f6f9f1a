// Package takeover kills the processes of a node while a mounted volume is written to: whoever uses it waits, and sees no error.
//
// Every test has a lab of its own, and stops what it starts.
package takeover

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
)

// rounds is how many kills a test makes: a number from the environment, or fewer.
func rounds(t *testing.T, few int) int {
	t.Helper()
	v := os.Getenv("KEELSON_KILLS")
	if v == "" {
		return few
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal("KEELSON_KILLS:", err)
	}
	return n
}

// up brings a lab up with a binary of its own, which a test may replace.
func up(t *testing.T, name string) *lab.Lab {
	t.Helper()
	labtest.NeedRoot(t)
	from := os.Getenv("KEELSON_BIN")
	if from == "" {
		from = "../../../bin/keelson"
	}
	binary := filepath.Join(t.TempDir(), "keelson")
	if out, err := exec.Command("cp", from, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s: build it with make build", err, out)
	}
	group := ""
	t.Cleanup(func() { // once the lab is down
		if _, err := os.Stat(group); group != "" && err == nil {
			t.Errorf("control group %s is left", group)
		}
	})
	c := labtest.Up(t, lab.Config{Name: name, Binary: binary, Nodes: 1, Zones: 1, PoolSize: "4Gi"})
	group = c.MemoryGroup("n1")
	return c.Lab
}

// lastLog is the end of n1's log.
func lastLog(l *lab.Lab, n int) string {
	b, err := os.ReadFile(filepath.Join(l.NodeDir("n1"), "server.log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// mounted is a file system on an attached volume of n1, mounted here.
func mounted(t *testing.T, l *lab.Lab, size string) string {
	t.Helper()
	keelson(t, l, "volume", "create", "v", "--size", size, "--replicas", "1")
	dev := strings.TrimSpace(keelson(t, l, "volume", "attach", "v"))
	mnt := filepath.Join(t.TempDir(), "mnt")
	if out, err := exec.Command("sh", "-c", "mkdir "+mnt+" && mkfs.ext4 -q "+dev+" && mount "+dev+" "+mnt).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error("umount:", err)
			_ = unix.Unmount(mnt, unix.MNT_DETACH)
		}
		if out, err := exec.Command("e2fsck", "-fn", dev).CombinedOutput(); err != nil {
			t.Errorf("e2fsck: %v: %s", err, out)
		}
	})
	return mnt
}

func keelson(t *testing.T, l *lab.Lab, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, err := l.Keelson(ctx, "n1", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// load is verified I/O of fio, and small synchronous writes whose longest pause is measured.
type load struct {
	t      *testing.T
	fio    chan error
	stop   chan struct{}
	probed chan error
	pause  atomic.Int64 // longest since it was asked for, ns
	writes atomic.Int64
}

func start(t *testing.T, mnt string) *load {
	t.Helper()
	l := &load{t: t, fio: make(chan error, 1), stop: make(chan struct{}), probed: make(chan error, 1)}
	fio := exec.Command("fio", "--name=load", "--directory="+mnt, "--size=64m", "--rw=randwrite", "--bs=4k", "--direct=1", "--ioengine=libaio", "--iodepth=8",
		"--verify=crc32c", "--verify_state_save=0", "--verify_backlog=512", "--verify_fatal=1", "--rate_iops=400", "--time_based", "--runtime=3600")
	out := &strings.Builder{}
	fio.Stdout, fio.Stderr = out, out
	if err := fio.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		err := fio.Wait()
		if err != nil || strings.Contains(out.String(), "verify:") {
			err = fmt.Errorf("fio: %w: %s", err, out.String())
		}
		l.fio <- err
	}()
	go func() { l.probed <- l.probe(filepath.Join(mnt, "probe")) }()
	t.Cleanup(func() {
		if len(l.fio) == 0 {
			_ = fio.Process.Signal(os.Interrupt)
		}
		select {
		case err := <-l.fio:
			if err != nil && strings.Contains(err.Error(), "verify:") {
				t.Error(err)
			}
		case <-time.After(time.Minute):
			t.Error("fio doesn't end")
		}
	})
	return l
}

func (l *load) probe(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_DSYNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	for i := int64(0); ; i++ {
		select {
		case <-l.stop:
			return nil
		default:
		}
		began := time.Now()
		if _, err := f.WriteAt([]byte(strconv.FormatInt(i, 10)), i%64*4096); err != nil {
			return err
		}
		l.writes.Add(1)
		if took := int64(time.Since(began)); took > l.pause.Load() {
			l.pause.Store(took)
		}
	}
}

// after waits until a write that began after the call is done, and returns the longest pause since the last call.
func (l *load) after() time.Duration {
	l.t.Helper()
	n := l.writes.Load()
	for deadline := time.Now().Add(time.Minute); l.writes.Load() < n+3; time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-l.probed:
			l.t.Fatalf("whoever uses the volume saw: %v", err)
		case err := <-l.fio:
			l.fio <- err
			l.t.Fatalf("whoever uses the volume saw: %v", err)
		default:
		}
		if time.Now().After(deadline) {
			l.t.Fatal("nothing is written a minute after the kill")
		}
	}
	return time.Duration(l.pause.Swap(0))
}

// end stops the probe; fio is interrupted when the test ends.
func (l *load) end() {
	l.t.Helper()
	close(l.stop)
	if err := <-l.probed; err != nil {
		l.t.Error(err)
	}
}

// told reports pauses by what was killed.
func told(t *testing.T, pauses map[string][]time.Duration) {
	t.Helper()
	for what, d := range pauses {
		slices.Sort(d)
		n, ms := len(d), time.Millisecond
		t.Logf("%-20s %3d kills: pause median %v, p90 %v, longest %v", what, n, d[n/2].Round(ms), d[n*9/10].Round(ms), d[n-1].Round(ms))
	}
}

// kill kills processes of n1 at once, once they run.
func kill(t *testing.T, l *lab.Lab, names ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		pids := l.Status()[0].PIDs
		if !slices.ContainsFunc(names, func(n string) bool { return pids[n] == 0 }) {
			for _, n := range names {
				if err := unix.Kill(pids[n], unix.SIGKILL); err != nil && err != unix.ESRCH {
					t.Fatal(err)
				}
			}
			for _, n := range names {
				for unix.Kill(pids[n], 0) == nil && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond) // what it still does isn't a successor's work
				}
			}
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not all of %v run: %v", names, pids)
		}
	}
}

// limit is how long I/O may pause. It is far beyond what is seen, also on a busy machine; what passes it waits for something.
const limit = 3 * time.Second

func TestKills(t *testing.T) {
	l := up(t, "takeover")
	load := start(t, mounted(t, l, "1Gi"))
	load.after()
	victims := [][]string{{"engine"}, {"control"}, {"engine"}, {"etcd"}, {"engine", "control", "etcd"}}
	pauses := map[string][]time.Duration{}
	strike := func(names ...string) {
		kill(t, l, names...)
		what := strings.Join(names, ",")
		pause := load.after()
		pauses[what] = append(pauses[what], pause)
		if pause > limit {
			t.Errorf("%s: I/O paused for %v, at most %v is promised; log of n1:\n%s", what, pause, limit, lastLog(l, 12000))
		}
	}
	defer func() { told(t, pauses) }()
	n := rounds(t, 60)
	for i := range n {
		strike(victims[i%len(victims)]...)
	}
	for range max(1, n/5) {
		strike("server")
	}
	load.end()
}
