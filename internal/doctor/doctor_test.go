package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree is a machine made of files, on which all is well until a test changes it.
type tree struct {
	t *testing.T
	m *Machine
	o Options
	// programs are what can be run, with what it writes.
	programs map[string]string
}

func newTree(t *testing.T) *tree {
	t.Helper()
	x := &tree{t: t, m: &Machine{Root: t.TempDir(), Release: "6.12.40", Version: "#1 SMP"}, programs: map[string]string{
		"mkfs.xfs": "mkfs.xfs version 6.1.0\n", "wipefs": "", "blkid": "", "mkfs.ext4": "", "fsck.ext4": "",
	}}
	x.m.LookPath = func(p string) (string, error) {
		if _, ok := x.programs[p]; !ok {
			return "", errors.New("not found")
		}
		return "/usr/sbin/" + p, nil
	}
	x.m.Run = func(_ context.Context, p string, args ...string) (string, error) {
		out, ok := x.programs[strings.Join(append([]string{p}, args...), " ")]
		if !ok {
			out, ok = x.programs[p]
		}
		if !ok {
			return "", fmt.Errorf("%s: no such program", p)
		}
		return out, nil
	}
	x.m.Clock = func() (Clock, error) { return Clock{Synchronised: true, MaxError: 2000}, nil }
	x.m.Uring = func() error { return nil }
	x.m.Cgroup = func() error { return nil }
	x.m.Device = func(context.Context, string) error { return nil }
	x.o = Options{DataDir: "/var/lib/keelson", KubeletDir: "/var/lib/kubelet", Ports: []Port{{"the API", 9500}, {"the engine", 9501}}}
	for path, text := range map[string]string{
		"proc/filesystems": "nodev\tfuse\n\txfs\n", "dev/fuse": "", "dev/loop-control": "", "sys/module/nbd/refcnt": "0",
		"proc/sys/kernel/io_uring_disabled": "0\n", "proc/sys/fs/fuse/default_request_timeout": "0\n",
		"proc/self/mountinfo": "1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw\n2 1 0:6 / /dev rw - devtmpfs devtmpfs rw\n",
		"proc/self/status":    "Name:\tkeelson\nCapEff:\t000001ffffffffff\n",
		"proc/self/limits":    "Limit                     Soft Limit           Hard Limit           Units\nMax open files            1024                 1048576              files\nMax locked memory         8388608              8388608              bytes\n",
		"proc/net/tcp":        "  sl  local_address rem_address   st\n   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1\n",
		"proc/swaps":          "Filename\tType\tSize\tUsed\tPriority\n",
		"proc/meminfo":        "MemTotal:       24684096 kB\nHugePages_Total:       0\nHugepagesize:       2048 kB\n",
		"proc/10/comm":        "sshd\n", "var/lib/kubelet/config.yaml": "", "sys/block/sda/size": "41943040\n", "sys/block/sdb/size": "41943040\n", "sys/block/loop3/size": "41943040\n",
	} {
		x.file(path, text)
	}
	return x
}

func (x *tree) file(path, text string) {
	x.t.Helper()
	p := x.m.path(path)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		x.t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		x.t.Fatal(err)
	}
}

func (x *tree) remove(path string) {
	x.t.Helper()
	if err := os.RemoveAll(x.m.path(path)); err != nil {
		x.t.Fatal(err)
	}
}

func (x *tree) link(path, to string) {
	x.t.Helper()
	if err := os.MkdirAll(filepath.Dir(x.m.path(path)), 0o755); err != nil {
		x.t.Fatal(err)
	}
	if err := os.Symlink(to, x.m.path(path)); err != nil {
		x.t.Fatal(err)
	}
}

// of returns the findings of a check.
func of(list []Finding, check string) []Finding {
	return slices.DeleteFunc(slices.Clone(list), func(f Finding) bool { return f.Check != check })
}

