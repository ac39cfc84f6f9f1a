package kubeview

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// program finds a program of the test cluster (test/e2e); without it the test is left out.
func program(t *testing.T, name string) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache directory: ", err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "keelson-kube", "bin", name+"-v*"))
	if len(found) == 0 {
		t.Skipf("there is no %s in %s: make e2e builds it", name, cache)
	}
	return found[len(found)-1]
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs a program until the test ends.
func start(t *testing.T, dir, path string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(dir, filepath.Base(path)+".log"))
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(path, args...)
	c.Dir, c.Stdout, c.Stderr = dir, log, log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if b, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("%s: …%s", path, b[max(0, len(b)-2000):])
		}
		log.Close()
	})
}

// realCluster is an API server of Kubernetes with an etcd of its own.
type realCluster struct {
	t    *testing.T
	port int
	http *http.Client
}

const testToken = "test-token"

func startCluster(t *testing.T, etcd, apiserver string) *realCluster {
	t.Helper()
	dir := t.TempDir()
	client, peer := freePort(t), freePort(t)
	etcdURL := fmt.Sprintf("http://127.0.0.1:%d", client)
	start(t, dir, etcd, "--data-dir="+dir+"/etcd", "--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL, "--unsafe-no-fsync",
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", peer))
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	for name, text := range map[string][]byte{"sa.key": pemKey, "tokens.csv": []byte(testToken + ",admin,1,system:masters\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := &realCluster{t: t, port: freePort(t), http: &http.Client{}}
	start(t, dir, apiserver, "--etcd-servers="+etcdURL, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", c.port), "--cert-dir="+dir+"/certs",
		"--token-auth-file="+dir+"/tokens.csv", "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+dir+"/sa.key", "--service-account-signing-key-file="+dir+"/sa.key", "--service-cluster-ip-range=10.96.0.0/16",
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--advertise-address=127.0.0.1")
	c.http.Transport = &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} // it signs its own certificate
	c.ready()
	return c
}

func (c *realCluster) ready() {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 90*time.Second)
	defer cancel()
	for {
		if code, _ := c.call(ctx, http.MethodGet, "/readyz", nil); code == http.StatusOK {
			return
		}
		select {
		case <-ctx.Done():
			c.t.Fatal("the API server doesn't become ready")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *realCluster) call(ctx context.Context, method, path string, body any) (int, string) {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("https://127.0.0.1:%d%s", c.port, path), bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+testToken)
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// put makes an object.
func (c *realCluster) put(path string, object any) {
	c.t.Helper()
	if code, text := c.call(c.t.Context(), http.MethodPost, path, object); code != http.StatusCreated {
		c.t.Fatalf("%s: %d %s", path, code, text)
	}
}

// fill gives the cluster a claim with a volume.
func (c *realCluster) fill(namespace, claim string) {
	c.t.Helper()
	x := &cluster{}
	p := x.claim(namespace, claim, driver)
	ns := corev1.Namespace{ObjectMeta: meta("", namespace)}
	c.put("/api/v1/namespaces", ns)
	pv := x.volumes[0]
	pv.Spec.AccessModes = p.Spec.AccessModes
	c.put("/api/v1/persistentvolumes", pv)
	p.Spec.Resources.Requests = pv.Spec.Capacity
	c.put("/api/v1/namespaces/"+namespace+"/persistentvolumeclaims", p)
}

// TestRealClusters asks two API servers of Kubernetes, and one that isn't there.
func TestRealClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("starts two API servers of Kubernetes")
	}
	etcd, apiserver := program(t, "etcd"), program(t, "kube-apiserver")
	a, b := startCluster(t, etcd, apiserver), startCluster(t, etcd, apiserver)
	a.fill("shop", "data-0")
	b.fill("blog", "posts")
	config := map[string]any{"apiVersion": "v1", "kind": "Config", "users": []any{map[string]any{"name": "u", "user": map[string]any{"token": testToken}},
		map[string]any{"name": "wrong", "user": map[string]any{"token": "wrong"}}}}
	var clusters, contexts []any
	add := func(name, user string, port int) {
		clusters = append(clusters, map[string]any{"name": name, "cluster": map[string]any{"server": fmt.Sprintf("https://127.0.0.1:%d", port), "insecure-skip-tls-verify": true}})
		contexts = append(contexts, map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": user}})
	}
	add("a", "u", a.port)
	add("b", "u", b.port)
	add("gone", "u", freePort(t))
	add("stranger", "wrong", a.port)
	config["clusters"], config["contexts"] = clusters, contexts
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	v := collect(t, Options{Kubeconfig: path, Timeout: 30 * time.Second, Now: time.Now()})
	if len(v.Rows) != 2 || v.Rows[0].Context != "a" || v.Rows[0].Claim != "data-0" || v.Rows[0].Handle != "handle-data-0" || v.Rows[1].Context != "b" || v.Rows[1].Namespace != "blog" {
		t.Errorf("rows: %+v", v.Rows)
	}
	away := v.Unreachable()
	if len(away) != 2 || away[0].Context != "gone" || away[1].Context != "stranger" {
		t.Errorf("unreachable: %+v", away)
	}
}
