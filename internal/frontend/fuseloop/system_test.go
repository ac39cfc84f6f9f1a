package fuseloop_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/frontend"
	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/frontend/fuseloop"
)

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(frontendtest.NeedTool(t, name), args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// makeFS makes ext4 on the device and mounts it.
func makeFS(t *testing.T, device string) string {
	t.Helper()
	run(t, "mkfs.ext4", "-q", device)
	dir := t.TempDir()
	if err := unix.Mount(device, dir, "ext4", 0, ""); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// gone reports whether the device isn't a volume's any more. Its number may be somebody else's by then.
func gone(device, volume string) bool {
	f, err := os.Open(device)
	if err != nil {
		return true
	}
	defer f.Close()
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	return err != nil || unix.ByteSliceToString(info.File_name[:]) != "keelson:"+volume
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestFileSystem(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 64<<20)
	s := open(t, loop, dev, "vol")
	device := s.Path()
	dir := makeFS(t, device)
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Errorf("sync: %v", err)
	}
	run(t, "fstrim", dir)

	err = s.Detach()
	var busy *frontend.BusyError
	if !errors.As(err, &busy) || !strings.Contains(busy.By, dir) || busy.Path != device {
		t.Errorf("detach of a mounted volume: %v, want ErrBusy that names %s", err, dir)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	run(t, "fsck.ext4", "-fn", device)
	waitFor(t, "fsck and udev to let go", func() bool { return s.InUse() == nil })
	if err := s.Detach(); err != nil {
		t.Fatalf("detach: %v", err)
	}
	if !gone(device, "vol") {
		t.Errorf("%s is still attached", device)
	}
	if dev.Dirty() != 0 {
		t.Errorf("%d blocks aren't durable after the file system was unmounted", dev.Dirty())
	}
}

// The device is queried as the host sees it.
func TestBlockDevice(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s := open(t, loop, frontendtest.NewDevice(loop, 64<<20), "vol")
	for name, want := range map[string]string{
		"queue/logical_block_size": "4096", "queue/physical_block_size": "4096", "loop/dio": "1", "ro": "0",
		"queue/write_cache": "write back", "queue/discard_granularity": "4096", "size": "131072",
	} {
		b, err := os.ReadFile("/sys/block/" + filepath.Base(s.Path()) + "/" + name)
		if got := strings.TrimSpace(string(b)); err != nil || got != want {
			t.Errorf("%s is %q (%v), want %q", name, got, err, want)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(s.File()))
	if err != nil || len(entries) != 1 || entries[0].Name() != "volume" {
		t.Errorf("the directory holds %v (%v)", entries, err)
	}
	if _, err := os.Stat(s.File() + "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that isn't there: %v", err)
	}
	if err := os.Truncate(s.File(), 0); err == nil {
		t.Error("the volume's file could be truncated")
	}
}

// A frontend whose device doesn't answer any more is closed under a mounted file system:
// whoever waits gets an error, and nothing is left once the mount is gone.
func TestCloseUnderMount(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 64<<20)
	s := open(t, loop, dev, "vol")
	device := s.Path()
	dir := makeFS(t, device)
	frontendtest.OnLoop(loop, func() { dev.Hold = true })
	written := make(chan error, 1)
	go func() {
		f, err := os.Create(filepath.Join(dir, "f"))
		if err == nil {
			_, err = f.Write(make([]byte, 1<<20))
			err = errors.Join(err, f.Sync(), f.Close())
		}
		written <- err
	}()
	waitFor(t, "a request at the device", func() bool { return dev.Held() > 0 })
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if err := <-written; err == nil {
		t.Error("a write that the device never answered was synced")
	}
	dev.Release(syscall.ESHUTDOWN)
	if err := <-closed; err != nil {
		t.Errorf("close: %v", err)
	}
	if err := unix.Unmount(dir, 0); err != nil {
		t.Errorf("unmount of the dead file system: %v", err)
	}
	waitFor(t, "the loop device to go", func() bool { return gone(device, "vol") })
}

// What a server that died left behind is taken away by the next one.
func TestOpenSweeps(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 64<<20)
	first := open(t, loop, dev, "vol")
	h, err := first.Handoff()
	if err != nil {
		t.Fatal(err)
	}
	left := first.Path()
	if err := first.Suspend(); err != nil { // as if it had died
		t.Fatal(err)
	}
	second := fuseloop.New(fuseloop.Config{Loop: loop, Device: dev, Name: "vol", MountDir: filepath.Dir(filepath.Dir(first.File()))})
	if err := second.Open(t.Context()); err != nil {
		t.Fatalf("open over what was left: %v", err)
	}
	defer second.Close()
	if err := h.FD.Close(); err != nil {
		t.Fatal(err)
	}
	c := mustDial(t, second.Path())
	if err := errors.Join(c.WriteAt(frontendtest.Aligned(4096), 0, false), c.Close()); err != nil {
		t.Errorf("write: %v", err)
	}
	if left != second.Path() && !gone(left, "vol") {
		t.Errorf("%s is still attached", left)
	}
}

