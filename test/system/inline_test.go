package system

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"keelson.io/keelson/internal/bundle/bundletest"
)

// inlineHandle is one that kubelet could have made up.
var inlineHandle = "csi-" + strings.Repeat("0123456789abcdef", 4)

func (n *csiNode) inline(attributes map[string]string) error {
	context := map[string]string{"csi.storage.k8s.io/ephemeral": "true"}
	for k, v := range attributes {
		context[k] = v
	}
	_, err := n.NodePublishVolume(n.c.ctx(), &pb.NodePublishVolumeRequest{VolumeId: inlineHandle, VolumeContext: context, TargetPath: n.target,
		VolumeCapability: &pb.VolumeCapability{AccessMode: &pb.VolumeCapability_AccessMode{Mode: pb.VolumeCapability_AccessMode_SINGLE_NODE_WRITER}, AccessType: csiWriter.AccessType}})
	return err
}

func (n *csiNode) inlineGone() error {
	_, err := n.NodeUnpublishVolume(n.c.ctx(), &pb.NodeUnpublishVolumeRequest{VolumeId: inlineHandle, TargetPath: n.target})
	return err
}

// TestInlineVolume: a volume that is written into a pod is made and goes with it, ends in ENOSPC at its size, outlives the engine's
// death, and leaves its attachments in the audit log.
func TestInlineVolume(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	if err := n1.inline(map[string]string{"size": "64Mi"}); err != nil {
		t.Fatal(err)
	}
	list := c.volumes()
	if len(list) != 1 || !strings.HasPrefix(list[0].Name, "ephemeral-") {
		t.Fatalf("volumes: %+v", list)
	}
	name := list[0].Name
	out, err := c.tryShell("n1", "dd if=/dev/zero of="+n1.target+"/fill bs=1M count=100 oflag=direct 2>&1")
	if err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("100 MiB into a volume of 64: %v, %s", err, out)
	}
	if err := c.KillProcess("n1", "engine"); err != nil {
		t.Fatal(err)
	}
	c.shell("n1", "rm "+n1.target+"/fill && echo x > "+n1.target+"/file && sync -f "+n1.target)
	if err := n1.inline(map[string]string{"size": "64Mi"}); err != nil {
		t.Errorf("published again: %v", err)
	}
	if err := n1.inlineGone(); err != nil {
		t.Fatal(err)
	}
	c.Eventually(30*time.Second, "the volume is gone", func() error {
		if list := c.volumes(); len(list) > 0 {
			return errors.New(list[0].Name + " is there")
		}
		return nil
	})
	if err := n1.inlineGone(); err != nil {
		t.Errorf("unpublished again: %v", err)
	}
	if got := c.shell("n1", "grep -c kubelet/ /proc/mounts || true"); got != "0" {
		t.Errorf("%s mounts are left", got)
	}
	audit := c.keelson("n1", "audit", "--since", "10m")
	for _, call := range []string{"CreateVolume", "AttachVolume", "DetachVolume", "DeleteVolume"} {
		found := false
		for _, line := range strings.Split(audit, "\n") {
			found = found || strings.Contains(line, call) && strings.Contains(line, name)
		}
		if !found {
			t.Errorf("%s of %s isn't in the audit log", call, name)
		}
	}
}

// TestInlineVolumeIsDeletedWithItsDeadNode: nobody can take the only copy from a node that is gone, and nobody wants it.
func TestInlineVolumeIsDeletedWithItsDeadNode(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	if err := n1.inline(map[string]string{"size": "64Mi"}); err != nil {
		t.Fatal(err)
	}
	name := c.volumes()[0].Name
	c.refused(4, []string{"attached to node n1"}, "n2", "volume", "delete", name)
	if err := c.Cut("n1"); err != nil {
		t.Fatal(err)
	}
	c.Eventually(30*time.Second, "it can be deleted", func() error {
		_, err := c.Keelson(c.ctx(), "n2", "volume", "delete", name)
		return err
	})
	if err := c.Heal("n1"); err != nil {
		t.Fatal(err)
	}
	c.mend()
	c.Eventually(60*time.Second, "its pod's volume is taken away on n1", func() error {
		if err := n1.inlineGone(); err != nil {
			return err
		}
		if list := c.volumes(); len(list) > 0 {
			return errors.New("the volume is there")
		}
		return nil
	})
}

