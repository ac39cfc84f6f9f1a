package doctor

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

func (m *Machine) charDevice(path string) bool {
	st, err := os.Stat(m.path(path))
	// A directory of files that stands in for a machine has no devices.
	return err == nil && (st.Mode()&fs.ModeCharDevice != 0 || m.Root != "" && st.Mode().IsRegular())
}

// knows reports whether the kernel has a file system, or could load its module.
func (m *Machine) knows(ctx context.Context, name string) bool {
	for line := range strings.Lines(m.read("proc/filesystems")) {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == name {
			return true
		}
	}
	return m.loadable(ctx, name)
}

// loadable reports whether there is a module of that name.
func (m *Machine) loadable(ctx context.Context, name string) bool {
	_, err := m.Run(ctx, "modprobe", "--dry-run", "--quiet", name)
	return err == nil
}

func checkUring(_ context.Context, m *Machine, _ Options) []Finding {
	const why = "the engine does all its I/O through io_uring"
	switch v := m.read("proc/sys/kernel/io_uring_disabled"); v {
	case "2":
		return []Finding{{State: Danger, Found: "kernel.io_uring_disabled is 2: io_uring is switched off", Why: why, Do: "sysctl -w kernel.io_uring_disabled=1, and the same in /etc/sysctl.d/ (1 leaves it to root)"}}
	case "", "0", "1":
	default:
		return one(Warning, "kernel.io_uring_disabled is %q, which isn't known", v)
	}
	if err := m.Uring(); err != nil {
		return []Finding{{State: Danger, Found: "no io_uring can be made: " + err.Error(), Why: why,
			Do: "run as root; in a container, as a privileged one: the usual seccomp profile forbids it. Otherwise the kernel is older than 6.1, or was built without CONFIG_IO_URING"}}
	}
	return one(OK, "io_uring works")
}

func checkFUSE(ctx context.Context, m *Machine, _ Options) []Finding {
	const why = "a volume is a file in a FUSE file system, with a loop device over it"
	if !m.knows(ctx, "fuse") {
		return []Finding{{State: Danger, Found: "the kernel has no FUSE", Why: why, Do: "install the kernel's module fuse (CONFIG_FUSE_FS)"}}
	}
	if !m.charDevice("dev/fuse") {
		return []Finding{{State: Danger, Found: "/dev/fuse is missing", Why: why, Do: "modprobe fuse; in a container, mount the host's /dev"}}
	}
	return one(OK, "/dev/fuse is there")
}

// checkFUSETimeout looks for limits after which the kernel ends a FUSE connection whose server is silent.
func checkFUSETimeout(_ context.Context, m *Machine, _ Options) []Finding {
	for _, name := range []string{"default_request_timeout", "max_request_timeout"} {
		if v := m.read("proc/sys/fs/fuse", name); v != "" && v != "0" {
			return []Finding{{
				State: Danger, Found: "fs.fuse." + name + " is " + v + " seconds",
				Why: "a volume whose copies can't be reached waits without an error. After this time the kernel ends it, and the file system on it fails",
				Do:  "sysctl -w fs.fuse." + name + "=0, and the same in /etc/sysctl.d/",
			}}
		}
	}
	return one(OK, "the kernel waits for FUSE servers as long as it takes")
}

func checkLoop(ctx context.Context, m *Machine, _ Options) []Finding {
	const why = "every volume that is attached through FUSE has a loop device"
	if !m.charDevice("dev/loop-control") {
		do := "modprobe loop; in a container, mount the host's /dev"
		if !m.loadable(ctx, "loop") && !m.exists("sys/module/loop") {
			do = "install the kernel's module loop (CONFIG_BLK_DEV_LOOP)"
		}
		return []Finding{{State: Danger, Found: "/dev/loop-control is missing", Why: why, Do: do}}
	}
	used, _ := filepath.Glob(m.path("sys/block/loop*/loop"))
	if v := m.read("sys/module/loop/parameters/max_loop"); v != "" && v != "0" {
		return one(OK, "loop devices can be made, %d in use; %s are there from the start", len(used), v)
	}
	return one(OK, "loop devices can be made, %d in use", len(used))
}

func checkNBD(ctx context.Context, m *Machine, _ Options) []Finding {
	if m.exists("sys/module/nbd") || m.loadable(ctx, "nbd") {
		return one(OK, "the module nbd is there")
	}
	return []Finding{{State: Note, Found: "the kernel has no NBD", Why: "only volumes that are attached with --frontend nbd need it", Do: "install the kernel's module nbd if such volumes shall be attached here"}}
}

