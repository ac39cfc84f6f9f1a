package lab

import (
	"maps"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountsInANewPIDNamespace sees its own mounts, not those of the process that has its number where /proc was mounted.
func TestMountsInANewPIDNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces")
	}
	const variable = "KEELSON_TEST_MOUNT"
	if dir := os.Getenv(variable); dir != "" {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("own", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(mountsHere(), func(m mount) bool { return m.point == dir && m.source == "own" }) {
			t.Errorf("%s, which is mounted here, isn't in the list", dir)
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), variable+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// TestMountsOfAProcessThatEnds doesn't take a namespace for one without mounts because its first process ended in between: whatever
// is attached there would then pass for left behind, and be taken from a node that works.
func TestMountsOfAProcessThatEnds(t *testing.T) {
	namespaces := map[int]string{10: "a", 11: "b", 12: "b", 13: "b"}
	mounted := map[int][]mount{10: {{dev: 1, fsType: "fuse"}}, 12: {{dev: 2, fsType: "fuse.keelson"}, {dev: 3, fsType: "xfs"}}}
	got := fuseDevices([]int{9, 10, 11, 12, 13}, func(pid int) string { return namespaces[pid] }, func(pid int) []mount { return mounted[pid] })
	if want := (map[uint64]bool{1: true, 2: true}); !maps.Equal(got, want) {
		t.Errorf("FUSE file systems %v, want %v", got, want)
	}
}
