package system

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// Exit codes of the program, as docs/ops/cli.md has them.
const (
	usage       = 2
	notFound    = 3
	conflict    = 4
	unavailable = 5
	impossible  = 6
	denied      = 7
	permanent   = 78
)

func TestBadRequestsForVolumes(t *testing.T) {
	c := shared(t)
	c.create("taken", "--size", "64Mi")
	before := c.keelson("n1", "volume", "list", "-o", "json")
	create := func(name, size string, more ...string) []string {
		return append([]string{"volume", "create", name, "--size=" + size}, more...)
	}
	for _, x := range []struct {
		what string
		code int
		says []string
		args []string
	}{
		{"no size", usage, []string{"size"}, []string{"volume", "create", "v"}},
		{"size zero", usage, []string{"size"}, create("v", "0")},
		{"negative size", usage, []string{"size"}, create("v", "-4096")},
		{"size that is no number", usage, []string{"lots"}, create("v", "lots")},
		{"size that is no multiple of 4096", usage, []string{"4096"}, create("v", "4194305")},
		{"size below the least", usage, []string{"4Mi"}, create("v", "4096")},
		{"size beyond any volume", usage, []string{"64Ti"}, create("v", "128Ti")},
		{"size beyond the capacity", impossible, []string{"n1", "n2", "n3"}, create("v", "10Ti")},
		{"more copies than nodes", impossible, []string{"4", "n1"}, create("v", "1Gi", "--replicas=4")},
		{"more copies than any volume has", usage, []string{"5"}, create("v", "1Gi", "--replicas=9")},
		{"no copies", usage, []string{"replicas"}, create("v", "1Gi", "--replicas=0")},
		{"negative copies", usage, []string{"replicas"}, create("v", "1Gi", "--replicas=-1")},
		{"no columns", usage, []string{"columns"}, create("v", "1Gi", "--columns=0")},
		{"too many columns", usage, []string{"16"}, create("v", "1Gi", "--columns=17")},
		{"a name that is taken", conflict, []string{"taken"}, create("taken", "64Mi")},
		{"upper case in the name", usage, []string{"Loud"}, create("Loud", "64Mi")},
		{"an empty name", usage, []string{"name"}, create("", "64Mi")},
		{"a name with a dot", usage, []string{"a.b"}, create("a.b", "64Mi")},
		{"a name that is too long", usage, []string{"63"}, create(strings.Repeat("x", 64), "64Mi")},
		{"media that doesn't exist", usage, []string{"tape"}, create("v", "64Mi", "--media=tape")},
		{"media that no pool has", impossible, []string{c.absentMedia()}, create("v", "64Mi", "--media="+c.absentMedia())},
		{"a label that no node has", impossible, []string{"rack", "9"}, create("v", "64Mi", "--node-selector=rack=9")},
		{"a label that is none", usage, []string{"rack"}, create("v", "64Mi", "--node-selector=rack")},
		{"attach of what isn't there", notFound, []string{"nosuch"}, []string{"volume", "attach", "nosuch"}},
		{"attach to a node that isn't there", notFound, []string{"n9"}, []string{"volume", "attach", "taken", "--node", "n9"}},
		{"a frontend that doesn't exist", usage, []string{"iscsi"}, []string{"volume", "attach", "taken", "--frontend", "iscsi"}},
		{"show of what isn't there", notFound, []string{"nosuch"}, []string{"volume", "show", "nosuch"}},
		{"detach of what isn't there", notFound, []string{"nosuch"}, []string{"volume", "detach", "nosuch"}},
		{"delete of what isn't there", notFound, []string{"nosuch"}, []string{"volume", "delete", "nosuch"}},
		{"force-online without accepting loss", usage, []string{"--accept-loss"}, []string{"volume", "force-online", "taken"}},
		{"an output format that doesn't exist", usage, []string{"xml"}, []string{"volume", "list", "-o", "xml"}},
		{"a setting that doesn't exist", usage, []string{"colour"}, []string{"settings", "set", "colour", "blue"}},
		{"a negative setting", usage, []string{"rebuild-after"}, []string{"settings", "set", "rebuild-after", "--", "-3s"}},
		{"a node that isn't there", notFound, []string{"n9"}, []string{"node", "show", "n9"}},
		{"a flag that doesn't exist", usage, []string{"--loud"}, []string{"status", "--loud"}},
	} {
		t.Run(x.what, func(t *testing.T) {
			c.in(t).refused(x.code, x.says, "n1", x.args...)
		})
	}
	if after := c.keelson("n1", "volume", "list", "-o", "json"); after != before {
		t.Errorf("refused requests changed something:\n%s\n%s", before, after)
	}

	c.attach("n1", "taken", "fuse")
	c.refused(conflict, []string{"taken", "n1"}, "n2", "volume", "attach", "taken", "--wait", "0s")
	c.refused(conflict, []string{"taken", "fuse"}, "n1", "volume", "attach", "taken", "--frontend", "nbd", "--wait", "0s")
	c.refused(conflict, []string{"taken", "attached"}, "n1", "volume", "delete", "taken")
	c.remove("n1", "taken")
}

