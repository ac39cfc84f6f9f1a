package server

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
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

// TestDoctorLooksAtKeys: the keys of all volumes are tried, by whoever has them now.
func TestDoctorLooksAtKeys(t *testing.T) {
	c := DefaultConfig()
	c.DataDir = t.TempDir()
	if k := c.lookAtKeys(t.Context()); k.Provider != "" || len(k.Problems) > 0 || !errors.Is(k.Unknown, ErrNoState) {
		t.Errorf("%+v", k)
	}
	c.Encryption = EncryptionConfig{Provider: spec.ProviderFile, KeyDir: t.TempDir()}
	if k := c.lookAtKeys(t.Context()); len(k.Problems) != 0 || k.Lacks == nil || !strings.Contains(k.Lacks.Error(), "there is no key in") {
		t.Errorf("%+v", k)
	}
	path := filepath.Join(c.Encryption.KeyDir, "k1")
	put := func(b byte) {
		t.Helper()
		_ = os.Remove(path)
		if err := os.WriteFile(path, append(bytes.Repeat([]byte{b}, 31), 1), 0o400); err != nil {
			t.Fatal(err)
		}
	}
	put(2)
	if k := c.lookAtKeys(t.Context()); len(k.Problems) != 0 || k.Lacks != nil || k.Wraps != "file/k1" {
		t.Errorf("%+v", k)
	}
	ring, err := c.Encryption.open(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer ring.close()
	v := spec.Volume{ID: "00112233445566aa", Name: "pg"}
	if v.Encryption, err = ring.Make(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	for b, want := range map[byte]string{2: "", 3: "the wrapped key doesn't open"} {
		put(b)
		if got := strings.Join(unopened(t.Context(), ring, []spec.Volume{v}), " "); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := unopened(t.Context(), &keyring{}, []spec.Volume{v}); len(got) != 1 || !strings.Contains(got[0], "no wrapping key is configured") {
		t.Errorf("%v", got)
	}
}