// What a server that died left behind can be taken away by its state alone.
func TestDiscard(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s := open(t, loop, frontendtest.NewDevice(loop, 64<<20), "vol")
	h, err := s.Handoff()
	if err != nil {
		t.Fatal(err)
	}
	defer h.FD.Close()
	if err := s.Suspend(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(fuseloop.Discard(h.State), fuseloop.Discard(h.State)); err != nil {
		t.Errorf("discard: %v", err)
	}
	if device := s.Path(); !gone(device, "vol") {
		t.Errorf("%s is still attached", device)
	}
	if _, err := os.Stat(filepath.Dir(s.File())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("mount point: %v", err)
	}
	if err := fuseloop.Discard([]byte("{}")); !errors.Is(err, fuseloop.ErrState) {
		t.Errorf("a state of nothing: %v", err)
	}
}

// Many volumes come and go without a descriptor, goroutine, mount or device left.
func TestManyVolumes(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	mounts := t.TempDir()
	goroutines, fds := runtime.NumGoroutine(), descriptors(t)
	for range 2 {
		var servers []*fuseloop.Server
		for i := range 20 {
			dev := frontendtest.NewNull(loop, 1<<30)
			s := fuseloop.New(fuseloop.Config{Loop: loop, Device: dev, Name: fmt.Sprintf("vol%d", i), MountDir: mounts})
			if err := s.Open(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			servers = append(servers, s)
		}
		for i, s := range servers {
			end := s.Detach
			if i%2 == 0 {
				end = s.Close
			}
			if err := end(); err != nil {
				t.Error(err)
			}
			waitFor(t, "the loop device to go", func() bool { return gone(s.Path(), fmt.Sprintf("vol%d", i)) })
		}
	}
	waitFor(t, "descriptors to go", func() bool { return descriptors(t) <= fds })
	waitFor(t, "goroutines to go", func() bool { return runtime.NumGoroutine() <= goroutines })
	if left, err := os.ReadDir(mounts); err != nil || len(left) > 0 {
		t.Errorf("left over: %v (%v)", left, err)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestFioVerify(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s := open(t, loop, frontendtest.NewDevice(loop, 64<<20), "vol")
	frontendtest.Fio(t, "--ioengine=libaio", "--direct=1", "--filename="+s.Path(), "--rw=randwrite", "--bsrange=4k-1m", "--blockalign=4k",
		"--iodepth=32", "--size=48m", "--verify=crc32c", "--verify_fatal=1", "--fsync=64")
}

// Nothing is allocated for an I/O once a session is warm.
func TestNoAllocations(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s := open(t, loop, frontendtest.NewNull(loop, 1<<30), "null")
	c := frontendtest.Fio(t, "--ioengine=libaio", "--direct=1", "--filename="+s.Path(), "--rw=randrw", "--bs=4k", "--iodepth=32",
		"--number_ios=50000", "--size=1g")
	if c.Mallocs > 0.02 {
		t.Errorf("%.3f heap allocations an I/O (%d I/Os)", c.Mallocs, c.Ops)
	}
}