func checkXFS(ctx context.Context, m *Machine, _ Options) []Finding {
	const why = "a pool is an XFS file system with reflinks"
	if !m.knows(ctx, "xfs") {
		return []Finding{{State: Danger, Found: "the kernel has no XFS", Why: why, Do: "install the kernel's module xfs (CONFIG_XFS_FS)"}}
	}
	if _, err := m.LookPath("mkfs.xfs"); err != nil {
		return []Finding{{State: Danger, Found: "there is no mkfs.xfs", Why: why, Do: "install the package xfsprogs"}}
	}
	out, err := m.Run(ctx, "mkfs.xfs", "-V")
	if err != nil {
		return []Finding{{State: Danger, Found: "mkfs.xfs doesn't run: " + err.Error(), Why: why, Do: "install the package xfsprogs anew"}}
	}
	text := strings.TrimSpace(out)
	if v, ok := parseVersion(strings.TrimPrefix(text, "mkfs.xfs version ")); ok && v < version(4, 9, 0) {
		return []Finding{{State: Danger, Found: text, Why: "before 4.9 it can't make reflinks", Do: "install xfsprogs 5.0 or newer"}}
	}
	return one(OK, "%s", text)
}

// programs are those that are run, with what for and whether a node without Kubernetes needs them.
var programs = []struct {
	name, pack, why string
	kubernetes      bool
}{
	{"wipefs", "util-linux", "it says whether a device is empty before a pool is made of it", false},
	{"blkid", "util-linux", "it says what is on a volume before it is mounted, or given a file system", true},
	{"mkfs.ext4", "e2fsprogs", "most claims ask for ext4", true},
	{"fsck.ext4", "e2fsprogs", "ext4 is checked before it is mounted", true},
}

func checkPrograms(_ context.Context, m *Machine, o Options) []Finding {
	kube := o.KubeletDir != "" && m.exists(o.KubeletDir)
	var out []Finding
	for _, p := range programs {
		if p.kubernetes && !kube {
			continue
		}
		if _, err := m.LookPath(p.name); err != nil {
			out = append(out, Finding{State: Danger, Found: "there is no " + p.name, Why: p.why, Do: "install the package " + p.pack})
		}
	}
	if len(out) == 0 {
		return one(OK, "wipefs and what else is run are there")
	}
	return out
}

func checkDev(_ context.Context, m *Machine, _ Options) []Finding {
	if at, ok := m.mountOf("/dev"); !ok || at.fstype != "devtmpfs" {
		return []Finding{{
			State: Danger, Found: "/dev isn't the kernel's (devtmpfs)",
			Why: "loop devices appear in the kernel's /dev; in a copy of it they are missing, and volumes can't be attached",
			Do:  "in a container, mount the host's /dev",
		}}
	}
	return one(OK, "/dev is the kernel's")
}

// noDisk are block devices that are no disks to make pools of.
var noDisk = regexp.MustCompile(`^(loop|ram|zram|nbd|sr|fd|dm-|md|mtdblock|rbd|drbd|nullb|ublkb)`)

// minDisk is the smallest disk that is worth naming, in bytes.
const minDisk = 1 << 30

func checkDisks(ctx context.Context, m *Machine, o Options) []Finding {
	var out []Finding
	for _, d := range o.Devices {
		if err := m.Device(ctx, d); err != nil {
			out = append(out, Finding{State: Danger, Found: err.Error(), Why: "no pool can be made of it", Do: "choose another device, or free this one; what is on it is overwritten with --wipe only"})
			continue
		}
		out = append(out, Finding{State: OK, Found: d + " is empty: a pool can be made of it"})
	}
	if len(o.Devices) > 0 {
		return out
	}
	entries, _ := os.ReadDir(m.path("sys/block"))
	var free, taken []string
	for _, e := range entries {
		sectors, _ := strconv.ParseInt(m.read("sys/block", e.Name(), "size"), 10, 64)
		if noDisk.MatchString(e.Name()) || sectors*512 < minDisk {
			continue
		}
		if m.Device(ctx, "/dev/"+e.Name()) == nil {
			free = append(free, "/dev/"+e.Name())
		} else {
			taken = append(taken, "/dev/"+e.Name())
		}
	}
	slices.Sort(free)
	if len(free) == 0 {
		return one(Note, "no disk is empty (in use, or with something on them: %s); a pool can also be a file", orNone(taken))
	}
	return one(OK, "empty: %s; in use, or with something on them: %s", orNone(free), orNone(taken))
}

// orNone joins names, and says so if there are none.
func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
