package doctor

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

func checkClock(_ context.Context, m *Machine, _ Options) []Finding {
	c, err := m.Clock()
	if err != nil {
		return one(Warning, "the kernel doesn't say how the clock is: %v", err)
	}
	if !c.Synchronised {
		return []Finding{{
			State: Warning, Found: "the clock isn't synchronised",
			Why: "no data depends on it, but certificates, tokens, schedules and the times in logs do",
			Do:  "run chrony, ntpd or systemd-timesyncd",
		}}
	}
	return one(OK, "the clock is synchronised, within %d ms", c.MaxError/1000)
}

// Capabilities of Linux, by their bits.
const (
	capIPCLock     = 14
	capSysAdmin    = 21
	capSysResource = 24
)

func checkCapabilities(_ context.Context, m *Machine, _ Options) []Finding {
	var have uint64
	for line := range strings.Lines(m.read("proc/self/status")) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			have, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	can := func(bit int) bool { return have&(1<<bit) != 0 }
	if !can(capSysAdmin) {
		return []Finding{{State: Danger, Found: "this process lacks CAP_SYS_ADMIN", Why: "keelson server mounts file systems and makes devices", Do: "run this, and keelson server, as root; in a container, as a privileged one"}}
	}
	var out []Finding
	if soft, _ := m.limit("Max locked memory"); !can(capIPCLock) && soft != math.MaxInt64 {
		out = append(out, Finding{
			State: Warning, Found: fmt.Sprintf("memory can't be locked: CAP_IPC_LOCK is missing, and the limit is %d bytes", soft),
			Why: "an engine that is paged out waits for a disk that may be waiting for it",
			Do:  "start keelson server with CAP_IPC_LOCK or LimitMEMLOCK=infinity, as the systemd unit does",
		})
	}
	if !can(capSysResource) {
		out = append(out, Finding{
			State: Warning, Found: "CAP_SYS_RESOURCE is missing",
			Why: "without it the kernel can't be told that the engine writes for others (PR_SET_IO_FLUSHER), and it may wait for itself when memory is short",
			Do:  "start keelson server as root without taking this capability away",
		})
	}
	if len(out) == 0 {
		return one(OK, "memory can be locked, and the engine can be marked as one that writes for others")
	}
	return out
}

// limit returns the soft and the hard limit of this process; math.MaxInt64 is none.
func (m *Machine) limit(name string) (soft, hard int64) {
	for line := range strings.Lines(m.read("proc/self/limits")) {
		rest, ok := strings.CutPrefix(line, name)
		f := strings.Fields(rest)
		if !ok || len(f) < 2 {
			continue
		}
		value := func(s string) int64 {
			if n, err := strconv.ParseInt(s, 10, 64); err == nil {
				return n
			}
			return math.MaxInt64
		}
		return value(f[0]), value(f[1])
	}
	return math.MaxInt64, math.MaxInt64
}

// wantFiles is how many files a node with many volumes has open.
const wantFiles = 16384

func checkOpenFiles(_ context.Context, m *Machine, _ Options) []Finding {
	_, hard := m.limit("Max open files")
	if hard < wantFiles {
		return []Finding{{
			State: Warning, Found: fmt.Sprintf("a process may have %d files open", hard),
			Why: fmt.Sprintf("every volume, replica and connection has some; %d last for hundreds of volumes", wantFiles),
			Do:  "start keelson server with LimitNOFILE=1048576, as the systemd unit does",
		}}
	}
	if hard == math.MaxInt64 {
		return one(OK, "any number of files can be open")
	}
	return one(OK, "%d files can be open", hard)
}

func checkCgroup(_ context.Context, m *Machine, _ Options) []Finding {
	if m.Cgroup == nil {
		return one(Note, "not asked")
	}
	if err := m.Cgroup(); err != nil {
		return []Finding{{
			State: Danger, Found: err.Error(),
			Why: "an engine that shares the limit of its memory with a writer of its volumes waits for itself when memory is short; keelson server refuses to start like that",
			Do:  "start keelson server from its systemd unit; in a container, mount the host's /sys/fs/cgroup writable",
		}}
	}
	return one(OK, "the engine can have a control group without writers of volumes")
}

var ownDevice = regexp.MustCompile(`^/dev/(loop|nbd)\d+$`)

func checkSwap(_ context.Context, m *Machine, _ Options) []Finding {
	var list []string
	for i, line := range strings.Split(m.read("proc/swaps"), "\n") {
		f := strings.Fields(line)
		if i == 0 || len(f) == 0 {
			continue
		}
		if ownDevice.MatchString(f[0]) {
			return []Finding{{
				State: Danger, Found: "swap is on " + f[0],
				Why: "if that is a volume, freeing memory needs the engine, and the engine needs memory: the machine stands still",
				Do:  "swapoff " + f[0] + ", and put swap on a disk of the machine",
			}}
		}
		list = append(list, filepath.Base(f[0]))
	}
	if len(list) > 0 {
		return []Finding{{State: Note, Found: "swap is on: " + strings.Join(list, ", "), Why: "the engine locks its memory; kubelet doesn't start with swap unless told to"}}
	}
	return one(OK, "there is no swap")
}

func checkHugePages(_ context.Context, m *Machine, _ Options) []Finding {
	info := map[string]int64{}
	for line := range strings.Lines(m.read("proc/meminfo")) {
		if f := strings.Fields(line); len(f) >= 2 {
			info[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	reserved := info["HugePages_Total"] * info["Hugepagesize"] // KiB
	if total := info["MemTotal"]; total > 0 && reserved > total/2 {
		return []Finding{{
			State: Warning, Found: fmt.Sprintf("%d MiB of %d MiB are set aside for huge pages", reserved>>10, total>>10),
			Why: "Keelson uses none: for it, and for the file systems on its volumes, only the rest is there",
			Do:  "lower vm.nr_hugepages if nobody else needs them",
		}}
	}
	return one(OK, "%d MiB are set aside for huge pages; Keelson needs none", reserved>>10)
}
