package pool

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"keelson.io/keelson/internal/spec"
)

func host(t *testing.T) Host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	return Host{Dir: filepath.Join(t.TempDir(), "pools"), Cluster: "00000000000000c1", Node: "n1", Log: slog.New(slog.DiscardHandler)}
}

func TestAddSurvivesUnmount(t *testing.T) {
	h := host(t)
	file := filepath.Join(t.TempDir(), "disk")
	p, err := h.Add(context.Background(), AddOptions{File: file, Size: 512 << 20, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close(p.ID)
	if p.Capacity < 256<<20 || p.Reserve != 64<<20 || p.Media == "" || p.Labels["a"] != "b" {
		t.Fatalf("pool %+v", p)
	}
	if err := os.WriteFile(filepath.Join(h.MountPoint(p.ID), "x"), []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Add(context.Background(), AddOptions{File: file, Size: 512 << 20, Wipe: true}); !errors.Is(err, ErrInUse) {
		t.Fatalf("the file of a mounted pool was not refused: %v", err)
	}
	if err := h.Close(p.ID); err != nil {
		t.Fatal(err)
	}
	if dev, err := loopOf(file); err != nil || dev != "" {
		t.Fatalf("loop device %q is left, %v", dev, err)
	}
	for range 2 { // mounted and mounted already
		dir, err := h.Open(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "x")); err != nil || string(b) != "kept" {
			t.Fatalf("%q, %v", b, err)
		}
	}
}

func TestOpenRefusesForeign(t *testing.T) {
	h := host(t)
	file := filepath.Join(t.TempDir(), "disk")
	p, err := h.Add(context.Background(), AddOptions{File: file, Size: MinSize, Media: spec.MediaHDD})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(p.ID); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		host Host
		id   string
	}{
		"cluster": {Host{Dir: h.Dir, Cluster: "00000000000000c2", Node: "n1"}, p.ID},
		"node":    {Host{Dir: h.Dir, Cluster: h.Cluster, Node: "n2"}, p.ID},
		"pool":    {h, "00000000000000aa"},
	} {
		q := p
		q.ID = c.id
		if _, err := c.host.Open(context.Background(), q); !errors.Is(err, ErrForeign) {
			t.Errorf("another %s: %v", name, err)
		}
		if m, _ := isMountPoint(c.host.MountPoint(c.id)); m {
			t.Errorf("another %s: it stayed mounted", name)
			c.host.Close(c.id)
		}
	}
}

func TestAddRefusesSigned(t *testing.T) {
	h := host(t)
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	os.Truncate(file, 400<<20)
	if out, err := exec.Command("mkfs.ext4", "-q", "-b", "4096", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	o := AddOptions{File: file, Size: 400 << 20}
	if _, err := h.Add(context.Background(), o); !errors.Is(err, ErrSigned) {
		t.Fatalf("a file with data: %v", err)
	}
	// The same as a device.
	l, err := openLoop(file)
	if err != nil {
		t.Fatal(err)
	}
	d := AddOptions{Device: l.path}
	if _, err := h.Add(context.Background(), d); !errors.Is(err, ErrSigned) {
		t.Fatalf("a device with a signature: %v", err)
	}
	mnt := t.TempDir()
	if out, err := exec.Command("mount", l.path, mnt).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.Wipe = true
	_, err = h.Add(context.Background(), d)
	if out, uerr := exec.Command("umount", mnt).CombinedOutput(); uerr != nil {
		t.Fatalf("%v: %s", uerr, out)
	}
	if !errors.Is(err, ErrInUse) {
		t.Fatalf("a mounted device with --wipe: %v", err)
	}
	p, err := h.Add(context.Background(), d)
	if err != nil {
		t.Fatalf("wiping: %v", err)
	}
	l.release()
	if err := h.Close(p.ID); err != nil {
		t.Fatal(err)
	}
}

func TestAddInvalid(t *testing.T) {
	h := Host{Dir: t.TempDir()}
	for name, o := range map[string]AddOptions{
		"neither":       {},
		"both":          {Device: "/dev/x", File: "/x", Size: 1 << 30},
		"relative":      {File: "x", Size: 1 << 30},
		"no size":       {File: "/x"},
		"negative":      {File: "/x", Size: -4096},
		"too small":     {File: "/x", Size: 4096},
		"beyond disk":   {File: filepath.Join(t.TempDir(), "x"), Size: 1 << 60},
		"media":         {File: "/x", Size: 1 << 30, Media: "tape"},
		"size of dev":   {Device: "/dev/x", Size: 1 << 30},
		"not a device":  {Device: "/etc/passwd"},
		"device a file": {File: "/dev/null", Size: 1 << 30},
	} {
		if _, err := h.Add(context.Background(), o); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
