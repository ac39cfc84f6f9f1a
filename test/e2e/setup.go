package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"keelson.io/keelson/hack/kube/binaries"
	"keelson.io/keelson/test/e2e/cluster"
	"keelson.io/keelson/test/e2e/debian"
	"keelson.io/keelson/test/e2e/image"
)

// setup is a cluster with Keelson on it, as a user installs it.
type setup struct {
	*cluster.Cluster
	cache  string
	binary string // of Keelson
	say    func(format string, args ...any)
	// off are the names of nodes that are cut off: Kubernetes takes a while to notice.
	off sync.Map
}

// options say what is set up.
type options struct {
	dir    string
	binary string
	more   []string // programs that are built only when they are needed
	say    func(format string, args ...any)
}

// up builds what isn't in the cache, starts the cluster, and installs Keelson.
func up(ctx context.Context, o options) (*setup, error) {
	if err := preflight(); err != nil {
		return nil, err
	}
	cache, err := binaries.CacheDir()
	if err != nil {
		return nil, err
	}
	s := &setup{cache: cache, binary: o.binary, say: o.say}
	began := time.Now()
	programs, tools, store, err := s.prepare(ctx, o)
	if err != nil {
		return nil, err
	}
	o.say("programs and images are there after %.1f s", time.Since(began).Seconds())
	s.Cluster, err = cluster.Up(ctx, cluster.Config{Dir: o.dir, Nodes: 3, Programs: programs, Tools: tools, Store: store, Pause: image.PauseName, Say: o.say})
	if err != nil {
		return nil, err
	}
	own, err := s.keelsonImage(ctx, keelsonTag)
	if err == nil {
		err = s.importAll(ctx, own)
	}
	if err != nil {
		return nil, errors.Join(err, s.Down())
	}
	return s, nil
}

// prepare makes what isn't in the cache; nobody else does at the same time.
func (s *setup) prepare(ctx context.Context, o options) (programs binaries.Set, tools, store string, err error) {
	if err := os.MkdirAll(s.cache, 0o755); err != nil {
		return nil, "", "", err
	}
	lock, err := os.OpenFile(filepath.Join(s.cache, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return nil, "", "", err
	}
	tell := func(text string) { o.say("%s", text) }
	if err := binaries.Build(ctx, s.cache, nil, tell); err != nil {
		return nil, "", "", err
	}
	if len(o.more) > 0 {
		if err := binaries.Build(ctx, s.cache, o.more, tell); err != nil {
			return nil, "", "", err
		}
	}
	programs, _ = binaries.Find(s.cache)
	if tools, err = s.tools(ctx); err != nil {
		return nil, "", "", err
	}
	archives, err := s.images(ctx, programs)
	if err == nil {
		store, err = cluster.Store(ctx, tools, s.cache, archives)
	}
	return programs, tools, store, err
}

// tools unpacks what nodes run, once.
func (s *setup) tools(ctx context.Context) (string, error) {
	tree := debian.Tree{
		Packages: []string{"containerd", "runc", "containernetworking-plugins"},
		Without:  []string{"libc6", "libgcc-s1", "gcc-12-base", "netbase", "iptables", "libxtables12", "libip*tc2", "libmnl0", "libnf*", "libnetfilter*"},
	}
	dir := filepath.Join(s.cache, "tools-1")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := os.MkdirTemp(s.cache, "tools-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := tree.Make(ctx, s.cache, tmp); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

// keelsonImage is the image's name with the tag that the chart is told.
const (
	keelsonRepository = "keelson.io/keelson"
	keelsonTag        = "e2e"
)

// images makes the archives of all images that any case needs, but Keelson's own.
func (s *setup) images(ctx context.Context, programs binaries.Set) ([]string, error) {
	const sidecars = "registry.k8s.io/sig-storage/"
	recipes := []image.Recipe{
		image.Pause(), image.Shell(image.Busybox, "sh"), image.Shell(image.Nginx, "sleep", "1000000"), image.PostgreSQL(), image.RedisServer(),
		image.WebServer(), image.MariaDBServer(),
		image.Program(sidecars+"csi-provisioner:v6.3.0", programs["csi-provisioner"]),
		image.Program(sidecars+"csi-resizer:v2.3.0", programs["csi-resizer"]),
		image.Program("registry.k8s.io/kube-scheduler:"+binaries.KubernetesVersion, programs["kube-scheduler"]),
	}
	for _, name := range []string{"csi-snapshotter", "snapshot-controller"} {
		if program := programs[name]; program != "" {
			recipes = append(recipes, image.Program(sidecars+name+":v8.7.0", program))
		}
	}
	var archives []string
	for _, r := range recipes {
		a, err := r.Archive(ctx, s.cache)
		if err != nil {
			return nil, err
		}
		archives = append(archives, a)
	}
	kept, err := filepath.Glob(filepath.Join(s.cache, "image", "*.tar"))
	for _, a := range kept { // of recipes that there aren't any more
		if !slices.Contains(archives, a) {
			err = errors.Join(err, os.Remove(a))
		}
	}
	return archives, err
}

// keelsonImage makes Keelson's image as `make image` does. It isn't kept: the program is another one each time.
func (s *setup) keelsonImage(ctx context.Context, tag string) (string, error) {
	archive := filepath.Join(s.Dir(), "keelson-"+tag+".tar")
	cmd := exec.CommandContext(ctx, "go", "run", "keelson.io/keelson/hack/image", "-binary", s.binary, "-name", keelsonRepository, "-version", tag, "-out", archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("make Keelson's image: %w: %s", err, out)
	}
	return archive, nil
}

// importAll gives every node an image: there is no registry to pull from.
func (s *setup) importAll(ctx context.Context, archive string) error {
	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, len(s.Nodes))
	for i, n := range s.Nodes {
		wg.Go(func() { errs[i] = n.Import(ctx, archive) })
	}
	wg.Wait()
	s.say("Keelson's image is on each node after %.1f s", time.Since(began).Seconds())
	return errors.Join(errs...)
}

// preflight says what is missing on this machine, all at once, and how to get it.
func preflight() error {
	var missing []string
	if os.Geteuid() != 0 {
		missing = append(missing, "root: nodes are network, mount and PID namespaces; run this as root")
	}
	for program, from := range map[string]string{
		"go": "Go 1.26", "apt-get": "a Debian", "dpkg-deb": "a Debian", "ip": "package iproute2", "iptables": "package iptables", "nsenter": "package util-linux",
		"sysctl": "package procps", "tar": "package tar",
	} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program+": "+from)
		}
	}
	for path, from := range map[string]string{"/dev/fuse": "modprobe fuse", "/dev/loop-control": "modprobe loop"} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, path+": "+from)
		}
	}
	kinds, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for _, kind := range []string{"overlay", "xfs", "ext4"} {
		if !strings.Contains(string(kinds), "\t"+kind+"\n") && exec.Command("modprobe", kind).Run() != nil {
			missing = append(missing, "file system "+kind+": modprobe "+kind)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks:\n  %s\n(`make deps` installs packages)", strings.Join(missing, "\n  "))
	}
	return nil
}
