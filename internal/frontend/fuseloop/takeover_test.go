package fuseloop_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/aio"
	"keelson.io/keelson/internal/aio/ring"
	"keelson.io/keelson/internal/block"
	"keelson.io/keelson/internal/frontend/frontendtest"
	"keelson.io/keelson/internal/frontend/fuseloop"
)

const (
	takeoverSize = 64 << 20
	serverEnv    = "FUSELOOP_TEST_SERVER" // "file|mountdir|state": this process is a server
)

func TestMain(m *testing.M) {
	if arg := os.Getenv(serverEnv); arg != "" {
		if err := serverProcess(arg); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// fileDevice is a device that outlives its process: a file. It answers each request a
// little later, so that a kill finds some that are done and not answered.
type fileDevice struct {
	loop aio.Loop
	f    *os.File
	size int64
	// stuck: flushes are never answered.
	stuck bool
}

func (d *fileDevice) Size() int64 { return d.size }

func (d *fileDevice) Submit(r *block.Request) {
	r.Err = nil
	switch r.Op {
	case block.OpRead:
		_, r.Err = d.f.ReadAt(r.Data, r.Off)
	case block.OpWrite:
		_, r.Err = d.f.WriteAt(r.Data, r.Off)
	case block.OpTrim, block.OpZero:
		r.Err = unix.Fallocate(int(d.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, r.Off, r.Len)
	}
	if r.Op == block.OpFlush && d.stuck {
		fmt.Println("flush")
		return
	}
	d.loop.NewTimer(func() { r.Done(r) }).Reset(time.Duration(rand.IntN(300)) * time.Microsecond)
}

// serverProcess serves the volume until its standard input ends. Without a state it is
// the first server: it makes the device, and sends the descriptor over descriptor 3. With
// one it goes on from it; the session's descriptor is 3.
func serverProcess(arg string) error {
	field := strings.Split(arg, "|")
	f, err := os.OpenFile(field[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	loop, err := ring.New(ring.Config{Node: "test"})
	if err != nil {
		return err
	}
	loop.Start()
	cfg := fuseloop.Config{Loop: loop, Device: &fileDevice{loop, f, takeoverSize, field[2] == "stuck"}, Name: "vol", MountDir: field[1]}
	var s *fuseloop.Server
	if field[2] == "" || field[2] == "stuck" {
		s = fuseloop.New(cfg)
		if err := s.Open(context.Background()); err != nil {
			return err
		}
		h, err := s.Handoff()
		if err != nil {
			return err
		}
		fmt.Println(base64.StdEncoding.EncodeToString(h.State))
		if err := unix.Sendmsg(3, []byte{1}, unix.UnixRights(int(h.FD.Fd())), nil, 0); err != nil {
			return err
		}
	} else {
		st, err := base64.StdEncoding.DecodeString(field[2])
		if err != nil {
			return err
		}
		if s, err = fuseloop.Resume(context.Background(), cfg, st, 3); err != nil {
			return err
		}
	}
	fmt.Println(s.Path())
	io.Copy(io.Discard, os.Stdin)
	if err := s.Detach(); err != nil {
		return err
	}
	return loop.Close()
}

// process is a server in a process of its own.
type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

func startServer(t *testing.T, file, dir, st string, fd *os.File) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serverEnv+"="+file+"|"+dir+"|"+st)
	cmd.ExtraFiles = []*os.File{fd}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return &process{cmd, stdin, bufio.NewReader(stdout)}
}

func (p *process) line(t *testing.T) string {
	t.Helper()
	s, err := p.out.ReadString('\n')
	if err != nil {
		t.Fatalf("server ended: %v", err)
	}
	return strings.TrimSpace(s)
}

// sweep takes away what a killed server left: nothing may wait for it, and no loop device may stay.
func sweep(t *testing.T, dir string) {
	t.Helper()
	if err := fuseloop.Sweep(filepath.Join(dir, "vol")); err != nil {
		t.Error(err)
	}
}

func dataFile(t *testing.T) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "data")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, takeoverSize)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sweep(t, dir) })
	return dir, file
}

// A server that is killed while it attaches its loop device, and the kernel asks it, must end: another one can't start
// before.
func TestKilledWhileItAttaches(t *testing.T) {
	needFUSE(t)
	dir, file := dataFile(t)
	for i := range 20 {
		p := startServer(t, file, dir, "stuck", nil)
		time.Sleep(time.Duration(10+rand.IntN(60)) * time.Millisecond) // some at every point of its start
		p.cmd.Process.Kill()
		ended := make(chan struct{})
		go func() { p.cmd.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			t.Fatalf("kill %d: the server waits for itself, for ever", i)
		}
		sweep(t, dir)
	}
}

