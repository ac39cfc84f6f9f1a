package server

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDoctorOnThisMachine: what it asks of Keelson's own parts is answered.
func TestDoctorOnThisMachine(t *testing.T) {
	m, err := NewDoctor()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Uring(); err != nil {
		t.Errorf("io_uring, on which the other tests of this repository run: %v", err)
	}
	if err := m.Device(t.Context(), "/dev/null"); err == nil {
		t.Error("a pool could be made of /dev/null")
	}
	c := DefaultConfig()
	if o := c.DoctorOptions(); len(o.Ports) != 4 || o.Ports[0].Number != 9500 || o.DataDir != c.DataDir {
		t.Errorf("%+v", o)
	}
}

// TestCouldRun: a group with a limit is no obstacle as long as another one can be made.
func TestCouldRun(t *testing.T) {
	dir := t.TempDir()
	m := cgroups{root: filepath.Join(dir, "cgroup"), proc: filepath.Join(dir, "proc")}
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.couldRun(); err != nil {
		t.Errorf("without control groups: %v", err)
	}
	write(m.proc+"/self/cgroup", "0::/pod\n")
	write(m.root+"/pod/memory.max", "max\n")
	write(m.root+"/pod/cgroup.procs", "")
	if err := m.couldRun(); err != nil {
		t.Errorf("an empty group: %v", err)
	}
	write(m.root+"/pod/memory.max", "1000000\n")
	if err := m.couldRun(); err != nil {
		t.Errorf("a limited group, and another can be made: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes a file system read-only")
	}
	if err := unix.Mount(m.root, m.root, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(m.root, 0); err != nil {
			t.Error(err)
		}
	})
	if err := unix.Mount("", m.root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := m.couldRun(); !errors.Is(err, ErrCgroup) || !errors.Is(err, unix.EROFS) {
		t.Errorf("a limited group, and no other can be made: %v", err)
	}
}
