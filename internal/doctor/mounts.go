package doctor

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// mountPoint is a line of mountinfo.
type mountPoint struct {
	dir, fstype, source string
	shared              bool
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// mountOf returns the mount that a path lies in.
func (m *Machine) mountOf(path string) (best mountPoint, ok bool) {
	path = filepath.Clean(path)
	for line := range strings.Lines(m.read("proc/self/mountinfo")) {
		f := strings.Fields(line)
		sep := slices.Index(f, "-")
		if sep < 6 || len(f) < sep+3 {
			continue
		}
		p := mountPoint{dir: unescape.Replace(f[4]), fstype: f[sep+1], source: f[sep+2]}
		for _, option := range f[6:sep] {
			p.shared = p.shared || strings.HasPrefix(option, "shared:")
		}
		inside := p.dir == "/" || path == p.dir || strings.HasPrefix(path, p.dir+"/")
		if inside && (!ok || len(p.dir) >= len(best.dir)) { // the last one at a place is on top
			best, ok = p, true
		}
	}
	return best, ok
}

func checkPropagation(_ context.Context, m *Machine, o Options) []Finding {
	if o.KubeletDir == "" || !m.exists(o.KubeletDir) {
		return one(Note, "no kubelet on this machine")
	}
	at, ok := m.mountOf(o.KubeletDir)
	if !ok {
		return one(Warning, "the mount of %s can't be found", o.KubeletDir)
	}
	if !at.shared {
		return []Finding{{
			State: Danger, Found: fmt.Sprintf("%s lies in the mount %s, which isn't shared", o.KubeletDir, at.dir),
			Why: "a volume that is mounted for a pod is seen by the pod only if the mount is passed on between mount namespaces",
			Do:  fmt.Sprintf("mount --make-rshared %s, before kubelet and the container runtime start (systemd does so for /); in a container: mountPropagation: Bidirectional", at.dir),
		}}
	}
	return one(OK, "%s lies in the mount %s, which is shared", o.KubeletDir, at.dir)
}

func checkDataDir(_ context.Context, m *Machine, o Options) []Finding {
	if o.DataDir == "" {
		return one(Note, "no data directory is given")
	}
	at, ok := m.mountOf(o.DataDir)
	if !ok {
		return one(Warning, "the mount of %s can't be found", o.DataDir)
	}
	if at.fstype == "tmpfs" || at.fstype == "ramfs" || at.fstype == "overlay" {
		return []Finding{{
			State: Danger, Found: fmt.Sprintf("the data directory %s lies in %s (%s)", o.DataDir, at.dir, at.fstype),
			Why: "it holds the node's identity and the metadata, and must outlive a reboot and the container",
			Do:  "put dataDir on a disk of the machine; in a container, mount the host's directory",
		}}
	}
	return one(OK, "%s lies in %s (%s)", o.DataDir, at.dir, at.fstype)
}
