package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/spec"
)

func TestInstallYAMLAsksTheChartsQuestions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "values.yaml")
	if err := os.WriteFile(file, []byte("csi: {maxVolumes: 17}\ndisks: {fileSize: 1Gi}\nlog: {level: warn}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, code, msg := run(t, "install", "yaml", "--values", file, "--file-size", "10GiB", "--all-disks", "--namespace", "storage", "--image-tag", "v9",
		"--server-node-selector", "{disk: fast}", "--csi-aliases-portworx", "--controller-replicas=3", "--data-dir", "/srv/keelson")
	if code != 0 {
		t.Fatal(msg)
	}
	for _, want := range []string{
		"kind: Namespace\nmetadata:\n  name: storage\n", "namespace: storage\n", "keelson.io/keelson:v9", "maxVolumes: 17", "size: 10GiB", "- all: true", "level: warn",
		"disk: fast", "name: pxd.portworx.com", "replicas: 3", "dataDir: /srv/keelson",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("there is no %q in it", want)
		}
	}
}

func TestInstallYAMLRefusesWhatIsNotLegal(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--csi-max-volumes", "0"}, "--csi-max-volumes: 0 is not legal; legal: a whole number from 1 to 4096"},
		{[]string{"--csi-max-volumes", "{"}, "legal: a whole number from 1 to 4096"},
		{[]string{"--disks", "[{media: [tape]}]"}, `--disks[0].media[0]: "tape" is not legal; legal: nvme, ssd, hdd`},
		{[]string{"--all-disks=perhaps"}, `--all-disks: "perhaps" is not legal; legal: true, false`},
		{[]string{"--namespace", "Storage"}, "--namespace"},
		{[]string{"--values", "/nonexistent"}, "--values: open /nonexistent"},
		{[]string{"--every-disk"}, "unknown flag: --every-disk"},
	} {
		_, code, msg := run(t, append([]string{"install", "yaml"}, c.args...)...)
		if !strings.Contains(msg, c.want) || code != exitUsage {
			t.Errorf("%v: %q, exit code %d; want %q, %d", c.args, msg, code, c.want, exitUsage)
		}
	}
}

func TestNamesOfKubernetesNodes(t *testing.T) {
	long := strings.Repeat("a", 50) + ".compute.internal.example.org"
	for name, want := range map[string]string{"n1": "n1", "ip-10-0-0-1.ec2.internal": "ip-10-0-0-1-ec2-internal"} {
		if got := nodeName(name); got != want {
			t.Errorf("%s is called %s, want %s", name, got, want)
		}
	}
	a, b := nodeName(long), nodeName(long+"2")
	for _, n := range []string{a, b} {
		if err := spec.CheckName("node name", n); err != nil {
			t.Error(err)
		}
	}
	if a == b {
		t.Errorf("two nodes are called %s", a)
	}
}

func TestPlaceOfAKubernetesNode(t *testing.T) {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{
		"topology.kubernetes.io/zone": "z1", "disk": "fast", "empty": "", "kubernetes.io/hostname": "n1",
		"topology.purestorage.com/disk": "slow", "topology.purestorage.com/rack": "r1", "topology.keelson.io/zone": "z0",
	}}}
	p := placeOf(n)
	if p.Zone != "z1" || p.Labels["disk"] != "fast" || p.Labels["kubernetes.io/hostname"] != "n1" {
		t.Fatalf("%+v", p)
	}
	if _, ok := p.Labels["topology.keelson.io/zone"]; ok || p.Labels["topology.purestorage.com/disk"] != "" || p.Labels["topology.purestorage.com/rack"] != "r1" {
		t.Errorf("%v: what kubelet was told before came back", p.Labels)
	}
	if err := spec.CheckLabels("labels", p.Labels); err != nil {
		t.Fatal(err)
	}
}

// TestNodeConfigIsTaken: what is written for a node is what keelson server reads.
func TestNodeConfigIsTaken(t *testing.T) {
	dir := t.TempDir()
	from, to := filepath.Join(dir, "all.yaml"), filepath.Join(dir, kubernetesConfig)
	if err := os.WriteFile(from, []byte("clusterName: prod\ndisks:\n  - all: true\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := server.LoadConfig(from)
	if err != nil {
		t.Fatal(err)
	}
	c.Node, c.Address, c.Zone, c.Labels, c.Roles = "n1", "10.0.0.1", "z1", map[string]string{"a": "b"}, []spec.Role{spec.RoleStorage}
	c.Join = server.JoinConfig{URL: "https://10.0.0.2:9500", Token: "K1"}
	b, err := nodeConfig(from, c)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(to, b); err != nil {
		t.Fatal(err)
	}
	got, err := server.LoadConfig(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Complete(); err != nil {
		t.Fatal(err)
	}
	if got.Node != "n1" || got.Address != "10.0.0.1" || got.Zone != "z1" || got.Labels["a"] != "b" || len(got.Roles) != 1 ||
		got.Join != c.Join || got.ClusterName != "prod" || len(got.Disks) != 1 {
		t.Fatalf("%+v", got)
	}
	if st, err := os.Stat(to); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v: it has a token", st.Mode(), err)
	}
}
