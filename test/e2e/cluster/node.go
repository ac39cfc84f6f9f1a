package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// DataDir is where Keelson has its data on a node.
const DataDir = "/var/lib/keelson"

// Node is a machine of the cluster.
type Node struct {
	Name    string
	IP      string
	cluster *Cluster
	index   int
	pid     int // of its first process
}

func newNode(c *Cluster, index int) *Node {
	return &Node{Name: fmt.Sprintf("n%d", index), IP: fmt.Sprintf("10.%d.0.%d", 77+number, 10+index), cluster: c, index: index}
}

func (n *Node) netns() string  { return netPrefix + n.Name }
func (n *Node) podNet() string { return fmt.Sprintf("10.244.%d.0/24", n.index) }

// Dir has what is the node's own: Dir/var-lib-kubelet is its /var/lib/kubelet, and so on.
func (n *Node) Dir() string { return n.cluster.path(n.Name) }

// nodeMark in the environment makes a process of this program the first one of a node; its value is the node's directory.
const nodeMark = "KEELSON_E2E_NODE"

// Start boots the node.
func (n *Node) Start() error {
	if err := errors.Join(n.makeGroup(), n.configure(), n.layImages(n.cluster.cfg.Store)); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+n.netns(), self)
	tools := n.cluster.cfg.Tools
	cmd.Env = []string{
		nodeMark + "=" + n.Dir(), "HOME=/root",
		"PATH=" + tools + "/usr/bin:" + tools + "/usr/sbin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"LD_LIBRARY_PATH=" + tools + "/usr/lib/x86_64-linux-gnu",
	}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	if err := n.cluster.launch(cmd, n.Name); err != nil {
		return err
	}
	n.pid = cmd.Process.Pid
	return nil
}

// Crash ends everything on the node at once. The page cache survives, so it is a crash of a machine whose disks had written all.
func (n *Node) Crash() error {
	p := process{PID: n.pid}
	start, err := startOf(n.pid)
	if err != nil {
		return err
	}
	p.Start = start
	r := record{recorded: recorded{Processes: []process{p}}}
	return r.kill()
}

// Command is a command on the node, in all its namespaces.
func (n *Node) Command(ctx context.Context, argv ...string) *exec.Cmd {
	args := append([]string{"--target", fmt.Sprint(n.pid), "--mount", "--net", "--uts", "--ipc", "--pid", "--"}, argv...)
	return exec.CommandContext(ctx, "nsenter", args...)
}

// Run runs a line of shell on the node, as an administrator who logged in would.
func (n *Node) Run(ctx context.Context, line string) (string, error) {
	out, err := n.Command(ctx, "sh", "-c", line).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("on %s: %s: %w: %s", n.Name, line, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// Import makes an image known to the node. The archive is read from the host.
func (n *Node) Import(ctx context.Context, archive string) error {
	_, err := n.Run(ctx, n.Ctr()+" images import --digests=false --no-unpack=false "+archive)
	return err
}

// Ctr is how containerd's client is run on the node, as the beginning of a line of shell.
func (n *Node) Ctr() string {
	tools := n.cluster.cfg.Tools
	return "LD_LIBRARY_PATH=" + tools + "/usr/lib/x86_64-linux-gnu " + tools + "/usr/bin/ctr -n k8s.io"
}

func (n *Node) file(name string) string { return filepath.Join(n.Dir(), name) }
