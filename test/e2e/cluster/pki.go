package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// The API server's users, by token: the person, the control plane's parts, and the nodes.
const adminToken = "e2e-admin"

func (n *Node) token() string { return "e2e-" + n.Name }

// pki writes the CA, the API server's certificate, the key of service accounts, and the users' tokens.
func (c *Cluster) pki() error {
	if err := os.MkdirAll(c.path("pki"), 0o700); err != nil {
		return err
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "keelson-e2e"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	api := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "kube-apiserver"},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.ParseIP(hostIP), net.ParseIP("127.0.0.1"), net.ParseIP(serviceIP)},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
	}
	apiKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	saKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tokens := fmt.Sprintf("%s,admin,admin,system:masters\n", adminToken)
	for _, n := range c.Nodes {
		tokens += fmt.Sprintf("%s,system:node:%s,%s,system:nodes\n", n.token(), n.Name, n.Name)
	}
	return errors.Join(
		c.writeCert("ca.crt", ca, ca, &caKey.PublicKey, caKey),
		c.writeCert("api.crt", api, ca, &apiKey.PublicKey, caKey),
		c.writeKey("api.key", apiKey),
		c.writeKey("sa.key", saKey),
		os.WriteFile(c.path("pki", "tokens.csv"), []byte(tokens), 0o600),
		c.writeKubeconfig(c.Kubeconfig(), adminToken),
	)
}

func (c *Cluster) writeCert(name string, cert, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) error {
	der, err := x509.CreateCertificate(rand.Reader, cert, parent, pub, key)
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("pki", name), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}

func (c *Cluster) writeKey(name string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return os.WriteFile(c.path("pki", name), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600)
}

// Kubeconfig is the path of the administrator's.
func (c *Cluster) Kubeconfig() string { return c.path("kubeconfig") }

func (c *Cluster) writeKubeconfig(path, token string) error {
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters:
- name: e2e
  cluster: {server: "https://%s:%d", certificate-authority: %s}
users:
- name: e2e
  user: {token: %s}
contexts:
- name: e2e
  context: {cluster: e2e, user: e2e}
current-context: e2e
`, hostIP, apiPort, c.path("pki", "ca.crt"), token)
	return os.WriteFile(path, []byte(text), 0o600)
}
