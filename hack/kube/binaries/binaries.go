// Package binaries builds the programs of a Kubernetes cluster from their published Go modules, and keeps them in the
// user's cache directory. Nothing is downloaded but modules, by the go command, with its checksums.
//
// A module is built in a copy of its own, because some name local directories as replacements of others: those lines are
// dropped, or answered by the published module of the same release. Each program is kept under its module's version, so
// that a change of version builds it anew.
//
// Goroutines: none.
package binaries

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// Module is a published Go module with programs that a cluster needs.
type Module struct {
	Path    string
	Version string
	// Staging is the version of the modules of the same release that this one finds beside itself in its repository.
	Staging string
	// LDFlags are given to the linker.
	LDFlags  string
	Programs []Program
	// Optional programs are built only when they are asked for by name.
	Optional bool
}

// Program is one program of a module.
type Program struct {
	Name    string
	Package string // in its module
}

// KubernetesVersion is the release of Kubernetes that is tested with. Later ones need a containerd that Debian 12 doesn't have.
const KubernetesVersion = "v1.34.0"

// Modules are what a cluster is made of.
var Modules = []Module{
	{
		Path: "go.etcd.io/etcd/server/v3", Version: "v3.6.5",
		Programs: []Program{{"etcd", "."}},
	},
	{
		Path: "k8s.io/kubernetes", Version: KubernetesVersion, Staging: "v0.34.0",
		LDFlags: "-X k8s.io/component-base/version.gitVersion=" + KubernetesVersion +
			" -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34" +
			" -X k8s.io/client-go/pkg/version.gitVersion=" + KubernetesVersion,
		Programs: []Program{
			{"kubectl", "./cmd/kubectl"},
			{"kubelet", "./cmd/kubelet"},
			{"kube-apiserver", "./cmd/kube-apiserver"},
			{"kube-controller-manager", "./cmd/kube-controller-manager"},
			{"kube-scheduler", "./cmd/kube-scheduler"},
		},
	},
	{
		Path: "github.com/kubernetes-csi/external-provisioner/v6", Version: "v6.3.0",
		LDFlags:  "-X main.version=v6.3.0",
		Programs: []Program{{"csi-provisioner", "./cmd/csi-provisioner"}},
	},
	{
		Path: "github.com/kubernetes-csi/external-resizer/v2", Version: "v2.3.0",
		LDFlags:  "-X main.version=v2.3.0",
		Programs: []Program{{"csi-resizer", "./cmd/csi-resizer"}},
	},
	{
		Path: "github.com/kubernetes-csi/external-snapshotter/v8", Version: "v8.7.0",
		LDFlags: "-X main.version=v8.7.0", Optional: true,
		Programs: []Program{
			{"csi-snapshotter", "./cmd/csi-snapshotter"},
			{"snapshot-controller", "./cmd/snapshot-controller"},
		},
	},
	{
		Path: "helm.sh/helm/v3", Version: "v3.19.0",
		LDFlags:  "-X helm.sh/helm/v3/internal/version.version=v3.19.0",
		Programs: []Program{{"helm", "./cmd/helm"}},
	},
}

// CacheDir is where everything that can be made again is kept.
func CacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the binaries of the test cluster: %w", err)
	}
	return filepath.Join(dir, "keelson-kube"), nil
}

// path is where a program of the module is kept.
func (m *Module) path(cache, program string) string {
	return filepath.Join(cache, "bin", program+"-"+m.Version)
}

// Set is the built programs: name to path.
type Set map[string]string

// Find returns the programs that are there, and the names of those that aren't.
func Find(cache string) (found Set, missing []string) {
	found = Set{}
	for i := range Modules {
		for _, p := range Modules[i].Programs {
			path := Modules[i].path(cache, p.Name)
			if _, err := os.Stat(path); err == nil {
				found[p.Name] = path
			} else {
				missing = append(missing, p.Name)
			}
		}
	}
	return found, missing
}

// ErrUnknown: there is no program of that name.
var ErrUnknown = errors.New("no such program")

// Build makes those of the named programs that aren't in the cache; all that aren't optional if none is named. It tells say what it does.
func Build(ctx context.Context, cache string, names []string, say func(string)) error {
	for _, n := range names {
		known := func(m Module) bool {
			return slices.ContainsFunc(m.Programs, func(p Program) bool { return p.Name == n })
		}
		if !slices.ContainsFunc(Modules, known) {
			return fmt.Errorf("%w: %s", ErrUnknown, n)
		}
	}
	for i := range Modules {
		m := &Modules[i]
		var wanted []Program
		for _, p := range m.Programs {
			if len(names) == 0 && m.Optional || len(names) > 0 && !slices.Contains(names, p.Name) {
				continue
			}
			if _, err := os.Stat(m.path(cache, p.Name)); err != nil {
				wanted = append(wanted, p)
			}
		}
		if len(wanted) == 0 {
			continue
		}
		if err := m.build(ctx, cache, wanted, say); err != nil {
			return err
		}
	}
	return nil
}
