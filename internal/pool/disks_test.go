package pool

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/spec"
)

// disk makes a block device of a new file.
func disk(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 512<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	return dev
}

// found returns the disk of that name as Disks lists it.
func found(t *testing.T, dev string, globs ...string) Disk {
	t.Helper()
	disks, err := Disks(globs)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(disks, func(d Disk) bool { return d.Device == dev })
	if i < 0 {
		t.Fatalf("%s is not among %v", dev, disks)
	}
	return disks[i]
}

func tool(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

func TestDisksFindsDevicesAndTheirNames(t *testing.T) {
	host(t) // root
	dev := disk(t)
	link := filepath.Join(t.TempDir(), "by-test")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	d := found(t, dev, filepath.Dir(link)+"/*")
	if d.Size != 512<<20 || !d.Virtual || d.Name != dev || d.Media == "" {
		t.Fatalf("%+v", d)
	}
	for glob, want := range map[string]bool{dev: true, filepath.Dir(link) + "/by-*": true, "/dev/loop": false, "/dev/sd*": false} {
		if d.Named(glob) != want {
			t.Errorf("%s names %+v: %v", glob, d, !want)
		}
	}
}

func TestUsableLeavesAloneWhatIsTakenOrHoldsSomething(t *testing.T) {
	host(t) // root
	ctx := context.Background()
	for name, c := range map[string]struct {
		make func(t *testing.T, dev string)
		want error
	}{
		"empty": {func(*testing.T, string) {}, nil},
		"mounted": {func(t *testing.T, dev string) {
			tool(t, "mkfs.ext4", "-q", dev)
			dir := t.TempDir()
			if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
		}, ErrInUse},
		"held by somebody": {func(t *testing.T, dev string) {
			fd, err := unix.Open(dev, unix.O_RDONLY|unix.O_EXCL, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
		}, ErrInUse},
		"ext4":             {func(t *testing.T, dev string) { tool(t, "mkfs.ext4", "-q", dev) }, ErrSigned},
		"a pool of before": {func(t *testing.T, dev string) { tool(t, "mkfs.xfs", "-q", dev) }, ErrSigned},
		"swap":             {func(t *testing.T, dev string) { tool(t, "mkswap", dev) }, ErrSigned},
		"a partition table": {func(t *testing.T, dev string) {
			mbr := make([]byte, 512)
			mbr[450] = 0x83
			binary.LittleEndian.PutUint32(mbr[454:], 2048)
			binary.LittleEndian.PutUint32(mbr[458:], 100000)
			mbr[510], mbr[511] = 0x55, 0xaa
			if err := os.WriteFile(dev, mbr, 0); err != nil {
				t.Fatal(err)
			}
		}, ErrSigned},
	} {
		t.Run(name, func(t *testing.T) {
			dev := disk(t)
			c.make(t, dev)
			before := head(t, dev)
			err := found(t, dev).Usable(ctx)
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if head(t, dev) != before {
				t.Fatal("it was written to")
			}
		})
	}
}

// head is the beginning of a device.
func head(t *testing.T, dev string) string {
	t.Helper()
	f, err := os.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestResume goes on from every point at which an Add can die.
func TestResume(t *testing.T) {
	for name, c := range map[string]struct {
		until func(t *testing.T, h Host, dev string) (id string)
		want  error
	}{
		"before anything": {until: func(*testing.T, Host, string) string { return "" }},
		"after mkfs":      {until: func(t *testing.T, _ Host, dev string) string { tool(t, "mkfs.xfs", "-q", dev); return "" }},
		"after mounting": {until: func(t *testing.T, h Host, dev string) string {
			tool(t, "mkfs.xfs", "-q", dev)
			if err := mount(dev, h.MountPoint("00000000000000aa")); err != nil {
				t.Fatal(err)
			}
			return ""
		}},
		"before it was recorded": {until: func(t *testing.T, h Host, dev string) string {
			p, err := h.Add(context.Background(), AddOptions{Device: dev})
			if err != nil {
				t.Fatal(err)
			}
			return p.ID
		}},
		"before it was recorded, and the machine started anew": {until: func(t *testing.T, h Host, dev string) string {
			p, err := h.Add(context.Background(), AddOptions{Device: dev})
			if err := errors.Join(err, h.Close(p.ID)); err != nil {
				t.Fatal(err)
			}
			return p.ID
		}},
		"with a file system of somebody else in between": {until: func(t *testing.T, h Host, dev string) string {
			tool(t, "mkfs.ext4", "-q", dev)
			return ""
		}, want: ErrSigned},
		"with files of somebody else in between": {until: func(t *testing.T, h Host, dev string) string {
			tool(t, "mkfs.xfs", "-q", dev)
			dir := filepath.Join(h.Dir, "x")
			if err := mount(dev, dir); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.WriteFile(filepath.Join(dir, "thesis"), nil, 0o600), unmount(dir)); err != nil {
				t.Fatal(err)
			}
			return ""
		}, want: ErrSigned},
		"with another node's pool": {until: func(t *testing.T, h Host, dev string) string {
			h.Node = "n2"
			p, err := h.Add(context.Background(), AddOptions{Device: dev})
			if err := errors.Join(err, h.Close(p.ID)); err != nil {
				t.Fatal(err)
			}
			return ""
		}, want: ErrForeign},
	} {
		t.Run(name, func(t *testing.T) {
			h, dev := host(t), ""
			dev = disk(t)
			id := c.until(t, h, dev)
			p, err := h.Resume(context.Background(), AddOptions{Device: dev, Labels: map[string]string{"a": "b"}})
			if c.want != nil {
				if !errors.Is(err, c.want) {
					t.Fatalf("%v, want %v", err, c.want)
				}
				if at, err := mountedAt(dev); err != nil || at != "" {
					t.Fatalf("mounted at %s, %v", at, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer h.Close(p.ID)
			if id != "" && p.ID != id || p.ID == "" || p.Capacity == 0 || p.Reserve == 0 || p.Labels["a"] != "b" || p.Media == "" || p.Created.IsZero() {
				t.Fatalf("%+v, want id %s", p, id)
			}
			if _, err := h.Open(context.Background(), p); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestResumeOfAFile(t *testing.T) {
	h := host(t)
	file := filepath.Join(t.TempDir(), "pool.img")
	o := AddOptions{File: file, Size: 512 << 20, Media: spec.MediaSSD}
	p, err := h.Add(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(p.ID); err != nil {
		t.Fatal(err)
	}
	// What was begun is written down as JSON.
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	var again AddOptions
	if err := json.Unmarshal(b, &again); err != nil {
		t.Fatal(err)
	}
	q, err := h.Resume(context.Background(), again)
	if err != nil || q.ID != p.ID || q.File != file {
		t.Fatalf("%+v, %v", q, err)
	}
	if err := h.Close(q.ID); err != nil {
		t.Fatal(err)
	}
}
