package power

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/frontend/frontendtest"
)

const (
	guestEnv = "POWER_TEST_GUEST" // "directory|journey|seed": this process is the writer in the guest
	logged   = "logged"           // name of the logged disk in the guest
	modules  = "/usr/lib/uml/modules"
)

func TestMain(m *testing.M) {
	arg := os.Getenv(guestEnv)
	if arg == "" {
		os.Exit(m.Run())
	}
	f := strings.Split(arg, "|")
	seed, err := strconv.ParseUint(f[2], 10, 64)
	if err == nil {
		err = runGuest(f[0], f[1], seed)
	}
	if err != nil {
		fmt.Println("writer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// guestScript is the guest's init. Its root is the host's file system.
const guestScript = `#!/bin/bash
exec >"RESULT" 2>&1 </dev/null
export PATH=/usr/sbin:/usr/bin:/sbin:/bin DM_DISABLE_UDEV=1
off() { echo "exit status $1"; sync; echo o >/proc/sysrq-trigger; sleep 60; }
trap 'off 1' ERR
set -E
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /dev
mount -t tmpfs tmpfs /mnt
mknod /dev/null c 1 3
mknod /dev/urandom c 1 9
mknod /dev/ubda b 98 0
mknod /dev/ubdb b 98 16
insmod "$(find MODULES -name dm-mod.ko)"
insmod "$(find MODULES -name dm-log-writes.ko)"
mkdir /dev/mapper
mknod /dev/mapper/control c 10 "$(sed -n 's/ device-mapper//p' /proc/misc)"
dmsetup create logged --table "0 $(blockdev --getsz /dev/ubda) log-writes /dev/ubda /dev/ubdb"
dmsetup mknodes
mkdir /mnt/fs
mount -t xfs /dev/mapper/logged /mnt/fs
POWER_TEST_GUEST="/mnt/fs|JOURNEY|SEED" KEELSON_MUTANT="PLANTED" SELF
umount /mnt/fs
dmsetup remove logged
off 0
`

// machine is the guest's disk, and what was recorded of it.
type machine struct {
	dir     string
	journey string
	log     *os.File
	entries []entry
}

// runMachine boots a kernel in which a replica is written, with that mistake planted if any.
func runMachine(t *testing.T, seed uint64, mutant string) *machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "power")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &machine{dir: dir}
	for name, size := range map[string]int64{"fresh": 320 << 20, "log": 4 << 30} {
		f, err := os.Create(m.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	host(t, "mkfs.xfs", "-q", "-m", "reflink=1", m.file("fresh"))
	host(t, "cp", "--sparse=always", m.file("fresh"), m.file("disk"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := strings.NewReplacer("RESULT", m.file("result"), "MODULES", modules, "JOURNEY", m.file("journey"), "SEED", fmt.Sprint(seed), "PLANTED", mutant, "SELF", self).Replace(guestScript)
	if err := os.WriteFile(m.file("init"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	m.boot(t)
	b, err := os.ReadFile(m.file("journey"))
	if err != nil {
		t.Fatal(err)
	}
	m.journey = string(b)
	if m.log, err = os.Open(m.file("log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.log.Close() })
	if m.entries, err = readLog(m.log); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *machine) file(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) boot(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	runtime.LockOSThread() // Pdeathsig means the death of the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "linux.uml", "mem=512M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "init="+m.file("init"),
		"ubd0="+m.file("disk"), "ubd1="+m.file("log"), "uml_dir="+m.dir, "con=null", "con0=fd:0,fd:1", "quiet")
	cmd.Env = []string{"HOME=" + m.dir, "TMPDIR=" + m.dir, "PATH=" + os.Getenv("PATH")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	console, err := cmd.CombinedOutput()
	said, _ := os.ReadFile(m.file("result"))
	if err != nil || !strings.Contains(string(said), "exit status 0") {
		t.Fatalf("guest: %v\n%s\nconsole:\n%s", err, said, console)
	}
}

func host(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
}

func needMachine(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	for _, tool := range []string{"linux.uml", "dmsetup", "mkfs.xfs"} {
		frontendtest.NeedTool(t, tool)
	}
	if found, _ := filepath.Glob(modules + "/*/kernel/drivers/md/dm-log-writes.ko"); len(found) == 0 {
		t.Skipf("no module dm-log-writes for user-mode Linux below %s", modules)
	}
}

// Whenever the power goes, everything that was acknowledged as durable is there.
func TestPowerLoss(t *testing.T) {
	needMachine(t)
	seed := uint64(1)
	if s := os.Getenv("POWER_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	m := runMachine(t, seed, "")
	budget := 40 * time.Second // for looking at disks
	if os.Getenv("KEELSON_LONG") != "" {
		budget = time.Hour
	}
	if err := m.replay(t, seed, budget); err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
}

// replay builds and inspects the disk at every flush, or at as many as the budget allows, evenly chosen.
func (m *machine) replay(t *testing.T, seed uint64, budget time.Duration) error {
	t.Helper()
	l, err := ring.New(ring.Config{})
	if err != nil {
		t.Skipf("no io_uring here: %v", err)
	}
	l.Start()
	defer l.Close()
	mnt, err := os.MkdirTemp("", "power-mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(mnt)
	image := filepath.Join("/dev/shm", filepath.Base(m.dir)+".img")
	defer os.Remove(image)
	var flushes []int
	for i, e := range m.entries {
		if e.flags&flagFlush != 0 {
			flushes = append(flushes, i)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	began, looked, each := time.Now(), 0, 1
	at := &disk{log: m.log, made: map[int64][]byte{}}
	mark, next := 0, 0
	for k, flush := range flushes {
		for ; next <= flush; next++ {
			if err := at.apply(m.entries[next], nil); err != nil {
				t.Fatal(err)
			}
			mark = max(mark, markOf(m.entries[next]))
		}
		if k%each != 0 {
			continue
		}
		end := len(m.entries)
		if k+1 < len(flushes) {
			end = flushes[k+1]
		}
		for _, state := range []string{"at the flush", "after it"} {
			d, seen := at, mark
			if state == "after it" {
				d = at.clone()
				seen = max(mark, m.some(t, d, m.entries[next:end], rng))
			}
			x, err := follow(m.journey, seen)
			if err == nil {
				err = d.build(image, m.file("fresh"))
			}
			if err == nil {
				err = inspect(l, image, mnt, x)
			}
			if err != nil {
				return fmt.Errorf("power lost %s %d of %d (entry %d of %d, mark %d): %w", state, k, len(flushes), flush, len(m.entries), seen, err)
			}
			looked++
		}
		each = max(1, int(time.Since(began).Seconds()/float64(k+1)*float64(each)*float64(len(flushes))/budget.Seconds()))
	}
	t.Logf("%d writes, flushes and marks recorded, %d of them flushes; %d disks inspected in %.0f s", len(m.entries), len(flushes), looked, time.Since(began).Seconds())
	return nil
}

// some applies what a disk may have of the entries up to some point: any of its writes, whole or torn, and all
// that were written through. It returns the last mark before that point.
func (m *machine) some(t *testing.T, d *disk, entries []entry, rng *rand.Rand) (mark int) {
	t.Helper()
	for _, e := range entries[:rng.IntN(len(entries)+1)] {
		mark = max(mark, markOf(e))
		var torn *rand.Rand
		if e.flags&flagFUA == 0 {
			if rng.IntN(2) == 0 {
				continue
			}
			if rng.IntN(8) == 0 {
				torn = rng
			}
		}
		if err := d.apply(e, torn); err != nil {
			t.Fatal(err)
		}
	}
	return mark
}

func markOf(e entry) int {
	n := 0
	if e.flags&flagMark != 0 {
		_, _ = fmt.Sscanf(e.mark, "m%d", &n)
	}
	return n
}
