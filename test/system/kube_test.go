package system

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/hack/kube/kubetest"
)

// kubernetes is a control plane without kubelets, which the nodes of the lab are told of: what there is of their pods is what a test
// writes.
type kubernetes struct {
	c          *cluster
	kubectl    string
	kubeconfig string
}

// withKubernetes starts etcd and the API server, and has the control process of every node use it.
func (c *cluster) withKubernetes() *kubernetes {
	c.T.Helper()
	host := c.Address("n1")
	host = host[:strings.LastIndex(host, ".")] + ".254"
	k := &kubernetes{c: c, kubectl: kubetest.Program(c.T, "kubectl"), kubeconfig: kubetest.Start(c.T, kubetest.Options{Host: host}).Kubeconfig(c.T)}
	for _, n := range c.Nodes() {
		c.addSettings(n, fmt.Sprintf("kube:\n  enabled: true\n  kubeconfig: %s\n  kubeletDir: %s\n", k.kubeconfig, filepath.Join(c.NodeDir(n), "kubelet")))
		k.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"kube-%[1]s"}}
---
{"apiVersion":"storage.k8s.io/v1","kind":"CSINode","metadata":{"name":"kube-%[1]s"},"spec":{"drivers":[{"name":"csi.keelson.io","nodeID":"%[1]s","topologyKeys":[]}]}}`, n))
	}
	return k
}

// addSettings adds to a node's configuration, and has its control process read it, until the test ends.
func (c *cluster) addSettings(node, text string) {
	c.T.Helper()
	file := filepath.Join(c.NodeDir(node), "keelson.yaml")
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append(bytes.Clone(before), text...), 0o600)
	}
	if err == nil {
		err = c.KillProcess(node, "control")
	}
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(func() {
		if err := errors.Join(os.WriteFile(file, before, 0o600), c.KillProcess(node, "control")); err != nil {
			c.T.Error(err)
		}
	})
}

func (k *kubernetes) try(input string, args ...string) (string, error) {
	cmd := exec.CommandContext(k.c.ctx(), k.kubectl, append([]string{"--kubeconfig", k.kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

func (k *kubernetes) run(args ...string) string {
	k.c.T.Helper()
	out, err := k.try("", args...)
	if err != nil {
		k.c.T.Fatal(err)
	}
	return out
}

func (k *kubernetes) apply(manifest string) {
	k.c.T.Helper()
	if _, err := k.try(manifest, "apply", "--server-side", "-f", "-"); err != nil {
		k.c.T.Fatal(err)
	}
}

// pod makes a running pod of a StatefulSet on a node, with a claim of a volume.
func (k *kubernetes) pod(name, volume, node string) (uid string) {
	k.c.T.Helper()
	k.apply(fmt.Sprintf(`{"apiVersion":"v1","kind":"PersistentVolume","metadata":{"name":"%[2]s"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],
 "csi":{"driver":"csi.keelson.io","volumeHandle":"%[2]s"},"claimRef":{"namespace":"default","name":"%[1]s"}}}
---
{"apiVersion":"v1","kind":"PersistentVolumeClaim","metadata":{"name":"%[1]s","namespace":"default"},"spec":{"storageClassName":"","volumeName":"%[2]s",
 "accessModes":["ReadWriteOnce"],"resources":{"requests":{"storage":"1Gi"}}}}
---
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"%[1]s","namespace":"default","ownerReferences":[{"apiVersion":"apps/v1","kind":"StatefulSet","name":"s","uid":"1","controller":true}]},
 "spec":{"nodeName":"kube-%[3]s","containers":[{"name":"c","image":"i"}],"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"%[1]s"}}]}}`, name, volume, node))
	k.run("patch", "pod", name, "--subresource=status", "--type=merge", "-p", `{"status":{"phase":"Running"}}`)
	return k.run("get", "pod", name, "-o", "jsonpath={.metadata.uid}")
}

func (k *kubernetes) tainted(node string) bool {
	out, err := k.try("", "get", "node", "kube-"+node, "-o", "jsonpath={.spec.taints[*].key}")
	return err == nil && strings.Contains(out, "keelson.io/storage-lost")
}

// TestFailoverOfPods: a node is cut off while a pod uses a volume there. The pod is deleted when the volume is fenced, the
// node is marked until it is back, and what nobody takes away there any more goes. A control process that is only
// started anew costs nothing.
func TestFailoverOfPods(t *testing.T) {
	c := shared(t)
	n1, n2 := c.csi("n1"), c.csi("n2")
	v := n1.create("kube-failover", nil)
	k := c.withKubernetes()
	uid := k.pod("pg-0", v.VolumeId, "n1")
	kubelet := filepath.Join(c.NodeDir("n1"), "kubelet")
	n1.staging = filepath.Join(kubelet, "plugins/kubernetes.io/csi/csi.keelson.io/hash/globalmount")
	n1.target = filepath.Join(kubelet, "pods", uid, "volumes/kubernetes.io~csi", v.VolumeId, "mount")
	n1.use(v)
	data := fmt.Sprintf(`{"driverName":"csi.keelson.io","volumeHandle":%q,"volumeLifecycleMode":"Persistent"}`, v.VolumeId)
	for _, path := range []string{n1.staging, n1.target} {
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), "vol_data.json"), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.shell("n1", "echo one > "+n1.target+"/file && sync -f "+n1.target)

	if err := c.KillProcess("n1", "engine"); err != nil {
		t.Fatal(err)
	}
	c.shell("n1", "echo two > "+n1.target+"/file && sync -f "+n1.target)
	if k.tainted("n1") {
		t.Error("a node whose engine was started anew was taken for lost")
	}

	cut := time.Now()
	if err := c.Cut("n1"); err != nil {
		t.Fatal(err)
	}
	c.Eventually(40*time.Second, "the pod is deleted", func() error {
		if _, err := k.try("", "get", "pod", "pg-0"); err == nil || !strings.Contains(err.Error(), "NotFound") {
			return fmt.Errorf("it is there: %v", err)
		}
		return nil
	})
	t.Logf("pod deleted %.1f s after the cut", time.Since(cut).Seconds())
	n2.use(v)
	t.Logf("volume staged and published on n2 %.1f s after the cut", time.Since(cut).Seconds())
	if got := c.shell("n2", "cat "+n2.target+"/file"); got != "two" {
		t.Errorf("on n2 the file has %q", got)
	}
	if !k.tainted("n1") {
		t.Error("the node isn't marked")
	}
	if events := k.run("get", "events", "-A", "-o", "jsonpath={range .items[*]}{.involvedObject.kind} {.reason}: {.message}{\"\\n\"}{end}"); !strings.Contains(events, "Pod KeelsonFailover") ||
		!strings.Contains(events, "PersistentVolumeClaim KeelsonFailover") || !strings.Contains(events, "Node KeelsonStorageLost") {
		t.Errorf("events:\n%s", events)
	}

	if err := c.Heal("n1"); err != nil {
		t.Fatal(err)
	}
	c.mend()
	c.Eventually(30*time.Second, "the mark is gone", func() error {
		if k.tainted("n1") {
			return errors.New("it is there")
		}
		return nil
	})
	c.Eventually(60*time.Second, "the dead mounts are gone", func() error {
		if got := c.shell("n1", "grep "+kubelet+"/ /proc/mounts || true"); got != "" {
			return errors.New(got)
		}
		return nil
	})
	n2.leave(v)
	n2.remove(v)
}
