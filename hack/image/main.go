// Command image makes the container image of Keelson without a registry and without Docker: an archive that `docker load`,
// `podman load` and `ctr images import` take. The programs that a node needs come from the Debian packages of the release that
// the machine runs; apt downloads them, and nothing is installed.
//
//	go run ./hack/image -binary bin/keelson -version v1.2.3 -out dist/keelson-image.tar
//
// deploy/image/Dockerfile makes the same image where there is a registry.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"keelson.io/keelson/hack/image/archive"
)

// roots are the packages whose programs Keelson runs, and a shell for people who look into a container.
var roots = []string{"busybox-static", "e2fsprogs", "mount", "util-linux", "xfsprogs"}

// without are packages that others ask for and that nothing here runs: maintainer scripts aren't run, accounts aren't made, and
// of xfsprogs only xfs_scrub, which isn't used, wants Unicode.
var without = []string{"debconf", "debconf-2.0", "init-system-helpers", "libicu72", "libicu76", "libpam-runtime", "login", "logsave", "python3", "ucf"}

// programs must start in the image.
var programs = []string{"keelson version", "mkfs.xfs -V", "mkfs.ext4 -V", "fsck.ext4 -V", "xfs_growfs -V", "resize2fs", "wipefs --version", "blkid --version", "mount --version", "umount --version", "nsenter --version"}

// bulky is what no program reads.
var bulky = []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "usr/share/bash-completion", "usr/share/info", "usr/share/polkit-1"}

type options struct {
	binary, version, name, out, cache string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "bin/keelson", "the program")
	flag.StringVar(&o.version, "version", "dev", "the image's tag")
	flag.StringVar(&o.name, "name", "keelson.io/keelson", "the image's name")
	flag.StringVar(&o.out, "out", "dist/keelson-image.tar", "archive to write")
	flag.StringVar(&o.cache, "cache", "", "where downloaded packages are kept (default: keelson-image in the user's cache directory)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func (o options) run(ctx context.Context) error {
	if o.cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return err
		}
		o.cache = filepath.Join(dir, "keelson-image")
	}
	if err := os.MkdirAll(o.cache, 0o755); err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "keelson-image-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := fill(ctx, root, o); err != nil {
		return err
	}
	if err := check(ctx, root); err != nil {
		return err
	}
	return write(ctx, root, o)
}

// fill unpacks the packages and puts the program beside them.
func fill(ctx context.Context, root string, o options) error {
	// Since Debian's merged /usr, packages unpack into links.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			return err
		}
	}
	for _, d := range []string{"dev", "etc", "proc", "run", "sys", "tmp", "var/lib/keelson", "var/lib/kubelet"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	debs, err := download(ctx, o.cache)
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := unpack(ctx, deb, root); err != nil {
			return err
		}
	}
	for _, d := range bulky {
		if err := os.RemoveAll(filepath.Join(root, d)); err != nil {
			return err
		}
	}
	if err := shell(root); err != nil {
		return err
	}
	b, err := os.ReadFile(o.binary)
	if err != nil {
		return fmt.Errorf("%w; build it with `make build`", err)
	}
	// fsck and mount look into /etc/fstab and /etc/mtab, and complain without.
	if err := os.WriteFile(filepath.Join(root, "etc/fstab"), nil, 0o644); err != nil {
		return err
	}
	if err := os.Symlink("../proc/self/mounts", filepath.Join(root, "etc/mtab")); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(root, "usr/bin/keelson"), b, 0o755)
}

// unpack adds a package's files to a tree, through links to directories that are in it.
func unpack(ctx context.Context, deb, root string) error {
	from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	to := exec.CommandContext(ctx, "tar", "--extract", "--keep-directory-symlink", "--directory", root)
	var errs bytes.Buffer
	from.Stderr, to.Stderr = &errs, &errs
	var err error
	if to.Stdin, err = from.StdoutPipe(); err != nil {
		return err
	}
	if err := from.Start(); err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	err = to.Run()
	if err = errors.Join(err, from.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", deb, err, strings.TrimSpace(errs.String()))
	}
	return nil
}