// A volume that can't flush, as its replicas are away, is attached all the same: until it is, no loop device can be
// attached on the whole machine.
func TestAttachWaitsForNoFlush(t *testing.T) {
	needFUSE(t)
	dir, file := dataFile(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	p := startServer(t, file, dir, "stuck", theirs)
	theirs.Close()
	lines := make(chan string)
	go func() {
		for range 2 {
			s, _ := p.out.ReadString('\n')
			lines <- strings.TrimSpace(s)
		}
	}()
	for _, want := range []string{"", "/dev/loop"} { // the state, the device
		select {
		case got := <-lines:
			if !strings.HasPrefix(got, want) || got == "flush" {
				t.Fatalf("the server said %q", got)
			}
		case <-time.After(20 * time.Second):
			p.cmd.Process.Kill()
			t.Fatal("attaching waits for a flush")
		}
	}
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

// A server is killed again and again under a load that verifies what it reads; each time
// another one goes on. The load must not notice.
func TestKillAndResume(t *testing.T) {
	needFUSE(t)
	fio := frontendtest.NeedTool(t, "fio")
	dir, file := dataFile(t)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()

	p := startServer(t, file, dir, "", theirs)
	theirs.Close()
	st := p.line(t)
	device := p.line(t)
	fd := receiveFD(t, pair[0])
	defer fd.Close()

	load := exec.CommandContext(t.Context(), fio, "--name=load", "--filename="+device, "--direct=1", "--ioengine=libaio", "--iodepth=16",
		"--rw=randrw", "--bsrange=4k-128k", "--blockalign=4k", "--size=48m", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=256",
		"--fsync=50", "--time_based", "--runtime=4")
	load.Dir = dir
	var said bytes.Buffer
	load.Stdout, load.Stderr = &said, &said
	if err := load.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- load.Wait() }()
	kills := 0
	for running := true; running; {
		select {
		case err := <-ended:
			running = false
			if err != nil {
				t.Errorf("fio after %d kills: %v\n%s", kills, err, said.String())
			}
		case <-time.After(time.Duration(50+rand.IntN(300)) * time.Millisecond):
			p.cmd.Process.Kill()
			p.cmd.Wait()
			kills++
			p = startServer(t, file, dir, st, fd)
			if got := p.line(t); got != device {
				t.Fatalf("after the takeover the device is %s, it was %s", got, device)
			}
		}
	}
	t.Logf("%d kills", kills)
	if kills < 5 {
		t.Errorf("only %d kills", kills)
	}
	p.stdin.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("detach by the last server: %v", err)
	}
	if mounted(t, dir) {
		t.Error("still mounted after the detach")
	}
}

func receiveFD(t *testing.T, socket int) *os.File {
	t.Helper()
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		t.Fatalf("%d messages, %v", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	return os.NewFile(uintptr(fds[0]), "/dev/fuse")
}

// A server hands over to another one in the same process while requests are made.
func TestSuspendAndResume(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	dev := frontendtest.NewDevice(loop, takeoverSize)
	s := open(t, loop, dev, "vol")
	h, err := s.Handoff()
	if err != nil {
		t.Fatal(err)
	}
	defer h.FD.Close()
	c := mustDial(t, s.Path())
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range int64(4) {
		wg.Go(func() {
			p, q := frontendtest.Aligned(8192), frontendtest.Aligned(8192)
			for i := byte(0); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				p[0], p[8191] = i, i
				if err := errors.Join(c.WriteAt(p, w<<20, false), c.ReadAt(q, w<<20)); err != nil || !bytes.Equal(p, q) {
					t.Errorf("worker %d, round %d: %v", w, i, err)
					return
				}
			}
		})
	}
	for range 10 {
		if err := s.Suspend(); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.FcntlInt(h.FD.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cfg := fuseloop.Config{Loop: loop, Device: dev, Name: "vol", MountDir: filepath.Dir(filepath.Dir(s.File()))}
		if s, err = fuseloop.Resume(t.Context(), cfg, h.State, fd); err != nil {
			t.Fatal(err)
		}
		defer s.Close()
	}
	close(stop)
	wg.Wait()
	if err := errors.Join(c.Close(), s.Detach()); err != nil {
		t.Errorf("detach after takeovers: %v", err)
	}
}

func TestResumeRefusesState(t *testing.T) {
	loop := frontendtest.NewLoop(t)
	s := open(t, loop, frontendtest.NewDevice(loop, takeoverSize), "vol")
	h, err := s.Handoff()
	if err != nil {
		t.Fatal(err)
	}
	defer h.FD.Close()
	for _, tc := range []struct{ what, volume, state string }{
		{"nothing", "vol", ""},
		{"garbage", "vol", "{"},
		{"a newer version", "vol", strings.Replace(string(h.State), `"version":1`, `"version":2`, 1)},
		{"another volume's", "other", string(h.State)},
		{"a larger volume's", "vol", strings.Replace(string(h.State), `"size":67108864`, `"size":67112960`, 1)},
	} {
		fd, err := unix.FcntlInt(h.FD.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cfg := fuseloop.Config{Loop: loop, Device: frontendtest.NewDevice(loop, takeoverSize), Name: tc.volume, MountDir: "/nowhere"}
		if _, err := fuseloop.Resume(t.Context(), cfg, []byte(tc.state), fd); !errors.Is(err, fuseloop.ErrState) {
			t.Errorf("state that is %s: %v, want ErrState", tc.what, err)
		}
	}
}
