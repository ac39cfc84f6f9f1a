// Package debian makes directories of programs from Debian's packages, without installing any: what a package needs is found
// by apt as if nothing were installed, downloaded once into a cache, and unpacked. Maintainer scripts don't run.
//
// Goroutines: none.
package debian

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Tree is a directory of unpacked packages.
type Tree struct {
	Packages []string
	// Without are packages that something depends on but nothing needs: names, or beginnings of names that end in *.
	Without []string
}

// installer is what only matters to a package manager, or to scripts that don't run.
var installer = []string{
	"dpkg", "debconf", "tar", "perl*", "libperl*", "adduser", "passwd", "ucf", "sensible-utils", "init-system-helpers", "usrmerge",
	"lsb-base", "sysvinit-utils", "libnumber-compare-perl", "libtext-glob-perl", "libfile-find-rule-perl", "libjson-perl",
	"libsemanage*", "libsepol*", "libc-l10n", "locales", "ssl-cert", "postgresql-common", "postgresql-client-common", "*-doc",
	"python3*", "libpython3*", "media-types", "readline-common",
}

// dropped are directories that nothing in a container reads.
var dropped = []string{"usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian", "usr/share/bug", "usr/share/icons"}

// Make unpacks the packages, and all that they need, into a new directory.
func (t Tree) Make(ctx context.Context, cache, dir string) error {
	names, err := t.closure(ctx)
	if err != nil {
		return err
	}
	debs, err := download(ctx, filepath.Join(cache, "deb"), names)
	if err != nil {
		return err
	}
	if err := skeleton(dir); err != nil {
		return err
	}
	for _, deb := range debs {
		// Not `dpkg -x`: that would replace the links of skeleton by directories.
		cmd := exec.CommandContext(ctx, "sh", "-c", `dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"`, deb, dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", deb, err, out)
		}
	}
	for _, d := range dropped {
		if err := os.RemoveAll(filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	return nil
}

// skeleton is what every Debian has before the first package.
func skeleton(dir string) error {
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(dir, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(dir, d)); err != nil {
			return err
		}
	}
	for _, d := range []string{"etc", "proc", "sys", "dev", "run", "root", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	tmp := filepath.Join(dir, "tmp")
	if err := errors.Join(os.MkdirAll(tmp, 0o755), os.Chmod(tmp, 0o777|os.ModeSticky)); err != nil {
		return err
	}
	if err := os.Symlink("/run", filepath.Join(dir, "var/run")); err != nil {
		return err
	}
	const passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:999:999::/var/lib/postgresql:/bin/sh\nnobody:x:65534:65534::/nonexistent:/bin/false\n"
	const group = "root:x:0:\ntty:x:5:\ndisk:x:6:\npostgres:x:999:\nnogroup:x:65534:\n"
	return errors.Join(os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o644),
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte(group), 0o644))
}

// closure lists the packages and what they need, as name=version.
func (t Tree) closure(ctx context.Context) ([]string, error) {
	status, err := os.CreateTemp("", "keelson-dpkg-status-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(status.Name())
	status.Close()
	args := append([]string{"-s", "-o", "Dir::State::status=" + status.Name(), "-o", "APT::Install-Recommends=false", "install"}, t.Packages...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("find what %s need (`apt-get update` may help): %w: %s", strings.Join(t.Packages, ", "), err, lastLine(out))
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		// Inst NAME (VERSION Debian:12/stable [amd64])
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != "Inst" || matches(f[1], installer) || matches(f[1], t.Without) {
			continue
		}
		names = append(names, f[1]+"="+strings.TrimPrefix(f[2], "("))
	}
	return names, nil
}

func matches(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := filepath.Match(p, name)
		return err == nil && ok
	})
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// download returns the files of the packages, those that aren't in the directory fetched by apt.
func download(ctx context.Context, dir string, names []string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var missing []string
	for _, n := range names {
		if find(dir, n) == "" {
			missing = append(missing, n)
		}
	}
	if len(missing) > 0 {
		// Its sandbox user can't write to root's cache directory.
		cmd := exec.CommandContext(ctx, "apt-get", append([]string{"-q", "-o", "APT::Sandbox::User=root", "download"}, missing...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("download %d packages (`apt-get update` may help): %w: %s", len(missing), err, lastLine(out))
		}
	}
	var files []string
	for _, n := range names {
		f := find(dir, n)
		if f == "" {
			return nil, fmt.Errorf("apt-get download left no file of %s in %s", n, dir)
		}
		files = append(files, f)
	}
	return files, nil
}

// find returns the file of name=version, "" if it isn't there.
func find(dir, name string) string {
	pkg, version, _ := strings.Cut(name, "=")
	found, err := filepath.Glob(filepath.Join(dir, pkg+"_"+strings.ReplaceAll(version, ":", "%3a")+"_*.deb"))
	if err != nil || len(found) == 0 {
		return ""
	}
	return found[0]
}