func TestAMachineOnWhichAllIsWell(t *testing.T) {
	x := newTree(t)
	list := Examine(t.Context(), x.m, x.o)
	for _, name := range Names() {
		if len(of(list, name)) == 0 {
			t.Errorf("%s: nothing found", name)
		}
	}
	for _, f := range list {
		if f.State != OK {
			t.Errorf("%+v", f)
		}
	}
}

func TestEachThingThatCanBeWrong(t *testing.T) {
	for name, c := range map[string]struct {
		change func(x *tree)
		check  string
		state  State
		words  []string
	}{
		"a key for all to read": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys {
				return Keys{Provider: "file", Problems: []string{"/k/1 can be read by others"}}
			}
		}, "wrapping-keys", Danger, []string{"/k/1", "others", "0400"}},
		"a key that is missing": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys {
				return Keys{Provider: "file", Wraps: "file/k2", Volumes: 12, Unopened: slices.Repeat([]string{"pg: its key is wrapped by file/k1"}, 11)}
			}
		}, "wrapping-keys", Danger, []string{"11 of 12", "pg: its key is wrapped by file/k1", "and 1 more"}},
		"no metadata": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys {
				return Keys{Provider: "file", Wraps: "file/k2", Unknown: errors.New("no metadata")}
			}
		}, "wrapping-keys", Note, []string{"file/k2", "no metadata"}},
		"no key at all": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys { return Keys{Provider: "file", Lacks: errors.New("there is no key in /k")} }
		}, "wrapping-keys", Warning, []string{"there is no key in /k"}},
		"all keys are here": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys { return Keys{Provider: "file", Wraps: "file/k2", Volumes: 12} }
		}, "wrapping-keys", OK, []string{"file/k2", "all 12"}},
		"no provider, and none is needed": {func(x *tree) {
			x.o.Keys = func(context.Context) Keys { return Keys{} }
		}, "wrapping-keys", OK, []string{"no volume"}},
		"old kernel":        {func(x *tree) { x.m.Release = "6.1.0-18-amd64"; x.m.Version = "Debian 6.1.76-1" }, "kernel", Danger, []string{"6.1.0-18", "resend", "6.9"}},
		"strange kernel":    {func(x *tree) { x.m.Release = "current" }, "kernel", Warning, []string{"current"}},
		"bad Debian kernel": {func(x *tree) { x.m.Release = "6.1.0-14-amd64"; x.m.Version = "#1 SMP Debian 6.1.64-1 (2023-11-30)" }, "kernel-list", Danger, []string{"6.1.64", "6.1.66", "ext4"}},
		"bad XFS":           {func(x *tree) { x.m.Release = "6.3.4-arch1-1" }, "kernel-list", Danger, []string{"XFS", "6.3.5"}},
		"ENOMEM":            {func(x *tree) { x.m.Release = "6.12.20" }, "kernel-list", Warning, []string{"ENOMEM", "6.12.21"}},
		"bad Ubuntu kernel": {func(x *tree) {
			x.m.Release = "6.11.0-9-generic"
			x.file("proc/version_signature", "Ubuntu 6.11.0-9.9-generic 6.11.0\n")
		}, "kernel-list", Warning, []string{"6.11.0"}},
		"vendor's kernel":    {func(x *tree) { x.m.Release = "6.12.0-55.el10.x86_64" }, "kernel-list", Note, []string{"vendor"}},
		"io_uring off":       {func(x *tree) { x.file("proc/sys/kernel/io_uring_disabled", "2\n") }, "io_uring", Danger, []string{"sysctl"}},
		"io_uring odd":       {func(x *tree) { x.file("proc/sys/kernel/io_uring_disabled", "7\n") }, "io_uring", Warning, []string{"7"}},
		"io_uring forbidden": {func(x *tree) { x.m.Uring = func() error { return errors.New("operation not permitted") } }, "io_uring", Danger, []string{"not permitted", "seccomp"}},
		"no FUSE":            {func(x *tree) { x.file("proc/filesystems", "\txfs\n") }, "fuse", Danger, []string{"CONFIG_FUSE_FS"}},
		"no /dev/fuse":       {func(x *tree) { x.remove("dev/fuse") }, "fuse", Danger, []string{"/dev/fuse", "modprobe"}},
		"FUSE limit":         {func(x *tree) { x.file("proc/sys/fs/fuse/max_request_timeout", "60\n") }, "fuse-timeout", Danger, []string{"max_request_timeout", "60"}},
		"no loop":            {func(x *tree) { x.remove("dev/loop-control") }, "loop", Danger, []string{"CONFIG_BLK_DEV_LOOP"}},
		"loop not loaded":    {func(x *tree) { x.remove("dev/loop-control"); x.programs["modprobe --dry-run --quiet loop"] = "" }, "loop", Danger, []string{"modprobe loop"}},
		"no NBD":             {func(x *tree) { x.remove("sys/module/nbd") }, "nbd", Note, []string{"--frontend nbd"}},
		"no XFS":             {func(x *tree) { x.file("proc/filesystems", "nodev\tfuse\n") }, "xfs", Danger, []string{"CONFIG_XFS_FS"}},
		"no mkfs.xfs":        {func(x *tree) { delete(x.programs, "mkfs.xfs") }, "xfs", Danger, []string{"xfsprogs"}},
		"old mkfs.xfs":       {func(x *tree) { x.programs["mkfs.xfs"] = "mkfs.xfs version 4.5.0\n" }, "xfs", Danger, []string{"4.5.0", "reflink"}},
		"no wipefs":          {func(x *tree) { delete(x.programs, "wipefs") }, "programs", Danger, []string{"wipefs", "util-linux"}},
		"no blkid":           {func(x *tree) { delete(x.programs, "blkid") }, "programs", Danger, []string{"blkid"}},
		"/dev of a container": {func(x *tree) {
			x.file("proc/self/mountinfo", "1 0 8:1 / / rw shared:1 - ext4 a rw\n2 1 0:6 / /dev rw - tmpfs tmpfs rw\n")
		}, "dev", Danger, []string{"host's /dev"}},
		"multipathd": {func(x *tree) { x.file("proc/11/comm", "multipathd\n") }, "multipath", Warning, []string{"--print udev", "--print multipath", "mount point busy"}},
		"multipathd, half": {func(x *tree) {
			x.file("proc/11/comm", "multipathd\n")
			x.file("etc/multipath/conf.d/keelson.conf", MultipathConf)
		}, "multipath", Warning, nil},
		"multipathd, tamed": {func(x *tree) {
			x.file("proc/11/comm", "multipathd\n")
			x.file("etc/multipath/conf.d/keelson.conf", MultipathConf)
			x.file("etc/udev/rules.d/90-keelson.rules", UdevRules)
		}, "multipath", OK, []string{"leaves"}},
		"multipathd has a volume": {func(x *tree) {
			x.file("sys/block/dm-4/dm/uuid", "mpath-360014\n")
			x.file("sys/block/dm-4/dm/name", "mpatha\n")
			x.file("sys/block/dm-4/slaves/loop3/x", "")
		}, "multipath", Danger, []string{"loop3", "mpatha", "multipath -f mpatha"}},
		"multipathd has the disk": {func(x *tree) {
			x.o.Devices = []string{"/dev/sdb"}
			x.file("sys/block/dm-4/dm/uuid", "mpath-360014\n")
			x.file("sys/block/dm-4/slaves/sdb/x", "")
		}, "multipath", Danger, []string{"sdb"}},
		"other mapped disks": {func(x *tree) {
			x.file("sys/block/dm-4/dm/uuid", "LVM-1\n")
			x.file("sys/block/dm-4/slaves/loop3/x", "")
		}, "multipath", OK, nil},
		"disk in use": {func(x *tree) {
			x.o.Devices = []string{"/dev/sdb"}
			x.m.Device = func(context.Context, string) error { return errors.New("/dev/sdb is mounted at /mnt") }
		}, "disks", Danger, []string{"/mnt"}},
		"no disk": {func(x *tree) { x.m.Device = func(context.Context, string) error { return errors.New("in use") } }, "disks", Note, []string{"/dev/sda, /dev/sdb"}},
		"data in memory": {func(x *tree) {
			x.file("proc/self/mountinfo", x.m.read("proc/self/mountinfo")+"\n3 1 0:7 / /var/lib rw - tmpfs tmpfs rw\n")
		}, "data-directory", Danger, []string{"tmpfs", "reboot"}},
		"private mounts": {func(x *tree) {
			x.file("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 a rw\n2 1 0:6 / /dev rw - devtmpfs d rw\n")
		}, "mount-propagation", Danger, []string{"make-rshared"}},
		"kubelet's mount": {func(x *tree) {
			x.file("proc/self/mountinfo", x.m.read("proc/self/mountinfo")+"\n3 1 8:2 / /var/lib/kubelet rw master:1 - xfs b rw\n")
		}, "mount-propagation", Danger, []string{"/var/lib/kubelet"}},
		"no kubelet": {func(x *tree) { x.remove("var/lib/kubelet") }, "mount-propagation", Note, []string{"no kubelet"}},
		"port taken": {func(x *tree) {
			x.file("proc/net/tcp6", "  sl  local_address\n   0: 00000000000000000000000000000000:251C 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 4242 1\n")
			x.link("proc/20/fd/5", "socket:[4242]")
			x.file("proc/20/cmdline", "/usr/bin/minio\x00server\x00")
		}, "ports", Danger, []string{"9500", "minio server", "apiPort"}},
		"port taken by a stranger": {func(x *tree) {
			x.file("proc/net/tcp", "  sl  local_address\n   0: 00000000:251D 00000000:0000 0A 0:0 00:0 0 0 0 4243 1\n")
		}, "ports", Danger, []string{"9501", "can't be seen"}},
		"own ports": {func(x *tree) {
			x.file("proc/net/tcp", "  sl  local_address\n   0: 00000000:251C 00000000:0000 0A 0:0 00:0 0 0 0 4242 1\n")
			x.link("proc/20/fd/5", "socket:[4242]")
			x.file("proc/20/cmdline", "/usr/local/bin/keelson\x00control\x00")
		}, "ports", OK, []string{"1 are Keelson's"}},
		"a connection": {func(x *tree) {
			x.file("proc/net/tcp", "  sl  local_address\n   0: 00000000:251C 00000000:0000 01 0:0 00:0 0 0 0 4242 1\n")
		}, "ports", OK, nil},
		"clock":         {func(x *tree) { x.m.Clock = func() (Clock, error) { return Clock{}, nil } }, "clock", Warning, []string{"chrony"}},
		"clock unknown": {func(x *tree) { x.m.Clock = func() (Clock, error) { return Clock{}, errors.New("refused") } }, "clock", Warning, []string{"refused"}},
		"nobody":        {func(x *tree) { x.file("proc/self/status", "CapEff:\t0000000000000000\n") }, "capabilities", Danger, []string{"CAP_SYS_ADMIN", "root"}},
		"no lock":       {func(x *tree) { x.file("proc/self/status", "CapEff:\t000001ffffffbfff\n") }, "capabilities", Warning, []string{"CAP_IPC_LOCK", "8388608"}},
		"no flusher":    {func(x *tree) { x.file("proc/self/status", "CapEff:\t000001fffeffffff\n") }, "capabilities", Warning, []string{"CAP_SYS_RESOURCE"}},
		"few files": {func(x *tree) {
			x.file("proc/self/limits", "Max open files            1024                 4096              files\n")
		}, "open-files", Warning, []string{"4096", "LimitNOFILE"}},
		"control group":  {func(x *tree) { x.m.Cgroup = func() error { return errors.New("memory of /pod is limited") } }, "control-group", Danger, []string{"/pod"}},
		"swap":           {func(x *tree) { x.file("proc/swaps", "Filename\n/dev/sda2 partition 1 0 -2\n") }, "swap", Note, []string{"sda2"}},
		"swap on volume": {func(x *tree) { x.file("proc/swaps", "Filename\n/dev/loop7 partition 1 0 -2\n") }, "swap", Danger, []string{"swapoff /dev/loop7"}},
		"huge pages": {func(x *tree) {
			x.file("proc/meminfo", "MemTotal: 1000000 kB\nHugePages_Total: 300\nHugepagesize: 2048 kB\n")
		}, "huge-pages", Warning, []string{"vm.nr_hugepages"}},
	} {
		t.Run(name, func(t *testing.T) {
			x := newTree(t)
			c.change(x)
			list := Examine(t.Context(), x.m, x.o)
			found := of(list, c.check)
			if len(found) != 1 || found[0].State != c.state {
				t.Fatalf("%s: %+v, want %s", c.check, found, c.state)
			}
			f := found[0]
			if (f.State == Danger || f.State == Warning && f.Why != "") && f.Do == "" {
				t.Errorf("it says nothing of what to do: %+v", f)
			}
			for _, w := range c.words {
				if !strings.Contains(f.Found+f.Why+f.Do, w) {
					t.Errorf("%+v doesn't say %q", f, w)
				}
			}
			if (c.state == Danger) != (Dangers(list) > 0) {
				t.Errorf("dangers: %d", Dangers(list))
			}
		})
	}
}

