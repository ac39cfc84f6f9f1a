package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/internal/bundle"
)

// kernelFiles are the facts of a machine that are files.
var kernelFiles = []string{
	"/proc/version", "/proc/cmdline", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/vmstat", "/proc/swaps", "/proc/filesystems",
	"/proc/modules", "/proc/partitions", "/proc/diskstats", "/proc/self/mountinfo", "/proc/self/cgroup", "/proc/pressure/cpu",
	"/proc/pressure/io", "/proc/pressure/memory", "/proc/net/tcp", "/proc/net/dev", "/proc/net/snmp", "/proc/sys/kernel/tainted",
	"/proc/sys/kernel/io_uring_disabled", "/proc/sys/fs/file-nr", "/etc/os-release",
}

// machineSources are facts of the machine and its kernel.
func machineSources() []bundle.Source {
	var out []bundle.Source
	for _, f := range kernelFiles {
		out = append(out, bundle.Source{Name: "machine" + f, Collect: func(context.Context) ([]byte, error) { return os.ReadFile(f) }})
	}
	return append(out,
		bundle.Source{Name: "machine/processes.txt", Collect: ownProcesses},
		bundle.Source{Name: "machine/dmesg.txt", Collect: kernelLog},
		program("machine/lsblk.txt", "lsblk", "--output", "NAME,KNAME,TYPE,SIZE,RO,FSTYPE,LABEL,MOUNTPOINTS,PHY-SEC,LOG-SEC,ROTA,SCHED,MODEL"),
		program("machine/losetup.txt", "losetup", "--list", "--output", "NAME,BACK-FILE,DIO,LOG-SEC,RO,SIZELIMIT"),
		program("machine/addresses.txt", "ip", "-brief", "address"),
		program("machine/clock.txt", "timedatectl", "show"),
	)
}

// program is what a program writes.
func program(name, program string, args ...string) bundle.Source {
	return bundle.Source{Name: name, Collect: func(ctx context.Context) ([]byte, error) {
		var errText bytes.Buffer
		c := exec.CommandContext(ctx, program, args...)
		c.Stderr = &errText
		out, err := c.Output()
		if err != nil {
			err = fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(errText.String()))
		}
		return out, err
	}}
}

// kernelLog returns the kernel's log.
func kernelLog(context.Context) ([]byte, error) {
	const sizeBuffer, readAll = 10, 3
	n, err := unix.Klogctl(sizeBuffer, nil)
	if err != nil {
		return nil, fmt.Errorf("the kernel's log: %w", err)
	}
	b := make([]byte, n)
	if n, err = unix.Klogctl(readAll, b); err != nil {
		return nil, fmt.Errorf("the kernel's log: %w", err)
	}
	return b[:n], nil
}

// ownProcesses tells of each process of Keelson on this machine: its command line, limits, control group, and how it is.
func ownProcesses(context.Context) ([]byte, error) {
	var b bytes.Buffer
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, l := range lines {
		cmd, rerr := os.ReadFile(l)
		name, _, _ := bytes.Cut(cmd, []byte{0})
		if rerr != nil || !strings.HasPrefix(filepath.Base(string(name)), "keelson") {
			continue
		}
		dir := filepath.Dir(l)
		fmt.Fprintf(&b, "== %s: %s\n", dir, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '}))
		for _, f := range []string{"status", "cgroup", "limits", "oom_score_adj", "wchan"} {
			if text, err := os.ReadFile(filepath.Join(dir, f)); err == nil {
				fmt.Fprintf(&b, "-- %s\n%s\n", f, bytes.TrimSpace(text))
			}
		}
		if fds, err := os.ReadDir(filepath.Join(dir, "fd")); err == nil {
			fmt.Fprintf(&b, "-- open files: %d\n", len(fds))
		}
	}
	return b.Bytes(), err
}
