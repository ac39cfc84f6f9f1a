package kubetest

import (
	"cmp"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// AdminToken is the token of a user who may do everything, on every Server.
const AdminToken = "admin-token"

// startLimit is how long an API server may take until it is ready.
const startLimit = 90 * time.Second

// Options are what differs between the API servers of tests.
type Options struct {
	// Host is the IP address at which the API server listens; 127.0.0.1 if empty. etcd is at 127.0.0.1 in any case.
	Host string
	// Tokens are of more users, who may do nothing yet: token to name.
	Tokens map[string]string
}

// Server is an API server of Kubernetes that authorizes by RBAC. It has no controllers, no scheduler and no kubelets.
type Server struct {
	// URL is where it is: https, with a certificate that it signed itself.
	URL string
	// Client doesn't ask who signed the server's certificate.
	Client *http.Client
}

// Start starts etcd and an API server until the test ends, and returns when it is ready. The test is skipped where they haven't been built.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	apiserver, etcd := Program(t, "kube-apiserver"), Program(t, "etcd")
	dir := t.TempDir()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keyFile := write(t, dir, "sa.key", string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
	var tokens strings.Builder
	fmt.Fprintf(&tokens, "%s,admin,admin,system:masters\n", AdminToken)
	for token, user := range o.Tokens {
		fmt.Fprintf(&tokens, "%s,%s,%s\n", token, user, user)
	}
	host := cmp.Or(o.Host, "127.0.0.1")
	client, peer, port := FreePort(t), FreePort(t), FreePort(t)
	at := func(p int) string { return fmt.Sprintf("http://127.0.0.1:%d", p) }
	Run(t, etcd, "--data-dir="+filepath.Join(dir, "etcd"), "--listen-client-urls="+at(client), "--advertise-client-urls="+at(client),
		"--listen-peer-urls="+at(peer), "--initial-advertise-peer-urls="+at(peer), "--initial-cluster=default="+at(peer), "--unsafe-no-fsync")
	Run(t, apiserver, "--etcd-servers="+at(client), "--bind-address="+host, "--advertise-address="+host, fmt.Sprintf("--secure-port=%d", port),
		"--cert-dir="+filepath.Join(dir, "certs"), "--token-auth-file="+write(t, dir, "tokens.csv", tokens.String()), "--authorization-mode=RBAC",
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile,
		"--service-cluster-ip-range=10.96.0.0/16", "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition", "--endpoint-reconciler-type=none")
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	t.Cleanup(transport.CloseIdleConnections)
	s := &Server{URL: fmt.Sprintf("https://%s:%d", host, port), Client: &http.Client{Transport: transport}}
	s.wait(t)
	return s
}

// wait returns when the server is ready.
func (s *Server) wait(t testing.TB) {
	t.Helper()
	for end := time.Now().Add(startLimit); ; time.Sleep(100 * time.Millisecond) {
		err := s.ready(t)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the API server isn't ready after %s: %v", startLimit, err)
		}
	}
}

func (s *Server) ready(t testing.TB) error {
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/readyz", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", "Bearer "+AdminToken)
	resp, err := s.Client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz says %s", resp.Status)
	}
	return nil
}

// Kubeconfig writes a file for programs that may do everything.
func (s *Server) Kubeconfig(t testing.TB) string {
	t.Helper()
	return write(t, t.TempDir(), "kubeconfig", fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: %q, insecure-skip-tls-verify: true}}], users: [{name: u, user: {token: %s}}]}`, s.URL, AdminToken))
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
