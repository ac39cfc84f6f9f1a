// Package pki is the cluster's certificates: its own CA, the identity of each node, the tokens by which machines join,
// and those by which people and programs call the API. Everything between nodes is TLS 1.3 with certificates of this CA on
// both sides. Only nodes have certificates.
//
// A certificate says what it is by a URI: keelson://<cluster id>/node/<name>. A peer is accepted only if its
// certificate was signed by the cluster's CA and names the cluster and a node of it.
//
// Certificates are valid from an hour (and a bit) before they were made, so a machine whose clock is wrong by an hour can
// still join. The package owns no goroutine; files are written whole or not at all.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"
)

// How long certificates are valid.
const (
	caValid   = 10 * 365 * 24 * time.Hour
	nodeValid = 365 * 24 * time.Hour
	// RenewBefore is how long before its end a node's certificate should be replaced.
	RenewBefore = 60 * 24 * time.Hour
	backdated   = 2 * time.Hour
)

// Errors. Test with errors.Is.
var (
	// ErrOtherCluster: the certificate, or token, belongs to another cluster.
	ErrOtherCluster = errors.New("of another cluster")
	// ErrNotKeelson: the certificate doesn't name a node of a cluster.
	ErrNotKeelson = errors.New("not a certificate of a Keelson cluster")
)

// Role is what a certificate lets its holder be.
type Role string

// RoleNode is the only role of certificates.
const RoleNode Role = "node"

// Identity is who a certificate names.
type Identity struct {
	Cluster string // id
	Role    Role
	Node    string
}

func (id Identity) uri() *url.URL {
	return &url.URL{Scheme: "keelson", Host: id.Cluster, Path: "/" + string(id.Role) + "/" + id.Node}
}

// IdentityOf reads who a certificate names. The error is ErrNotKeelson.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	for _, u := range cert.URIs {
		if u.Scheme != "keelson" || u.Host == "" {
			continue
		}
		parts := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
		if len(parts) == 2 && parts[0] == string(RoleNode) && parts[1] != "" {
			return Identity{Cluster: u.Host, Role: RoleNode, Node: parts[1]}, nil
		}
	}
	return Identity{}, fmt.Errorf("%w (subject %q)", ErrNotKeelson, cert.Subject)
}

// CA signs the certificates of one cluster, and says whom its nodes trust.
type CA struct {
	Cert *x509.Certificate // of the CA that signs
	Key  crypto.Signer     // of Cert; nil where it isn't kept
	// Others are trusted too, and Cross are certificates of Cert by others: both only while the cluster changes from one CA to another.
	Others, Cross []*x509.Certificate
	// NodeValid is how long the certificates that it signs are valid; 0 is a year.
	NodeValid time.Duration
}

// NewCA makes the CA of a new cluster.
func NewCA(cluster string) (*CA, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := template(pkix.Name{CommonName: "Keelson CA " + cluster}, caValid)
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	cert, err := sign(tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{Cert: cert, Key: key}, nil
}

func template(subject pkix.Name, valid time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand doesn't fail
	}
	now := time.Now()
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now.Add(-backdated), NotAfter: now.Add(valid)}
}

func sign(tmpl, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Hash is how join tokens name a CA: the SHA-256 of its certificate, in hex.
func Hash(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.Raw)
	return hex.EncodeToString(sum[:])
}

// Pair is a certificate with its key.
type Pair struct {
	Cert *x509.Certificate
	Key  crypto.Signer
}

// NewPair makes a key and signs a certificate for it. hosts are the DNS names and addresses of a node.
func (ca *CA) NewPair(id Identity, hosts []string) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return ca.Renew(id, hosts, key)
}

// Renew signs a new certificate for a key that there is already.
func (ca *CA) Renew(id Identity, hosts []string, key crypto.Signer) (*Pair, error) {
	cert, err := ca.issue(id, hosts, key.Public())
	if err != nil {
		return nil, err
	}
	return &Pair{Cert: cert, Key: key}, nil
}

func (ca *CA) issue(id Identity, hosts []string, pub crypto.PublicKey) (*x509.Certificate, error) {
	valid := ca.NodeValid
	if valid == 0 {
		valid = nodeValid
	}
	tmpl := template(pkix.Name{CommonName: id.Node, Organization: []string{"keelson:" + string(id.Role)}}, valid)
	tmpl.URIs = []*url.URL{id.uri()}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	tmpl.DNSNames = []string{id.Node}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if h != id.Node {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	return sign(tmpl, ca.Cert, pub, ca.Key)
}

// NewRequest makes a key and a certificate signing request for a node that joins. hosts are its names and addresses.
func NewRequest(node string, hosts []string) (key crypto.Signer, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	csr, err = RequestFor(k, node, hosts)
	return k, csr, err
}

// RequestFor makes a certificate signing request for a key that the node has already.
func RequestFor(key crypto.Signer, node string, hosts []string) (csr []byte, err error) {
	req := &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			req.IPAddresses = append(req.IPAddresses, ip)
		} else {
			req.DNSNames = append(req.DNSNames, h)
		}
	}
	return x509.CreateCertificateRequest(rand.Reader, req, key)
}

// SignRequest signs the request of a node that joins the cluster under the name in the request.
func (ca *CA) SignRequest(cluster string, csr []byte) (*x509.Certificate, error) {
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	hosts := append([]string(nil), req.DNSNames...)
	for _, ip := range req.IPAddresses {
		hosts = append(hosts, ip.String())
	}
	return ca.issue(Identity{Cluster: cluster, Role: RoleNode, Node: req.Subject.CommonName}, hosts, req.PublicKey)
}

// NeedsRenewal reports whether a certificate ends within before, and so should be replaced by now.
func NeedsRenewal(cert *x509.Certificate, now time.Time, before time.Duration) bool {
	return now.After(cert.NotAfter.Add(-before))
}

// EncodeCert and EncodeKey write PEM; ParseCert and ParseKey read it.
func EncodeCert(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// EncodeKey writes a private key as PKCS #8 in PEM.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseCert reads the first certificate in PEM.
func ParseCert(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// ParseKey reads a private key, PKCS #8 in PEM.
func ParseKey(b []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", key)
	}
	return signer, nil
}
