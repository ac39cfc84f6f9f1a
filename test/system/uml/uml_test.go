package uml

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/frontend/nbd"
)

const (
	hostEnv = "UML_TEST_HOST" // "socket|script|result": this process is the guest's host
	hostIP  = "10.88.0.1"
	port    = "10809"
	modules = "/usr/lib/uml/modules"
)

func TestMain(m *testing.M) {
	if arg := os.Getenv(hostEnv); arg != "" {
		field := strings.Split(arg, "|")
		if err := host(field[0], field[1], field[2]); err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// guestScript is the guest's init. Its root is the host's file system, so the result is a
// file of the host.
const guestScript = `#!/bin/bash
exec >"$RESULT" 2>&1 </dev/null
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
off() { echo "exit status $1"; sync; echo o >/proc/sysrq-trigger; sleep 60; }
trap 'off 1' ERR
set -E
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /dev
mount -t tmpfs tmpfs /mnt
mknod /dev/null c 1 3
mknod /dev/nbd0 b 43 0
ip link set lo up
ip addr add 10.88.0.2/24 dev vec0
ip link set vec0 up
insmod "$(find /usr/lib/uml/modules -name nbd.ko)"
nbd-client -N vol -b 4096 10.88.0.1 10809 /dev/nbd0
echo "sectors $(cat /sys/block/nbd0/size), blocks of $(cat /sys/block/nbd0/queue/logical_block_size), cache $(cat /sys/block/nbd0/queue/write_cache)"
mkfs.ext4 -q -F -E nodiscard /dev/nbd0
mkdir /mnt/fs
mount /dev/nbd0 /mnt/fs
for i in 1 2 3 4; do dd if=/dev/zero bs=64k count=32 status=none | tr '\0' "$i" >/mnt/fs/$i; done
cp -r /etc/apt /mnt/fs/
sync
rm /mnt/fs/3
fstrim /mnt/fs
sha256sum </mnt/fs/4 >/mnt/sum
umount /mnt/fs
fsck.ext4 -fn /dev/nbd0
mount /dev/nbd0 /mnt/fs
sha256sum </mnt/fs/4 | cmp - /mnt/sum
diff -r /etc/apt /mnt/fs/apt
test ! -e /mnt/fs/3
umount /mnt/fs
nbd-client -d /dev/nbd0
off 0
`

// The kernel's NBD client attaches a volume; a file system on it works and is sound.
func TestKernelClient(t *testing.T) {
	for _, tool := range []string{"linux.uml", "nbd-client", "ip", "ethtool", "mkfs.ext4", "fstrim"} {
		frontendtest.NeedTool(t, tool)
	}
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Skipf("the guest needs a network: %v", err)
	} else {
		f.Close()
	}
	if found, _ := filepath.Glob(modules + "/*/kernel/drivers/block/nbd.ko"); len(found) == 0 {
		t.Skipf("no NBD module for user-mode Linux below %s", modules)
	}

	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, 256<<20)
	dir, err := os.MkdirTemp("", "uml")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := nbd.New(nbd.Config{Loop: loop, Device: dev, Name: "vol", Socket: filepath.Join(dir, "nbd")})
	if err := s.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })

	script, result := filepath.Join(dir, "init"), filepath.Join(dir, "result")
	err = os.WriteFile(script, []byte(strings.Replace(guestScript, "$RESULT", result, 1)), 0o700)
	if err != nil {
		t.Fatal(err)
	}
	// The guest's host is this program in a network namespace of its own.
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	runtime.LockOSThread() // Pdeathsig means the death of the thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), hostEnv+"="+filepath.Join(dir, "nbd")+"|"+script+"|"+result)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	console, err := cmd.CombinedOutput()
	said, _ := os.ReadFile(result)
	if err != nil || !strings.Contains(string(said), "exit status 0") {
		t.Fatalf("guest: %v\n%s\nconsole:\n%s", err, said, console)
	}
	if want := "sectors 524288, blocks of 4096, cache write back"; !strings.Contains(string(said), want) {
		t.Errorf("the kernel sees another device than %q:\n%s", want, said)
	}
	if n := dev.Dirty(); n != 0 {
		t.Errorf("%d blocks aren't durable after unmount and disconnect", n)
	}
	if n := dev.Wrong(); n != 0 {
		t.Errorf("%d requests broke the rules of block.Request", n)
	}
}

// host gives the guest a network with the NBD server in it, and boots the guest.
func host(socket, script, result string) error {
	for _, c := range []string{
		"ip tuntap add dev tap0 mode tap",
		"ip addr add " + hostIP + "/24 dev tap0",
		"ip link set tap0 up",
		// The guest drops frames that are larger than its MTU.
		"ip link set dev tap0 gso_max_size 1514 gso_max_segs 1",
		"ethtool -K tap0 tx off sg off tso off gso off gro off",
	} {
		f := strings.Fields(c)
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, out)
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(hostIP, port))
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go relay(c, socket)
		}
	}()
	home, err := os.MkdirTemp(filepath.Dir(result), "home")
	if err != nil {
		return err
	}
	runtime.LockOSThread() // Pdeathsig means the death of the thread
	guest := exec.Command("linux.uml", "mem=256M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rw", "init="+script,
		"vec0:transport=tap,ifname=tap0", "uml_dir="+home, "con=null", "con0=fd:0,fd:1", "quiet")
	guest.Stdout, guest.Stderr = os.Stdout, os.Stdout
	guest.Env = []string{"HOME=" + home, "TMPDIR=" + home, "PATH=" + os.Getenv("PATH")}
	guest.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return guest.Run()
}

// relay carries bytes between a TCP connection and the server's socket.
func relay(tcp net.Conn, socket string) {
	defer tcp.Close()
	unix, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer unix.Close()
	var wg sync.WaitGroup
	carry := func(to, from net.Conn) {
		_, err := io.Copy(to, from)
		if err != nil && !errors.Is(err, net.ErrClosed) {
			fmt.Println("relay:", err)
		}
		to.Close()
		from.Close()
	}
	wg.Go(func() { carry(unix, tcp) })
	wg.Go(func() { carry(tcp, unix) })
	wg.Wait()
}