// absentMedia is a kind of media that no pool of the lab has.
func (c *cluster) absentMedia() string {
	pools := c.keelson("n1", "pool", "list", "-o", "json")
	for _, m := range []string{"nvme", "ssd", "hdd"} {
		if !strings.Contains(pools, `"media": "`+m+`"`) {
			return m
		}
	}
	c.T.Fatal("the lab has pools of all media")
	return ""
}

func TestBadRequestsForPools(t *testing.T) {
	c := shared(t)
	dir := t.TempDir()
	img := filepath.Join(dir, "disk.img")
	dev := c.shell("n1", fmt.Sprintf("truncate -s 1G %[1]s && losetup -f --show %[1]s", img))
	t.Cleanup(func() { c.shell("n1", "losetup -d "+dev) })
	before := c.keelson("n1", "pool", "list", "-o", "json")
	add := func(a ...string) []string { return append([]string{"pool", "add"}, a...) }

	c.refused(usage, []string{"--device", "--file"}, "n1", add()...)
	c.refused(usage, []string{"--device", "--file"}, "n1", add("--device", dev, "--file", "/x", "--size", "1G")...)
	c.refused(usage, []string{"size"}, "n1", add("--file", dir+"/pool.img")...)
	c.refused(usage, []string{"size"}, "n1", add("--file", dir+"/pool.img", "--size", "1M")...)
	c.refused(usage, []string{"tape"}, "n1", add("--device", dev, "--media", "tape")...)
	if _, err := os.Stat(dir + "/pool.img"); err == nil {
		t.Error("a refused request made the file")
	}
	if out, err := c.Keelson(c.ctx(), "n1", add("--device", dir+"/nosuch")...); err == nil {
		t.Errorf("a device that isn't there was accepted: %s", out)
	}

	c.shell("n1", "mkfs.ext4 -q "+dev)
	c.refused(conflict, []string{dev, "ext4", "--wipe"}, "n1", add("--device", dev)...)
	mnt := filepath.Join(dir, "mnt")
	c.shell("n1", fmt.Sprintf("mkdir %[2]s && mount %[1]s %[2]s", dev, mnt))
	c.refused(conflict, []string{dev}, "n1", add("--device", dev)...)
	c.refused(conflict, []string{dev}, "n1", add("--device", dev, "--wipe")...) // not while it is mounted
	c.shell("n1", "umount "+mnt+" && fsck.ext4 -fn "+dev)
	if after := c.keelson("n1", "pool", "list", "-o", "json"); len(after) != len(before) {
		t.Errorf("refused requests changed something:\n%s\n%s", before, after)
	}
}

