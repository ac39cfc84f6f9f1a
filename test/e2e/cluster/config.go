package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const containerdSocket = "/run/containerd/containerd.sock"

// configure writes what the node's programs read.
func (n *Node) configure() error {
	if err := os.MkdirAll(n.file("cni"), 0o755); err != nil {
		return err
	}
	kubelet := n.cluster.cfg.Programs["kubelet"]
	link := n.file("kubelet") // for the name of its log
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := json.Marshal(boot{
		Name: n.Name,
		Programs: [][]string{
			{"containerd", "--config", n.file("containerd.toml")},
			{link, "--config=" + n.file("kubelet.yaml"), "--kubeconfig=" + n.file("kubeconfig"), "--hostname-override=" + n.Name, "--node-ip=" + n.IP},
		},
		Sockets: []string{containerdSocket, ""},
	})
	if err != nil {
		return err
	}
	return errors.Join(
		os.Symlink(kubelet, link),
		os.WriteFile(n.file("boot.json"), b, 0o644),
		os.WriteFile(n.file("containerd.toml"), []byte(n.containerdConfig()), 0o644),
		os.WriteFile(n.file("cni/10-bridge.conflist"), []byte(n.cniConfig()), 0o644),
		os.WriteFile(n.file("kubelet.yaml"), []byte(n.kubeletConfig()), 0o644),
		n.cluster.writeKubeconfig(n.file("kubeconfig"), n.token()),
	)
}

func (n *Node) containerdConfig() string {
	tools := n.cluster.cfg.Tools
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
address = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = %q
# Without CAP_SYS_RESOURCE, scores can't be lowered.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = %q
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = %q
conf_dir = %q
`, containerdSocket, n.cluster.cfg.Pause, filepath.Join(tools, "usr/sbin/runc"), filepath.Join(tools, "usr/lib/cni"), n.file("cni"))
}

func (n *Node) cniConfig() string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, n.podNet())
}

// kubeletConfig sets what this machine needs. How often a node reports, and when it counts as lost, keep their defaults.
func (n *Node) kubeletConfig() string {
	lines := []string{
		"apiVersion: kubelet.config.k8s.io/v1beta1",
		"kind: KubeletConfiguration",
		"containerRuntimeEndpoint: unix://" + containerdSocket,
		"authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}",
		"authorization: {mode: AlwaysAllow}", // exec and logs without client certificates
		"cgroupDriver: cgroupfs",
		"cgroupRoot: /" + groupRoot + "/" + n.Name,
		"enforceNodeAllocatable: []",
		"failCgroupV1: false",
		"failSwapOn: false",
		"makeIPTablesUtilChains: false",
		`evictionHard: {nodefs.available: "0%", imagefs.available: "0%", nodefs.inodesFree: "0%", imagefs.inodesFree: "0%", memory.available: 50Mi}`,
		"imageGCHighThresholdPercent: 100",
		"imageGCLowThresholdPercent: 99",
		"volumePluginDir: /var/lib/kubelet/volumeplugins",
	}
	return strings.Join(lines, "\n") + "\n"
}
