package kubeview

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"keelson.io/keelson/hack/kube/kubetest"
)

// realCluster is an API server of Kubernetes with an etcd of its own.
type realCluster struct {
	*kubetest.Server
	t *testing.T
}

func startCluster(t *testing.T) *realCluster {
	t.Helper()
	return &realCluster{Server: kubetest.Start(t, kubetest.Options{}), t: t}
}

func (c *realCluster) call(ctx context.Context, method, path string, body any) (int, string) {
	c.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		c.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(ctx, method, c.URL+path, bytes.NewReader(b))
	if err != nil {
		c.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+kubetest.AdminToken)
	r.Header.Set("Content-Type", "application/json")
	resp, err := c.Client.Do(r)
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
	a, b := startCluster(t), startCluster(t)
	a.fill("shop", "data-0")
	b.fill("blog", "posts")
	config := map[string]any{"apiVersion": "v1", "kind": "Config", "users": []any{map[string]any{"name": "u", "user": map[string]any{"token": kubetest.AdminToken}},
		map[string]any{"name": "wrong", "user": map[string]any{"token": "wrong"}}}}
	var clusters, contexts []any
	add := func(name, user, url string) {
		clusters = append(clusters, map[string]any{"name": name, "cluster": map[string]any{"server": url, "insecure-skip-tls-verify": true}})
		contexts = append(contexts, map[string]any{"name": name, "context": map[string]any{"cluster": name, "user": user}})
	}
	add("a", "u", a.URL)
	add("b", "u", b.URL)
	add("gone", "u", fmt.Sprintf("https://127.0.0.1:%d", kubetest.FreePort(t)))
	add("stranger", "wrong", a.URL)
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