// server runs `keelson server` on n3 beside the node's own, with a configuration of its own, and returns its
// exit code and what it said. It must give up by itself.
func (c *cluster) server(name string, change map[string]any) (code int, said string) {
	c.T.Helper()
	dir := filepath.Join(c.T.TempDir(), name)
	conf := map[string]any{
		"node": name, "dataDir": dir + "/data", "runDir": dir + "/run", "address": c.Address("n3"),
		"apiPort": 9600, "enginePort": 9601, "etcdClientPort": 9602, "etcdPeerPort": 9603, "roles": []string{"storage"},
	}
	for k, v := range change {
		conf[k] = v
	}
	b, err := yaml.Marshal(conf)
	if err != nil {
		c.T.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		c.T.Fatal(err)
	}
	if err := os.WriteFile(dir+"/keelson.yaml", b, 0o600); err != nil {
		c.T.Fatal(err)
	}
	said, _ = c.tryShell("n3", fmt.Sprintf("timeout -s KILL 25 %s server --config %s/keelson.yaml --data-dir %s 2>&1; echo exit=$?", c.Binary(), dir, conf["dataDir"]))
	_, after, _ := strings.Cut(said, "exit=")
	if _, err := fmt.Sscan(after, &code); err != nil {
		c.T.Fatalf("no exit code in %q", said)
	}
	if out, _ := exec.Command("pgrep", "-f", "holder --config "+dir+"/").Output(); code == permanent && len(out) > 0 {
		c.T.Errorf("a server that ended left its holder: process %s", strings.TrimSpace(string(out)))
	}
	return code, said
}

func TestJoinIsRefused(t *testing.T) {
	c := shared(t)
	url := "https://" + c.Address("n1") + ":9500"
	token := c.keelson("n1", "token", "create")
	nodes := c.keelson("n1", "node", "list", "-o", "json")
	join := func(url, token string) map[string]any {
		return map[string]any{"join": map[string]any{"url": url, "token": token}}
	}
	wrong := token[:len(token)-4] + strings.Repeat("0", 4)
	short := c.keelson("n1", "token", "create", "--ttl", "1s")
	time.Sleep(1200 * time.Millisecond) // until it has expired

	for _, x := range []struct {
		what   string
		change map[string]any
		says   []string
	}{
		{"a wrong token", join(url, wrong), []string{"token"}},
		{"a token of nonsense", join(url, "nonsense"), []string{"token"}},
		{"an expired token", join(url, short), []string{"token", "expired"}},
		{"an unknown key", map[string]any{"colour": "blue"}, []string{"colour", "unknown"}},
		{"the name of another node", map[string]any{"node": "n1", "join": map[string]any{"url": url, "token": token}}, []string{"n1"}},
		{"the data directory of another node", map[string]any{"dataDir": c.NodeDir("n2") + "/data"}, []string{"n2"}},
	} {
		t.Run(strings.ReplaceAll(x.what, " ", "-"), func(t *testing.T) {
			code, said := c.in(t).server("stranger", x.change)
			if code != permanent && code != usage && code != 1 {
				t.Errorf("exit code %d: %s", code, said)
			}
			for _, w := range x.says {
				if !strings.Contains(strings.ToLower(said), w) {
					t.Errorf("nothing is said of %q: %s", w, said)
				}
			}
		})
	}
	var ns []struct{ Name string }
	if err := c.JSON(c.ctx(), "n1", &ns, "node", "list"); err != nil || len(ns) != 3 {
		t.Errorf("refused nodes are listed: %v %v, before %s", ns, err, nodes)
	}
}

func TestCertificateOfAnotherClusterIsRefused(t *testing.T) {
	c := shared(t)
	// A cluster of its own beside the lab's, on n3.
	dir := filepath.Join(t.TempDir(), "other")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("{node: other, dataDir: %[1]s/data, runDir: %[1]s/run, address: %[2]s, apiPort: 9700, enginePort: 9701, etcdClientPort: 9702, etcdPeerPort: 9703}\n", dir, c.Address("n3"))
	if err := os.WriteFile(dir+"/keelson.yaml", []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd, err := c.Command(t.Context(), "n3", c.Binary(), "server", "--config", dir+"/keelson.yaml", "--data-dir", dir+"/data")
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Cancel(); _ = cmd.Wait() }()
	as := "--data-dir=" + dir + "/data"
	c.Eventually(30*time.Second, "the other cluster is up", func() error {
		_, err := c.Keelson(c.ctx(), "n3", as, "status")
		return err
	})
	_, err = c.Keelson(c.ctx(), "n3", as, "--server", c.Address("n1")+":9500", "status")
	if err == nil {
		t.Fatal("a certificate of another cluster was accepted")
	}
	if !strings.Contains(err.Error(), "certificate") {
		t.Errorf("nothing is said of the certificate: %v", err)
	}
}
