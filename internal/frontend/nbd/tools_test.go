package nbd_test

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"keelson.io/keelson/internal/frontend/frontendtest"
)

// The clients here were written by others: they say whether this is NBD.

const toolSize = 64 << 20

// serve returns a device of toolSize bytes and the URI of its export.
func serve(t *testing.T) (*frontendtest.Device, string) {
	t.Helper()
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, toolSize)
	s, _ := open(t, loop, dev, "vol")
	t.Cleanup(func() {
		if n := dev.Wrong(); n > 0 {
			t.Errorf("%d requests broke the rules of block.Request", n)
		}
	})
	return dev, s.Path()
}

// run runs a tool and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(frontendtest.NeedTool(t, name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// image makes a file of toolSize bytes: data, holes, data.
func image(t *testing.T) (string, []byte) {
	t.Helper()
	data := make([]byte, toolSize)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(data[:10<<20])
	r.Read(data[40<<20+4096 : 41<<20])
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name, data
}

func TestNbdinfo(t *testing.T) {
	_, uri := serve(t)
	var info struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(run(t, "nbdinfo", "--json", "--no-content", uri)), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo sees %+v", info)
	}
	for key, want := range map[string]any{
		"export-name": "vol", "export-size": float64(toolSize), "is_read_only": false,
		"can_flush": true, "can_fua": true, "can_trim": true, "can_zero": true, "can_fast_zero": true,
		"can_multi_conn": true, "can_df": true, "is_rotational": false,
		"block_size_minimum": float64(4096), "block_size_preferred": float64(4096), "block_size_maximum": float64(32 << 20),
	} {
		if got := info.Exports[0][key]; got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if out := run(t, "nbdinfo", "--list", strings.Replace(uri, "/vol", "/", 1)); !strings.Contains(out, `export="vol"`) {
		t.Errorf("nbdinfo --list doesn't show the export:\n%s", out)
	}
}

func TestNbdcopy(t *testing.T) {
	dev, uri := serve(t)
	file, data := image(t)
	run(t, "nbdcopy", "--flush", file, uri)
	if !dev.Contains(data, 0) {
		t.Error("the device doesn't hold what nbdcopy wrote")
	}
	if n := dev.Dirty(); n != 0 {
		t.Errorf("%d blocks aren't durable after nbdcopy --flush", n)
	}
	back := filepath.Join(t.TempDir(), "back")
	run(t, "nbdcopy", "--connections=4", uri, back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, data) {
		t.Errorf("nbdcopy read something else than it wrote (%v)", err)
	}
}

func TestQemuImg(t *testing.T) {
	dev, uri := serve(t)
	file, data := image(t)
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", file, uri)
	if !dev.Contains(data, 0) {
		t.Error("the device doesn't hold what qemu-img wrote")
	}
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", file, uri)
	if out := run(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "500", "-d", "16", "--flush-interval=50", uri); !strings.Contains(out, "Run completed") {
		t.Errorf("qemu-img bench: %s", out)
	}
}

func TestQemuIo(t *testing.T) {
	dev, uri := serve(t)
	out := run(t, "qemu-io", "-f", "raw",
		"-c", "write -P 0xaa 0 1M", "-c", "write -f -P 0xbb 1M 64k", "-c", "read -P 0xaa 0 1M", "-c", "read -P 0xbb 1M 64k",
		"-c", "write -z 0 64k", "-c", "write -z -u 64k 64k", "-c", "read -P 0 0 128k", "-c", "read -P 0xaa 128k 128k",
		"-c", "discard 1M 64k", "-c", "read -P 0 1M 64k", "-c", "write -P 0xcc 4M 8M", "-c", "read -P 0xcc 4M 8M",
		"-c", "aio_write -P 1 20M 1M", "-c", "aio_write -P 2 21M 1M", "-c", "aio_flush", "-c", "read -P 1 20M 1M", "-c", "read -P 2 21M 1M",
		"-c", "flush", uri)
	if strings.Contains(out, "verification failed") || strings.Contains(out, "rror") {
		t.Errorf("qemu-io:\n%s", out)
	}
	if n := dev.Dirty(); n != 0 {
		t.Errorf("%d blocks aren't durable after a flush", n)
	}
}

func TestFioVerify(t *testing.T) {
	_, uri := serve(t)
	frontendtest.Fio(t, "--ioengine=nbd", "--uri="+uri, "--rw=randwrite", "--bsrange=4k-256k", "--bs_unaligned=0", "--blockalign=4k",
		"--iodepth=32", "--size=48m", "--verify=crc32c", "--verify_fatal=1", "--fsync=64")
}

// Nothing is allocated for an I/O once a connection is warm.
func TestNoAllocations(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s, _ := open(t, loop, frontendtest.NewNull(loop, 1<<30), "null")
	c := frontendtest.Fio(t, "--ioengine=nbd", "--uri="+s.Path(), "--rw=randrw", "--bs=4k", "--iodepth=32", "--number_ios=50000", "--size=1g")
	if c.Mallocs > 0.02 {
		t.Errorf("%.3f heap allocations an I/O (%d I/Os)", c.Mallocs, c.Ops)
	}
}
