package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"keelson.io/keelson/internal/meta/mem"
	"keelson.io/keelson/internal/pool"
	"keelson.io/keelson/internal/spec"
)

func TestDiskRulesThatMakeNoSense(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"nothing chosen":      {"disks: [{labels: {a: b}}]", "disks[0].all: the rule chooses nothing"},
		"file and disks":      {"disks: [{file: /x, size: 1Gi, all: true}]", "disks[0].file: a rule is for a file or for disks"},
		"file without size":   {"disks: [{file: /x}]", `disks[0].size: "" is not legal`},
		"a small file":        {"disks: [{file: /x, size: 1Mi}]", `disks[0].size: "1Mi" is not legal; legal: from 320 MiB`},
		"a relative file":     {"disks: [{file: x, size: 1Gi}]", `disks[0].file: "x" is not an absolute path`},
		"size without file":   {"disks: [{all: true, size: 1Gi}]", "disks[0].size: set, but file isn't"},
		"a path elsewhere":    {"disks: [{all: true}, {paths: [/srv/x]}]", `disks[1].paths: "/srv/x" is not legal; legal: a glob`},
		"a bad glob":          {"disks: [{paths: ['/dev/[']}]", `disks[0].paths: "/dev/[" is not legal`},
		"bad media":           {"disks: [{media: [tape]}]", `disks[0].media: "tape" is not legal; legal: nvme, ssd, hdd`},
		"a bad size":          {"disks: [{minSize: big}]", `disks[0].minSize: "big" is not legal; legal: `},
		"sizes the other way": {"disks: [{minSize: 2Ti, maxSize: 1Ti}]", "disks[0].minSize: 2Ti is above maxSize, 1Ti"},
		"bad labels":          {"disks: [{all: true, labels: {'a b': c}}]", "disks[0].labels"},
		"an unknown key":      {"disks: [{every: true}]", "unknown key every"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := DefaultConfig()
			err := cfg.parse([]byte("node: n1\naddress: 10.0.0.1\n" + c.text))
			if err == nil {
				err = cfg.Complete()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("%v, want %q", err, c.want)
			}
		})
	}
}

func TestDiskRulesTake(t *testing.T) {
	nvme := pool.Disk{Device: "/dev/nvme0n1", Name: "/dev/disk/by-id/nvme-a", Links: []string{"/dev/disk/by-id/nvme-a"}, Size: 1 << 40, Media: spec.MediaNVMe}
	loop := pool.Disk{Device: "/dev/loop3", Name: "/dev/loop3", Size: 1 << 30, Media: spec.MediaSSD, Virtual: true}
	for name, c := range map[string]struct {
		rule DiskRule
		disk pool.Disk
		want bool
	}{
		"all":                    {DiskRule{All: true}, nvme, true},
		"all, nothing virtual":   {DiskRule{All: true}, loop, false},
		"virtual if it is named": {DiskRule{Paths: []string{"/dev/loop3"}}, loop, true},
		"by a name that stays":   {DiskRule{Paths: []string{"/dev/disk/by-id/nvme-*"}}, nvme, true},
		"by another name":        {DiskRule{Paths: []string{"/dev/sd*"}}, nvme, false},
		"by media":               {DiskRule{Media: []spec.Media{spec.MediaNVMe}}, nvme, true},
		"by other media":         {DiskRule{All: true, Media: []spec.Media{spec.MediaHDD}}, nvme, false},
		"large enough":           {DiskRule{MinSize: "1TiB", MaxSize: "1TiB"}, nvme, true},
		"too small":              {DiskRule{MinSize: "2Ti"}, nvme, false},
		"too large":              {DiskRule{MaxSize: "100Gi"}, nvme, false},
	} {
		if got := c.rule.takes(c.disk); (got == "") != c.want {
			t.Errorf("%s: %q, want taken: %v", name, got, c.want)
		}
	}
	labels := DiskRule{All: true, NodeLabels: map[string]string{"disk": "fast"}}
	if !labels.applies(map[string]string{"disk": "fast", "x": "y"}) || labels.applies(map[string]string{"disk": "slow"}) {
		t.Error("node labels don't choose")
	}
}

