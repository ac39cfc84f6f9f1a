package system

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"keelson.io/keelson/internal/pki"
	"keelson.io/keelson/internal/spec"
)

// secrets are what nobody but their holders may see, by what they are.
type secrets map[string]string

// token keeps the part of a token that is secret.
func (s secrets) token(what, text string) string {
	_, secret, _ := strings.Cut(strings.TrimSpace(text), ".")
	s[what] = secret
	return strings.TrimSpace(text)
}

// TestSecurity has people, programs and strangers at a running cluster, and looks in the end where their secrets went.
func TestSecurity(t *testing.T) {
	c := shared(t)
	v := c.create("safe", "--size", "64Mi", "--zone-spread")
	holder, other := v.members()[0].Node, v.members()[1].Node
	dev := c.attach(holder, "safe", "fuse")
	c.create("remote", "--size", "64Mi")
	c.attach("n1", "remote", "nbd")
	found := secrets{}
	sub := func(name string, f func(c *cluster)) {
		t.Run(name, func(t *testing.T) { f(c.in(t)) })
	}
	sub("roles", func(c *cluster) { c.roles(found) })
	sub("tokens that are no good", func(c *cluster) { c.badAPITokens(found) })
	sub("joining", func(c *cluster) { c.badJoinTokens(found) })
	sub("certificates of another CA", (*cluster).foreignCertificates)
	sub("sockets", (*cluster).socketsAreRoots)
	w := newWriter(t, 64<<20)
	for _, n := range []string{holder, other} {
		sub("strangers at the engine of "+role(n, holder, other), func(c *cluster) {
			w.t = c.T
			c.strangersAtEngine(n, dev, w)
		})
	}
	sub("secrets are nowhere", func(c *cluster) { c.nowhere(found) })
	c.remove("n1", "remote")
	c.remove(holder, "safe")
}

