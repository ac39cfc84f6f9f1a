package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// run runs a tool; its error holds what the tool said.
func run(argv ...string) (string, error) {
	var out, msg bytes.Buffer
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = &out, &msg
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(msg.String()))
	}
	return out.String(), nil
}

func runAll(commands ...[]string) error {
	for _, c := range commands {
		if _, err := run(c...); err != nil {
			return err
		}
	}
	return nil
}

// lockNetwork keeps labs that come up at once from choosing the same network.
func lockNetwork() (unlock func(), err error) {
	f, err := os.OpenFile("/run/keelson-lab.lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// freeSubnet finds a 10.91.x.0/24 that no interface and no route of the host touches.
func freeSubnet() (string, error) {
	routes, err := run("ip", "-4", "route", "show", "table", "all")
	if err != nil {
		return "", err
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", err
	}
	for x := 1; x < 255; x++ {
		prefix := fmt.Sprintf("10.91.%d", x)
		_, subnet, err := net.ParseCIDR(prefix + ".0/24")
		if err != nil {
			return "", err
		}
		if !touched(subnet, addrs) && !strings.Contains(routes, prefix+".") {
			return prefix, nil
		}
	}
	return "", errors.New("no free network: every 10.91.x.0/24 is in use on this machine")
}

func touched(subnet *net.IPNet, addrs []net.Addr) bool {
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && (subnet.Contains(n.IP) || n.Contains(subnet.IP)) {
			return true
		}
	}
	return false
}

// makeBridge chooses the lab's network, records it and makes the bridge, on which the host has
// the address .254.
func (l *Lab) makeBridge() error {
	unlock, err := lockNetwork()
	if err != nil {
		return err
	}
	defer unlock()
	s := &l.state
	if s.Subnet, err = freeSubnet(); err != nil {
		return err
	}
	s.Bridge = tag(s.Name) + "br"
	for i, n := range s.Nodes {
		n.Address = fmt.Sprintf("%s.%d", s.Subnet, i+1)
	}
	if err := l.save(); err != nil {
		return err
	}
	return runAll(
		[]string{"ip", "link", "add", s.Bridge, "type", "bridge"},
		[]string{"ip", "addr", "add", s.Subnet + ".254/24", "dev", s.Bridge},
		[]string{"ip", "link", "set", s.Bridge, "up"},
	)
}

// connect makes the node's network namespace and its line to the bridge.
func (l *Lab) connect(n *node) error {
	return runAll(
		[]string{"ip", "netns", "add", n.Netns},
		[]string{"ip", "link", "add", n.Veth, "type", "veth", "peer", "name", "eth0", "netns", n.Netns},
		[]string{"ip", "link", "set", n.Veth, "master", l.state.Bridge, "up"},
		[]string{"ip", "-n", n.Netns, "link", "set", "lo", "up"},
		[]string{"ip", "-n", n.Netns, "addr", "add", n.Address + "/24", "dev", "eth0"},
		[]string{"ip", "-n", n.Netns, "link", "set", "eth0", "up"},
		[]string{"ip", "-n", n.Netns, "route", "add", "default", "via", l.state.Subnet + ".254"},
	)
}

// inNetns prefixes a command so that it runs in the node's network namespace.
func (n *node) inNetns(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + filepath.Join(netnsDir, n.Netns), "--"}, argv...)
}

// cutRules drop everything that enters or leaves the node; its loopback goes on.
func cutRules() [][]string {
	return [][]string{
		{"OUTPUT", "!", "-o", "lo", "-j", "DROP"},
		{"INPUT", "!", "-i", "lo", "-j", "DROP"},
	}
}

func (n *node) iptables(op string, rule []string) error {
	_, err := run(n.inNetns(append([]string{"iptables", "-w", op}, rule...)...)...)
	return err
}

// Cut drops all packets from and to the node, as a pulled cable does. Processes on the node run on
// and reach each other. Cutting twice is the same as once.
func (l *Lab) Cut(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	for _, rule := range cutRules() {
		if n.iptables("-C", rule) == nil {
			continue
		}
		if err := n.iptables("-I", rule); err != nil {
			return err
		}
	}
	return nil
}

// Heal undoes Cut.
func (l *Lab) Heal(name string) error {
	n, err := l.node(name)
	if err != nil {
		return err
	}
	for _, rule := range cutRules() {
		for n.iptables("-C", rule) == nil {
			if err := n.iptables("-D", rule); err != nil {
				return err
			}
		}
	}
	return nil
}

// IsCut says whether the node is cut off.
func (l *Lab) IsCut(name string) bool {
	n, err := l.node(name)
	if err != nil {
		return false
	}
	for _, rule := range cutRules() {
		if n.iptables("-C", rule) == nil {
			return true
		}
	}
	return false
}

// removeNetwork removes all interfaces and network namespaces of the lab, recorded or not.
func removeNetwork(lab string) error {
	var errs []error
	spaces, err := os.ReadDir(netnsDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	for _, s := range spaces {
		if nodeOfNetns(lab, s.Name()) == "" {
			continue
		}
		if _, err := run("ip", "netns", "del", s.Name()); err != nil {
			errs = append(errs, err)
		}
	}
	ifs, err := net.Interfaces()
	if err != nil {
		errs = append(errs, err)
	}
	for _, i := range ifs {
		if !strings.HasPrefix(i.Name, tag(lab)) {
			continue
		}
		// A veth may just have gone with its namespace.
		if _, err := run("ip", "link", "del", i.Name); err != nil && exists("/sys/class/net/"+i.Name) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// nodeOfNetns returns the node whose namespace that is, "" if it isn't one of the lab. Names of
// labs may contain '-', those of nodes don't.
func nodeOfNetns(lab, netns string) string {
	node, ok := strings.CutPrefix(netns, netnsName(lab, ""))
	if !ok || strings.Contains(node, "-") {
		return ""
	}
	return node
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