// TestOrphanOfACrash: a volume whose pod is forgotten while its node is down goes when the node is back.
func TestOrphanOfACrash(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	pods := filepath.Join(c.NodeDir("n1"), "kubelet/pods")
	n1.target = filepath.Join(pods, "uid/volumes/kubernetes.io~csi/scratch/mount")
	if err := n1.inline(map[string]string{"size": "64Mi"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill("n1"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(pods, "uid")); err != nil {
		t.Fatal(err)
	}
	c.mend()
	c.Eventually(60*time.Second, "the volume is collected", func() error {
		if list := c.volumes(); len(list) > 0 {
			return errors.New(list[0].Name + " is there")
		}
		return nil
	})
}

// TestProbePages: they need a certificate or a token, as everything does, and `keelson ready` asks with the node's.
func TestProbePages(t *testing.T) {
	c := shared(t)
	var nodes []struct{ Name, APIAddr string }
	if err := c.JSON(c.ctx(), "n1", &nodes, "node", "list"); err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"/healthz", "/readyz", "/metrics", "/"} {
		if got := c.shell("n1", "curl -sk -o /dev/null -w '%{http_code}' https://"+nodes[0].APIAddr+page); got != "401" {
			t.Errorf("%s: %s, want 401", page, got)
		}
	}
	if got := strings.TrimSpace(c.keelson("n1", "ready")); got != "ok" {
		t.Errorf("ready says %q", got)
	}
}

// TestSupportBundleOfANode has everything that the API says, and none of the node's secrets.
func TestSupportBundleOfANode(t *testing.T) {
	c := shared(t)
	token := c.keelson("n1", "token", "create")
	apiToken := c.keelson("n1", "api-token", "create", "--role", "viewer", "--ttl", "1h")
	file := filepath.Join(t.TempDir(), "b.tar.gz")
	c.keelson("n1", "support-bundle", "--out", file, "--log-file", filepath.Join(c.NodeDir("n1"), "server.log"))
	entries := readBundle(t, file)
	var secrets []string
	for _, s := range append(strings.Fields(token), strings.Fields(apiToken)...) {
		if strings.HasPrefix(s, "K1") || strings.HasPrefix(s, "KA1") {
			secrets = append(secrets, s[strings.LastIndex(s, ".")+1:])
		}
	}
	if len(secrets) < 2 {
		t.Fatalf("tokens: %s, %s", token, apiToken)
	}
	keys, err := filepath.Glob(filepath.Join(c.NodeDir("n1"), "data/pki/*.key"))
	if err != nil || len(keys) == 0 {
		t.Fatalf("no keys: %v", err)
	}
	for _, k := range keys {
		b, err := os.ReadFile(k)
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, strings.Split(string(b), "\n")[1])
	}
	for name, text := range entries {
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s has a secret", name)
			}
		}
	}
	for _, name := range []string{"status", "nodes", "pools", "volumes", "settings", "events", "this-node", "audit"} {
		if !json.Valid([]byte(entries["api/"+name+".json"])) {
			t.Errorf("api/%s.json: %q; %s", name, entries["api/"+name+".json"], entries["errors.txt"])
		}
	}
	if !strings.Contains(entries["api/metrics.txt"], "keelson_node_engine_up") {
		t.Errorf("no metrics; %s", entries["errors.txt"])
	}
}

// readBundle returns the entries of a bundle by their names in its directory.
func readBundle(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[string]string{}
	for name, text := range bundletest.Read(t, f) {
		_, name, _ = strings.Cut(name, "/")
		out[name] = text
	}
	return out
}

// TestInlineVolumeOfNonsense is refused before anything is made.
func TestInlineVolumeOfNonsense(t *testing.T) {
	c := shared(t)
	n1 := c.csi("n1")
	if err := n1.inline(map[string]string{"size": "64 potatoes"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("%v", err)
	}
	if list := c.volumes(); len(list) > 0 {
		t.Errorf("volumes: %+v", list)
	}
}

// TestDoctorOnANode finds nothing dangerous on a node that runs, and knows its ports for its own.
func TestDoctorOnANode(t *testing.T) {
	c := shared(t)
	var list []struct{ Check, State, Found string }
	if err := c.JSON(c.ctx(), "n1", &list, "doctor"); err != nil {
		t.Fatal(err)
	}
	for _, f := range list {
		if f.Check == "ports" && (f.State != "ok" || !strings.Contains(f.Found, "4 are Keelson's")) {
			t.Errorf("%+v", f)
		}
	}
	if len(list) < 20 {
		t.Errorf("%d findings", len(list))
	}
}
