package doctor

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// UdevRules mark what is Keelson's, and MultipathConf keeps multipathd from what is marked. deploy/ has the same two files.
var (
	//go:embed 90-keelson.rules
	UdevRules string
	//go:embed keelson-multipath.conf
	MultipathConf string
)

// excluded matches a multipath configuration that leaves Keelson's devices alone.
var excluded = regexp.MustCompile(`(?m)^\s*property\s+"[^"]*KEELSON_`)

func checkMultipath(_ context.Context, m *Machine, o Options) []Finding {
	if out := m.grabbed(o); len(out) > 0 {
		return out
	}
	if !m.running("multipathd") {
		return one(OK, "multipathd doesn't run")
	}
	files, _ := filepath.Glob(m.path("etc/multipath/conf.d/*.conf"))
	marked := m.exists("etc/udev/rules.d/90-keelson.rules") || m.exists("usr/lib/udev/rules.d/90-keelson.rules") || m.exists("lib/udev/rules.d/90-keelson.rules")
	for _, f := range append(files, m.path("etc/multipath.conf")) {
		if b, err := os.ReadFile(f); err == nil && excluded.Match(b) && marked {
			return one(OK, "multipathd runs, and leaves Keelson's devices alone")
		}
	}
	return []Finding{{
		State: Warning, Found: "multipathd runs, and nothing keeps it from Keelson's devices",
		Why: "a disk or a volume that it takes for one of several paths can't be mounted any more: \"already mounted or mount point busy\"",
		Do: "keelson doctor --print udev >/etc/udev/rules.d/90-keelson.rules; keelson doctor --print multipath >/etc/multipath/conf.d/keelson.conf; " +
			"udevadm control --reload; udevadm trigger --subsystem-match=block; multipathd reconfigure",
	}}
}

// grabbed finds multipath devices over loop devices, NBD, or a device that shall become a pool.
func (m *Machine) grabbed(o Options) []Finding {
	var out []Finding
	maps, _ := filepath.Glob(m.path("sys/block/dm-*"))
	for _, dm := range maps {
		name := filepath.Base(dm)
		if !strings.HasPrefix(m.read("sys/block", name, "dm/uuid"), "mpath-") {
			continue
		}
		slaves, _ := os.ReadDir(filepath.Join(dm, "slaves"))
		for _, s := range slaves {
			ours := ownDevice.MatchString("/dev/" + s.Name())
			for _, d := range o.Devices {
				ours = ours || filepath.Base(d) == s.Name()
			}
			if ours {
				label := m.read("sys/block", name, "dm/name")
				out = append(out, Finding{
					State: Danger, Found: fmt.Sprintf("multipathd has taken %s (as %s, %s)", s.Name(), label, name),
					Why: "it can't be mounted, nor be made a pool, while that is so",
					Do:  "install the rule and the configuration of keelson doctor --print udev and --print multipath; then multipath -f " + label,
				})
			}
		}
	}
	return out
}

// running reports whether a process of that name is there.
func (m *Machine) running(name string) bool {
	files, _ := filepath.Glob(m.path("proc/[0-9]*/comm"))
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
			return true
		}
	}
	return false
}