// loopDisk makes a block device of a new file.
func loopDisk(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 512<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", dev).Run() })
	return dev
}

// diskNode is a node's maker of pools, with its metadata.
type diskNode struct {
	poolMaker
	store *mem.Store
}

func newDiskNode(t *testing.T, rules ...DiskRule) *diskNode {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	cfg := DefaultConfig()
	cfg.Node, cfg.DataDir, cfg.Disks = "n1", t.TempDir(), rules
	store := mem.New()
	n := &diskNode{store: store, poolMaker: poolMaker{
		cfg: cfg, store: store, log: slog.New(slog.NewTextHandler(t.Output(), nil)), adding: &sync.Mutex{},
		host: pool.Host{Dir: filepath.Join(cfg.DataDir, "pools"), Cluster: "00000000000000c1", Node: "n1", Log: slog.New(slog.DiscardHandler)},
	}}
	n.open = func(ctx context.Context, p spec.Pool) error { _, err := n.host.Open(ctx, p); return err }
	n.run(t.Context())
	t.Cleanup(func() {
		for _, p := range n.pools(t) {
			_ = n.host.Close(p.ID)
		}
	})
	return n
}

func (n *diskNode) pools(t *testing.T) []spec.Pool {
	t.Helper()
	have, err := n.store.Pools(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var out []spec.Pool
	for _, p := range have {
		out = append(out, p.Value)
	}
	return out
}

func TestPoolsByRuleAreMadeOnce(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	empty, signed, other := loopDisk(t), loopDisk(t), loopDisk(t)
	if out, err := exec.Command("mkfs.ext4", "-q", signed).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file := filepath.Join(t.TempDir(), "deep", "pool.img")
	n := newDiskNode(t,
		DiskRule{Paths: []string{empty, signed}, Labels: map[string]string{"tier": "fast"}},
		DiskRule{Paths: []string{other}, NodeLabels: map[string]string{"disk": "fast"}},
		DiskRule{File: file, Size: "1GiB"})
	check := func(when string, want ...string) {
		t.Helper()
		var got []string
		for _, p := range n.pools(t) {
			got = append(got, p.Device+p.File)
			if p.Device == empty && p.Labels["tier"] != "fast" {
				t.Errorf("%s: labels %v", when, p.Labels)
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Fatalf("%s: pools of %v, want %v", when, got, want)
		}
	}
	check("at first", empty, file)
	n.run(t.Context())
	check("started again", empty, file)
	for _, p := range n.pools(t) {
		if err := n.host.Close(p.ID); err != nil {
			t.Fatal(err)
		}
	}
	n.run(t.Context())
	check("after a reboot", empty, file)
	if out, err := exec.Command("blkid", "-o", "value", "-s", "TYPE", signed).Output(); err != nil || strings.TrimSpace(string(out)) != "ext4" {
		t.Fatalf("the disk that held something holds %q, %v", out, err)
	}
	if list, err := n.begun(); err != nil || len(list) > 0 {
		t.Fatalf("%v is still begun, %v", list, err)
	}
}

// TestAPoolThatWasBegunIsFinished has the engine die between the file system and the record.
func TestAPoolThatWasBegunIsFinished(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dev := loopDisk(t)
	n := newDiskNode(t)
	o := pool.AddOptions{Device: dev, Media: spec.MediaSSD, Labels: map[string]string{"a": "b"}}
	b, err := json.Marshal([]pool.AddOptions{o})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(begunFile(n.cfg), b, 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := n.host.Add(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	n.cfg.Disks = []DiskRule{{Paths: []string{dev}}}
	n.run(t.Context())
	if got := n.pools(t); len(got) != 1 || got[0].ID != made.ID || got[0].Labels["a"] != "b" {
		t.Fatalf("%+v, want the pool %s", got, made.ID)
	}
	if list, err := n.begun(); err != nil || len(list) > 0 {
		t.Fatalf("%v is still begun, %v", list, err)
	}
}
