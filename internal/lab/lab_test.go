package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// The test binary plays the daemon: just enough of its commands for a lab to come up.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(filepath.Base(os.Args[0]), "keelson") {
		if err := fake(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func fake(args []string) error {
	switch args[0] {
	case "lab": // lab keeper --dir DIR NODE
		return RunKeeper(args[3], args[4])
	case "server": // listens where the API would, and has a child
		conf, err := fakeConfig(args[2])
		if err != nil {
			return err
		}
		child := exec.Command(os.Args[0], "engine")
		if err := child.Start(); err != nil {
			return err
		}
		ln, err := net.Listen("tcp", conf["address"].(string)+":9500")
		if err != nil {
			return err
		}
		for {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			_, _ = io.WriteString(c, "hello\n")
			c.Close()
		}
	case "engine", "holder":
		for { // not select: with nothing else running, Go would take that for a deadlock
			time.Sleep(time.Hour)
		}
	case "node": // list
		conf, err := fakeConfig(os.Getenv("KEELSON_CONFIG"))
		if err != nil {
			return err
		}
		c, err := net.Dial("tcp", conf["address"].(string)+":9500")
		if err != nil {
			return err
		}
		c.Close()
		fmt.Printf(`[{"name":%q,"alive":true}]`, conf["node"])
	case "token":
		fmt.Print(`{"token":"secret"}`)
	case "status":
		fmt.Print(`{"health":"Healthy"}`)
	case "pool": // add --file F --size S
		if err := exec.Command("truncate", "-s", args[5], args[3]).Run(); err != nil {
			return err
		}
		mnt := os.Getenv("KEELSON_DATA_DIR") + "/pool"
		if err := os.MkdirAll(mnt, 0o700); err != nil {
			return err
		}
		out, err := exec.Command("sh", "-ec", "d=$(losetup -f --show "+args[3]+"); mkfs.ext4 -q $d; mount $d "+mnt).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	default:
		return fmt.Errorf("%q is not played", args)
	}
	return nil
}

func fakeConfig(path string) (map[string]any, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var conf map[string]any
	return conf, yaml.Unmarshal(b, &conf)
}

var made int // labs of this test run

// newLab brings a lab up and sees to it that nothing of it is left when the test ends.
func newLab(t *testing.T, nodes int) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes namespaces, mounts and loop devices")
	}
	tmp, err := os.MkdirTemp("", "kl")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(tmp, "keelson")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, binary).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	made++
	name := fmt.Sprintf("t%d-%d", os.Getpid(), made)
	cfg := Config{Name: name, Dir: filepath.Join(tmp, "lab"), Binary: binary, Nodes: nodes, Zones: nodes, PoolSize: "64M"}
	t.Cleanup(func() {
		if err := Down(cfg.Name, cfg.Dir); err != nil && !errors.Is(err, ErrNoLab) {
			t.Errorf("down: %v", err)
		}
		wantNothingLeft(t, cfg.Name, tmp)
		os.RemoveAll(tmp)
	})
	l, err := Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func wantNothingLeft(t *testing.T, name, tmp string) {
	t.Helper()
	for _, p := range processes(func(pid int) bool { return strings.HasPrefix(strings.Join(commandLine(pid), " "), tmp) }) {
		t.Errorf("process %d is left: %v", p, commandLine(p))
	}
	all, err := loops()
	if err != nil {
		t.Error(err)
	}
	for _, lo := range all {
		if below(lo.path, tmp) || below(lo.name, tmp) {
			t.Errorf("%s over %s is left", lo.device, lo.path)
		}
	}
	for _, m := range mountsHere() {
		if below(m.point, tmp) {
			t.Errorf("mount %s is left", m.point)
		}
	}
	ifs, err := net.Interfaces()
	if err != nil {
		t.Error(err)
	}
	for _, i := range ifs {
		if strings.HasPrefix(i.Name, tag(name)) {
			t.Errorf("interface %s is left", i.Name)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(netnsDir, netnsName(name, "*"))); len(left) > 0 {
		t.Errorf("network namespaces are left: %v", left)
	}
	for _, d := range memoryGroups("n1", filepath.Join(tmp, "lab", "n1", "data")) {
		if exists(d) {
			t.Errorf("control group %s is left", d)
		}
	}
	if exists(filepath.Join(tmp, "lab")) {
		t.Errorf("the lab's directory is left")
	}
}

// reaches says whether the node can be connected to from the other one.
func reaches(t *testing.T, l *Lab, from, to string) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	cmd, err := l.Command(ctx, from, "bash", "-c", "read line < /dev/tcp/"+l.Address(to)+"/9500 && test $line = hello")
	if err != nil {
		t.Fatal(err)
	}
	return cmd.Run() == nil
}

