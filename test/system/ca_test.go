package system

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"keelson.io/keelson/internal/pki"
)

// caStatus is what `keelson ca show` says.
type caStatus struct {
	Current, Phase, Next string
	Nodes                []struct {
		Node, Issuer, Waits string
		Alive               bool
		Trusts              []string
	}
}

// TestCAIsReplacedUnderLoad changes the cluster's CA under verified load on a volume with copies on two nodes, and crashes a third node, which
// holds the metadata, in the middle: the change waits for it, and goes on when it is back. Nobody is disconnected.
func TestCAIsReplacedUnderLoad(t *testing.T) {
	c := shared(t)
	v := c.create("trust", "--size", "64Mi", "--zone-spread")
	holder := v.members()[0].Node
	spare := "n1"
	for _, n := range c.Nodes() {
		if n != holder && n != v.members()[1].Node {
			spare = n
		}
	}
	dev := c.attach(holder, "trust", "fuse")
	load := c.fio(holder, dev)
	before := c.ca(holder)
	old := c.certificate(holder)
	token := strings.TrimSpace(c.keelson(holder, "api-token", "create", "--role", "viewer", "--name", "before"))

	c.keelson(holder, "ca", "rotate")
	if err := c.Kill(spare); err != nil {
		t.Fatal(err)
	}
	next := c.ca(holder).Next
	if next == "" || next == before.Current {
		t.Fatalf("%+v", c.ca(holder))
	}
	c.Eventually(30*time.Second, "the others trust the new CA, and "+spare+" is waited for", func() error {
		st := c.ca(holder)
		for _, n := range st.Nodes {
			if n.Node == spare && (n.Alive || n.Waits == "" || st.Phase == "retire") || n.Node != spare && !slices.Contains(n.Trusts, next) {
				return fmt.Errorf("%+v", st)
			}
		}
		return nil
	})
	lost := c.lostLinks()
	if err := c.Start(spare); err != nil {
		t.Fatal(err)
	}
	c.Eventually(60*time.Second, "the CA is changed", func() error {
		st := c.ca(holder)
		if st.Phase != "" || st.Current != next {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	if err := load.running(); err != nil {
		t.Fatal(err)
	}
	if now := c.lostLinks(); now != lost {
		t.Errorf("connections between engines were lost: %d lines in the logs, %d before", now, lost)
	}
	for _, n := range c.Nodes() {
		c.hasCA(n, next)
		c.serves(n, old)
	}
	if out, err := c.Keelson(c.ctx(), holder, "--server", c.Address(spare), "--token", token, "node", "list"); err == nil {
		t.Errorf("a token that names the old CA is good yet: %s", out)
	}
	token = strings.TrimSpace(c.keelson(holder, "api-token", "create", "--role", "viewer", "--name", "after"))
	c.keelson(holder, "--server", c.Address(spare), "--token", token, "node", "list")
	// What starts now trusts the new CA alone.
	for _, victim := range [][2]string{{v.members()[1].Node, "engine"}, {holder, "control"}, {spare, "etcd"}} {
		if err := c.KillProcess(victim[0], victim[1]); err != nil {
			t.Fatal(err)
		}
	}
	c.awaitHealthy(holder, "trust", 60*time.Second)
	if err := load.stop(); err != nil {
		t.Errorf("whoever uses the volume saw: %v", err)
	}
	c.remove(holder, "trust")
}

func (c *cluster) ca(node string) (st caStatus) {
	c.T.Helper()
	c.Eventually(20*time.Second, "the CA is shown", func() error { return c.JSON(c.ctx(), node, &st, "ca", "show") })
	return st
}

// hasCA looks at a node's files: that CA is the only one there, with its key and no other, and has signed the node's certificate.
func (c *cluster) hasCA(node, hash string) {
	c.T.Helper()
	dir := pki.Dir(filepath.Join(c.NodeDir(node), "data", "pki"))
	ca, err := dir.LoadCA()
	if err != nil {
		c.T.Fatal(err)
	}
	keys, err := dir.Keys()
	if err != nil {
		c.T.Fatal(err)
	}
	if pki.Hash(ca.Cert) != hash || len(ca.Others)+len(ca.Cross) > 0 || ca.Key == nil || len(keys) != 1 {
		c.T.Errorf("%s trusts %d CAs, and has %d keys", node, len(ca.Roots()), len(keys))
	}
	if ca.Issuer(c.certificate(node)) != hash {
		c.T.Errorf("the certificate of %s is of another CA", node)
	}
	b, err := os.ReadFile(filepath.Join(c.NodeDir(node), "run", "etcd-ca.crt"))
	if err != nil {
		c.T.Fatal(err)
	}
	if peers, err := pki.ParseCA(b); err != nil || !peers.Cert.Equal(ca.Cert) || len(peers.Others) > 0 {
		c.T.Errorf("the metadata member of %s trusts others: %v", node, err)
	}
}