// TestTheMachineItself looks at the machine that runs the test: whatever it is, every check comes to a finding.
func TestTheMachineItself(t *testing.T) {
	m, err := System()
	if err != nil {
		t.Fatal(err)
	}
	m.Uring, m.Device = func() error { return nil }, func(context.Context, string) error { return nil }
	list := Examine(t.Context(), m, Options{DataDir: "/var/lib/keelson", KubeletDir: "/var/lib/kubelet", Ports: []Port{{"the API", 9500}}})
	for _, name := range Names() {
		found := of(list, name)
		if len(found) == 0 {
			t.Errorf("%s: nothing found", name)
		}
		for _, f := range found {
			if f.Found == "" {
				t.Errorf("%s: a finding without words", name)
			}
		}
	}
	if f := of(list, "kernel")[0]; !strings.Contains(f.Found, m.Release) {
		t.Errorf("%+v doesn't name %s", f, m.Release)
	}
}

// TestPortIsFound: the ports of real processes are seen with who has them.
func TestPortIsFound(t *testing.T) {
	l, err := listenSomewhere(t)
	if err != nil {
		t.Fatal(err)
	}
	m, err := System()
	if err != nil {
		t.Fatal(err)
	}
	found := checkPorts(t.Context(), m, Options{Ports: []Port{{"the API", l}}})
	if len(found) != 1 || found[0].State != Danger || !strings.Contains(found[0].Found, "doctor.test") {
		t.Errorf("%+v", found)
	}
}

func TestKernelList(t *testing.T) {
	if _, err := readKernelList(kernelList); err != nil {
		t.Fatal(err)
	}
	const good = "- {name: n, state: danger, ranges: [1.2..1.3], why: w, source: s}"
	for name, text := range map[string]string{
		"unknown key": strings.Replace(good, "why", "because", 1), "no source": strings.Replace(good, ", source: s", "", 1),
		"state": strings.Replace(good, "danger", "bad", 1), "range": strings.Replace(good, "1.2..1.3", "1.2-1.3", 1), "backwards": strings.Replace(good, "1.2..1.3", "1.3..1.2", 1),
	} {
		if _, err := readKernelList([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := readKernelList([]byte(good)); err != nil {
		t.Error(err)
	}
}

// TestShippedFiles: what is printed is what is shipped.
func TestShippedFiles(t *testing.T) {
	for path, text := range map[string]string{"../../deploy/udev/90-keelson.rules": UdevRules, "../../deploy/multipath/keelson.conf": MultipathConf} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(b) != text {
			t.Errorf("%s differs from what keelson doctor prints", path)
		}
	}
}