// shell makes busybox every program that it can be and that isn't there yet.
func shell(root string) error {
	out, err := exec.Command(filepath.Join(root, "usr/bin/busybox"), "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox: %w", err)
	}
	for _, name := range strings.Fields(string(out)) {
		there := false
		for _, d := range []string{"usr/bin", "usr/sbin"} {
			_, err := os.Lstat(filepath.Join(root, d, name))
			there = there || err == nil
		}
		if !there {
			if err := os.Symlink("busybox", filepath.Join(root, "usr/bin", name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// download fetches the packages and all that they need, unless they are in the cache, and returns the files in a fixed order.
func download(ctx context.Context, cache string) ([]string, error) {
	packages, err := closure(ctx, roots)
	if err != nil {
		return nil, err
	}
	var debs []string
	for _, n := range slices.Sorted(maps.Keys(packages)) {
		v := packages[n]
		file := fmt.Sprintf("%s_%s_%s.deb", n, strings.ReplaceAll(field(v, "Version"), ":", "%3a"), field(v, "Architecture"))
		path := filepath.Join(cache, file)
		if _, err := os.Stat(path); err != nil {
			if _, err := output(ctx, cache, "apt-get", "download", n); err != nil {
				return nil, fmt.Errorf("%w; run `apt-get update` if the lists are old", err)
			}
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("apt-get download %s left no %s", n, file)
		}
		debs = append(debs, path)
	}
	return debs, nil
}

// closure returns the packages that those named need, of alternatives the first, with their descriptions.
func closure(ctx context.Context, names []string) (map[string]string, error) {
	seen := map[string]string{}
	for todo := slices.Clone(names); len(todo) > 0; {
		// All at once: each call of apt-cache reads the whole list.
		out, err := output(ctx, "", "apt-cache", append([]string{"show", "--no-all-versions"}, todo...)...)
		if err != nil {
			return nil, err
		}
		todo = nil
		for text := range strings.SplitSeq(out, "\n\n") {
			if n := field(text, "Package"); n != "" {
				seen[n] = text
			}
			for _, deps := range []string{field(text, "Pre-Depends"), field(text, "Depends")} {
				todo = append(todo, firsts(deps)...)
			}
		}
		slices.Sort(todo)
		todo = slices.DeleteFunc(slices.Compact(todo), func(n string) bool { return seen[n] != "" || slices.Contains(without, n) })
	}
	return seen, nil
}

// firsts are the names in a list of dependencies, of alternatives the first.
func firsts(deps string) []string {
	var out []string
	for dep := range strings.SplitSeq(deps, ",") {
		dep, _, _ = strings.Cut(dep, "|")
		dep, _, _ = strings.Cut(strings.TrimSpace(dep), " ")
		if dep, _, _ = strings.Cut(dep, ":"); dep != "" {
			out = append(out, dep)
		}
	}
	return out
}

// field returns a field of a package's description.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return string(out), nil
}

// check runs each program in the tree: a library that is missing shows here.
func check(ctx context.Context, root string) error {
	for _, p := range programs {
		f := strings.Fields(p)
		cmd := exec.CommandContext(ctx, "chroot", append([]string{root}, f...)...)
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin"}
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		// Some have no way to say only who they are, and end with an error after they said it.
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() > 125 || bytes.Contains(out, []byte("shared librar"))) {
			return fmt.Errorf("%s doesn't run in the image: %w: %s", f[0], err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// write makes the image's archive of the tree.
func write(ctx context.Context, root string, o options) error {
	if err := os.MkdirAll(filepath.Dir(o.out), 0o755); err != nil {
		return err
	}
	i := archive.Image{Name: o.name + ":" + o.version, Entrypoint: []string{"/usr/bin/keelson"}, Env: []string{"PATH=/usr/sbin:/usr/bin"}, OfRoot: true}
	if err := archive.Write(ctx, i, root, o.out); err != nil {
		return err
	}
	st, err := os.Stat(o.out)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("%s: %s, %d MiB\n", o.out, i.Name, st.Size()>>20)
	return err
}
