package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/lab"
	"keelson.io/keelson/internal/lab/labtest"
)

// A node's keeper is killed by a stranger, so that nobody can say in which order things end, while a file
// system is mounted and written to. Down must get rid of all the same.
func TestLabDownAfterACrash(t *testing.T) {
	const name = "system-crash"
	dir := lab.Dir(name)
	c := &cluster{labtest.Up(t, lab.Config{Name: name, Nodes: 1, Zones: 1, PoolSize: "1Gi"})}
	c.keelson("n1", "volume", "create", "left-by-crash", "--size", "64Mi", "--replicas", "1")
	dev := c.attach("n1", "left-by-crash", "fuse")
	if name := loopName(dev); !strings.HasSuffix(name, "left-by-crash") {
		t.Fatalf("%s has the name %q", dev, name)
	}
	mnt := filepath.Join(dir, "mnt")
	c.shell("n1", "mkdir "+mnt+" && mkfs.ext4 -q "+dev+" && mount "+dev+" "+mnt)
	writer, err := c.Command(t.Context(), "n1", "sh", "-c", "while dd if=/dev/zero of="+mnt+"/f bs=1M count=8 conv=fsync; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := writer.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Wait() }()

	if err := syscall.Kill(keeperOf(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := lab.Down(name, dir); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", "losetup -l -n -O BACK-FILE; ls /run/netns; ls "+filepath.Dir(dir)+"; ps -eo args; cat /proc/mounts").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(out), "\n") {
		if strings.Contains(line, name) {
			t.Errorf("left behind: %s", line)
		}
	}
	if name := loopName(dev); strings.HasSuffix(name, "left-by-crash") {
		t.Errorf("%s is still attached", dev)
	}
}

// loopName is the name that whoever attached the loop device gave its file, "" if there is none. The number of the device says nothing:
// another lab may have it by now.
func loopName(dev string) string {
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.File_name[:])
}

// keeperOf returns the PID of the keeper of the only node of the lab in dir.
func keeperOf(t *testing.T, dir string) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		b, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(b), "\x00lab\x00keeper\x00--dir\x00"+dir+"\x00") {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no keeper of %s runs", dir)
	return 0
}
