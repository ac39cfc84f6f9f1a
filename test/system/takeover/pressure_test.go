package takeover

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
)

// The writers' memory, and what they write: far more than fits.
const (
	writersMemory = 64 << 20
	writers       = 4
	writerSize    = 288 << 20
)

// smallGroup makes a control group with little memory and returns its directory.
func smallGroup(t *testing.T) string {
	t.Helper()
	root, limit := "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
	if _, err := os.Stat(filepath.Join(root, limit)); err != nil {
		root, limit = "/sys/fs/cgroup", "memory.max"
		if b, err := os.ReadFile(filepath.Join(root, "cgroup.subtree_control")); err != nil || !strings.Contains(string(b), "memory") {
			t.Skipf("needs a memory controller in %s: %s, %v", root, b, err)
		}
	}
	dir := filepath.Join(root, fmt.Sprintf("keelson-writers-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var err error
		for range 500 { // until the kernel has let the last process go
			if err = unix.Rmdir(dir); err != unix.EBUSY {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		if err != nil {
			t.Error(dir, err)
		}
	})
	if err := os.WriteFile(filepath.Join(dir, limit), []byte(strconv.Itoa(writersMemory)), 0); err != nil {
		t.Fatal(err)
	}
	// A group of version 1 doesn't slow down who fills it with dirty pages: without this the kernel may kill a writer while no engine
	// writes them. They wait for memory instead, which is what is to be seen here.
	if err := os.WriteFile(filepath.Join(dir, "memory.oom_control"), []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		t.Fatal(err)
	}
	return dir
}

// engineIsApart waits until the engine's memory is in the node's own control group, and locked, which it does itself once it runs.
func engineIsApart(t *testing.T, l *lab.Lab) {
	t.Helper()
	group := l.MemoryGroup("n1")
	if group == "" {
		t.Fatal("the node has no control group for memory")
	}
	apart := func() error {
		pid := l.Status()[0].PIDs["engine"]
		b, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
		if err != nil || !strings.Contains("\n"+string(b), fmt.Sprintf("\n%d\n", pid)) {
			return fmt.Errorf("engine %d isn't in the node's control group %q: %q, %v", pid, group, b, err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		_, locked, _ := strings.Cut(string(status), "VmLck:")
		if kb, err := strconv.Atoi(strings.Fields(locked + " -")[0]); err != nil || kb == 0 {
			return fmt.Errorf("engine %d has %d KiB of memory locked, %v", pid, kb, err)
		}
		return nil
	}
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = apart(); err == nil {
			return
		}
	}
	t.Fatal(err)
}

// Buffered writers whose memory is full of pages that only the engine can write: it never waits for them, nor do they for ever, also
// when it is killed meanwhile.
func TestMemoryPressure(t *testing.T) {
	group := smallGroup(t)
	l := up(t, "takeover-pressure")
	mnt := mounted(t, l, "2Gi")
	engineIsApart(t, l)
	fio := func(more ...string) *exec.Cmd {
		args := []string{"--name=w", "--directory=" + mnt, "--rw=write", "--bs=64k", "--ioengine=psync", "--fallocate=none", "--verify=crc32c", "--verify_state_save=0", "--verify_fatal=1",
			fmt.Sprintf("--numjobs=%d", writers), fmt.Sprintf("--size=%d", writerSize)}
		return exec.Command("sh", append([]string{"-c", `echo $$ > "$0/cgroup.procs" && exec fio "$@"`, group}, append(args, more...)...)...)
	}
	out := &strings.Builder{}
	write := fio("--do_verify=0", "--end_fsync=1")
	write.Stdout, write.Stderr = out, out
	if err := write.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- write.Wait() }()
	late := time.After(4 * time.Minute)
	kills := 0
	for done := false; !done; {
		select {
		case err := <-ended:
			if done = true; err != nil {
				t.Fatalf("the writers saw: %v: %s", err, out)
			}
		case <-time.After(time.Second): // of writing
			if kills < 3 {
				kill(t, l, "engine")
				kills++
			}
		case <-late:
			_ = write.Process.Kill()
			t.Fatal("the writers don't end: a deadlock?")
		}
	}
	if kills == 0 {
		t.Error("the writers ended before the engine could be killed")
	}
	engineIsApart(t, l)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
		t.Log("what is read comes from memory:", err)
	}
	if out, err := fio("--verify_only").CombinedOutput(); err != nil || strings.Contains(string(out), "verify:") {
		t.Fatalf("what was written isn't there: %v: %s", err, out)
	}
	t.Logf("%d MiB written in %d MiB of memory, engine killed %d times", writers*writerSize>>20, writersMemory>>20, kills)
}
