package fuseloop_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/frontend/fuseloop"
)

// needFUSE skips the test on a machine that has no FUSE or loop, or for a user who may not use them.
func needFUSE(t testing.TB) {
	t.Helper()
	for _, dev := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(dev, os.O_RDWR, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENODEV) {
			t.Skipf("%s isn't there, or not for this user: %v", dev, err)
		}
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// open returns an open server; it is closed with the test.
func open(t testing.TB, loop aio.Loop, dev frontend.Device, name string) *fuseloop.Server {
	t.Helper()
	needFUSE(t)
	s := fuseloop.New(fuseloop.Config{Loop: loop, Device: dev, Name: name, MountDir: t.TempDir()})
	if err := s.Open(t.Context()); err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// mounted reports whether something is mounted below dir.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), " "+dir+"/")
}

func TestContract(t *testing.T) {
	needFUSE(t)
	dirs, volumes := map[frontend.Frontend]string{}, map[frontend.Frontend]string{}
	frontendtest.Run(t, frontendtest.Factory{
		Make: func(t *testing.T, loop aio.Loop, dev frontend.Device, volume string) frontend.Frontend {
			s := open(t, loop, dev, volume)
			dirs[s], volumes[s] = filepath.Dir(s.File()), volume
			return s
		},
		Dial: func(t *testing.T, f frontend.Frontend) frontendtest.Client { return mustDial(t, f.Path()) },
		Gone: func(t *testing.T, f frontend.Frontend, path string) {
			if !gone(path, volumes[f]) {
				t.Errorf("loop device %s is there after detach", path)
			}
			if mounted(t, filepath.Dir(dirs[f])) {
				t.Error("file system is still mounted after detach")
			}
			if _, err := os.Stat(dirs[f]); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("mount point after detach: %v", err)
			}
		},
	})
}
