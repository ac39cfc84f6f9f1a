package server

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A node whose pod is replaced stops its children as for a successor: otherwise they would give up what waits for the next pod.
func TestChildrenMakeWayForTheNextPod(t *testing.T) {
	s := newStory(t)
	sup := NewSupervisor(SupervisorConfig{
		Binary: "/proc/self/exe", Children: []Child{child("a", "ready"), child("b", "ready")}, Succeeded: true,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- sup.Run(ctx) }()
	s.expect(t, "a start")
	s.expect(t, "b start")
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.expect(t, "b makes way")
	s.expect(t, "a makes way")
}

func TestHierarchies(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		mounts []string // those that are mounted
		want   []string
	}{
		"version 2": {text: "0::/kubepods/pod1\n", mounts: []string{"."}, want: []string{"."}},
		"version 1, with version 2 beside it": {
			text:   "12:cpu,cpuacct:/kubepods/pod1\n4:memory:/kubepods/pod1\n1:name=systemd:/kubepods/pod1\n0::/kubepods/pod1\n",
			mounts: []string{"cpu,cpuacct", "memory", "systemd", "unified"}, want: []string{"cpu,cpuacct", "memory", "systemd", "unified"},
		},
		"controllers mounted one by one": {text: "2:cpu:/x\n1:cpuacct:/x\n", mounts: []string{"cpu", "cpuacct"}, want: []string{"cpu", "cpuacct"}},
		"not mounted":                    {text: "3:net_cls:/x\n4:memory:/x\n", mounts: []string{"memory"}, want: []string{"memory"}},
		"no sense":                       {text: "x\n:\n"},
	} {
		files := map[string]string{}
		for _, m := range c.mounts {
			files[filepath.Join("cgroup", m, "cgroup.procs")] = ""
		}
		m := tree(t, files)
		var want []string
		for _, w := range c.want {
			want = append(want, filepath.Join(m.root, w))
		}
		if got := m.hierarchies(c.text); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
}

// The holder leaves every group of its container: one that it stayed in would end it with the container.
func TestHolderLeavesThePodsGroups(t *testing.T) {
	m := tree(t, map[string]string{
		"proc/self/cgroup":                "6:cpuset:/kubepods/pod1\n4:memory:/kubepods/pod1\n0::/kubepods/pod1\n",
		"cgroup/cpuset/cgroup.procs":      "",
		"cgroup/cpuset/cpuset.cpus":       "0-1\n",
		"cgroup/cpuset/cpuset.mems":       "0\n",
		"cgroup/memory/cgroup.procs":      "",
		"cgroup/unified/cgroup.procs":     "",
		"cgroup/unified/other/cpuset.cpu": "",
	})
	// A real hierarchy makes these files with the directory; the first is empty then, and no process could enter.
	cfg := storageConfig(t, cgroupAuto)
	group := "keelson/holder-" + strings.TrimPrefix(memoryGroup{}.ownGroup(cfg).path, "/keelson/")
	for name, text := range map[string]string{"cpuset/keelson/cpuset.cpus": "", "cpuset/keelson/cpuset.mems": "\n", "cpuset/" + group + "/cpuset.cpus": "\n", "cpuset/" + group + "/cpuset.mems": ""} {
		path := filepath.Join(m.root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, h := range []string{"cpuset", "memory", "unified"} {
		dir := filepath.Join(m.root, h, group)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.escape(cfg); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"cpuset/" + group + "/cgroup.procs": "0", "memory/" + group + "/cgroup.procs": "0", "unified/" + group + "/cgroup.procs": "0",
		"cpuset/" + group + "/cpuset.cpus": "0-1\n", "cpuset/keelson/cpuset.mems": "0\n",
	} {
		if b, err := os.ReadFile(filepath.Join(m.root, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
}
