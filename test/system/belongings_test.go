package system

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/pki"
)

// belongings lists what the nodes have that volumes could leave behind: mounts and loop devices in the
// kernel, sockets, and keys in the metadata.
func (c *cluster) belongings() string {
	c.T.Helper()
	var b strings.Builder
	for _, n := range c.Nodes() {
		fmt.Fprintf(&b, "%s: %s\n", n, c.shell(n, "awk '{print $5, $9}' /proc/self/mountinfo | grep -v ' proc' | sort; find "+c.NodeDir(n)+"/run -type s | sort"))
	}
	b.WriteString(c.shell("n1", "losetup -l -n -O BACK-FILE | grep "+filepath.Dir(c.NodeDir("n1"))+" | sort"))
	b.WriteString("\n" + strings.Join(c.keys(), "\n"))
	return b.String()
}

// etcd returns a client of the metadata, with the certificate of n1.
func (c *cluster) etcd() *clientv3.Client {
	c.T.Helper()
	dir := pki.Dir(filepath.Join(c.NodeDir("n1"), "data", "pki"))
	ca, err := dir.LoadCA()
	if err != nil {
		c.T.Fatal(err)
	}
	pair, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		c.T.Fatal(err)
	}
	tls, err := pki.ClientTLS(ca.Trust, pair, "")
	if err != nil {
		c.T.Fatal(err)
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"https://" + c.Address("n1") + ":9502"}, TLS: tls, DialTimeout: 5 * time.Second})
	if err != nil {
		c.T.Fatal(err)
	}
	return client
}

// keys lists the keys of the metadata that don't come and go with leases.
func (c *cluster) keys() []string {
	c.T.Helper()
	client := c.etcd()
	defer client.Close()
	r, err := client.Get(c.ctx(), "", clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		c.T.Fatal(err)
	}
	var out []string
	for _, kv := range r.Kvs {
		if k := string(kv.Key); kv.Lease == 0 {
			out = append(out, k)
		}
	}
	return out
}

// openFiles counts the descriptors of each daemon of each node: what leaks there, or what a
// goroutine that never ends holds.
func (c *cluster) openFiles() map[string]int {
	out := map[string]int{}
	for _, n := range c.Status() {
		for name, pid := range n.PIDs {
			fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err == nil {
				out[n.Name+" "+name] = len(fds)
			}
		}
	}
	return out
}