// as runs a command with an API token, by somebody who has no certificate, and returns its exit code and what it said.
func (c *cluster) as(token string, args ...string) (code int, said string) {
	c.T.Helper()
	full := append([]string{c.Binary(), "--data-dir", c.NodeDir("n1") + "/none", "--config", "/dev/null", "--server", c.Address("n1") + ":9500", "--token", token}, args...)
	cmd, err := c.Command(c.ctx(), "n1", full...)
	if err != nil {
		c.T.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.T.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// roles tries what each role may do, with the command of the role itself and that of all others.
func (c *cluster) roles(found secrets) {
	ranks := []string{"viewer", "operator", "admin"}
	tokens := map[string]string{}
	for _, r := range ranks {
		tokens[r] = found.token("API token of "+r, c.keelson("n1", "api-token", "create", "--role", r, "--ttl", "1h"))
	}
	var settings struct {
		RebuildAfter string `json:"rebuildAfter"`
	}
	if err := c.JSON(c.ctx(), "n1", &settings, "settings", "get"); err != nil {
		c.T.Fatal(err)
	}
	for _, x := range []struct {
		role string // the least that may
		code int    // what whoever may gets
		args string
	}{
		{"viewer", 0, "status"},
		{"viewer", 0, "node list"},
		{"viewer", 0, "node show n2"},
		{"viewer", 0, "pool list"},
		{"viewer", 0, "volume list"},
		{"viewer", 0, "volume show safe"},
		{"viewer", 0, "settings get"},
		{"viewer", 0, "events"},
		{"operator", conflict, "volume create safe --size 64Mi"},
		{"operator", conflict, "volume delete safe"},
		{"operator", notFound, "volume attach nosuch --node n1"},
		{"operator", notFound, "volume detach nosuch"},
		{"operator", notFound, "volume scrub nosuch"},
		{"operator", 0, "node cordon n3"},
		{"operator", 0, "node uncordon n3"},
		{"admin", notFound, "volume force-online nosuch --node n1 --accept-loss"},
		{"admin", usage, "pool add --node n1 --device /dev/nosuch"},
		{"admin", notFound, "node remove nosuch"},
		{"admin", 0, "settings set rebuild-after " + settings.RebuildAfter},
		{"admin", 0, "token list"},
		{"admin", notFound, "token delete 00000000000000aa"},
		{"admin", 0, "api-token list"},
		{"admin", notFound, "api-token revoke 00000000000000aa"},
		{"admin", 0, "audit"},
	} {
		for i, r := range ranks {
			code, said := c.as(tokens[r], strings.Fields(x.args)...)
			if i >= slices.Index(ranks, x.role) {
				if code != x.code {
					c.T.Errorf("%s: %s: exit code %d, want %d: %s", r, x.args, code, x.code, said)
				}
				continue
			}
			if code != denied || !strings.Contains(said, "may not do this") || !strings.Contains(said, "it takes a token with the role ") {
				c.T.Errorf("%s: %s: exit code %d: %s", r, x.args, code, said)
			}
		}
	}
	for _, what := range []string{"token", "api-token"} { // an administrator makes both, others neither
		args := map[string][]string{"token": {"token", "create"}, "api-token": {"api-token", "create", "--role", "viewer", "--ttl", "1h"}}[what]
		if code, said := c.as(tokens["operator"], args...); code != denied {
			c.T.Errorf("an operator makes a %s: %d: %s", what, code, said)
		}
		code, said := c.as(tokens["admin"], args...)
		if code != 0 {
			c.T.Errorf("an admin makes a %s: %d: %s", what, code, said)
		}
		found.token(what+" of the admin", said)
	}
	if code, said := c.as(tokens["admin"], "audit", "-o", "json"); code != 0 || !strings.Contains(said, "api-token/operator/") || !strings.Contains(said, "CordonNode") {
		c.T.Errorf("the audit log doesn't say what the operator did: %d: %.500s", code, said)
	}
}

// badAPITokens are refused, each with its reason.
func (c *cluster) badAPITokens(found secrets) {
	good := found.token("API token to be revoked", c.keelson("n1", "api-token", "create", "--role", "admin"))
	if code, said := c.as(good, "status"); code != 0 {
		c.T.Fatalf("%d: %s", code, said)
	}
	id := strings.Split(strings.Split(good, "::")[1], ".")[0]
	c.keelson("n2", "api-token", "revoke", id)
	brief := found.token("API token that expires", c.keelson("n1", "api-token", "create", "--role", "admin", "--ttl", "1s"))
	time.Sleep(1200 * time.Millisecond) // until it has expired
	live := found.token("API token", c.keelson("n1", "api-token", "create", "--role", "admin"))
	ca, err := pki.NewCA("00000000000000aa")
	if err != nil {
		c.T.Fatal(err)
	}
	foreign, _ := pki.NewAPIToken(ca.Cert, "x", spec.RoleAdmin, time.Hour, time.Now())
	for _, x := range []struct{ what, token, says string }{
		{"revoked", good, "revoked"},
		{"expired", brief, "has expired"},
		{"wrong", live[:len(live)-8] + "00000000", "wrong"},
		{"of another cluster", found.token("API token of another cluster", foreign.String()), "another cluster"},
		{"a join token", found.token("join token", c.keelson("n1", "token", "create")), "no API token"},
		{"nonsense", "nonsense", "no API token"},
	} {
		for _, args := range [][]string{{"status"}, {"volume", "delete", "safe"}} {
			if code, said := c.as(x.token, args...); code != denied || !strings.Contains(said, x.says) {
				c.T.Errorf("a token that is %s: %v: exit code %d: %s", x.what, args, code, said)
			}
		}
	}
}

// badJoinTokens let nobody in: each refused node says why, and ends so that it isn't started again.
func (c *cluster) badJoinTokens(found secrets) {
	url := "https://" + c.Address("n1") + ":9500"
	deleted := found.token("join token that was deleted", c.keelson("n1", "token", "create"))
	c.keelson("n2", "token", "delete", strings.Split(strings.Split(deleted, "::")[1], ".")[0])
	brief := found.token("join token that expires", c.keelson("n1", "token", "create", "--ttl", "1s"))
	live := found.token("join token that is altered", c.keelson("n1", "token", "create"))
	ca, err := pki.NewCA("00000000000000aa")
	if err != nil {
		c.T.Fatal(err)
	}
	foreign, _ := pki.NewToken(ca.Cert, []spec.Role{spec.RoleStorage}, time.Hour, time.Now())
	time.Sleep(1200 * time.Millisecond) // until the brief one has expired
	for _, x := range []struct{ what, token, says string }{
		{"deleted", deleted, "was deleted"},
		{"expired", brief, "has expired"},
		{"wrong", live[:len(live)-8] + "00000000", "wrong"},
		{"of another cluster", found.token("join token of another cluster", foreign.String()), "another cluster"},
		{"an API token", found.token("API token for joining", c.keelson("n1", "api-token", "create", "--role", "admin")), "join token"},
	} {
		code, said := c.server("stranger", map[string]any{"join": map[string]any{"url": url, "token": x.token}})
		if code != permanent || !strings.Contains(said, x.says) {
			c.T.Errorf("a token that is %s: exit code %d: %s", x.what, code, said)
		}
		for what, s := range found {
			if strings.Contains(said, s) {
				c.T.Errorf("a token that is %s: what is said has the secret: %s", x.what, what)
			}
		}
	}
	if nodes := c.keelson("n1", "node", "list"); strings.Contains(nodes, "stranger") {
		c.T.Errorf("refused nodes are listed: %s", nodes)
	}
}

// foreign is a certificate that says it is a node of this cluster, signed by a CA that isn't the cluster's.
func (c *cluster) foreign() tls.Certificate {
	c.T.Helper()
	real, err := pki.Dir(filepath.Join(c.NodeDir("n1"), "data", "pki")).LoadPair(pki.NodePair)
	if err != nil {
		c.T.Fatal(err)
	}
	id, err := pki.IdentityOf(real.Cert)
	if err != nil {
		c.T.Fatal(err)
	}
	ca, err := pki.NewCA(id.Cluster)
	if err != nil {
		c.T.Fatal(err)
	}
	p, err := ca.NewPair(id, []string{c.Address("n1")})
	if err != nil {
		c.T.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{p.Cert.Raw}, PrivateKey: p.Key}
}

// knock makes a TLS connection, says something, and returns what became of it: nil if the other side answered.
func knock(addr string, certs []tls.Certificate, say []byte) error {
	d := &net.Dialer{Timeout: 5 * time.Second}
	conn, err := tls.DialWithDialer(d, "tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: certs, MinVersion: tls.VersionTLS12})
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(say); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// foreignCertificates are refused at all ports of all nodes.
func (c *cluster) foreignCertificates() {
	cert := c.foreign()
	for _, n := range c.Nodes() {
		for _, port := range []string{"9501", "9502", "9503"} {
			for who, certs := range map[string][]tls.Certificate{"nobody": nil, "a stranger": {cert}} {
				if err := knock(c.Address(n)+":"+port, certs, []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err == nil {
					c.T.Errorf("port %s of %s answers %s", port, n, who)
				}
			}
		}
		if err := knock(c.Address(n)+":9500", []tls.Certificate{cert}, []byte("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")); err == nil {
			c.T.Errorf("the API of %s answers a stranger", n)
		}
	}
}

// socketsAreRoots: whoever isn't root can't talk to any socket of a node, nor read what only root should.
func (c *cluster) socketsAreRoots() {
	for _, n := range c.Nodes() {
		// As the node sees them: what it mounted is there.
		sockets := strings.Fields(c.shell(n, fmt.Sprintf("find %[1]s/run %[1]s/data -xdev -type s", c.NodeDir(n))))
		if len(sockets) == 0 {
			c.T.Errorf("%s has no socket: nothing was looked at", n)
		}
		for _, s := range sockets {
			if got := c.shell(n, "stat -c '%a %u' "+s); !strings.HasSuffix(got, "00 0") {
				c.T.Errorf("%s: %s has the permissions and owner %s", n, s, got)
			}
			if _, err := c.tryShell(n, "setpriv --reuid=65534 --regid=65534 --clear-groups test -w "+s); err == nil {
				c.T.Errorf("%s: nobody can write to %s", n, s)
			}
		}
		// A socket without a file, which begins with @, can be used by everybody in the network namespace.
		if abstract, err := c.tryShell(n, "grep ' @' /proc/net/unix"); err == nil {
			c.T.Errorf("%s has sockets that anybody can use: %s", n, abstract)
		}
		open := c.shell(n, fmt.Sprintf("find %[1]s/data %[1]s/run %[1]s/keelson.yaml -xdev -type f | "+
			"setpriv --reuid=65534 --regid=65534 --clear-groups sh -c 'while read f; do if test -r $f || test -w $f; then echo $f; fi; done'", c.NodeDir(n)))
		if open != "" {
			c.T.Errorf("%s: nobody can read or write %s", n, open)
		}
	}
}

// strangersAtEngine has strangers at a node's engine port while the volume is written to: they are refused, the log isn't
// filled by it, and the volume notices nothing.
func (c *cluster) strangersAtEngine(node, dev string, w *writer) {
	addr := c.Address(node) + ":9501"
	before := c.volume(node, "safe")
	dir := pki.Dir(filepath.Join(c.NodeDir("n3"), "data", "pki"))
	own, err := dir.LoadPair(pki.NodePair)
	if err != nil {
		c.T.Fatal(err)
	}
	real := []tls.Certificate{{Certificate: [][]byte{own.Cert.Raw}, PrivateKey: own.Key}}
	foreign := []tls.Certificate{c.foreign()}
	garbage := bytes.Repeat([]byte{0xff, 0, 0x4b, 0x4c}, 1024)
	offset := len(c.log(node))
	w.start(dev)
	began, tries := time.Now(), 0
	for ; time.Since(began) < 6*time.Second; tries++ {
		var err error
		switch tries % 4 {
		case 0:
			err = plainGarbage(addr, garbage)
		case 1:
			err = knock(addr, nil, garbage)
		case 2:
			err = knock(addr, foreign, garbage)
		case 3: // a node that talks nonsense
			err = knock(addr, real, garbage)
		}
		if err == nil {
			c.T.Errorf("stranger %d got an answer", tries%4)
		}
	}
	took := time.Since(began)
	if err := w.halt(); err != nil {
		c.T.Errorf("whoever uses the volume saw: %v", err)
	}
	if w.total() == 0 {
		c.T.Error("nothing was written")
	}
	w.verify(dev)
	if after := c.volume(node, "safe"); after.Term != before.Term || after.Health != "Healthy" {
		c.T.Errorf("before: %v; after: %v", before, after)
	}
	log := string(c.log(node)[offset:])
	lines := strings.Count(log, "refused a connection")
	c.T.Logf("%d strangers in %.1f s, %d lines in the log, %d writes", tries, took.Seconds(), lines, w.total())
	if limit := int(took.Seconds()) + 2; lines == 0 || lines > limit || tries < limit {
		c.T.Errorf("%d lines for %d strangers; they should be at least one, and at most %d", lines, tries, limit)
	}
	if strings.Contains(log, "panic") || strings.Contains(log, "goroutine ") {
		c.T.Errorf("the log: %s", log)
	}
}

// plainGarbage sends without TLS, and returns how the connection ended: nil if the other side answered. An alert of TLS is no answer.
func plainGarbage(addr string, say []byte) error {
	conn, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(say); err != nil {
		return err
	}
	for b := make([]byte, 1024); ; {
		if _, err := conn.Read(b); err != nil {
			return err
		}
		if b[0] != 0x15 {
			return nil
		}
	}
}

func (c *cluster) log(node string) []byte {
	c.T.Helper()
	b, err := os.ReadFile(filepath.Join(c.NodeDir(node), "server.log"))
	if err != nil {
		c.T.Fatal(err)
	}
	return b
}

// nowhere looks for secrets in the metadata, in all files of all nodes, and in what the system shows of their processes.
func (c *cluster) nowhere(found secrets) {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(c.NodeDir("n1")), "token"))
	if err != nil {
		c.T.Fatal(err)
	}
	found.token("join token of the lab", string(b))
	for _, n := range c.Nodes() {
		keys, err := filepath.Glob(filepath.Join(c.NodeDir(n), "data", "pki", "*.key"))
		if err != nil || len(keys) == 0 {
			c.T.Fatalf("%s has no keys: %v", n, err)
		}
		for _, k := range keys {
			b, err := os.ReadFile(k)
			if err != nil {
				c.T.Fatal(err)
			}
			found[filepath.Base(k)+" of "+n] = strings.Split(string(b), "\n")[1] // of the PEM: no header, a line of base64
		}
	}
	for what, s := range found {
		if len(s) < 32 {
			c.T.Fatalf("%s: %q is no secret", what, s)
		}
	}
	look := func(where string, b []byte) {
		for what, s := range found {
			if bytes.Contains(b, []byte(s)) {
				c.T.Errorf("%s has the secret: %s", where, what)
			}
		}
	}
	all := c.metadata()
	for _, kv := range all {
		look("the metadata's key "+string(kv[0]), kv[0])
		look("the metadata's key "+string(kv[0]), kv[1])
	}
	files, processes := 0, 0
	for _, n := range c.Status() {
		for name, pid := range n.PIDs {
			for _, f := range []string{"cmdline", "environ"} {
				b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, f))
				if err != nil {
					c.T.Errorf("%s of %s: %v", name, n.Name, err)
				}
				look(f+" of "+name+" of "+n.Name, b)
			}
			processes++
		}
		err := filepath.WalkDir(c.NodeDir(n.Name), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // it has just been removed
			}
			if err != nil || !d.Type().IsRegular() || filepath.Base(filepath.Dir(p)) == "pki" || d.Name() == "pool.img" {
				return err
			}
			b, err := os.ReadFile(p)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			look(p, b)
			files++
			return nil
		})
		if err != nil {
			c.T.Error(err)
		}
	}
	c.T.Logf("%d secrets, %d keys of the metadata, %d files, %d processes", len(found), len(all), files, processes)
	if len(all) < 10 || files < 9 || processes < 9 {
		c.T.Error("too little was looked at")
	}
}

// metadata returns all that etcd holds.
func (c *cluster) metadata() (out [][2][]byte) {
	c.T.Helper()
	client := c.etcd()
	defer client.Close()
	r, err := client.Get(c.ctx(), "\x00", clientv3.WithFromKey())
	if err != nil {
		c.T.Fatal(err)
	}
	for _, kv := range r.Kvs {
		out = append(out, [2][]byte{kv.Key, kv.Value})
	}
	return out
}
