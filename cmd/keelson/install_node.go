package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"

	"keelson.io/keelson/internal/install/member"
	"keelson.io/keelson/internal/server"
	"keelson.io/keelson/internal/spec"
)

// kubernetesConfig is the configuration of a node of Kubernetes, in its data directory.
const kubernetesConfig = "kubernetes.yaml"

// installNode joins the cluster as the node of that name, and writes the node's configuration.
func installNode(ctx context.Context, from, name, address string) error {
	if name == "" || address == "" {
		return errors.New("NODE_NAME and NODE_ADDRESS: not set; the chart's pod sets them")
	}
	c, err := server.LoadConfig(from)
	if err != nil {
		return usageError{err}
	}
	c.Node, c.Address = nodeName(name), address
	log := c.Logger("join")
	k, err := member.InCluster(c.Membership.Namespace, c.Membership.Name)
	if err != nil {
		return err
	}
	written := filepath.Join(c.DataDir, kubernetesConfig)
	node, err := kubernetesNode(ctx, k, name)
	if err != nil {
		if old, oerr := server.LoadConfig(written); oerr == nil && old.Node == c.Node {
			log.Warn("Kubernetes doesn't answer; going on with the zone and the labels of before", "err", err)
			node.Zone, node.Labels = old.Zone, old.Labels
		} else {
			return err
		}
	}
	c.Zone, c.Labels = node.Zone, node.Labels
	if err := c.Complete(); err != nil {
		return usageError{err}
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return err
	}
	b := &member.Board{API: k, Members: c.Membership.MetadataMembers, Log: log}
	if c, err = server.JoinAs(ctx, c, b, reached, log); err != nil {
		return err
	}
	text, err := nodeConfig(from, c)
	if err != nil {
		return err
	}
	return writeFile(written, text)
}

// place is what Kubernetes says of where a node is.
type place struct {
	Zone   string
	Labels map[string]string
}

// kubernetesNode asks for a while: that the API server is slow to come is no reason to fail.
func kubernetesNode(ctx context.Context, k *member.Kube, name string) (place, error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		n, err := k.Node(ctx, name)
		if err == nil {
			return placeOf(n), nil
		}
		select {
		case <-ctx.Done():
			return place{}, fmt.Errorf("node %s of Kubernetes: %w", name, err)
		case <-time.After(time.Second):
		}
	}
}

// placeOf takes the zone and the labels of a node of Kubernetes. Labels that can't be Keelson's are left out, and those that kubelet
// made of what the driver told it: they would keep what was true before.
func placeOf(n *corev1.Node) place {
	p := place{Zone: n.Labels[corev1.LabelTopologyZone], Labels: map[string]string{}}
	for k, v := range n.Labels {
		own, pure := strings.CutPrefix(k, "topology.purestorage.com/")
		if _, made := n.Labels[own]; pure && made || strings.HasPrefix(k, "topology.keelson.io/") {
			continue
		}
		if spec.CheckLabels("label", map[string]string{k: v}) == nil {
			p.Labels[k] = v
		}
	}
	return p
}

// nodeName makes a node's name in Keelson, a DNS label, of that in Kubernetes, which may have dots.
func nodeName(name string) string {
	s := strings.ReplaceAll(name, ".", "-")
	if len(s) > 63 {
		s = fmt.Sprintf("%s-%08x", strings.TrimRight(s[:54], "-"), crc32.ChecksumIEEE([]byte(name)))
	}
	return s
}

// reached reports whether a node's API answers. Nothing is sent; who it is, joining finds out.
func reached(ctx context.Context, api string) bool {
	u, err := url.Parse(api)
	if err != nil {
		return false
	}
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 2 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	conn, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return false
	}
	return conn.Close() == nil
}

// nodeConfig is the configuration that all nodes have, with what is this one's.
func nodeConfig(from string, c server.Config) ([]byte, error) {
	b, err := os.ReadFile(from)
	if err != nil {
		return nil, err
	}
	m := map[string]any{}
	if err := yaml.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("configuration %s: %w", from, err)
	}
	m["node"], m["address"], m["roles"] = c.Node, c.Address, c.Roles
	if c.Zone != "" {
		m["zone"] = c.Zone
	}
	if len(c.Labels) > 0 {
		m["labels"] = c.Labels
	}
	if c.Join.URL != "" {
		m["join"] = map[string]any{"url": c.Join.URL, "token": c.Join.Token}
	}
	return yaml.Marshal(m)
}

// writeFile replaces a file that only root may read.
func writeFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// checkUnused fails if pods use volumes of this driver and its aliases.
func checkUnused(ctx context.Context, w io.Writer) error {
	c, err := member.InCluster("", "")
	if err != nil {
		return err
	}
	users, err := c.Users(ctx)
	if err != nil {
		return err
	}
	if len(users) == 0 {
		_, err := fmt.Fprintln(w, "no pod uses a volume")
		return err
	}
	names := slices.Sorted(maps.Keys(users))
	shown := names[:min(len(names), 20)]
	lines := make([]string, 0, len(shown))
	for _, n := range shown {
		lines = append(lines, n+" ("+strings.Join(users[n], ", ")+")")
	}
	return fmt.Errorf("volumes of Keelson are used by pods (%d), which would wait for them until Keelson is installed again: %s. Delete those pods, or what makes them, first; or, knowing that, uninstall with --no-hooks",
		len(users), strings.Join(lines, "; "))
}
