package server

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keelson.io/keelson/internal/spec"
)

// tree makes a machine of files: by path below its root, what is in them.
func tree(t *testing.T, files map[string]string) cgroups {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cgroups{root: filepath.Join(dir, "cgroup"), proc: filepath.Join(dir, "proc")}
}

// Version 1 writes no limit like this.
const noLimitV1 = "9223372036854771712\n"

func storageConfig(t *testing.T, group string) Config {
	cfg := DefaultConfig()
	cfg.Node, cfg.DataDir, cfg.Engine.Cgroup = "a", t.TempDir(), group
	cfg.Roles = []spec.Role{spec.RoleStorage}
	return cfg
}

func TestCgroupOfAnEngine(t *testing.T) {
	self := fmt.Sprint(os.Getpid(), "\n")
	for name, c := range map[string]struct {
		files map[string]string
		want  string // "" if the engine can stay
	}{
		"no control groups": {files: map[string]string{"proc/version": ""}},
		"version 1, alone": {files: map[string]string{
			"proc/self/cgroup":                               "9:cpu,cpuacct:/\n4:memory:/unit\n0::/other\n",
			"cgroup/memory/memory.limit_in_bytes":            noLimitV1,
			"cgroup/memory/unit/memory.limit_in_bytes":       noLimitV1,
			"cgroup/memory/unit/cgroup.procs":                self + "41\n42\n43\n",
			"proc/41/cmdline":                                "/bin/keelson\x00engine\x00--config\x00x\x00",
			"proc/42/cmdline":                                "/bin/keelson.previous\x00holder\x00",
			"proc/43/cmdline":                                "", // it has ended
			"cgroup/memory/unit/child/cgroup.procs":          "77\n",
			"cgroup/memory/unit/child/memory.limit_in_bytes": "4096\n",
		}},
		"version 1, with a stranger": {want: "1 other processes", files: map[string]string{
			"proc/self/cgroup":                    "4:cpuset,memory:/\n",
			"cgroup/memory/memory.limit_in_bytes": noLimitV1,
			"cgroup/memory/cgroup.procs":          self + "41\n",
			"proc/41/cmdline":                     "/bin/bash\x00",
		}},
		"version 1, a command of the program is a stranger": {want: "1 other processes", files: map[string]string{
			"proc/self/cgroup":                    "4:memory:/\n",
			"cgroup/memory/memory.limit_in_bytes": noLimitV1,
			"cgroup/memory/cgroup.procs":          self + "41\n",
			"proc/41/cmdline":                     "keelson\x00lab\x00up\x00",
		}},
		"version 1, limited above": {want: "memory of /pod/c is limited in", files: map[string]string{
			"proc/self/cgroup":                          "4:memory:/pod/c\n",
			"cgroup/memory/memory.limit_in_bytes":       noLimitV1,
			"cgroup/memory/pod/memory.limit_in_bytes":   "67108864\n",
			"cgroup/memory/pod/c/memory.limit_in_bytes": noLimitV1,
			"cgroup/memory/pod/c/cgroup.procs":          self,
		}},
		"version 2, alone": {files: map[string]string{
			"proc/self/cgroup":                                 "0::/system.slice/keelson.service\n",
			"cgroup/system.slice/memory.max":                   "max\n",
			"cgroup/system.slice/keelson.service/memory.max":   "max\n",
			"cgroup/system.slice/keelson.service/cgroup.procs": self,
		}},
		"version 2, limited": {want: "is limited in", files: map[string]string{
			"proc/self/cgroup":         "0::/unit\n",
			"cgroup/unit/memory.max":   "1073741824\n",
			"cgroup/unit/cgroup.procs": self,
		}},
		"version 2, with a stranger": {want: "2 other processes", files: map[string]string{
			"proc/self/cgroup":         "0::/user\n",
			"cgroup/user/memory.max":   "max\n",
			"cgroup/user/cgroup.procs": "0\n41\n" + self, // 0: a process of another namespace
			"proc/41/cmdline":          "/usr/bin/python3\x00engine\x00",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			m := tree(t, c.files)
			err := m.check(storageConfig(t, cgroupAuto))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrCgroup) || !errors.Is(err, ErrPermanent) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			for _, way := range []string{"systemd unit", "must be writable", "engine.cgroup: keep"} {
				if !strings.Contains(err.Error(), way) {
					t.Errorf("%q doesn't say %q", err, way)
				}
			}
			for _, other := range []string{cgroupOwn, cgroupKeep} {
				cfg := storageConfig(t, other)
				cfg.Log.Level = slog.LevelError.String()
				if err := m.check(cfg); err != nil {
					t.Errorf("engine.cgroup %s: %v", other, err)
				}
			}
			cfg := storageConfig(t, cgroupAuto)
			cfg.Roles = []spec.Role{spec.RoleMetadata}
			if err := m.check(cfg); err != nil {
				t.Errorf("without an engine: %v", err)
			}
		})
	}
}

func TestCgroupIsLeftForAnOwnOne(t *testing.T) {
	for name, c := range map[string]struct{ line, mount, limit string }{
		"version 1": {"4:memory:/\n", "cgroup/memory", "memory.limit_in_bytes"},
		"version 2": {"0::/\n", "cgroup", "memory.max"},
	} {
		t.Run(name, func(t *testing.T) {
			m := tree(t, map[string]string{
				"proc/self/cgroup":        c.line,
				c.mount + "/cgroup.procs": "41\n",
				"proc/41/cmdline":         "/bin/bash\x00",
			})
			cfg := storageConfig(t, cgroupAuto)
			if err := m.enter(cfg); err != nil {
				t.Fatal(err)
			}
			g, _, err := m.own()
			if err != nil {
				t.Fatal(err)
			}
			own := g.ownGroup(cfg)
			if b, err := os.ReadFile(filepath.Join(own.dir(), "cgroup.procs")); err != nil || string(b) != "0" {
				t.Fatalf("moved %q, %v", b, err)
			}
			// As the kernel would say it now: there it can stay, and another node has another group.
			if err := os.WriteFile(filepath.Join(m.proc, "self", "cgroup"), []byte(strings.TrimSuffix(c.line, "/\n")+own.path+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(own.dir(), "cgroup.procs"), []byte(fmt.Sprint(os.Getpid(), "\n")), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := m.check(cfg); err != nil {
				t.Error(err)
			}
			if other := g.ownGroup(storageConfig(t, cgroupAuto)); other == own {
				t.Errorf("two nodes would share %s", own.path)
			}
		})
	}
}

func TestCgroupStaysWhereItMay(t *testing.T) {
	files := map[string]string{"proc/self/cgroup": "0::/unit\n", "cgroup/unit/memory.max": "max\n", "cgroup/unit/cgroup.procs": fmt.Sprint(os.Getpid(), "\n")}
	for group, moves := range map[string]bool{cgroupAuto: false, cgroupKeep: false, cgroupOwn: true} {
		m := tree(t, files)
		if err := m.enter(storageConfig(t, group)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Join(m.root, "keelson")); (err == nil) != moves {
			t.Errorf("engine.cgroup %s: %v", group, err)
		}
	}
}
