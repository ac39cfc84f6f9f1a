package cluster

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// run runs a tool; its error has what the tool said.
func run(argv ...string) (string, error) {
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

func runAll(commands ...string) error {
	for _, c := range commands {
		if _, err := run(strings.Fields(c)...); err != nil {
			return err
		}
	}
	return nil
}

// network makes the bridge, and each node's namespace with routes to the other nodes' pods.
func (c *Cluster) network() error {
	err := runAll(
		"ip link add "+bridge+" type bridge",
		"ip addr add "+hostIP+"/24 dev "+bridge,
		"ip link set "+bridge+" up",
	)
	if err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.network(); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) network() error {
	ns, outer := n.netns(), "ke2e-"+n.Name
	in := "nsenter --net=/run/netns/" + ns + " "
	err := runAll(
		"ip netns add "+ns,
		"ip link add "+outer+" type veth peer name eth0 netns "+ns,
		"ip link set "+outer+" master "+bridge+" up",
		"ip route add "+n.podNet()+" via "+n.IP+" dev "+bridge,
		in+"ip link set lo up",
		in+"ip addr add "+n.IP+"/24 dev eth0",
		in+"ip link set eth0 up",
		in+"ip route add default via "+hostIP,
		in+"sysctl -q -w net.ipv4.ip_forward=1",
	)
	if err != nil {
		return err
	}
	for _, o := range n.cluster.Nodes {
		if o != n {
			if err := runAll(in + "ip route add " + o.podNet() + " via " + o.IP); err != nil {
				return err
			}
		}
	}
	// What kube-proxy would do, for the one service that everybody needs.
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		rule := fmt.Sprintf("iptables -w -t nat -A %s -d %s -p tcp --dport 443 -j DNAT --to-destination %s:%d", chain, serviceIP, hostIP, apiPort)
		if err := runAll(in + rule); err != nil {
			return err
		}
	}
	return nil
}

// removeNetwork removes the bridge and the namespaces of all clusters.
func removeNetwork() error {
	var errs []error
	found, err := filepath.Glob("/run/netns/" + netPrefix + "*")
	errs = append(errs, err)
	for _, ns := range found {
		_, err := run("ip", "netns", "del", filepath.Base(ns))
		errs = append(errs, err)
	}
	if _, err := os.Stat("/sys/class/net/" + bridge); err == nil {
		_, err := run("ip", "link", "del", bridge)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
