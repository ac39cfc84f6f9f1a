package pki

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Files of a node, in <data directory>/pki. The CA's key is on metadata nodes only, so that any of them can let others join.
const (
	caCertFile   = "ca.crt" // all that are trusted; the first is the one that signs
	caKeyFile    = "ca.key"
	caNextFile   = "ca-next.key" // of the CA to which the cluster changes
	caFormerFile = "ca-former"   // hashes of CAs that were trusted once
)

// NodePair is the name of a node's pair in its Dir.
const NodePair = "node"

// Dir is the directory that holds a node's certificates.
type Dir string

// Path returns the path of one of its files, such as "ca.crt", "node.crt" or "node.key".
func (d Dir) Path(name string) string { return filepath.Join(string(d), name) }

// write replaces a file atomically. Only root reads it.
func (d Dir) write(name string, b []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(string(d), "."+name+"-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(b)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), d.Path(name)); err != nil {
		return err
	}
	return d.sync()
}

func (d Dir) sync() error {
	dir, err := os.Open(string(d))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// SaveCA writes the CA's certificates, and its key if there is one.
func (d Dir) SaveCA(ca *CA) error {
	if ca.Key != nil {
		key, err := EncodeKey(ca.Key)
		if err != nil {
			return err
		}
		if err := d.write(caKeyFile, key); err != nil {
			return err
		}
	}
	return d.SaveTrust(ca)
}

// LoadCA reads the CA; its Key is nil where only the certificate is kept.
func (d Dir) LoadCA() (*CA, error) {
	b, err := os.ReadFile(d.Path(caCertFile))
	if err != nil {
		return nil, err
	}
	ca, err := ParseCA(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(caCertFile), err)
	}
	keys, err := d.Keys()
	if err != nil || len(keys) == 0 {
		return ca, err
	}
	ours := false
	for _, k := range keys {
		for _, c := range ca.Roots() {
			ours = ours || belongs(c, k)
		}
		if belongs(ca.Cert, k) {
			ca.Key = k
		}
	}
	if !ours {
		return nil, fmt.Errorf("%s and %s don't belong together", d.Path(caCertFile), d.Path(caKeyFile))
	}
	return ca, nil
}

// SavePair writes a certificate and its key as <name>.crt and <name>.key. The key comes first: with the
// certificate there, the pair is whole.
func (d Dir) SavePair(name string, p *Pair) error {
	key, err := EncodeKey(p.Key)
	if err != nil {
		return err
	}
	if err := d.write(name+".key", key); err != nil {
		return err
	}
	return d.write(name+".crt", EncodeCert(p.Cert))
}

// SaveCert replaces the certificate of a pair by another one for the same key. One file changes, so that a
// crash or a reader at any moment finds a whole pair: that is why a renewed certificate keeps its key.
func (d Dir) SaveCert(name string, cert *x509.Certificate) error {
	p, err := d.LoadPair(name)
	if err != nil {
		return err
	}
	if !belongs(cert, p.Key) {
		return fmt.Errorf("the new certificate isn't for the key in %s", d.Path(name+".key"))
	}
	return d.write(name+".crt", EncodeCert(cert))
}

// LoadPair reads a certificate and its key.
func (d Dir) LoadPair(name string) (*Pair, error) {
	crt, err := os.ReadFile(d.Path(name + ".crt"))
	if err != nil {
		return nil, err
	}
	cert, err := ParseCert(crt)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(name+".crt"), err)
	}
	k, err := os.ReadFile(d.Path(name + ".key"))
	if err != nil {
		return nil, err
	}
	key, err := ParseKey(k)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.Path(name+".key"), err)
	}
	if !belongs(cert, key) {
		return nil, fmt.Errorf("%s and %s don't belong together", d.Path(name+".crt"), d.Path(name+".key"))
	}
	return &Pair{Cert: cert, Key: key}, nil
}

// belongs reports whether a certificate is for a key.
func belongs(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}