func TestLifeOfALab(t *testing.T) {
	l := newLab(t, 2)

	t.Run("cut and heal", func(t *testing.T) {
		if !reaches(t, l, "n1", "n2") {
			t.Fatal("n1 doesn't reach n2 in a whole lab")
		}
		for range 2 { // cutting twice is the same as once
			if err := l.Cut("n2"); err != nil {
				t.Fatal(err)
			}
		}
		if !l.IsCut("n2") || l.IsCut("n1") {
			t.Error("IsCut is wrong")
		}
		if reaches(t, l, "n1", "n2") || reaches(t, l, "n2", "n1") {
			t.Error("packets pass between a node that is cut off and another")
		}
		if !reaches(t, l, "n2", "n2") {
			t.Error("a node that is cut off doesn't reach itself")
		}
		if err := l.Heal("n2"); err != nil {
			t.Fatal(err)
		}
		if !reaches(t, l, "n1", "n2") || l.IsCut("n2") {
			t.Error("still cut after heal")
		}
	})

	t.Run("namespaces", func(t *testing.T) {
		out, err := outputOn(t, l, "n1", "hostname; mount | grep -c "+l.dataDir("n1")+"/pool; ls /sys/fs/cgroup | wc -l; command -v keelson; pwd")
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(out)
		if len(f) != 5 || f[0] != "n1" || f[1] != "1" || f[2] == "0" || f[3] != l.Binary() {
			t.Errorf("on the node: %q", f)
		}
		for _, m := range mountsHere() {
			if strings.HasSuffix(m.point, "/n1/data/pool") {
				t.Errorf("the node's mount %s leaked to the host", m.point)
			}
		}
	})

	t.Run("kill a process", func(t *testing.T) {
		n, err := l.node("n1")
		if err != nil {
			t.Fatal(err)
		}
		var before map[string]int
		eventually(t, "daemon and child run", func() bool {
			before = n.daemons()
			return before["server"] != 0 && before["engine"] != 0
		})
		if err := l.KillProcess("n1", "server"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the keeper starts the daemon again, and its orphans are gone", func() bool {
			after := n.daemons()
			return after["server"] != 0 && after["engine"] != 0 && after["server"] != before["server"] && after["engine"] != before["engine"]
		})
		if err := l.KillProcess("n1", "control"); err == nil {
			t.Error("killing a process that doesn't run was no error")
		}
		if err := l.KillProcess("n1", "init"); err == nil {
			t.Error("killing a process that doesn't exist was no error")
		}
	})

	t.Run("crash and start", func(t *testing.T) {
		if err := l.Kill("n1"); err != nil {
			t.Fatal(err)
		}
		if s := l.Status(); s[0].Up || !s[1].Up {
			t.Errorf("status after the crash of n1: %+v", s)
		}
		if left, err := labLoops(l.NodeDir("n1"), nil); err != nil || len(left) > 0 {
			t.Errorf("loop devices after the crash: %v, %v", left, err)
		}
		if _, err := l.Command(t.Context(), "n1", "true"); !errors.Is(err, ErrNotUp) {
			t.Errorf("a command on a crashed node: %v, want ErrNotUp", err)
		}
		if err := l.Start("n1"); err != nil {
			t.Fatal(err)
		}
		eventually(t, "n1 answers again", func() bool { return reaches(t, l, "n2", "n1") })
	})

	t.Run("exit code and children of a command", func(t *testing.T) {
		_, err := outputOn(t, l, "n1", "exit 7")
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 7 {
			t.Errorf("exit 7 came back as %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		cmd, err := l.Command(ctx, "n1", "sleep", "4711")
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Run(); err == nil {
			t.Error("a command outlived its context")
		}
		eventually(t, "the command's process is gone", func() bool {
			return len(processes(func(pid int) bool { return strings.Join(commandLine(pid), " ") == "sleep 4711" })) == 0
		})
	})

	t.Run("a second lab beside it", func(t *testing.T) {
		other := newLab(t, 1)
		if other.state.Subnet == l.state.Subnet {
			t.Errorf("both labs have the network %s", l.state.Subnet)
		}
	})

	t.Run("the same lab again", func(t *testing.T) {
		_, err := Up(t.Context(), Config{Name: l.Name(), Dir: l.state.Dir, Binary: l.Binary(), Nodes: 1, Zones: 1})
		if !errors.Is(err, ErrExists) {
			t.Errorf("up on an existing lab: %v, want ErrExists", err)
		}
	})
}

func TestDownAfterACrashOfEverything(t *testing.T) {
	l := newLab(t, 1)
	// The keeper is killed by a stranger, the record is half written, and somebody mounted something.
	if err := unix.Kill(l.state.Nodes[0].Keeper.PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.state.Dir, stateFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := filepath.Join(l.state.Dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	// A daemon outlived the namespaces, and is in the node's control group.
	holder := exec.Command(l.Binary(), "holder")
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = holder.Wait() }()
	if group := memoryGroups("n1", l.dataDir("n1"))[0]; os.MkdirAll(group, 0o755) == nil {
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(holder.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := Down(l.Name(), l.state.Dir); err != nil {
		t.Fatal(err)
	}
	wantNothingLeft(t, l.Name(), filepath.Dir(l.state.Dir))
	if err := Down(l.Name(), l.state.Dir); !errors.Is(err, ErrNoLab) {
		t.Errorf("down again: %v, want ErrNoLab", err)
	}
}

func TestDownRefusesADirectoryThatIsNoLab(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: without, down refuses for that reason")
	}
	dir := t.TempDir()
	keep := filepath.Join(dir, "precious")
	if err := os.WriteFile(keep, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Down("nosuchlab", dir); err == nil || errors.Is(err, ErrNoLab) {
		t.Errorf("down on a stranger's directory: %v", err)
	}
	if !exists(keep) {
		t.Error("down removed a stranger's file")
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Name: "a", Nodes: 3, Zones: 3}
	if err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]Config{
		"upper case":     {Name: "Lab", Nodes: 1, Zones: 1},
		"no nodes":       {Name: "a", Nodes: 0, Zones: 1},
		"many nodes":     {Name: "a", Nodes: 100, Zones: 1},
		"no zones":       {Name: "a", Nodes: 3},
		"too many zones": {Name: "a", Nodes: 3, Zones: 4},
		"relative dir":   {Name: "a", Nodes: 3, Zones: 3, Dir: "x"},
		"long dir":       {Name: "a", Nodes: 3, Zones: 3, Dir: "/" + strings.Repeat("x", 80)},
	} {
		if err := c.complete(); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

func TestPauseBeforeADaemonThatDied(t *testing.T) {
	if p := nextPause(pauseMax, steady); p != 0 {
		t.Errorf("after a long life it is started %v later, want at once", p)
	}
	pause := time.Duration(0)
	for _, want := range []time.Duration{pauseMin, 2 * pauseMin, 4 * pauseMin} {
		if pause = nextPause(pause, 0); pause != want {
			t.Errorf("after a short life it is started %v later, want %v", pause, want)
		}
	}
	if p := nextPause(pauseMax, 0); p != pauseMax {
		t.Errorf("it is started %v later, want %v", p, pauseMax)
	}
}

func TestAPIDIsNotTakenForAnotherProcess(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := process{PID: p.PID, Start: p.Start + 1}
	if err := other.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if other.alive() || !p.alive() {
		t.Error("a process with the same PID and another start was taken for it")
	}
}

func outputOn(t *testing.T, l *Lab, node, script string) (string, error) {
	t.Helper()
	cmd, err := l.Command(t.Context(), node, "sh", "-c", script)
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.Output()
	return string(out), err
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}
